"""`ich ablate`: compare systems over several seeds, next to published scores.

Each variant and seed is a recipe `<recipe>_<variant>_s<seed>` that runs through the usual stages, so an interrupted
ablation resumes. The table is read from the scores of these recipes.
"""

import csv
from pathlib import Path

from ich.console import say
from ich.ensemble.ablation import Row, markdown
from ich.errors import UserError
from ich.pipeline.runner import run_stage
from ich.pipeline.state import Plan
from ich.pipeline.tasks import MODEL_STAGES
from ich.recipe import SECTIONS, Ablation, Recipe, load
from ich.stages import demo, folds, prepare, score, thresholds
from ich.store.atomic import write_csv, write_text

METRICS = {"f1": "macro F1", "f2": "macro F2", "auc": "macro AUC", "log_loss": "weighted log loss"}


def run(path: Path, overrides: list[str], root: Path) -> None:
    """Run every variant with every seed through the stages, then write the table."""
    for plan in runs(path, overrides, root):
        say(f"\n== {plan.recipe.name}")
        for stage in (demo, prepare, folds):
            stage.run(plan)
        for section in MODEL_STAGES:
            run_stage(plan, section)
        for stage in (thresholds, score):
            stage.run(plan)
    table(path, overrides, root)


def runs(path: Path, overrides: list[str], root: Path) -> list[Plan]:
    """Return the plan of each variant and seed.

    Raises UserError if the recipe has no ablation, or a variant removes the model of a system.
    """
    recipe = load(path, overrides)
    ablation = _ablation(recipe)
    variants = dict.fromkeys(system.variant for system in ablation.systems.values())
    return [_run(path, overrides, root, recipe, variant, seed) for variant in variants for seed in ablation.seeds]


def _ablation(recipe: Recipe) -> Ablation:
    if recipe.ablation is None:
        raise UserError(f"recipe {recipe.name} has no section ablation. See configs/seeds/ for examples")
    return recipe.ablation


def _run(path: Path, overrides: list[str], root: Path, recipe: Recipe, variant: str, seed: int) -> Plan:
    """Return the plan of a variant: the models of its systems and those that they need, and the seed everywhere."""
    ablation = _ablation(recipe)
    changes = [*overrides, *(ablation.variants[variant] if variant else ())]
    changes.append("ablation=null")  # it may name models that the variant removes
    kept = load(path, changes)
    systems = {title: system for title, system in ablation.systems.items() if system.variant == variant}
    for title, system in systems.items():
        if system.model not in kept.models:
            raise UserError(f"ablation.systems.{title}: variant {variant!r} removes the model {system.model!r}")
    needed = _needed(kept, {system.model for system in systems.values()})
    seeds = [f"folds.seed={seed}"]
    if "blend" not in needed:  # its inputs may be among the models left out
        seeds.append(f"blend.inputs=[{next(iter(systems.values())).model}]")
    for section in SECTIONS:
        for name, settings in getattr(kept, section).items():
            if name not in needed:
                seeds.append(f"{section}.{name}=null")
            elif hasattr(settings, "seed"):
                seeds.append(f"{section}.{name}.seed={seed}")
    name = "_".join(filter(None, (recipe.name, variant, f"s{seed}")))
    return Plan(load(path, [*changes, *seeds, f"name={name}"]), root)


def _needed(recipe: Recipe, names: set[str]) -> set[str]:
    """Return the names and those of all models that these start from or read."""
    known = recipe.models | recipe.pretrain
    starts = (getattr(known[name], "start", None) for name in names & known.keys())
    below = {start for start in starts if isinstance(start, str)}
    below |= {one for name in names & recipe.models.keys() for one in recipe.inputs_of(name)}
    return names if below <= names else _needed(recipe, names | below)


def table(path: Path, overrides: list[str], root: Path) -> None:
    """Write ablation.csv and ablation.md from the scores of all runs, and print the latter."""
    recipe = load(path, overrides)
    ablation = _ablation(recipe)
    lines: list[dict[str, str]] = []
    scores: dict[tuple[str, int], list[dict[str, str]]] = {}
    for title, system in ablation.systems.items():
        for seed in ablation.seeds:
            if (system.variant, seed) not in scores:
                plan = _run(path, overrides, root, recipe, system.variant, seed)
                with (plan.workspace.submissions / "scores.csv").open(encoding="utf-8", newline="") as file:
                    scores[system.variant, seed] = list(csv.DictReader(file))
            for line in scores[system.variant, seed]:
                if line["model"] == system.model:
                    kept = {key: value for key, value in line.items() if key not in ("model", "stage")}
                    lines.append({"system": title, "seed": str(seed), **kept})

    metric = ablation.metric
    columns = {METRICS[metric]: metric}
    if metric in ("f1", "f2"):
        columns = {
            f"{METRICS[metric]}, thresholds from the other folds": metric,
            f"{METRICS[metric]}, threshold 0.5": f"{metric}_half",
        }
    columns[METRICS["auc"]] = "auc"
    texts = ["Scores out of fold are means over folds: the logits of the folds may be on different scales.\n"]
    for title, column in columns.items():
        rows = []
        for name, system in ablation.systems.items():
            oof, test = (
                [float(line[key]) for line in lines if (line["system"], line["rows"]) == (name, where) and line[key]]
                for where, key in (("oof", f"{column}_fold_mean"), ("test", column))
            )
            rows.append(Row(name, oof, test, system.documents if column in (metric, f"{metric}_half") else {}))
        try:
            texts.append(markdown(title, rows, ablation.orders, larger_is_better=column != "log_loss"))
        except ValueError as error:  # an AUC is not defined if no class has both labels
            raise UserError(f"{recipe.name}, {title}: {error}") from None

    folder = root / "submissions" / recipe.name
    write_csv(folder / "ablation.csv", lines)
    write_text(folder / "ablation.md", "\n".join(texts))
    say("\n".join(texts), always=True)
    say(f"ablate: wrote {folder / 'ablation.md'}", always=True)

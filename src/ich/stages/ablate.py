"""`ich ablate`: compare systems over several seeds, next to published scores.

Each variant and seed is a recipe `<recipe>_<variant>_s<seed>` that runs through the usual stages, so an interrupted
ablation resumes. The table is read from the scores of these recipes.
"""

import csv
from pathlib import Path

from ich.console import say
from ich.ensemble.ablation import Row, markdown, summary
from ich.ensemble.scoring import fold_warnings
from ich.errors import UserError
from ich.pipeline.graph import MODEL_STAGES
from ich.pipeline.runner import run_stage
from ich.pipeline.state import Plan
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
    ablation, plans = _ablation(recipe), []
    for variant in dict.fromkeys(system.variant for system in ablation.systems.values()):
        plans += [_run(path, overrides, root, recipe, variant, seed) for seed in ablation.seeds]
        for title, system in ablation.systems.items():
            if system.variant == variant and system.model not in plans[-1].models:
                raise UserError(f"ablation.systems.{title}: variant {variant!r} removes the model {system.model!r}")
    return plans


def _ablation(recipe: Recipe) -> Ablation:
    if recipe.ablation is None:
        raise UserError(f"recipe {recipe.name} has no section ablation. See configs/seeds/ for examples")
    return recipe.ablation


def _run(path: Path, overrides: list[str], root: Path, recipe: Recipe, variant: str, seed: int) -> Plan:
    """Return the plan of a variant, with the seed in its folds and all its models."""
    changes = [*overrides, *(_ablation(recipe).variants[variant] if variant else ())]
    changes.append("ablation=null")  # it may name models that the variant removes
    kept = load(path, changes)
    seeds = [f"folds.seed={seed}"]
    for section in SECTIONS:
        seeded = [name for name, settings in getattr(kept, section).items() if hasattr(settings, "seed")]
        seeds += [f"{section}.{model}.seed={seed}" for model in seeded]
    name = "_".join(filter(None, (recipe.name, variant, f"s{seed}")))
    return Plan(load(path, [*changes, *seeds, f"name={name}"]), root)


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
            METRICS["auc"]: "auc",
        }
    if "auc" in columns.values():
        columns[f"{METRICS['auc']}, mean of the folds"] = "auc_fold_mean"
    texts, means = list[str](), dict[str, dict[str, float]]()
    for title, column in columns.items():
        rows = []
        for name, system in ablation.systems.items():
            oof, test = (
                [
                    float(line[column])
                    for line in lines
                    if (line["system"], line["rows"]) == (name, where) and line[column]
                ]
                for where in ("oof", "test")
            )
            rows.append(Row(name, system.document if column in (metric, f"{metric}_half") else None, oof, test))
        try:
            texts.append(markdown(title, rows, ablation.orders, larger_is_better=column != "log_loss"))
            means[column] = {row.name: summary(row.oof)[0] for row in rows}
        except ValueError as error:  # an AUC is not defined if no class has both labels
            raise UserError(f"{recipe.name}, {title}: {error}") from None
    if "auc" in means:
        fold_auc = {name: (means["auc"][name], mean) for name, mean in means["auc_fold_mean"].items()}
        texts += [f"- {warning}\n" for warning in fold_warnings(fold_auc)]

    folder = root / "submissions" / recipe.name
    write_csv(folder / "ablation.csv", lines)
    write_text(folder / "ablation.md", "\n".join(texts))
    say("\n".join(texts), always=True)
    say(f"ablate: wrote {folder / 'ablation.md'}", always=True)

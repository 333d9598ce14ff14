"""`ich ablate`: a recipe's systems side by side, with several seeds, beside the figures that a document reports.

Each variant with each seed is a recipe of its own (`<recipe>_<variant>_s<seed>`) that goes through the usual stages, so
an interrupted ablation goes on where it was. The table is read from their scores.
"""

import csv
import io
from pathlib import Path

from ich.console import say
from ich.errors import UserError
from ich.pipeline.plan import Plan
from ich.recipe import Ablation, Recipe, load
from ich.store.atomic import write_text

FIGURES = {"f1": "macro F1", "f2": "macro F2", "auc": "macro AUC", "log_loss": "weighted log loss"}


def runs(path: Path, overrides: list[str], root: Path) -> list[Plan]:
    """The plan of each variant with each seed. Raises UserError where the recipe has no ablation, or not what it lists.

    All of them at once: a fault in the last variant should not come to light after hours of the first.
    """
    recipe = load(path, overrides)
    ablation, plans = _ablation(recipe), []
    for variant in dict.fromkeys(system.variant for system in ablation.systems.values()):
        plans += [_run(path, overrides, root, recipe, variant, seed) for seed in ablation.seeds]
        for title, system in ablation.systems.items():
            if system.variant == variant and system.member not in plans[-1].members:
                raise UserError(f"ablation.systems.{title}: variant {variant!r} leaves member {system.member!r} out")
    return plans


def _ablation(recipe: Recipe) -> Ablation:
    if recipe.ablation is None:
        raise UserError(f"recipe {recipe.name} has no section ablation; configs/seeds/ has examples")
    return recipe.ablation


def _run(path: Path, overrides: list[str], root: Path, recipe: Recipe, variant: str, seed: int) -> Plan:
    """The recipe with the variant's changes, and with the seed for its folds and all its members."""
    changes = [*overrides, *(_ablation(recipe).variants[variant] if variant else ())]
    changes.append("ablation=null")  # it may list members that a variant leaves out
    kept = load(path, changes)
    seeds = [f"folds.seed={seed}"]
    for group in ("pretrain", "cnn", "end_to_end", "sequence", "stack"):
        seeds += [f"{group}.{member}.seed={seed}" for member in getattr(kept, group)]
    name = "_".join(filter(None, (recipe.name, variant, f"s{seed}")))
    return Plan(load(path, [*changes, *seeds, f"name={name}"]), root)


def table(path: Path, overrides: list[str], root: Path) -> None:
    """Read the scores of all runs; write and print submissions/<recipe>/ablation.csv and ablation.md."""
    from ich.ensemble.ablation import Claim, Row, markdown

    recipe = load(path, overrides)
    ablation, figure = _ablation(recipe), _ablation(recipe).figure
    scores = {
        (variant, seed): _scores(_run(path, overrides, root, recipe, variant, seed))
        for variant in dict.fromkeys(system.variant for system in ablation.systems.values())
        for seed in ablation.seeds
    }
    lines: list[dict[str, str]] = []
    for title, system in ablation.systems.items():
        for seed in ablation.seeds:
            for where, figures in scores[system.variant, seed][system.member].items():
                lines.append({"system": title, "seed": str(seed), "rows": where, **figures})
    claims = [Claim(*pair) for pair in ablation.orders]
    texts: list[str] = []
    columns = {FIGURES[figure]: figure}
    if figure in ("f1", "f2"):
        columns = {
            f"{FIGURES[figure]}, thresholds from the other folds": figure,
            f"{FIGURES[figure]}, threshold 0.5": f"{figure}_half",
            FIGURES["auc"]: "auc",
        }
    for title, column in columns.items():
        rows = []
        for name, system in ablation.systems.items():
            found = {
                where: [float(line[column]) for line in lines if line["system"] == name and line["rows"] == where]
                for where in ("oof", "test")
            }
            document = system.document if column in (figure, f"{figure}_half") else None
            rows.append(Row(name, document, found["oof"], found["test"]))
        try:
            texts.append(markdown(title, rows, claims, larger_is_better=column != "log_loss", digits=4))
        except ValueError as error:  # a figure that does not exist: an AUC where no class has both labels
            raise UserError(f"{recipe.name}, {title}: {error}") from None
    folder = root / "submissions" / recipe.name
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(folder / "ablation.csv", text.getvalue())
    write_text(folder / "ablation.md", "\n".join(texts))
    say("\n".join(texts), asked=True)
    say(f"ablate: {folder / 'ablation.md'}", asked=True)


def _scores(plan: Plan) -> dict[str, dict[str, dict[str, str]]]:
    """member -> oof | test -> figure -> value, of a finished run."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    with (plan.workspace.submissions / "scores.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row.pop("member"), {})[row.pop("rows")] = {k: v for k, v in row.items() if k != "stage"}
    return found

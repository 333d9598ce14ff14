"""`python -m benchmarks.masks`: CNNs with and without `masks`, and of wide scanners, on their own and on other scans.

configs/masks_demo.yaml with each of its seeds: macro AUC on the hidden test set, and on that of another hospital's
competition; share of Grad-CAM maxima inside the bleed (`ich explain`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.harness import ROOT
from ich.data.cache import HuCache
from ich.data.competitions import ADAPTERS
from ich.ensemble import metrics
from ich.ensemble.ablation import order, summary
from ich.models.slices import Slices
from ich.models.table import SliceTable
from ich.pipeline.runner import load_fitted
from ich.pipeline.state import Plan
from ich.recipe import load
from ich.stages import ablate, demo, explain, prepare

RECIPE = "configs/masks_demo.yaml"
OTHER = (
    "name=masks_other",
    "competition.root=input/masks_other",
    "demo={train_studies: 1, test_studies: 80, slices: 36, size: 320, scanners: other, seed: 8}",
)
COLUMNS = ("own AUC", "other AUC", "pointing game")


def measured(root: Path, changes: Sequence[str] = ()) -> pd.DataFrame:
    """Train the ablation; return system, COLUMNS and one row per seed and system, seeds in order."""
    ablate.run(root / RECIPE, [*changes], root)
    other = Plan(load(root / RECIPE, [*changes, *OTHER]), root)
    demo.run(other)
    prepare.run(other)
    return pd.DataFrame(line for plan in ablate.runs(root / RECIPE, [*changes], root) for line in scored(plan, other))


def scored(plan: Plan, other: Plan) -> Iterator[dict[str, float | str]]:
    """The scores of each CNN of a run."""
    table = SliceTable.read(other.workspace, other.prepared.folder)
    images = HuCache.open(other.prepared.folder, table.table)
    slices = Slices(table.table, table.test_rows, table.classes, images, table.values)
    solution = ADAPTERS[other.recipe.competition.format].solution(other.raw_root)
    assert solution is not None, "ich demo writes it"
    truth = solution.set_index("image_id").loc[slices.ids, table.classes].to_numpy()
    explain.run(plan)
    hits = pd.read_csv(plan.explain.folder / "pointing_game.csv").groupby("model")["rate"].mean()
    own = pd.read_csv(plan.workspace.submissions / "scores.csv").query("rows == 'test'").set_index("model")["auc"]
    assert plan.recipe.demo is not None, "the recipe has one"
    for model in plan.recipe.cnn:
        folds = [load_fitted(plan, model, fold).predict(slices, {}).logits for fold in plan.fold_numbers]
        auc = metrics.macro(metrics.class_auc(truth, np.mean(folds, axis=0)))
        system = f"{model}, {plan.recipe.demo.scanners} scanners"
        yield {"system": system, **dict(zip(COLUMNS, (own[model], auc, hits[model]), strict=True))}


if __name__ == "__main__":
    (first, without), *others = measured(ROOT).groupby("system", sort=False)
    for column in COLUMNS:
        mean, half_width = summary(without[column].tolist())
        print(f"{column}, {first}: {mean:.4f} ± {half_width:.4f}")
        for system, scores in others:
            difference, half_width, verdict = order(scores[column].tolist(), without[column].tolist())
            print(f"{column}, {system}: {difference:+.4f} ± {half_width:.4f}, {verdict}")

"""`ich smooth`: the members' mean logit, smoothed along the study by a Gaussian; a width a class."""

from typing import TYPE_CHECKING

from ich.pipeline.graph import SMOOTH
from ich.pipeline.plan import Made, Plan
from ich.stages.inputs import Slices, smoother_input
from ich.stages.member import figures, leave_predictions, run_folds
from ich.store.atomic import write_json

if TYPE_CHECKING:
    import numpy as np


def run(plan: Plan, *, force: bool = False) -> None:
    run_folds(plan, list(plan.recipe.smooth), fit_fold, model=None, fold=None, force=force)


def fit_fold(plan: Plan, member: str, fold: int, _fingerprint: str) -> Made:
    """Choose the widths on the other folds' out-of-fold rows, and smooth this fold and the test set with them."""
    from ich.ensemble.smoothing import choose_widths, smooth_each

    settings, folder = plan.recipe.smooth[member], plan.workspace.fold(member, fold)
    slices, members = Slices(plan), plan.recipe.smooth_members(settings)
    logits = [slices.out_of_fold(name, fold) for name in members]
    rows = {"train": slices.train_rows(fold), "valid": slices.valid_rows(fold), "test": slices.test_rows}

    def read(split: str) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
        return smoother_input(slices.table.iloc[rows[split]], [values[rows[split]] for values in logits])

    base, series, position = read("train")
    widths = choose_widths(base, slices.labels[rows["train"]], series, position, settings.widths)
    says = {"members": members, "widths": dict(zip(slices.classes, widths, strict=True))}
    write_json(folder / SMOOTH, says)
    files = {SMOOTH: folder / SMOOTH}
    found = {split: smooth_each(*read(split), widths) for split in rows}
    for split in ("valid", "test"):
        files |= leave_predictions(slices, folder, fold, split, rows[split], found[split])
    return files, {
        **says,
        "metrics": figures(slices, rows["valid"], found["valid"]),
        "own_rows": figures(slices, rows["train"], found["train"]),
    }

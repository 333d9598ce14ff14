"""`ich blend`: one prediction of the members, calibrated, `any` never below a subtype; a member of its own.

A class at a time, and without the fold it is judged on: a fold's blend is chosen and fitted on the other folds' rows.
"""

from typing import TYPE_CHECKING, Any

from ich.console import progress, say, table, warn
from ich.pipeline.graph import BLEND
from ich.pipeline.plan import Made, Plan, seed_of
from ich.recipe import beta_of
from ich.stages.inputs import Slices, blended
from ich.stages.member import assemble, figures, leave_predictions
from ich.store.atomic import write_json

if TYPE_CHECKING:
    import numpy as np


def run(plan: Plan, *, force: bool = False) -> None:
    made = [plan.make(plan.fold("blend", k), lambda _, k=k: _fold(plan, k), force=force) for k in plan.fold_numbers]
    assemble(plan, "blend")
    say(f"blend: {'wrote' if any(made) else 'done'}, {len(plan.recipe.blend_members)} members")
    if any(made):
        _show([plan.fold("blend", k).record.read() or {} for k in plan.fold_numbers])


def _fold(plan: Plan, fold: int) -> Made:
    """Fit the blend on the other folds' out-of-fold rows, and apply it to this fold and the test set."""
    slices, members, folder = Slices(plan), plan.recipe.blend_members, plan.workspace.fold("blend", fold)
    logits = [slices.out_of_fold(member, fold) for member in members]
    rows = {"train": slices.train_rows(fold), "valid": slices.valid_rows(fold), "test": slices.test_rows}
    fitted, chosen = _fitted(plan, slices, fold, rows["train"], logits)
    write_json(folder / BLEND, {"members": members, "classes": fitted})
    files = {BLEND: folder / BLEND}
    found = {
        split: blended(fitted, [values[these] for values in logits], slices.classes, slices.class_weights)
        for split, these in rows.items()
    }
    for split in ("valid", "test"):
        files |= leave_predictions(slices, folder, fold, split, rows[split], found[split])
    return files, {
        "chosen": chosen,
        "metrics": figures(slices, rows["valid"], found["valid"]),
        "own_rows": figures(slices, rows["train"], found["train"]),
    }


def _fitted(
    plan: Plan, slices: Slices, fold: int, rows: "np.ndarray", logits: "list[np.ndarray]"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """By class: what `inputs.blended` applies, and what it was chosen by."""
    import numpy as np

    from ich.ensemble import blend, calibration
    from ich.ensemble.intervals import Bootstrap

    settings = plan.recipe.blend
    folds = slices.table["fold"].to_numpy()[rows]
    patients = Bootstrap(slices.table["patient_id"].to_numpy()[rows], seed=seed_of(settings.seed, "blend", fold))
    fitted: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    with progress(f"blend fold {fold}", len(slices.classes), "classes", inner=True) as advance:
        for c, name in enumerate(slices.classes):
            z, y = np.column_stack([values[rows, c] for values in logits]), slices.labels[rows, c]
            made = blend.choose(
                z,
                y,
                folds,
                patients,
                method=settings.method,
                metric="log_loss" if settings.metric == "log_loss" else beta_of(settings.metric),
                trials=settings.trials,
                seed=seed_of(settings.seed, "blend", fold, name),
            )
            # on logits whose combination did not see them either, as those of new slices
            calibrated = calibration.choose(made.out_of_fold, y, folds, patients, method=settings.calibration)
            fitted[name] = {
                "combination": made.combination.as_dict(),
                "calibration": calibrated.calibrator.as_dict(),
            }
            if calibrated.warning:
                warn(f"blend fold {fold}, {name}: {calibrated.warning}")
            chosen[name] = {
                "combination": made.as_dict(),
                "calibration": {
                    "method": calibrated.calibrator.method,
                    "losses": calibrated.losses,
                    "differences": calibrated.differences,
                },
            }
            advance(1)
    plain = [name for name in fitted if fitted[name]["combination"]["method"] != settings.method]
    if settings.method != "auto" and len(logits) > 1 and plain:
        warn(
            f"blend fold {fold}, {', '.join(plain)}: {settings.method} wants two other folds, and two slices"
            " of each label; the mean of logits is taken"
        )
    return fitted, chosen


def _show(records: list[dict[str, Any]]) -> None:
    """What each fold's blend does with a class."""
    rows = [
        [
            name,
            *(
                f"{r['chosen'][name]['combination']['method']}, {r['chosen'][name]['calibration']['method']}"
                for r in records
            ),
        ]
        for name in records[0]["chosen"]
    ]
    table(["class", *(f"fold {k}" for k in range(len(records)))], rows, "Combination of the members, and calibration")

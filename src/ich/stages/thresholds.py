"""`ich thresholds`: Optuna searches a threshold a class that maximises an F score, for a blend or for any table."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ich.console import progress, say, table
from ich.errors import UserError
from ich.pipeline.plan import Made, Plan
from ich.recipe import Thresholds
from ich.stages.artefacts import logits_of
from ich.store.atomic import read_json, write_json

if TYPE_CHECKING:
    import numpy as np

    from ich.ensemble.thresholds import Goal
    from ich.stages.inputs import Slices


def run(plan: Plan, *, force: bool = False) -> None:
    path = plan.workspace.thresholds
    journal = path.with_suffix(".journal")  # Optuna's, for looking at; no file of the record, for it holds times

    def make(_fingerprint: str) -> Made:
        from ich.ensemble.members import sigmoid
        from ich.stages.inputs import Slices

        slices = Slices(plan)
        rows = slices.labelled.nonzero()[0]
        if force:
            journal.unlink(missing_ok=True)
        blend = plan.workspace.member("blend")
        logits = logits_of(blend / "oof.parquet", slices.ids(rows), slices.classes)
        settings = plan.recipe.thresholds
        trials = settings.trials * (1 if settings.average == "micro" else len(slices.classes))
        with progress("thresholds", trials, "trials", inner=True) as advance:
            found = tuned(
                slices.labels[rows],
                sigmoid(logits),
                slices.classes,
                settings,
                folds=slices.table["fold"].to_numpy()[rows],
                patients=slices.table["patient_id"].to_numpy()[rows],
                journal=journal,
                processes=plan.cores,
                advance=advance,
            )
        test_logits = logits_of(blend / "test.parquet", slices.ids(slices.test_rows), slices.classes)
        found["prevalence"] = _prevalence(plan, slices, logits, test_logits, found["thresholds"])
        write_json(path, found)
        return {path.name: path}, {}

    made = plan.make(plan.thresholds, make, force=force)
    say(f"thresholds: {'wrote' if made else 'done'}, {path}")
    if made:
        _show(read_json(path))


def _prevalence(
    plan: Plan, slices: "Slices", z: "np.ndarray", z_test: "np.ndarray", cuts: dict[str, float]
) -> dict[str, Any]:
    """How common the classes are in the test set, by the blend's logits [n, c] and [m, c], and thresholds for that."""
    from ich.ensemble import prevalence, thresholds
    from ich.ensemble.intervals import Bootstrap
    from ich.ensemble.members import sigmoid

    settings = plan.recipe.thresholds
    if not len(z_test):
        return {"applied": False, "classes": {}}
    y, patients = slices.labels[slices.labelled], slices.table["patient_id"].to_numpy()[slices.test_rows]
    found = prevalence.shifts(z, y, z_test, slices.classes, Bootstrap(patients))
    differs = any(s.test != s.train for s in found.values())
    if differs and settings.average != "samples":
        changes = [(found[name].train, found[name].test) for name in slices.classes]
        moved = prevalence.shift_all(z, slices.classes, slices.class_weights, changes)
        factors = [prevalence.factors(*change) for change in changes]
        goal = goal_of(settings, slices.classes)
        best = thresholds.exact_all(y, sigmoid(moved), goal, *zip(*factors, strict=True))
        cuts = dict(zip(slices.classes, best, strict=True))
    return {
        "applied": differs and settings.prevalence == "apply",
        "classes": {name: {**asdict(shift), "threshold": cuts[name]} for name, shift in found.items()},
    }


def goal_of(settings: Thresholds, classes: list[str]) -> "Goal":
    """The settings for these classes."""
    from ich.ensemble.thresholds import Goal

    recall = settings.min_recall
    if isinstance(recall, dict) and not set(recall) <= set(classes):
        unknown = sorted(set(recall) - set(classes))[0]
        raise UserError(f"thresholds.min_recall: there is no class {unknown!r}; the classes are {', '.join(classes)}")
    each = tuple(float(recall.get(name, 0) if isinstance(recall, dict) else recall or 0) for name in classes)
    shape = {"zero_division": settings.zero_division, "shrink": settings.shrink}
    return Goal(settings.beta, settings.average, min_recall=each if any(each) else (), **shape)


def tuned(
    labels: "np.ndarray",
    probability: "np.ndarray",
    classes: list[str],
    settings: Thresholds,
    *,
    folds: "np.ndarray | None",
    patients: "np.ndarray | None",
    journal: Path | None = None,
    processes: int = 1,
    advance: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """thresholds.json: what was maximised, the thresholds, their scores on these rows and cross-fitted over `folds`.

    score_exact and gap are of the goal that was maximised: of F-beta with shrunk labels where shrink is above 0, so
    that score_exact - gap is the score only without.
    """
    import numpy as np

    from ich.ensemble import thresholds
    from ich.ensemble.intervals import Bootstrap

    goal = goal_of(settings, classes)
    found = thresholds.tune(
        labels,
        probability,
        classes,
        goal,
        trials=settings.trials,
        seed=settings.seed,
        fold=folds,
        journal=journal,
        processes=processes,
        advance=advance,
    )
    number = None if patients is None else len(np.unique(patients))
    # where every row is a patient of its own, drawing rows is drawing patients
    bootstrap = None if patients is None or number == len(labels) else Bootstrap(patients)
    decided = {"": thresholds.apply(probability, list(found.thresholds.values())), "_cross_fitted": found.decided}
    positives = labels.sum(axis=0, dtype="float64")  # else a recall of 0.9 reads 0.8999999761581421

    def recall(positive: "np.ndarray") -> dict[str, float | None]:
        hits = np.einsum("nc,nc->c", labels, positive)
        return {name: float(hits[c] / positives[c]) if positives[c] else None for c, name in enumerate(classes)}

    judged: dict[str, Any] = {}
    for suffix, score in (("", found.score), ("_cross_fitted", found.score_cross_fitted)):
        rows = decided[suffix]
        judged[f"score{suffix}"] = score
        judged[f"interval{suffix}"] = None if rows is None else thresholds.f_interval(labels, rows, goal, bootstrap)
        judged[f"recall{suffix}"] = None if rows is None else recall(rows)
    return {
        "metric": settings.metric,
        "beta": goal.beta,
        "average": goal.average,
        "zero_division": goal.zero_division,
        "min_recall": dict(zip(classes, goal.min_recall, strict=True)) if goal.min_recall else None,
        "shrink": goal.shrink,
        "thresholds": found.thresholds,
        **judged,
        "score_exact": found.exact,
        "gap": found.gap,
        "thresholds_exact": found.thresholds_exact,
        "trials": settings.trials,
        "rows": len(labels),
        "patients": number,
        "positives": {name: int(positives[c]) for c, name in enumerate(classes)},
        "warnings": list(found.warnings),
    }


# ---- any table


def run_on_table(source: Path, settings: Thresholds, out: Path | None) -> None:
    """Tune on columns <class> (0/1) and prob_<class>, with columns fold and patient_id where there are any."""
    from ich.ensemble.thresholds import user_table

    try:
        given = user_table.read(source)
        found = tuned(
            given.labels, given.probabilities, given.classes, settings, folds=given.fold, patients=given.patients
        )
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    if given.fold is None:
        found["warnings"].append("no column fold with several values: there is no cross-fitted score.")
    elif given.patients is not None and (torn := user_table.in_two_folds(given.fold, given.patients)):
        found["warnings"].append(
            f"{torn} patients lie in two folds or more: thresholds judged on one fold know them, and the cross-fitted"
            " score flatters."
        )
    if given.patients is None:
        found["warnings"].append("no column patient_id: intervals treat rows as independent, and may be too narrow.")
    if out is not None:
        write_json(out, found)
        say(f"thresholds: wrote {out}")
        _show(found)
    else:
        say(json.dumps(found, indent=2), asked=True)


def _show(found: dict[str, Any]) -> None:
    from ich.report import thresholds as report

    for (title, columns, rows), sentences in report.parts(found):
        table(columns, rows, title)
        say("")
        for sentence in sentences:
            say(sentence, asked=sentence.startswith("warning: "))

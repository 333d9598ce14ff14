"""thresholds.json for readers: a table of the thresholds and one of the prevalences, each with its notes."""

from collections.abc import Iterator, Mapping
from typing import Any

from ich.report.page.blocks import Table


def parts(found: Mapping[str, Any]) -> Iterator[tuple[Table, list[str]]]:
    """Each table with the notes below it."""
    notes = [_distance(found), _averages(found), *(f"warning: {warning}" for warning in found["warnings"])]
    if moved := found.get("transferred"):
        values = ", ".join(f"{name} {threshold:.4f}" for name, threshold in moved.items())
        notes.append(f"The submission is the mean of the folds; its thresholds are {values}.")
    yield _classes(found), notes
    shifts = found.get("prevalence", {}).get("classes")
    if shifts:
        yield _prevalences(shifts), _shifted(shifts, found["prevalence"]["applied"], found["average"])


def _classes(found: Mapping[str, Any]) -> Table:
    def score(suffix: str) -> str:
        low, high = found[f"interval{suffix}"]
        return f"{found[f'score{suffix}']:.4f} ({low:.4f} to {high:.4f})"

    title = f"{found['average']} {found['metric'].upper()} {score('')} in-sample"
    if found["score_cross_fitted"] is not None:
        title += f", {score('_cross_fitted')} with thresholds from other folds"
    rows = [
        [
            name,
            f"{threshold:.4f}",
            str(found["positives"][name]),
            *(_share((found[f"recall{suffix}"] or {}).get(name)) for suffix in ("", "_cross_fitted")),
        ]
        for name, threshold in found["thresholds"].items()
    ]
    return Table(title, ["class", "threshold", "positives", "recall", "recall, cross-fitted"], rows)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _distance(found: Mapping[str, Any]) -> str:
    optimum = "the optimum of coordinate ascent" if found["average"] == "samples" else "the exact optimum"
    if found["shrink"]:
        optimum += " of the shrunk objective"
    gap = found["gap"]
    if abs(gap) < 1e-12:
        return f"Optuna reached {optimum}."
    return f"Optuna is {abs(gap):.1e} {'below' if gap > 0 else 'above'} {optimum}."


def _averages(found: Mapping[str, Any]) -> str:
    """Macro and micro F of the same decisions."""
    scores = ", ".join(f"{name} {found['metric'].upper()} {value:.4f}" for name, value in found["averages"].items())
    return f"{'In-sample' if found['score_cross_fitted'] is None else 'Cross-fitted'}: {scores}."


def _prevalences(shifts: Mapping[str, Any]) -> Table:
    rows = [
        [
            name,
            f"{one['train']:.4f}",
            f"{one['estimated']:.4f}",
            f"{one['low']:.4f} to {one['high']:.4f}",
            f"{one['threshold']:.4f}",
        ]
        for name, one in shifts.items()
    ]
    columns = ["class", "training", "test, estimated", "95 % interval", "threshold there"]
    return Table("Prevalence, estimated for the test set from its predictions", columns, rows)


def _shifted(shifts: Mapping[str, Any], applied: bool, average: str) -> list[str]:
    notes = [
        f"warning: {name}: {one['warning']}"
        for name, one in shifts.items()
        if one["warning"] and 0 < one["train"] < 1  # else the tuning has warned of the class
    ]
    if all(one["test"] == one["train"] for one in shifts.values()):
        return [*notes, "The predictions show no difference in prevalence between the training and the test set."]
    if applied:
        return [*notes, "Thresholds and probabilities of the submission are adjusted to the test prevalence."]
    if average == "samples":
        return [*notes, "The submission is not adjusted: an average over samples mixes classes."]
    return [*notes, "The submission is not adjusted. Set thresholds.prevalence to apply to adjust it."]

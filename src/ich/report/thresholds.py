"""thresholds.json for readers: a table of the classes, one of the test set's prevalences, and what they come to."""

from collections.abc import Iterator, Mapping
from typing import Any

from ich.report.scores import Table


def parts(found: Mapping[str, Any]) -> Iterator[tuple[Table, list[str]]]:
    """Each table, and the sentences that stand below it."""
    yield _classes(found), [_distance(found), *(f"warning: {warning}" for warning in found["warnings"])]
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
    optimum = "what coordinate ascent reaches" if found["average"] == "samples" else "the exact optimum"
    if found["shrink"]:
        optimum += " of the shrunk goal"
    gap = found["gap"]
    if abs(gap) < 1e-12:
        return f"Optuna reached {optimum}"
    return f"Optuna is {abs(gap):.1e} {'below' if gap > 0 else 'above'} {optimum}"


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
    return Table("Prevalence, and that of the test set as its predictions say", columns, rows)


def _shifted(shifts: Mapping[str, Any], applied: bool, average: str) -> list[str]:
    said = [
        f"warning: {name}: {one['warning']}"
        for name, one in shifts.items()
        if one["warning"] and 0 < one["train"] < 1  # else the tuning has warned of the class
    ]
    if all(one["test"] == one["train"] for one in shifts.values()):
        return [*said, "nothing in the predictions tells the test set's prevalence from that of the training set"]
    if applied:
        return [*said, "the submission is shifted to the test set's prevalence, thresholds and probabilities"]
    if average == "samples":
        return [*said, "neither the thresholds nor the submission are shifted: an average over samples mixes classes"]
    return [*said, "the submission is not shifted; thresholds.prevalence: apply in the recipe does that"]

"""Per class: the blend's out-of-fold curves over all thresholds, and its decisions at the tuned threshold."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ich.ensemble.metrics import class_auc, class_average_precision, confusion, f_beta, operating_points
from ich.report.evidence import Evidence
from ich.report.page import charts, curves
from ich.report.page.blocks import Block, Chart, Notes, Panels, Section, Table
from ich.report.scores import TITLES, bracketed, number, span

FEW = 30  # positive patients; with fewer, one patient can change the curves
SHARES = {  # the share of the first count in the sum of both
    "sensitivity (recall)": ("tp", "fn"),
    "specificity": ("tn", "fp"),
    "positive predictive value (precision)": ("tp", "fp"),
    "negative predictive value": ("tn", "fn"),
}


def section(evidence: Evidence) -> Section:
    lead = (
        "All scores are the blend's, out of fold. Strong lines pool the slices of all folds; thin lines are one fold"
        " each."
    )
    panels = {name: _panel(evidence, c) for c, name in enumerate(evidence.classes)}
    return Section("per-class", "Per class", [Panels("classes", panels)], lead)


def _panel(evidence: Evidence, c: int) -> list[Block]:
    name, scores = evidence.classes[c], evidence.scores
    counts = scores["rows"]["oof"]["classes"][name]
    if counts["positives"] in (0, scores["rows"]["oof"]["slices"]):
        which = "No" if counts["positives"] == 0 else "Every"
        return [Notes([f"{which} labelled slice is positive for {name}. Its scores are undefined."], "warning")]
    patients = f"{counts['positives']:,} slices of {counts['patients']:,} patients are positive"
    patients += ": one patient can change the curves." if counts["patients"] < FEW else "."
    level = f"Next to each value is its {scores['level']:.0%} confidence interval (bootstrap over patients)."
    return [_scores(evidence, name), Notes([f"{patients} {level}"]), *_curves(evidence, c), *_decisions(evidence, c)]


def _scores(evidence: Evidence, name: str) -> Table:
    """The scores that `ich score` prints for the class."""
    cells = {where: evidence.scores["models"]["blend"][where]["classes"][name] for where in evidence.scores["rows"]}
    metric = evidence.scores["metric"]
    titles = {"auc": "AUC", "ap": "average precision", metric: metric.upper(), "log_loss": "log loss"}
    rows = [[title, *(span(cell[key]) for cell in cells.values())] for key, title in titles.items()]
    return Table(f"{name}: scores of the blend", ["", *(TITLES[where] for where in cells)], rows)


def _curves(evidence: Evidence, c: int) -> list[Chart]:
    """ROC, precision and recall, F by threshold, and reliability."""
    name, scores = evidence.classes[c], evidence.scores
    y, p, decided = evidence.labels[:, c], evidence.probability[:, c], evidence.decided[:, c]
    cells = scores["models"]["blend"]["oof"]["classes"][name]
    folds = [evidence.folds == k for k in evidence.fold_numbers]
    has_both = [0 < y[rows].sum() < rows.sum() for rows in folds]

    def points(rows: NDArray[np.bool_] | slice) -> tuple[NDArray, NDArray, NDArray]:
        order = np.argsort(-p[rows])
        return operating_points(y[rows][order], p[rows][order])

    pooled, by_fold = points(slice(None)), [points(rows) for rows, both in zip(folds, has_both, strict=True) if both]

    def drawn(curve: Callable[..., curves.Points]) -> charts.Curves:
        return charts.Curves(curve(*pooled), [curve(*one) for one in by_fold])

    def per_fold(title: str, score: Callable[..., Any], predicted: NDArray) -> str:
        values = [
            number(np.asarray(score(y[rows, None], predicted[rows, None])).item()) if both else "-"
            for rows, both in zip(folds, has_both, strict=True)
        ]
        return f"{title} per fold: {', '.join(values)}."

    metric, cut = scores["metric"], evidence.tuned["thresholds"][name]
    f = partial(f_beta, beta=evidence.beta, average="macro")
    title, in_sample = metric.upper(), f(y[:, None], p[:, None] >= cut)
    f_points = drawn(partial(curves.f_by_threshold, beta=evidence.beta))
    error = number(scores["calibration_error"]["oof"][name])
    return [
        Chart(
            f"roc-{c}",
            f"ROC curve, AUC {bracketed(cells['auc'])}",
            "The AUC is the probability that a positive slice ranks above a negative one."
            f" {per_fold('AUC', class_auc, p)}",
            charts.roc(drawn(curves.roc)),
        ),
        Chart(
            f"precision-recall-{c}",
            f"Precision and recall, AP {bracketed(cells['ap'])}",
            "Precision depends on the prevalence (dashed line: chance)."
            f" {per_fold('Average precision', class_average_precision, p)}",
            charts.precision_recall(drawn(curves.precision_recall), float(y.mean())),
        ),
        Chart(
            f"threshold-{c}",
            f"{title} by threshold, cross-fitted {bracketed(cells[metric])}",
            f"The tuned threshold is {number(cut)}, with an optimistic in-sample {title} of {number(in_sample)}."
            f" {per_fold(f'Cross-fitted {title}', f, decided)}",
            charts.f_by_threshold(f_points, title, cut, in_sample, cells[metric]),
        ),
        Chart(
            f"reliability-{c}",
            f"Reliability, calibration error {error}",
            "Dots below the dashed line are overconfident. Bars are confidence intervals over patients.",
            _reliability(evidence, name),
        ),
    ]


def _reliability(evidence: Evidence, name: str) -> charts.Figure:
    bins = evidence.reliability[(evidence.reliability["rows"] == "oof") & (evidence.reliability["class"] == name)]
    columns = {"observed": "value", "observed_low": "low", "observed_high": "high"}
    observed: Any = bins[list(columns)].rename(columns=columns).to_dict("records")
    return charts.reliability(bins["probability"].tolist(), observed, bins["count"].tolist())


def _decisions(evidence: Evidence, c: int) -> list[Block]:
    """The confusion matrix, and SHARES over all folds and per fold."""

    def counts(rows: NDArray[np.bool_] | slice) -> dict[str, int]:
        found = confusion(evidence.labels[rows, c, None], evidence.decided[rows, c, None])
        return {key: int(found[key][0]) for key in ("tp", "fp", "fn", "tn")}

    columns = {"all folds": counts(slice(None))}
    columns |= {f"fold {k}": counts(evidence.folds == k) for k in evidence.fold_numbers}
    rows = [
        [title, *(number(n[first] / (n[first] + n[other]) if n[first] + n[other] else None) for n in columns.values())]
        for title, (first, other) in SHARES.items()
    ]
    caption = "Decisions by the thresholds of the other folds. Percentages are shares of the row."
    return [
        Chart(f"confusion-{c}", "Confusion matrix", caption, charts.confusion(**columns["all folds"])),
        Table(f"{evidence.classes[c]}: at the cross-fitted threshold", ["", *columns], rows),
    ]

"""Per class: the blend's out-of-fold curves over all thresholds, and its decisions at the chosen one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ich.ensemble.metrics import class_auc, class_average_precision, confusion, f_from_counts, operating_points
from ich.report.evidence import Evidence
from ich.report.page import charts, curves
from ich.report.page.blocks import Block, Chart, Notes, Panels, Section, Table
from ich.report.scores import TITLES, number, span

FEW = 30  # positive patients, below which the interval says more than the value
SHARES: Mapping[str, tuple[str, str]] = {  # the share of the first count in both
    "sensitivity (recall)": ("tp", "fn"),
    "specificity": ("tn", "fp"),
    "positive predictive value (precision)": ("tp", "fp"),
    "negative predictive value": ("tn", "fn"),
}
SHORT: tuple[str, ...] = ("sensitivity", "specificity", "positive<br>predictive value", "negative<br>predictive value")


def section(evidence: Evidence) -> Section:
    lead = (
        "The blend out of fold: each slice is predicted by models that were trained without its fold. Strong lines pool"
        " the slices of all folds, thin lines are one fold each; their spread shows what other patients might give."
    )
    panels = {name: _panel(_Class(evidence, c)) for c, name in enumerate(evidence.classes)}
    return Section("per-class", "Per class", [Panels("classes", panels)], lead)


@dataclass(frozen=True)
class _Class:
    """The labels, probabilities and cross-fitted decisions [n] of one class."""

    evidence: Evidence
    number: int

    @cached_property
    def name(self) -> str:
        return self.evidence.classes[self.number]

    @cached_property
    def y(self) -> NDArray[np.float64]:
        return np.ascontiguousarray(self.evidence.labels[:, self.number])

    @cached_property
    def p(self) -> NDArray[np.float64]:
        return np.ascontiguousarray(self.evidence.probability[:, self.number])

    @cached_property
    def cells(self) -> Mapping[str, Mapping[str, float | None]]:
        """The out-of-fold scores with their intervals."""
        return self.evidence.scores["models"]["blend"]["oof"]["classes"][self.name]

    @cached_property
    def all_folds(self) -> dict[int, NDArray[np.bool_]]:
        """The mask [n] of each fold."""
        return {k: self.evidence.folds == k for k in self.evidence.fold_numbers}

    @cached_property
    def folds(self) -> dict[int, NDArray[np.bool_]]:
        """The folds that have both positive and negative slices."""
        return {k: rows for k, rows in self.all_folds.items() if 0 < self.y[rows].sum() < rows.sum()}

    @cached_property
    def steps(self) -> dict[int | None, tuple[NDArray, NDArray, NDArray]]:
        """(score, predicted, true) of each threshold, of all rows (None) and of each fold."""
        order = np.argsort(-self.p)
        kept = {None: order} | {k: order[rows[order]] for k, rows in self.folds.items()}
        return {k: operating_points(self.y[some], self.p[some]) for k, some in kept.items()}

    def curves(self, curve: Callable[..., NDArray[np.float64]]) -> charts.Curves:
        """curve(score, predicted, true, most) of all rows and of each fold."""
        folds = {k: curve(*self.steps[k], curves.MOST // 2) for k in self.folds}
        return charts.Curves(curve(*self.steps[None], curves.MOST), folds)

    def spread(self, score: Callable[[NDArray[np.bool_]], float], what: str) -> str:
        """A sentence about the score in each fold."""
        values = [score(rows) for rows in self.folds.values()]
        if not values:
            return "No fold has both positive and negative slices."
        low, high = number(min(values)), number(max(values))
        said = f"The folds' own {what} {f'are {low}' if low == high else f'lie between {low} and {high}'}."
        without = [str(k) for k in self.all_folds if k not in self.folds]
        return (
            f"{said} Fold {', '.join(without)} has no positive or no negative slices, and no line." if without else said
        )

    def shares(self, rows: NDArray[np.bool_] | slice) -> dict[str, float | None]:
        """SHARES of the decisions on some rows; None for a share of nothing."""
        counts = self.counts(rows)
        pairs = {title: (counts[right], counts[wrong]) for title, (right, wrong) in SHARES.items()}
        return {title: right / (right + wrong) if right + wrong else None for title, (right, wrong) in pairs.items()}

    def counts(self, rows: NDArray[np.bool_] | slice) -> dict[str, int]:
        decided = self.evidence.decided[rows, self.number, None]
        found = confusion(self.y[rows, None], decided)
        return {name: int(found[name][0]) for name in ("tp", "fp", "fn", "tn")}


def _panel(one: _Class) -> list[Block]:
    rows = one.evidence.scores["rows"]
    positives, patients = (rows["oof"]["classes"][one.name][key] for key in ("positives", "patients"))
    if positives in (0, rows["oof"]["slices"]):
        which = "No" if positives == 0 else "Every"
        said = (
            f"{which} labelled slice is positive for {one.name}. There are no curves, and nothing is known of how well"
            " the class is detected."
        )
        return [Notes([said], "warning")]
    trust = (
        f"Next to each value is its {one.evidence.scores['level']:.0%} confidence interval over patients. There are"
        f" {positives:,} positive slices of {patients:,} patients"
    )
    trust += ": so few that one patient can move a curve." if patients < FEW else "."
    makers = {
        "roc": _roc,
        "precision-recall": _precision_recall,
        "threshold": _f_by_threshold,
        "reliability": _reliability,
        "confusion": _confusion,
        "shares": _shares,
    }
    drawn = [make(one, f"{kind}-{one.number}") for kind, make in makers.items()]
    return [_scores(one), Notes([trust]), *drawn, _exact(one)]


def _scores(one: _Class) -> Table:
    """The scores that `ich score` prints for the class."""
    evidence = one.evidence
    counts = {where: rows["classes"][one.name] for where, rows in evidence.scores["rows"].items()}
    cells = {where: evidence.scores["models"]["blend"][where]["classes"][one.name] for where in counts}
    metric = evidence.scores["metric"]
    titles = {"auc": "AUC", "ap": "average precision", metric: metric.upper(), "log_loss": "log loss"}
    rows = [
        ["positive slices", *(f"{one['positives']:,}" for one in counts.values())],
        ["positive patients", *(f"{one['patients']:,}" for one in counts.values())],
        ["prevalence", *(f"{one['prevalence']:.2%}" for one in counts.values())],
        *([title, *(span(cell[key]) for cell in cells.values())] for key, title in titles.items()),
    ]
    return Table(["", *(TITLES[where] for where in counts)], rows, f"{one.name}: scores of the blend")


def _roc(one: _Class, id_: str) -> Chart:
    spread = one.spread(lambda rows: float(class_auc(one.y[rows, None], one.p[rows, None])[0]), "AUCs")
    drawn = one.curves(lambda _, predicted, true, most: curves.roc(predicted, true, most))
    says = (
        "The share of positive slices that are found, against the share of negative slices taken for positive, over all"
        f" thresholds. The AUC is how often a positive slice ranks above a negative one. {spread}"
    )
    return Chart(id_, "ROC curve", says, charts.roc(drawn, f"AUC {span(one.cells['auc'])}"))


def _precision_recall(one: _Class, id_: str) -> Chart:
    spread = one.spread(
        lambda rows: float(class_average_precision(one.y[rows, None], one.p[rows, None])[0]), "average precisions"
    )
    drawn = one.curves(lambda _, predicted, true, most: curves.precision_recall(predicted, true, most))
    says = (
        "The share of positive predictions that are right, against the share of positives that are found. The dashed"
        f" line is chance. Precision depends on how common the class is among these slices. {spread}"
    )
    figure = charts.precision_recall(drawn, float(one.y.mean()), f"average precision {span(one.cells['ap'])}")
    return Chart(id_, "Precision and recall", says, figure)


def _f_by_threshold(one: _Class, id_: str) -> Chart:
    evidence, key = one.evidence, one.evidence.scores["metric"]
    metric, beta, cut = key.upper(), evidence.beta, evidence.tuned["thresholds"][one.name]

    def f(y: NDArray, positive: NDArray) -> float:
        return float(f_from_counts(y[positive].sum(), positive.sum(), y.sum(), beta))

    in_sample, decided = f(one.y, one.p >= cut), evidence.decided[:, one.number]
    spread = one.spread(lambda rows: f(one.y[rows], decided[rows]), f"cross-fitted {metric}s")
    drawn = one.curves(
        lambda score, predicted, true, most: curves.by_threshold(
            score, f_from_counts(true, predicted, true[-1], beta), most
        )
    )
    says = (
        f"{metric} at each threshold. The tuned threshold is {number(cut)}: {metric} {number(in_sample)} in-sample, on"
        " the slices that it was tuned on, which is optimistic. With thresholds of the other folds it is"
        f" {span(one.cells[key])} (diamond), the score to trust. {spread}"
    )
    figure = charts.f_by_threshold(drawn, metric, cut, in_sample, one.cells[key])
    return Chart(id_, f"{metric} by threshold", says, figure)


def _reliability(one: _Class, id_: str) -> Chart:
    table = one.evidence.reliability
    bins = table[(table["rows"] == "oof") & (table["class"] == one.name)]
    names = {"observed": "value", "observed_low": "low", "observed_high": "high"}
    observed = [
        dict(zip(names.values(), ends, strict=True)) for ends in bins[list(names)].itertuples(index=False, name=None)
    ]
    error = number(one.evidence.scores["calibration_error"]["oof"][one.name])
    figure = charts.reliability(
        bins["probability"].tolist(), observed, bins["count"].tolist(), f"calibration error {error}"
    )
    says = (
        "The share of positive slices per predicted probability: dots on the dashed line are calibrated, dots below it"
        f" are overconfident. The expected calibration error is {error}, the mean distance over slices; its bins are"
        " noisy, so that it is never 0. Bars are confidence intervals over patients."
    )
    return Chart(id_, "Reliability", says, figure)


def _confusion(one: _Class, id_: str) -> Chart:
    figure = charts.confusion(**one.counts(slice(None)))
    says = (
        "Slices at the threshold. Each fold is decided by the threshold that the other folds would choose, so that no"
        " slice takes part in choosing its own. Percentages are per row."
    )
    return Chart(id_, "Confusion matrix", says, figure)


def _shares(one: _Class, id_: str) -> Chart:
    pooled, folds = one.shares(slice(None)), {k: one.shares(rows) for k, rows in one.all_folds.items()}
    short = [dict(zip(SHORT, shares.values(), strict=True)) for shares in (pooled, *folds.values())]
    says = (
        "Sensitivity: the share of labelled positives that are found. Specificity: the share of labelled negatives that"
        " are predicted negative. Predictive values: how often a positive or a negative prediction is right; they hold"
        " for this prevalence only."
    )
    figure = charts.four(short[0], dict(zip(folds, short[1:], strict=True)))
    return Chart(id_, "Sensitivity, specificity and predictive values", says, figure)


def _exact(one: _Class) -> Table:
    folds = [one.shares(rows) for rows in one.all_folds.values()]
    rows = []
    for title, value in one.shares(slice(None)).items():
        known = [share for shares in folds if (share := shares[title]) is not None]
        rows.append([title, number(value), number(min(known, default=None)), number(max(known, default=None))])
    columns = ["", "all folds", "lowest fold", "highest fold"]
    return Table(columns, rows, f"{one.name}: at the cross-fitted threshold")

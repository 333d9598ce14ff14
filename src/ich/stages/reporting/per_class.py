"""Class by class: what the blend makes of each class out of fold, over all thresholds and at the chosen one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from ich.recipe import BETAS
from ich.report.page import Block, Chart, Notes, Panels, Section, Table
from ich.report.scores import TITLES, number, span
from ich.stages.artefacts import as_written
from ich.stages.reporting.evidence import Evidence

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ich.report.page.charts import Curves

FEW = 30  # patients with the class below which an interval says more than a value
LEAD = (
    "The blend, judged out of fold: each slice by models that were trained without its fold. Strong lines hold all"
    " folds' slices together, thin lines one fold each. How far the thin lines lie apart shows what other patients"
    " might have given."
)


def section(evidence: Evidence) -> Section:
    judged = _Judged(evidence)
    panels = {name: _panel(judged, c, name) for c, name in enumerate(evidence.classes)}
    return Section("per-class", "Class by class", [Panels("classes", panels)], LEAD)


@dataclass(frozen=True)
class _Judged:
    """The blend's out-of-fold rows, and what `ich score` says of them."""

    evidence: Evidence

    @cached_property
    def metric(self) -> str:
        return self.evidence.scores["metric"]

    @cached_property
    def beta(self) -> float:
        return (BETAS | {self.metric: self.evidence.plan.recipe.thresholds.beta})[self.metric]

    @cached_property
    def probability(self) -> "np.ndarray":
        return self.evidence.probability("blend")

    @cached_property
    def folds(self) -> "dict[int, np.ndarray]":
        """Mask [n] of each fold's rows."""
        return {k: self.evidence.folds == k for k in self.evidence.plan.fold_numbers}

    @cached_property
    def decided(self) -> "np.ndarray":
        """Decisions [n, c] of each fold's rows by the thresholds of the other folds, those that `ich score` counts."""
        from ich.ensemble import thresholds

        goal = thresholds.Goal(self.beta, "macro", shrink=self.evidence.plan.recipe.thresholds.shrink)
        rows = (self.evidence.labels, self.probability, self.evidence.classes, goal)
        return cast("np.ndarray", thresholds.tune(*rows, trials=0, seed=0, fold=self.evidence.folds).decided)

    @cached_property
    def reliability(self) -> "pd.DataFrame":
        import pandas as pd

        path = self.evidence.plan.workspace.submissions / "reliability.csv"
        with as_written(path):
            return pd.read_csv(path, dtype={"rows": str, "class": str}, keep_default_na=False)

    def cells(self, name: str, where: str = "oof") -> Mapping[str, Any]:
        """A class's figures with their intervals."""
        return self.evidence.scores["members"]["blend"][where]["classes"][name]

    def counts(self, name: str, where: str = "oof") -> Mapping[str, Any]:
        return self.evidence.scores["rows"][where]["classes"][name]


@dataclass(frozen=True)
class _Class:
    """One class: labels, probabilities and decisions [n], and its rows in the order of falling probability."""

    judged: _Judged
    name: str
    y: "np.ndarray"
    p: "np.ndarray"
    decided: "np.ndarray"
    order: "np.ndarray"

    @cached_property
    def folds(self) -> "dict[int, np.ndarray]":
        """The folds that have slices of either kind."""
        return {k: rows for k, rows in self.judged.folds.items() if 0 < self.y[rows].sum() < rows.sum()}

    @cached_property
    def steps(self) -> "dict[int | None, tuple[np.ndarray, np.ndarray, np.ndarray]]":
        """Score, predicted and true of each threshold, of all rows (None) and of each fold's."""
        from ich.ensemble.metrics import operating_points

        kept = {None: self.order} | {k: self.order[rows[self.order]] for k, rows in self.folds.items()}
        return {k: operating_points(self.y[some], self.p[some]) for k, some in kept.items()}

    def curves(self, curve: "Callable[..., np.ndarray]") -> "Curves":
        """curve(score, predicted, true, most) of all rows and of each fold's."""
        from ich.report.page.charts import Curves
        from ich.report.page.curves import MOST

        folds = {k: curve(*self.steps[k], MOST // 2) for k in self.folds}
        return Curves(curve(*self.steps[None], MOST), folds)

    def spread(self, figure: "Callable[[np.ndarray], float]", what: str) -> str:
        """A sentence of what the figure is in each fold's rows."""
        values = [figure(rows) for rows in self.folds.values()]
        said = f"The folds' own {what} {_between(values)}." if values else "No fold alone has slices of either kind."
        left = [str(k) for k in self.judged.folds if k not in self.folds]
        without = f" Fold {', '.join(left)} has slices of one kind only, and no line." if left and values else ""
        return said + without


def _panel(judged: _Judged, c: int, name: str) -> list[Block]:
    import numpy as np

    counts, slices = judged.counts(name), judged.evidence.scores["rows"]["oof"]["slices"]
    if counts["positives"] in (0, slices):
        which = "No" if counts["positives"] == 0 else "Every"
        return [
            Notes(
                [
                    f"{which} labelled slice is positive for {name}. There is nothing to tell apart, so that there are"
                    " no curves here, and nothing is known of how well the class is found."
                ],
                "warning",
            )
        ]
    p = np.ascontiguousarray(judged.probability[:, c])
    y = np.ascontiguousarray(judged.evidence.labels[:, c])
    one = _Class(judged, name, y, p, judged.decided[:, c], np.argsort(-p))
    blocks: list[Block] = [_figures(judged, name), Notes([_trust(judged, name)])]
    blocks += [make(one, f"{kind}-{c}") for kind, make in CHARTS.items()]
    return [*blocks, _exact(one)]


def _figures(judged: _Judged, name: str) -> Table:
    """What `ich score` prints of the class, with its intervals."""
    places = list(judged.evidence.scores["rows"])
    rows = [
        ["positive slices", *(f"{judged.counts(name, where)['positives']:,}" for where in places)],
        ["patients with them", *(f"{judged.counts(name, where)['patients']:,}" for where in places)],
        ["prevalence", *(f"{judged.counts(name, where)['prevalence']:.2%}" for where in places)],
    ]
    titles = {"auc": "AUC", "ap": "average precision", judged.metric: judged.metric.upper(), "log_loss": "log loss"}
    rows += [[title, *(span(judged.cells(name, where)[key]) for where in places)] for key, title in titles.items()]
    return Table(["", *(TITLES[where] for where in places)], rows, f"{name}: figures of the blend")


def _trust(judged: _Judged, name: str) -> str:
    counts, level = judged.counts(name), judged.evidence.scores["level"]
    said = (
        f"Beside a value stands its {level:.0%} interval over patients. There are {counts['positives']:,} positive"
        f" slices of {counts['patients']:,} patients"
    )
    if counts["patients"] < FEW:
        return f"{said}: so few that the interval says more than the value, and that one patient can move a curve."
    return f"{said}."


def _roc(one: _Class, id_: str) -> Chart:
    from ich.ensemble.metrics import class_auc
    from ich.report.page import charts, curves

    said = f"AUC {span(one.judged.cells(one.name)['auc'])}"
    spread = one.spread(lambda rows: float(class_auc(one.y[rows, None], one.p[rows, None])[0]), "AUCs")
    figure = charts.roc(one.curves(lambda _, predicted, true, most: curves.roc(predicted, true, most)), said)
    says = (
        "The share of positive slices found, against the share of negative ones taken for positive, over all"
        f" thresholds. The AUC is how often a positive slice ranks above a negative one. {spread}"
    )
    return Chart(id_, "ROC curve", says, figure)


def _precision_recall(one: _Class, id_: str) -> Chart:
    from ich.ensemble.metrics import class_average_precision
    from ich.report.page import charts, curves

    said = f"average precision {span(one.judged.cells(one.name)['ap'])}"
    spread = one.spread(
        lambda rows: float(class_average_precision(one.y[rows, None], one.p[rows, None])[0]), "average precisions"
    )
    made = one.curves(lambda _, predicted, true, most: curves.precision_recall(predicted, true, most))
    figure = charts.precision_recall(made, float(one.y.mean()), said)
    says = (
        "How many of the slices called positive are so, against the share of positives found. The dashed line is what"
        f" guessing gives. It depends on how common the class is among these slices. {spread}"
    )
    return Chart(id_, "Precision and recall", says, figure)


def _f_by_threshold(one: _Class, id_: str) -> Chart:
    from ich.ensemble.metrics import f_from_counts
    from ich.report.page import charts, curves

    metric, beta = one.judged.metric.upper(), one.judged.beta
    threshold, cell = one.judged.evidence.tuned["thresholds"][one.name], one.judged.cells(one.name)[one.judged.metric]

    def f(y: "np.ndarray", positive: "np.ndarray") -> float:
        return float(f_from_counts(y[positive].sum(), positive.sum(), y.sum(), beta))

    def curve(score: "np.ndarray", predicted: "np.ndarray", true: "np.ndarray", most: int) -> "np.ndarray":
        return curves.by_threshold(score, f_from_counts(true, predicted, true[-1], beta), most)

    own = f(one.y, one.p >= threshold)
    spread = one.spread(lambda rows: f(one.y[rows], one.decided[rows]), f"cross-fitted {metric}s")
    says = (
        f"{metric} at each threshold. The recipe's search chose {number(threshold)}: {metric} {number(own)} on the"
        f" slices that it was tuned on, which flatters. Each fold decided by thresholds of the other folds gives"
        f" {span(cell)} (diamond), the figure to trust. {spread}"
    )
    return Chart(
        id_, f"{metric} against threshold", says, charts.f_by_threshold(one.curves(curve), metric, threshold, own, cell)
    )


def _reliability(one: _Class, id_: str) -> Chart:
    from ich.report.page import charts

    table = one.judged.reliability
    bins = table[(table["rows"] == "oof") & (table["class"] == one.name)]
    observed = [
        {"value": value, "low": low, "high": high}
        for value, low, high in zip(bins["observed"], bins["observed_low"], bins["observed_high"], strict=True)
    ]
    error = number(one.judged.evidence.scores["calibration_error"]["oof"][one.name])
    figure = charts.reliability(
        bins["probability"].tolist(), observed, bins["count"].tolist(), f"calibration error {error}"
    )
    says = (
        "Of slices given a probability, so many should be positive: dots on the dashed line mean what they say, dots"
        f" below it promise too much. The expected calibration error is {error}, the mean distance over slices; its"
        " bins have noise, so that no model has 0. Bars are intervals that allow for slices of one patient being alike."
    )
    return Chart(id_, "Reliability", says, figure)


def _confusion(one: _Class, id_: str) -> Chart:
    from ich.report.page import charts

    counts = _counts(one, None)
    figure = charts.confusion(counts["tp"], counts["fp"], counts["fn"], counts["tn"])
    says = (
        "Slices at the threshold, each fold's decided by the threshold that the other folds would have chosen, so that"
        " no slice helped to choose its own. Percentages are of a row: of the slices so labelled."
    )
    return Chart(id_, "Confusion matrix at the threshold", says, figure)


FOUR: Mapping[str, tuple[str, str]] = {  # a figure: this count, of this and that
    "sensitivity (recall)": ("tp", "fn"),
    "specificity": ("tn", "fp"),
    "positive predictive value (precision)": ("tp", "fp"),
    "negative predictive value": ("tn", "fn"),
}


def _four(one: _Class, id_: str) -> Chart:
    """The usual four figures of the confusion matrix."""
    from ich.report.page import charts

    def short(shares: Mapping[str, float | None]) -> dict[str, float | None]:
        names = ("sensitivity", "specificity", "positive<br>predictive value", "negative<br>predictive value")
        return dict(zip(names, shares.values(), strict=True))

    pooled, folds = _shares(one)
    figure = charts.four(short(pooled), {k: short(shares) for k, shares in folds.items()})
    says = (
        "Sensitivity: the share of labelled positives that is found. Specificity: the share of labelled negatives that"
        " is left alone. The predictive values: how often a positive or a negative decision is right; they hold for"
        " this prevalence alone."
    )
    return Chart(id_, "The usual four figures at the threshold", says, figure)


def _exact(one: _Class) -> Table:
    pooled, folds = _shares(one)
    rows = []
    for title, value in pooled.items():
        known = [share for shares in folds.values() if (share := shares[title]) is not None]
        rows.append([title, number(value), *(number(end(known, default=None)) for end in (min, max))])
    columns = ["", "all folds", "lowest fold", "highest fold"]
    return Table(columns, rows, f"{one.name}: the four figures, cross-fitted")


def _shares(one: _Class) -> tuple[dict[str, float | None], dict[int, dict[str, float | None]]]:
    """The four figures of all rows and of each fold's; None for a share of nothing."""

    def of(counts: Mapping[str, int]) -> dict[str, float | None]:
        pairs = {title: (counts[right], counts[wrong]) for title, (right, wrong) in FOUR.items()}
        return {title: right / (right + wrong) if right + wrong else None for title, (right, wrong) in pairs.items()}

    return of(_counts(one, None)), {k: of(_counts(one, k)) for k in one.judged.folds}


def _counts(one: _Class, fold: int | None) -> dict[str, int]:
    """tp, fp, fn and tn of the cross-fitted decisions, of all rows or of one fold's."""
    from ich.ensemble.metrics import confusion

    y, decided = one.y[:, None], one.decided[:, None]
    if fold is not None:
        rows = one.judged.folds[fold]
        y, decided = y[rows], decided[rows]
    found = confusion(y, decided)
    return {name: int(found[name][0]) for name in ("tp", "fp", "fn", "tn")}


def _between(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return f"are {low}" if low == high else f"lie between {low} and {high}"


CHARTS: Mapping[str, Callable[[_Class, str], Chart]] = {
    "roc": _roc,
    "precision-recall": _precision_recall,
    "threshold": _f_by_threshold,
    "reliability": _reliability,
    "confusion": _confusion,
    "four": _four,
}

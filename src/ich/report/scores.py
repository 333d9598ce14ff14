"""scores.json for readers: tables per set of rows, their summary in sentences, and the rows of the CSV files."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ich.report.page.blocks import Table

TITLES = {"oof": "Out of fold", "test": "Hidden test solution"}
PLACES = {"oof": "out of fold", "test": "on the hidden test solution"}
STUDY_SCORES = {"auc": "AUC", "sensitivity": "sensitivity", "specificity": "specificity"}
Cell = Mapping[str, Any]


def tables(found: Mapping[str, Any], width: int) -> Iterator[Table]:
    """Tables per set of rows: models by stage, then studies. Columns beyond `width` characters go to further tables."""
    for where, title in TITLES.items():
        if where not in found["rows"]:
            continue
        rows = found["rows"][where]
        size = f"{rows['slices']:,} slices of {rows['patients']:,} patients"
        yield from _split(title, size, _columns(found, where), width)
        if where in found["studies"]:
            size = f"{found['studies'][where]['studies']:,} studies of {rows['patients']:,} patients"
            yield from _split(f"Blend per study, {PLACES[where]}", size, _study_columns(found, where), width)
            if "pooled" in found["studies"][where]:
                yield from _split(f"Attention pooling, {PLACES[where]}", size, _pooled_columns(found, where), width)


def _split(title: str, size: str, columns: Sequence[tuple[str, list[str]]], width: int) -> Iterator[Table]:
    """The columns as one table, or as several that fit the width."""
    for part, group in enumerate(_fitting(columns, width)):
        cells = [list(row) for row in zip(*(cells for _, cells in group), strict=True)]
        yield Table(f"{title}: {size if part == 0 else 'more columns'}", [name for name, _ in group], cells)


def sentences(found: Mapping[str, Any]) -> Iterator[str]:
    """Reading instructions of the tables, and the blend's gain, optimism and calibration: one paragraph each."""
    metric, blend = found["metric"], found["models"]["blend"]["oof"]
    f = metric.upper()
    yield (
        f"Next to each value is its {found['level']:.0%} confidence interval (bootstrap over patients). Out of fold,"
        f" {f} uses the thresholds of the other folds; in-sample, with thresholds tuned on the same rows, it is"
        " optimistic."
    )
    yield (
        "The mean of folds is that of the macro AUC within each fold, ± its standard deviation between folds. Micro"
        f" {f} pools the counts of all classes, at the thresholds tuned for macro {f}."
    )
    yield (
        "The baseline predicts the prevalence of each class for all slices. Its AUC is 0.5, and its thresholds make all"
        " slices positive."
    )
    if found["studies"]:
        yield (
            "A study has the maximum probability of its slices, and is positive if one of them is. Its sensitivity and"
            f" specificity use the thresholds for {f} of slices."
        )
    if "pooled" in found["studies"].get("oof", {}):
        yield (
            "Models with study_loss also predict studies by attention pooling. For comparison, these logits and the"
            " maximum over the model's slices get a Platt scaling and thresholds, fitted on the studies of the other"
            " folds."
        )
    if "test" in found["rows"]:
        yield (
            f"On the test solution, {f} uses the thresholds of all out-of-fold rows, and predictions are the mean over"
            f" folds. The blend of a single fold has a macro {f} of {number(found['one_fold'][metric])}."
        )
        submission = found["submission"]
        yield (
            f"With the thresholds of thresholds.json, the submission has a {submission['average']} {f} of"
            f" {bracketed(submission['f'])} and a log loss of {number(submission['log_loss'])} on the test solution."
        )
    for where in found["rows"]:
        losses = {name: model[where]["log_loss"] for name, model in found["models"].items() if name != "blend"}
        if losses:
            best = min(losses, key=lambda name: losses[name]["value"])
            gain = losses[best]["minus_blend"]
            verdict = "may be chance" if gain["low"] <= 0 <= gain["high"] else "is more than chance"
            yield (
                f"The best other model {PLACES[where]} is {best}. Its log loss minus the blend's is"
                f" {bracketed(gain)}, which {verdict}."
            )
    in_sample = [
        f"a {title} of {number(blend[score]['in_sample'])} (cross-fitted {number(blend[score]['value'])})"
        for score, title in ((metric, f"macro {f}"), ("log_loss", "log loss"))
        if "in_sample" in blend[score]
    ]
    yield f"In-sample, the blend has {' and '.join(in_sample)}."
    errors: list[str] = []
    for where, classes in found["calibration_error"].items():
        worst = max(classes, key=lambda name: classes[name])
        largest = f" (largest {number(classes[worst])}, {worst})" if len(classes) > 1 else ""
        errors.append(f"{number(sum(classes.values()) / len(classes))} {PLACES[where]}{largest}")
    yield f"Expected calibration error of the blend, mean over classes: {'; '.join(errors)}."


def number(value: float | None) -> str:
    """Four decimals; - for an undefined score."""
    return "-" if value is None else f"{value:.4f}"


def span(cell: Cell) -> str:
    """A value and its confidence interval."""
    return f"{number(cell['value'])} {interval(cell)}".rstrip()


def deviation(cell: Cell) -> str:
    """Mean over folds ± standard deviation; empty on the test set."""
    return f"{number(cell['fold_mean'])} ± {number(cell['fold_std'])}" if "fold_mean" in cell else ""


def bracketed(cell: Cell) -> str:
    """A value with its confidence interval in brackets, for text."""
    return f"{number(cell['value'])} ({interval(cell)})"


def interval(cell: Cell) -> str:
    """A confidence interval; empty for an undefined score."""
    if cell["low"] is None:
        return ""
    return f"{number(cell['low'])}{'-' if cell['low'] >= 0 else ' to '}{number(cell['high'])}"


def lines(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of scores.csv, by model and set of rows. Undefined scores are NaN; "" where nothing was tuned."""
    for name, model in found["models"].items():
        for where in found["rows"]:
            cells = {score: cell for score, cell in model[where].items() if score != "classes"}
            line = {"model": name, "stage": model["stage"], "rows": where}
            line |= {score: _float(cell["value"]) for score, cell in cells.items()}
            line |= {f"{score}_{end}": _float(cell[end]) for score, cell in cells.items() for end in ("low", "high")}
            line |= {
                f"{score}_{key}": _float(cell[key]) if where == "oof" else ""
                for score, cell in cells.items()
                for key in ("fold_mean", "fold_std")
            }
            line |= {f"{score}_micro": cell["micro"] for score, cell in cells.items() if "micro" in cell}
            tuned = ("log_loss", "auc", *(score for score in cells if f"{score}_half" in cells))
            line |= {f"{score}_in_sample": cells[score].get("in_sample", "") for score in tuned}
            yield line | {f"{score}_baseline": _float(found["baseline"][where][score]["value"]) for score in cells}


def lines_by_class(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of scores_by_class.csv, by model, set of rows and class; thresholds are tuned on all out-of-fold rows."""
    for model, of_model in found["models"].items():
        for where, rows in found["rows"].items():
            for name, counts in rows["classes"].items():
                cells = of_model[where]["classes"][name]
                line = {"model": model, "rows": where, "class": name}
                line |= {key: counts[key] for key in ("positives", "patients")}
                for score, cell in cells.items():
                    if score == "thresholds":
                        line |= {f"{metric}_threshold": cut for metric, cut in cell.items()}
                    elif not score.endswith("_half"):
                        line |= {score: _float(cell["value"])}
                        line |= {f"{score}_{end}": _float(cell[end]) for end in ("low", "high")}
                constant = found["baseline"][where]["classes"][name]
                yield line | {f"{score}_baseline": _float(constant[score]["value"]) for score in cells if score in line}


def lines_by_study(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of scores_by_study.csv, by model, set of rows and class; the mean over classes has the class "macro".

    "NAME pooled" and "NAME maximum" are the calibrated predictions of studies by a model with study_loss.
    """
    for where, of_rows in found["studies"].items():
        ways = of_rows.get("pooled", {}).items()
        studies = {f"{model} {way}": cells for model, of_model in ways for way, cells in of_model.items()}
        for model, of_model in {**of_rows["models"], **studies}.items():
            for name, cells in {**of_model["classes"], "macro": of_model}.items():
                line = {"model": model, "rows": where, "class": name, "studies": of_rows["studies"]}
                line |= {"positives": of_rows["positives"].get(name, "")}
                for score in STUDY_SCORES:
                    line |= {score: _float(cells[score]["value"])}
                    line |= {f"{score}_{end}": _float(cells[score][end]) for end in ("low", "high")}
                yield line


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def _columns(found: Mapping[str, Any], where: str) -> list[tuple[str, list[str]]]:
    """Title and cells of each column. The first column holds the models below their stages."""
    metric = found["metric"]
    log_loss = "weighted log loss" if len(set(found["class_weights"].values())) > 1 else "log loss"
    titles = ["", log_loss, "macro AUC", "mean of folds", f"macro {metric.upper()}"]
    titles += [f"micro {metric.upper()}", f"{metric.upper()} in-sample", "log loss minus the blend's"]
    rows: list[list[str]] = []
    stage = ""
    for name, model in found["models"].items():
        if model["stage"] not in (stage, name):
            rows.append([model["stage"], *[""] * (len(titles) - 1)])
        stage = model["stage"]
        cells = model[where]
        row = [name if name == stage else f"  {name}", *_scores(cells, metric)]
        row.append(number(cells[metric].get("in_sample")))
        row.append(span(cells["log_loss"]["minus_blend"]) if "minus_blend" in cells["log_loss"] else "")
        rows.append(row)
    cells = found["baseline"][where]
    rows.append(["baseline", *[""] * (len(titles) - 1)])
    rows.append(["  prevalence", *_scores(cells, metric), "", ""])
    columns = [(title, [row[i] for row in rows]) for i, title in enumerate(titles)]
    if where != "oof":
        del columns[-2], columns[3]  # nothing is tuned on the test set, and it has no folds
    return columns


def _scores(cells: Mapping[str, Any], metric: str) -> Iterator[str]:
    """Log loss, AUC over all rows and as mean of the folds, macro and micro F of a model."""
    yield span(cells["log_loss"])
    yield span(cells["auc"])
    yield deviation(cells["auc"])
    yield span(cells[metric])
    yield number(cells[metric]["micro"])


def _study_columns(found: Mapping[str, Any], where: str) -> list[tuple[str, list[str]]]:
    """Title and cells of each column: the blend per class, the mean over classes, and that of the baseline."""
    studies = found["studies"][where]
    blend, constant = studies["models"]["blend"], studies["models"]["baseline"]
    rows = {**blend["classes"], "macro mean": blend, "baseline": constant}
    positives = [f"{n:,}" for n in studies["positives"].values()]
    columns = [("", list(rows)), ("positive studies", [*positives, "", ""])]
    return columns + [(title, [span(cells[key]) for cells in rows.values()]) for key, title in STUDY_SCORES.items()]


def _pooled_columns(found: Mapping[str, Any], where: str) -> list[tuple[str, list[str]]]:
    """Title and cells of each column: per model the macro means of both predictions, and their difference."""
    titles = {"log_loss": "log loss", **STUDY_SCORES}
    names, rows = list[str](), list[Mapping[str, Any]]()
    for model, ways in found["studies"][where]["pooled"].items():
        names += [model, "  maximum over slices", "  attention pooling", "  difference"]
        rows += [{}, ways["maximum"], ways["pooled"], {k: ways["pooled"][k]["minus_maximum"] for k in titles}]
    columns = [(title, [span(row[key]) if row else "" for row in rows]) for key, title in titles.items()]
    return [("", names), *columns]


def _fitting(columns: Sequence[tuple[str, list[str]]], width: int) -> Iterator[list[tuple[str, list[str]]]]:
    """Split the columns into groups that fit the width; the first column is in each group."""
    first, *rest = columns
    group, used = [first], _width(first)
    for column in rest:
        if len(group) > 1 and used + 2 + _width(column) > width:
            yield group
            group, used = [first], _width(first)
        group.append(column)
        used += 2 + _width(column)
    yield group


def _width(column: tuple[str, list[str]]) -> int:
    return max(map(len, (column[0], *column[1])))

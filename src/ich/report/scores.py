"""scores.json for readers: a table for each set of rows, what it comes to in plain words, the lines of CSV files."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

TITLES = {"oof": "Out of fold", "test": "Hidden test solution"}
PLACES = {"oof": "out of fold", "test": "on the hidden test solution"}
Cell = Mapping[str, Any]


class Table(NamedTuple):
    title: str
    columns: list[str]
    rows: list[list[str]]


def tables(found: Mapping[str, Any], width: int) -> Iterator[Table]:
    """A table a set of rows, members in the order of the flow; in parts where its columns need more than `width`."""
    for where, title in TITLES.items():
        if where not in found["rows"]:
            continue
        rows = found["rows"][where]
        size = f"{rows['slices']:,} slices of {rows['patients']:,} patients"
        for part, columns in enumerate(_fitting(_columns(found, where), width)):
            cells = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
            heading = f"{title}: {size if part == 0 else 'more columns'}"
            yield Table(heading, [name for name, _ in columns], cells)


def sentences(found: Mapping[str, Any]) -> list[str]:
    """How to read the tables; the blend against the best of the others, its optimism and its calibration."""
    metric = found["metric"]
    said = [
        f"Next to each value is its {found['level']:.0%} confidence interval over patients. {metric.upper()} uses the"
        " thresholds of the other folds out of fold, and those of all out-of-fold rows on a test solution. In-sample,"
        " with thresholds tuned on the same rows, it is optimistic."
    ]
    if "test" in found["rows"]:
        one = found["one_fold"][metric]
        said.append(
            "Test predictions are the mean over folds; out of fold, one fold's models predict alone. One fold's"
            f" blend alone has a macro {metric.upper()} of {number(one)} on the test solution, mean over folds."
        )
        handed_in = found["submission"]
        said.append(
            f"As submitted, with the thresholds of `ich thresholds`, the test solution gives the blend a"
            f" {handed_in['average']} {metric.upper()} of {span(handed_in['f'])} and a log loss of"
            f" {number(handed_in['log_loss'])}."
        )
    said += [line for where in found["rows"] if (line := _against_the_best(found, where)) is not None]
    blend = found["models"]["blend"]["oof"]
    flattered = [
        f"{title} {number(blend[figure]['in_sample'])}, not {number(blend[figure]['value'])}"
        for figure, title in ((metric, f"a macro {metric.upper()} of"), ("log_loss", "a log loss of"))
        if "in_sample" in blend[figure]
    ]
    said.append(f"In-sample, on the rows that it is tuned on, the blend would show {' and '.join(flattered)}.")
    errors: list[str] = []
    for where, classes in found["calibration_error"].items():
        worst = max(classes, key=lambda name: classes[name])
        mean = sum(classes.values()) / len(classes)
        at_most = f" (at most {number(classes[worst])}, {worst})" if len(classes) > 1 else ""
        errors.append(f"{PLACES[where]} {number(mean)}{at_most}")
    return [*said, f"The blend's expected calibration error, mean over classes: {'; '.join(errors)}."]


def number(value: float | None) -> str:
    """As in the CSV files; - for a figure that does not exist."""
    return "-" if value is None else f"{value:.4f}"


def span(cell: Cell) -> str:
    """A value and its interval."""
    return number(cell["value"]) if cell["low"] is None else f"{number(cell['value'])} {_ends(cell)}"


def split(cell: str) -> tuple[str, str]:
    """The value of a cell made by `span`, and its interval or an empty text."""
    value, _, interval = cell.partition(" ")
    return value, interval


def lines(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """scores.csv: a member and its rows a line. A figure that does not exist is nan; empty: nothing was tuned."""
    for member, said in found["models"].items():
        for where in found["rows"]:
            cells = {name: cell for name, cell in said[where].items() if name != "classes"}
            line = {"model": member, "stage": said["stage"], "rows": where}
            line |= {name: _float(cell["value"]) for name, cell in cells.items()}
            line |= {f"{name}_{end}": _float(cell[end]) for name, cell in cells.items() for end in ("low", "high")}
            tuned = ("log_loss", "auc", *(name for name in cells if f"{name}_half" in cells))
            yield line | {f"{name}_in_sample": cells[name].get("in_sample", "") for name in tuned}


def lines_by_class(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """scores_by_class.csv: a member, its rows and a class a line; thresholds: tuned on all out-of-fold rows."""
    for member, said in found["models"].items():
        for where, rows in found["rows"].items():
            for name, counts in rows["classes"].items():
                cells = said[where]["classes"][name]
                line = {"model": member, "rows": where, "class": name}
                line |= {key: counts[key] for key in ("positives", "patients")}
                for figure, cell in cells.items():
                    if figure == "thresholds":
                        line |= {f"{metric}_threshold": cut for metric, cut in cell.items()}
                    elif not figure.endswith("_half"):
                        line |= {figure: _float(cell["value"])}
                        line |= {f"{figure}_{end}": _float(cell[end]) for end in ("low", "high")}
                yield line


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def _columns(found: Mapping[str, Any], where: str) -> list[tuple[str, list[str]]]:
    """Title and cells of each column, of which the first names the members below their stages."""
    metric, weights = found["metric"], found["class_weights"].values()
    log_loss = "weighted log loss" if len(set(weights)) > 1 else "log loss"
    titles = [
        "",
        log_loss,
        "macro AUC",
        f"macro {metric.upper()}",
        f"{metric.upper()} in-sample",
        "log loss minus the blend's",
    ]
    lines: list[list[str]] = []
    stage = ""
    for name, member in found["models"].items():
        if member["stage"] not in (stage, name):
            lines.append([member["stage"], *[""] * (len(titles) - 1)])
        stage = member["stage"]
        figures = member[where]
        lines.append(
            [
                name if name == stage else f"  {name}",
                *(span(figures[figure]) for figure in ("log_loss", "auc", metric)),
                number(figures[metric].get("in_sample")),
                span(figures["log_loss"]["minus_blend"]) if "minus_blend" in figures["log_loss"] else "",
            ]
        )
    columns = [(title, [line[i] for line in lines]) for i, title in enumerate(titles)]
    if where != "oof":
        del columns[-2]  # nothing is tuned on the test set
    return columns


def _fitting(columns: Sequence[tuple[str, list[str]]], width: int) -> Iterator[list[tuple[str, list[str]]]]:
    """The columns in as many groups as the width asks for, the first column in each."""
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


def _against_the_best(found: Mapping[str, Any], where: str) -> str | None:
    losses = {name: member[where]["log_loss"] for name, member in found["models"].items() if name != "blend"}
    if not losses:
        return None
    best = min(losses, key=lambda name: losses[name]["value"])
    more = losses[best]["minus_blend"]
    sure = "may be chance" if more["low"] <= 0 <= more["high"] else "is more than chance"
    return (
        f"The best of the others {PLACES[where]} is {best}: its log loss minus the blend's is {number(more['value'])}"
        f" ({_ends(more)}), which {sure}."
    )


def _ends(cell: Cell) -> str:
    return f"{number(cell['low'])}{'-' if cell['low'] >= 0 else ' to '}{number(cell['high'])}"

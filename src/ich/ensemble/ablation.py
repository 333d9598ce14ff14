"""An ablation over several seeds beside a document's: intervals, orders between systems, and the Markdown table.

An order is what a document claims of two of its systems: that one is better than the other. It is judged by the
differences of the two at equal seeds, which share the folds and so most of their luck.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

Verdict = Literal["reproduced", "reversed", "undecided, as claimed", "undecided, opposite", "undecided"]

MARKS = re.compile(r"[\\|`*<\[]|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])")  # _ within a word is no mark


@dataclass(frozen=True)
class Row:
    """A system: the document's figure, None where it has none, and ours, one a seed in the order of the seeds."""

    name: str
    document: float | None
    oof: list[float]
    """Out of fold; [] where it was not run."""
    hidden: list[float]
    """On the hidden test, [] where there are no labels of it."""


@dataclass(frozen=True)
class Claim:
    """A document's claim that one of its systems (a Row's name) is better than another."""

    better: str
    worse: str


@dataclass(frozen=True)
class Order:
    difference: float
    """Mean over seeds of the figure of the system said to be better, less that of the other."""
    half_width: float
    """Of the 95 % interval of the difference; NaN for one seed."""
    verdict: Verdict


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and half the width of its 95 % interval, by Student's t; NaN for the width of one seed.

    The interval is about the seeds alone: other patients would spread the figures further.
    """
    figures = np.asarray(values, dtype=np.float64)
    if figures.ndim != 1 or not figures.size or not np.isfinite(figures).all():
        raise ValueError(f"an ablation needs a finite figure of each seed, at least one; these are {list(values)}.")
    n = figures.size
    if n == 1:
        return float(figures[0]), float("nan")
    return float(figures.mean()), float(stdtrit(n - 1, 0.975) * figures.std(ddof=1) / np.sqrt(n))


def order(better: Sequence[float], worse: Sequence[float], *, larger_is_better: bool = True) -> Order:
    """Judge a claim by the figures of both systems, paired by seed.

    reproduced: the whole interval of the difference is on the side that the document claims; reversed: it is on
    the other; else undecided, and the side of the mean is told. A mean of exactly 0 is on no side, and one seed
    has no interval, so that it decides nothing.
    """
    if len(better) != len(worse):
        raise ValueError(f"figures are paired by seed, but there are {len(better)} and {len(worse)} of them.")
    difference, half_width = summary([a - b for a, b in zip(better, worse, strict=True)])
    gain = difference if larger_is_better else -difference
    verdict: Verdict
    if gain - half_width > 0:
        verdict = "reproduced"
    elif gain + half_width < 0:
        verdict = "reversed"
    elif gain == 0:
        verdict = "undecided"
    else:
        verdict = "undecided, as claimed" if gain > 0 else "undecided, opposite"
    return Order(difference, half_width, verdict)


def markdown(
    title: str, rows: Sequence[Row], claims: Sequence[Claim], *, larger_is_better: bool = True, digits: int = 3
) -> str:
    """A section: the table of the systems, then a line for each claim. Raises ValueError for unknown systems.

    digits: decimals of the figures.
    """
    systems = {row.name: row for row in rows}
    if len(systems) != len(rows):
        raise ValueError(f"{title}: two systems of one name among {', '.join(row.name for row in rows)}.")
    for name in (name for claim in claims for name in (claim.better, claim.worse)):
        if name not in systems:
            raise ValueError(f"{title}: a claim names {name!r}; the systems are {', '.join(systems)}.")
    lines = [
        f"## {_escaped(title)}",
        "",
        "| system | document | out of fold | hidden test | seeds |",
        "|---|--:|--:|--:|--:|",
        *(_table_row(row, digits) for row in rows),
        "",
        f"Means over seeds ± half of their 95 % interval; {'larger' if larger_is_better else 'smaller'} is better.",
    ]
    if claims:
        lines += ["Orders are judged by the differences at equal seeds.", ""]
    for claim in claims:
        better, worse = systems[claim.better], systems[claim.worse]
        parts = [
            _judged(pair, larger_is_better, digits, where)
            for where, pair in (
                ("out of fold", (better.oof, worse.oof)),
                ("on the hidden test", (better.hidden, worse.hidden)),
            )
        ]
        claimed = "-"
        if better.document is not None and worse.document is not None:
            claimed = f"{better.document - worse.document:+.{digits}f}"
        names = f"{_escaped(better.name)} over {_escaped(worse.name)}"
        lines.append(f"- {names}: document {claimed}; here {'; '.join(parts)}")
    return "\n".join(lines) + "\n"


def _table_row(row: Row, digits: int) -> str:
    document = "-" if row.document is None else f"{row.document:.{digits}f}"
    ours = [_interval(*summary(values), f".{digits}f") if values else "-" for values in (row.oof, row.hidden)]
    return f"| {_escaped(row.name)} | {document} | {ours[0]} | {ours[1]} | {max(len(row.oof), len(row.hidden))} |"


def _judged(pair: tuple[list[float], list[float]], larger_is_better: bool, digits: int, where: str) -> str:
    if not all(pair):
        return f"- {where}"
    found = order(*pair, larger_is_better=larger_is_better)
    return f"{_interval(found.difference, found.half_width, f'+.{digits}f')} {where}: {found.verdict}"


def _interval(mean: float, half_width: float, form: str) -> str:
    return f"{mean:{form}}" + ("" if np.isnan(half_width) else f" ± {half_width:{form.lstrip('+')}}")


def _escaped(text: str) -> str:
    """Plain text for a Markdown line or table cell: what would end the cell or start a mark-up is escaped."""
    return MARKS.sub(r"\\\g<0>", " ".join(text.split()))

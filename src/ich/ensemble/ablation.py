"""Ablations over several seeds next to published scores: confidence intervals, claimed orders, Markdown tables.

An order is a document's claim that one of its systems is better than another. It is tested by the differences of the
two at equal seeds, which share the folds and so most of the variance.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.special import stdtrit

Verdict = Literal["reproduced", "reversed", "undecided, as claimed", "undecided, opposite", "undecided"]
WORDS = ("reproduced", "undecided", "reversed")

MARKS = re.compile(r"[\\|`*<\[]|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])")  # _ within a word is no mark-up
DIGITS = 4


@dataclass(frozen=True)
class Row:
    """A system: one score per seed, out of fold and on the hidden test (may be []), and the document's, by column."""

    name: str
    oof: list[float]
    hidden: list[float]
    document: dict[str, float] = field(default_factory=dict)


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and the half width of its 95 % confidence interval, by Student's t; NaN for one seed.

    The interval covers the variation between seeds only, not that between patients.
    """
    scores = np.asarray(values, dtype=np.float64)
    if not scores.size or not np.isfinite(scores).all():
        raise ValueError(f"an ablation needs one finite score per seed, at least one; these are {list(values)}.")
    n = scores.size
    if n == 1:
        return float(scores[0]), float("nan")
    return float(scores.mean()), float(stdtrit(n - 1, 0.975) * scores.std(ddof=1) / np.sqrt(n))


def order(
    better: Sequence[float], worse: Sequence[float], *, larger_is_better: bool = True
) -> tuple[float, float, Verdict]:
    """Test a claim by the scores of both systems, paired by seed: mean difference, half width of its interval, verdict.

    reproduced: the whole interval of the difference is on the claimed side of 0; reversed: on the other side; else
    undecided, with the side of the mean. One seed has no interval, so that it is undecided. Out of fold, the score of a
    seed must be its mean over folds: both systems have the same folds, so it pairs by seed and fold. The folds of a
    seed share training rows and are not independent, so the interval is over seeds.
    """
    difference, half_width = summary([a - b for a, b in zip(better, worse, strict=True)])
    gain = difference if larger_is_better else -difference
    if gain - half_width > 0:
        return difference, half_width, "reproduced"
    if gain + half_width < 0:
        return difference, half_width, "reversed"
    if gain == 0:
        return difference, half_width, "undecided"
    return difference, half_width, "undecided, as claimed" if gain > 0 else "undecided, opposite"


def markdown(
    title: str, rows: Sequence[Row], claims: Sequence[tuple[str, str]], *, larger_is_better: bool = True
) -> str:
    """A section: the table of the systems, that of the claims, and the number of claims by verdict.

    claims: pairs of systems, the first claimed to be better.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row.document))
    titles = [f"document{', ' if column else ''}{column}" for column in columns]
    systems = [
        [
            row.name,
            *(f"{row.document[column]:.{DIGITS}f}" if column in row.document else "-" for column in columns),
            *(_interval(*summary(values)) if values else "-" for values in (row.oof, row.hidden)),
        ]
        for row in rows
    ]
    side = "larger" if larger_is_better else "smaller"
    seeds = max((len(values) for row in rows for values in (row.oof, row.hidden)), default=0)
    lines = [f"## {_escaped(title)}", "", *_table(["system", *titles, "out of fold", "hidden test"], systems)]
    lines += ["", f"Seeds: {seeds}. Means ± half of their 95 % interval; {side} is better."]
    if not claims:
        return "\n".join(lines) + "\n"

    by_name = {row.name: row for row in rows}
    orders = list[list[str]]()
    verdicts: dict[str, list[Verdict]] = {"out of fold": [], "on the hidden test": []}
    for one, other in ((by_name[better], by_name[worse]) for better, worse in claims):
        cells = [f"{one.name} over {other.name}"]
        for column in columns:
            known = column in one.document and column in other.document
            cells.append(f"{one.document[column] - other.document[column]:+.{DIGITS}f}" if known else "-")
        for found, ours, theirs in zip(
            verdicts.values(), (one.oof, one.hidden), (other.oof, other.hidden), strict=True
        ):
            if ours and theirs:
                difference, half_width, verdict = order(ours, theirs, larger_is_better=larger_is_better)
                found.append(verdict)
                cells.append(f"{_interval(difference, half_width, '+')}: {verdict}")
            else:
                cells.append("-")
        orders.append(cells)
    lines += ["", *_table(["claim", *titles, "out of fold", "hidden test"], orders), ""]
    lines.append("Differences at equal seeds, and whether their interval excludes 0.")
    for where, found in verdicts.items():
        counts = (f"{sum(verdict.startswith(word) for verdict in found)} {word}" for word in WORDS)
        lines.append(f"Claims {where}: {', '.join(counts)}.")
    return "\n".join(lines) + "\n"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; cells but the first are right-aligned."""
    head = [f"| {' | '.join(map(_escaped, titles))} |", f"|---|{'--:|' * (len(titles) - 1)}"]
    return head + [f"| {' | '.join([_escaped(name), *cells])} |" for name, *cells in rows]


def _interval(mean: float, half_width: float, sign: str = "") -> str:
    return f"{mean:{sign}.{DIGITS}f}" + ("" if np.isnan(half_width) else f" ± {half_width:.{DIGITS}f}")


def _escaped(text: str) -> str:
    """Plain text for a Markdown line or table cell, without line breaks and with mark-up escaped."""
    return MARKS.sub(r"\\\g<0>", " ".join(text.split()))

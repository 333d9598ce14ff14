"""Ablations over several seeds next to published scores: confidence intervals, claimed orders, a Markdown table.

An order is a document's claim that one of its systems is better than another. It is tested by the differences of the
two at equal seeds, which share the folds and so most of the variance.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

Verdict = Literal["reproduced", "reversed", "undecided, as claimed", "undecided, opposite", "undecided"]

MARKS = re.compile(r"[\\|`*<\[]|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])")  # _ within a word is no mark-up
DIGITS = 4


@dataclass(frozen=True)
class Row:
    """A system: the document's score or None, and one score per seed, out of fold and on the hidden test; may be []."""

    name: str
    document: float | None
    oof: list[float]
    hidden: list[float]


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
    undecided, with the side of the mean. One seed has no interval, so that it is undecided.
    """
    if len(better) != len(worse):
        raise ValueError(f"scores are paired by seed, but there are {len(better)} and {len(worse)} of them.")
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
    """A section: the table of the systems, then one line per claim.

    claims: pairs of systems, the first claimed to be better.
    """
    lines = [
        f"## {_escaped(title)}",
        "",
        "| system | document | out of fold | hidden test | seeds |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        document = "-" if row.document is None else f"{row.document:.{DIGITS}f}"
        oof, hidden = (_interval(*summary(values)) if values else "-" for values in (row.oof, row.hidden))
        seeds = max(len(row.oof), len(row.hidden))
        lines.append(f"| {_escaped(row.name)} | {document} | {oof} | {hidden} | {seeds} |")
    side = "larger" if larger_is_better else "smaller"
    lines += ["", f"Means over seeds ± half of their 95 % interval; {side} is better."]
    if claims:
        lines += ["Orders are judged by the differences at equal seeds.", ""]
    systems = {row.name: row for row in rows}
    for better, worse in claims:
        one, other = systems[better], systems[worse]
        claimed, parts = "-", []
        if one.document is not None and other.document is not None:
            claimed = f"{one.document - other.document:+.{DIGITS}f}"
        for where, ours, theirs in (
            ("out of fold", one.oof, other.oof),
            ("on the hidden test", one.hidden, other.hidden),
        ):
            if ours and theirs:
                difference, half_width, verdict = order(ours, theirs, larger_is_better=larger_is_better)
                parts.append(f"{_interval(difference, half_width, '+')} {where}: {verdict}")
            else:
                parts.append(f"- {where}")
        names = f"{_escaped(one.name)} over {_escaped(other.name)}"
        lines.append(f"- {names}: document {claimed}; here {'; '.join(parts)}")
    return "\n".join(lines) + "\n"


def _interval(mean: float, half_width: float, sign: str = "") -> str:
    return f"{mean:{sign}.{DIGITS}f}" + ("" if np.isnan(half_width) else f" ± {half_width:.{DIGITS}f}")


def _escaped(text: str) -> str:
    """Plain text for a Markdown line or table cell, without line breaks and with mark-up escaped."""
    return MARKS.sub(r"\\\g<0>", " ".join(text.split()))

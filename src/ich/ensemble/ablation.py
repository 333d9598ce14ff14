"""Ablations over several seeds next to published ones: intervals, orders between systems, and a Markdown table.

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

MARKS = re.compile(r"[\\|`*<\[]|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])")  # _ within a word is no mark


@dataclass(frozen=True)
class Row:
    """A system: the document's score or None, and ours, one per seed in the order of the seeds, [] if there is none."""

    name: str
    document: float | None
    oof: list[float]
    hidden: list[float]


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and half the width of its 95 % confidence interval, by Student's t; NaN for one seed.

    The interval covers the variation between seeds only, not that between patients.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not scores.size or not np.isfinite(scores).all():
        raise ValueError(f"an ablation needs one finite score per seed, at least one; these are {list(values)}.")
    n = scores.size
    if n == 1:
        return float(scores[0]), float("nan")
    return float(scores.mean()), float(stdtrit(n - 1, 0.975) * scores.std(ddof=1) / np.sqrt(n))


def order(
    better: Sequence[float], worse: Sequence[float], *, larger_is_better: bool = True
) -> tuple[float, float, Verdict]:
    """Test a claim by the scores of both systems, paired by seed: difference, half its interval's width, verdict.

    reproduced: the whole interval of the difference is on the claimed side of 0; reversed: on the other side; else
    undecided, with the side of the mean. A mean of exactly 0 is on no side. One seed has no interval, so that it is
    undecided.
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
    title: str,
    rows: Sequence[Row],
    claims: Sequence[tuple[str, str]],
    *,
    larger_is_better: bool = True,
    digits: int = 3,
) -> str:
    """A section: the table of the systems, then one line per claim, with scores of so many digits.

    claims: pairs of systems, the first claimed to be better. Raises ValueError for unknown systems.
    """
    systems = {row.name: row for row in rows}
    if len(systems) != len(rows):
        raise ValueError(f"{title}: two systems of one name among {', '.join(row.name for row in rows)}.")
    for name in (name for claim in claims for name in claim):
        if name not in systems:
            raise ValueError(f"{title}: a claim names {name!r}; the systems are {', '.join(systems)}.")
    lines = [
        f"## {_escaped(title)}",
        "",
        "| system | document | out of fold | hidden test | seeds |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        document = "-" if row.document is None else f"{row.document:.{digits}f}"
        ours = [_interval(*summary(values), f".{digits}f") if values else "-" for values in (row.oof, row.hidden)]
        seeds = max(len(row.oof), len(row.hidden))
        lines.append(f"| {_escaped(row.name)} | {document} | {ours[0]} | {ours[1]} | {seeds} |")
    side = "larger" if larger_is_better else "smaller"
    lines += ["", f"Means over seeds ± half of their 95 % interval; {side} is better."]
    if claims:
        lines += ["Orders are judged by the differences at equal seeds.", ""]
    for better, worse in claims:
        one, other = systems[better], systems[worse]
        claimed, parts = "-", []
        if one.document is not None and other.document is not None:
            claimed = f"{one.document - other.document:+.{digits}f}"
        for where, pair in (
            ("out of fold", (one.oof, other.oof)),
            ("on the hidden test", (one.hidden, other.hidden)),
        ):
            if all(pair):
                difference, half_width, verdict = order(*pair, larger_is_better=larger_is_better)
                parts.append(f"{_interval(difference, half_width, f'+.{digits}f')} {where}: {verdict}")
            else:
                parts.append(f"- {where}")
        names = f"{_escaped(one.name)} over {_escaped(other.name)}"
        lines.append(f"- {names}: document {claimed}; here {'; '.join(parts)}")
    return "\n".join(lines) + "\n"


def _interval(mean: float, half_width: float, form: str) -> str:
    return f"{mean:{form}}" + ("" if np.isnan(half_width) else f" ± {half_width:{form.lstrip('+')}}")


def _escaped(text: str) -> str:
    """Plain text for a Markdown line or table cell, without line breaks and with mark-up escaped."""
    return MARKS.sub(r"\\\g<0>", " ".join(text.split()))

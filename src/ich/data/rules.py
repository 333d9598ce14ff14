"""Rules for labels, slice table, pixels, quarantine list and folds, each defined once.

`ich check` applies them to the raw data, `prepare` and `folds` to their outputs, and `verify` to the finished files.
Each function yields one `Fault` per broken rule.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ich.data.refusal import Reason

SAME_PLACE = 1e-3  # mm; a smaller difference of positions is rounding
SPLITS = ("train", "test")
REASONS = [reason.name.lower() for reason in Reason]
CHUNK = 64  # slices: 32 MiB at 512 x 512
PIXELS = {"hu": (-1024, 3071), "grey": (0, 255)}
RANGES = {
    "index": (0, 1e5),
    "n_slices": (1, 1e5),
    "frame": (0, 1e5),
    "position": (-1e4, 1e4),  # mm
    "tilt": (0, 90),  # degrees
    "row_spacing": (0.05, 5),  # mm
    "column_spacing": (0.05, 5),
}
MAY_LACK = ("position", "tilt", "row_spacing", "column_spacing")


class Fault(NamedTuple):
    """A broken rule."""

    rows: NDArray[np.intp]  # numbers of the rows that break it; empty if it is about the column as a whole
    column: str
    expected: str


Faults = Iterator[Fault]


def describe(fault: Fault, table: pd.DataFrame, key: str) -> str:
    """Describe a fault: the first row by its `key`, the value, the expected value, and the number of rows."""
    if not len(fault.rows):
        return f"{fault.column}: {fault.expected}"
    first, several = fault.rows[0], f" ({len(fault.rows)} such rows)" if len(fault.rows) > 1 else ""
    value = f"{fault.column} is {table[fault.column].iloc[first]}; " if fault.column in table else ""
    return f"{key} {table[key].iloc[first]}: {value}{fault.expected}{several}"


def require(faults: Faults, table: pd.DataFrame, key: str) -> None:
    """Raise ValueError for the first fault."""
    for fault in faults:
        raise ValueError(describe(fault, table, key))


# ---- raw data


def label_table(table: pd.DataFrame, classes: Sequence[str], key: str = "image_id") -> Faults:
    """Each key once, and 0, 1 or NaN per class."""
    yield from _columns(table, (key, *classes))
    yield from _names(table, key, unique=True)
    yield from _labels(table, classes)


def slice_values(table: pd.DataFrame, classes: Sequence[str]) -> Faults:
    """Names that are not empty, and numbers in a plausible range."""
    for name in ("image_id", "patient_id", "study_id", "series_id", "path"):
        yield from _names(table, name, unique=name == "image_id")
    yield from _among(table, "split", SPLITS)
    for name, (low, high) in RANGES.items():
        lacks = table[name].isna() & (name in MAY_LACK)
        yield from _where(~table[name].between(low, high) & ~lacks, name, f"expected {low:g} to {high:g}")
    yield from _labels(table, classes)


# ---- outputs of prepare


def slice_table(table: pd.DataFrame, classes: Sequence[str]) -> Faults:
    """Each image once, no labels of test slices, series adjacent and sorted by position, shards in order."""
    yield from _names(table, "image_id", unique=True)
    yield from _among(table, "split", SPLITS)
    yield from _labels(table, classes)
    for name in classes:
        yield from _where((table["split"] == "test") & table[name].notna(), name, "expected no label of a test slice")
    number = table.groupby(["split", "study_id", "series_id"], sort=False, dropna=False).ngroup()
    series = table.groupby(number.to_numpy(), sort=False)
    apart = number.duplicated() & (number != number.shift())
    yield from _where(apart, "series_id", "expected the slices of a series together")
    yield from _where(table["index"] != series.cumcount(), "index", "expected its place in its series")
    yield from _where(table["n_slices"] != series["split"].transform("size"), "n_slices", "expected its series' length")
    place = (table["position"] / SAME_PLACE).round()
    placed = place.notna().groupby(number).transform("all")  # else the series is sorted by instance number
    falls = placed & (place.groupby(number).diff() < 0)
    yield from _where(falls, "position", "expected in ascending order within the series")
    in_shard = table.groupby("shard", sort=False).cumcount()
    yield from _where(table["shard"].diff() < 0, "shard", "expected in ascending order")
    yield from _where(table["shard_row"] != in_shard, "shard_row", "expected its place in its shard")


def pixels(shard: NDArray, rows: int, values: str, advance: Callable[[int], None]) -> Faults:
    """A shard int16 [rows, s, s] with Hounsfield units or grey values in their range; it is read in chunks."""
    if shard.dtype != np.int16 or shard.ndim != 3 or len(shard) != rows or shard.shape[1] != shard.shape[2]:
        raise ValueError(f"{shard.dtype} {list(shard.shape)}; expected int16 [{rows}, s, s] by slices.parquet")
    (low, high), outside = PIXELS[values], np.zeros(rows, dtype=bool)
    for start in range(0, rows, CHUNK):
        block = np.asarray(shard[start : start + CHUNK])
        outside[start : start + CHUNK] = (block.min(axis=(1, 2)) < low) | (block.max(axis=(1, 2)) > high)
        advance(len(block))
    yield from _where(outside, "pixels", f"expected values from {low} to {high}")


def quarantine(table: pd.DataFrame) -> Faults:
    """Each file or image with a known reason."""
    yield from _among(table, "reason", REASONS)
    yield from _among(table, "split", SPLITS)


# ---- outputs of folds


def fold_cells(table: pd.DataFrame, classes: Sequence[str], n: int) -> Faults:
    """The cells of a fold table, read as text: one row per study, or per slice if it has image_id."""
    key = fold_key(table)
    yield from _columns(table, (*dict.fromkeys((key, "study_id")), "patient_id", "fold", *classes))
    for name in table.columns.intersection([key, "patient_id"]):
        yield from _names(table, name, unique=name == key)
    for name in table.columns.intersection(["fold", *classes]):
        yield from _among(table, name, [str(k) for k in range(n if name == "fold" else 2)])


def folds(table: pd.DataFrame, labelled: pd.DataFrame, n: int, classes: Sequence[str] = ()) -> Faults:
    """Each labelled study (or slice) in one of `n` folds, and all studies of a patient in the same one.

    labelled: the labelled rows of the slice table.
    """
    key = fold_key(table)
    if missing := [name for name in (key, "patient_id", "fold", *classes) if name not in table]:
        yield Fault(
            np.array([], dtype=np.intp), missing[0], f"this column is missing; it has {', '.join(table.columns)}"
        )
        return
    yield from _names(table, key, unique=True)
    yield from _where(~table["fold"].isin(range(n)), "fold", f"expected 0 to {n - 1} (folds.n is {n})")
    if empty := sorted(set(range(n)) - set(table["fold"])):
        yield Fault(np.array([], dtype=np.intp), "fold", f"fold {empty[0]} is empty (folds.n is {n})")
    unit = "slice" if key == "image_id" else "study"
    yield from _where(~table[key].isin(labelled[key]), key, f"expected a labelled {unit} of the slice table")
    if without := sorted(set(labelled[key]) - set(table[key])):
        yield Fault(np.array([], dtype=np.intp), key, f"{len(without)} labelled have no fold, {without[0]} first")
    if key == "study_id":
        owner = table["study_id"].map(labelled.groupby("study_id")["patient_id"].first())
        other = owner.notna() & (owner != table["patient_id"])
        yield from _where(other, "patient_id", "expected the patient of the slice table")
        split = table.groupby("patient_id")["fold"].transform("nunique") > 1
        yield from _where(split, "patient_id", "expected all studies of a patient in one fold")


def fold_key(table: pd.DataFrame) -> str:
    """image_id if folds are by slice, study_id if they are by patient."""
    return "image_id" if "image_id" in table else "study_id"


# ---- rules for one column


def _where(broken: ArrayLike, column: str, expected: str) -> Faults:
    rows = np.flatnonzero(np.asarray(broken))
    if len(rows):
        yield Fault(rows, column, expected)


def _columns(table: pd.DataFrame, expected: Sequence[str]) -> Faults:
    none = np.array([], dtype=np.intp)
    for name in table.columns.difference(list(expected), sort=False):
        yield Fault(none, str(name), f"a column that does not belong; expected {', '.join(expected)}")
    for name in expected:
        if name not in table:
            yield Fault(none, name, "this column is missing")


def _names(table: pd.DataFrame, column: str, *, unique: bool = False) -> Faults:
    names = table[column]
    yield from _where(names.isna() | (names.astype(str).str.strip() == ""), column, "expected a name")
    if unique:
        yield from _where(names.duplicated(), column, "expected each once")


def _among(table: pd.DataFrame, column: str, values: Sequence[object]) -> Faults:
    yield from _where(~table[column].isin(values), column, f"expected one of {', '.join(map(str, values))}")


def _labels(table: pd.DataFrame, classes: Sequence[str]) -> Faults:
    for name in classes:
        yield from _where(table[name].notna() & ~table[name].isin([0, 1]), name, "expected 0 or 1")

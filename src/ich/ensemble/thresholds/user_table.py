"""Read a user's table of labels and probabilities."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
from numpy.typing import NDArray

from ich.inputs import MAX_TABLE, content


@dataclass(frozen=True)
class UserTable:
    """Labels and probabilities [n, c]; fold and patient of each row [n], or None. A single fold is None too."""

    classes: list[str]
    labels: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    fold: NDArray | None
    patients: NDArray | None
    unused: tuple[str, ...]  # columns of 0 and 1 without a column prob_<name>: perhaps forgotten classes


def read(source: Path) -> UserTable:
    """Read a .csv, .csv.gz or .parquet table with columns <class>, prob_<class>, and optionally fold and patient_id.

    Raises ValueError, naming the column, for missing or duplicate columns, values that are not numbers, and empty cells
    in fold or patient_id. The range of labels and probabilities is not checked.
    """
    file = source.name.lower()
    if not file.endswith((".csv", ".csv.gz", ".parquet")):
        raise ValueError("not a .csv, .csv.gz or .parquet file")
    is_csv = not file.endswith(".parquet")
    with _readable():
        data = content(source, MAX_TABLE)
        if file.endswith(".gz"):
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_TABLE + 1)
            if len(data) > MAX_TABLE:
                raise ValueError(f"larger than {MAX_TABLE:,} bytes")
        table = io.BytesIO(data)
        if is_csv:  # pandas would rename duplicate columns
            header = [str(name) for name in pd.read_csv(table, header=None, nrows=1, dtype=str).iloc[0]]
        else:
            header = pyarrow.parquet.read_schema(table).names
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise ValueError(f"column {twice[0]!r} occurs twice")
    classes = [name.removeprefix("prob_") for name in header if name.startswith("prob_")]
    missing = [name for name in classes if name not in header] if classes else ["prob_<class>"]
    if missing:
        needs = "a table needs <class> (0 or 1) and prob_<class> for each class"
        raise ValueError(f"no column {missing[0]}; {needs}, but it has {', '.join(header[:20])}")
    known = [name for name in ("fold", "patient_id") if name in header]
    table.seek(0)
    with _readable():
        if is_csv:  # in one piece, for one type per column
            rows = pd.read_csv(table, low_memory=False)
        else:  # without the index that pandas may have stored
            rows = pyarrow.parquet.read_table(table).to_pandas(ignore_metadata=True)
    if rows.empty:
        raise ValueError("the table has no rows")
    others = [name for name in rows if name not in (*classes, *known) and not str(name).startswith("prob_")]
    for name in known:
        _require_ids(rows[name])
    return UserTable(
        classes,
        _numbers(rows, classes),
        _numbers(rows, [f"prob_{name}" for name in classes]),
        rows["fold"].to_numpy() if "fold" in known and rows["fold"].nunique() > 1 else None,
        rows["patient_id"].to_numpy() if "patient_id" in known else None,
        tuple(str(name) for name in others if _is_binary(rows[name])),
    )


def _require_ids(column: pd.Series) -> None:
    empty = np.flatnonzero(column.isna())
    if len(empty):
        raise ValueError(
            f"column {column.name} is empty in {len(empty)} rows, first in row {empty[0]} (counted from 0)"
        )
    if not pd.api.types.is_hashable(column.iloc[0]):
        raise ValueError(f"column {column.name} must hold numbers or text")


def _is_binary(column: pd.Series) -> bool:
    values = column.dropna()
    return pd.api.types.is_numeric_dtype(column) and len(values) > 0 and bool(values.isin([0, 1]).all())


def in_two_folds(fold: NDArray, patients: NDArray) -> int:
    """The number of patients [n] with rows in more than one fold [n]."""
    return int((pd.Series(fold).groupby(patients).nunique() > 1).sum())


@contextmanager
def _readable() -> Iterator[None]:
    """Turn every error of a reader into ValueError."""
    try:
        yield
    except (OSError, ValueError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        raise ValueError(f"not a readable table ({' '.join(str(error).split())[:120]})") from None


def _numbers(rows: pd.DataFrame, names: list[str]) -> NDArray[np.float64]:
    """Columns [n, c] as numbers, NaN for empty cells; each column is contiguous."""
    found = np.empty((len(rows), len(names)), order="F")
    for c, name in enumerate(names):
        try:
            found[:, c] = pd.to_numeric(rows[name]).to_numpy("float64", na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise ValueError(f"column {name!r} must hold numbers ({error})") from None
    return found

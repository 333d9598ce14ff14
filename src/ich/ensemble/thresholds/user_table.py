"""Reading a table of labels and probabilities that a user brings."""

import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
from numpy.typing import NDArray

KNOWN = ("fold", "patient_id")


@dataclass(frozen=True)
class UserTable:
    """Labels and probabilities [n, c] by class, and each row's fold and patient [n] where the table has them.

    A column fold with one value is none.
    """

    classes: list[str]
    labels: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    fold: NDArray | None
    patients: NDArray | None


def read(source: Path) -> UserTable:
    """The table in a .csv, .csv.gz or .parquet: columns <class>, prob_<class>, and perhaps fold and patient_id.

    Other columns are not read. Raises ValueError, naming the column, where one is missing, stands twice, holds no
    numbers or (fold, patient_id) has empty cells; labels and probabilities are checked by who uses them.
    """
    header = _header(source)
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise ValueError(f"column {twice[0]!r} stands twice")
    classes = [name.removeprefix("prob_") for name in header if name.startswith("prob_")]
    missing = [name for name in classes if name not in header]
    if not classes or missing:
        lacking = f"no column {missing[0]!r} beside 'prob_{missing[0]}'" if missing else "no column prob_<class>"
        raise ValueError(f"{lacking}; a table needs <class> (0 or 1) and prob_<class> for each class")
    wanted = [*classes, *(f"prob_{name}" for name in classes), *(name for name in KNOWN if name in header)]
    with _readable():
        if _is_parquet(source):  # without pandas' own note, by which some columns may be the index
            rows = pyarrow.parquet.read_table(source, columns=wanted).to_pandas(ignore_metadata=True)
        else:  # in one piece, for one type a column
            rows = pd.read_csv(source, usecols=wanted, low_memory=False)
    if rows.empty:
        raise ValueError("a table without rows")
    columns = {name: rows[name] for name in KNOWN if name in header}
    for name, column in columns.items():
        empty = np.flatnonzero(column.isna())
        if len(empty):
            raise ValueError(f"column {name} is empty in {len(empty)} rows, row {empty[0]} first")
    fold, patients = columns.get("fold"), columns.get("patient_id")
    return UserTable(
        classes,
        _numbers(rows, classes),
        _numbers(rows, [f"prob_{name}" for name in classes]),
        None if fold is None or fold.nunique() < 2 else fold.to_numpy(),
        None if patients is None else patients.to_numpy(),
    )


def in_two_folds(fold: NDArray, patients: NDArray) -> int:
    """How many patients [n] have rows in more than one fold [n]."""
    return int((pd.Series(fold).groupby(patients).nunique() > 1).sum())


def _is_parquet(source: Path) -> bool:
    return not source.name.endswith((".csv", ".csv.gz"))


def _header(source: Path) -> list[str]:
    """The column names as they are written: pandas renames one that stands twice."""
    with _readable():
        if _is_parquet(source):
            return pyarrow.parquet.read_schema(source).names
        return [str(name) for name in pd.read_csv(source, header=None, nrows=1, dtype=str).iloc[0]]


@contextmanager
def _readable() -> Iterator[None]:
    """Whatever is wrong with a file is a ValueError."""
    try:
        yield
    except (OSError, ValueError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        raise ValueError(f"not a readable table ({' '.join(str(error).split())[:120]})") from None


def _numbers(rows: pd.DataFrame, names: list[str]) -> NDArray[np.float64]:
    """Columns [n, c] as numbers, NaN where a cell is empty; each class lies together in memory."""
    found = np.empty((len(rows), len(names)), order="F")
    for c, name in enumerate(names):
        try:
            found[:, c] = pd.to_numeric(rows[name]).to_numpy("float64", na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise ValueError(f"column {name!r} holds something else than numbers ({error})") from None
    return found

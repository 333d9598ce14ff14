"""What every competition format is brought to, and the checks on the way."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd


class LayoutError(ValueError):
    """The competition's folder is not laid out as its format says; the text names file and row and what to do."""


@dataclass(frozen=True)
class Raw:
    """A competition as downloaded.

    files: image_id, split (train | test), path relative to the competition's root; one row a file, sorted by path.
    labels: image_id and a float column a class; one row a labelled image, sorted by image_id.
    test_ids: the images that a submission must cover, in the sample submission's order.
    classes: and what each of them counts in the competition's log loss.
    template: path of the sample submission, relative to the competition's root.
    notes: what was dropped or repaired while reading, in words.
    """

    files: pd.DataFrame
    labels: pd.DataFrame
    test_ids: list[str]
    classes: Mapping[str, float]
    template: str
    notes: tuple[str, ...]


def first_existing(root: Path, names: tuple[str, ...], what: str) -> Path:
    for name in names:
        if (root / name).exists():
            return root / name
    raise LayoutError(f"{root}: no {what}; expected {' or '.join(names)}")


def read_columns(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """The named columns of a CSV as text; others (an index column, say) are left aside."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise LayoutError(f"{path}: not a whole CSV file ({' '.join(str(error).split())}); download it again") from None
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise LayoutError(f"{path}: no column {missing[0]!r}; it has {', '.join(map(repr, table.columns))}")
    return table[list(columns)]


def refuse_rows(path: Path, bad: pd.Series, values: pd.Series, expected: str) -> None:
    """Raise LayoutError naming the first rows where `bad`, as an editor numbers them: the header is row 1 and
    the tables' index counts the rows below it from 0."""
    if bad.any():
        rows = ", ".join(f"row {int(i) + 2}: {values.loc[i]!r}" for i in bad.index[bad][:3])
        raise LayoutError(f"{path}: {int(bad.sum())} bad rows ({rows}); expected {expected}")

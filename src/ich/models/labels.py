"""labels: training labels from a table of the user, in place of the competition's or for slices without labels."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import pyarrow.parquet
from numpy.typing import NDArray

from ich.data.competitions import layout
from ich.errors import UserError
from ich.inputs import MAX_TABLE, content
from ich.models.table import SliceTable, quarantined_ids
from ich.recipe import Labels

EMPTY = ("", "nan", "na", "none", "<na>")  # as spreadsheets, pandas, R and Parquet write it


@dataclass(frozen=True)
class TrainingLabels:
    """Labels on which the networks of a fold are trained. Nothing else reads them."""

    labels: NDArray[np.float32]  # [N, c], 0..1, NaN where unlabelled; rows as in the slice table
    weights: NDArray[np.float32]  # [N, c], of the loss; 0 where unlabelled
    added: NDArray[np.bool_]  # [N]: slices that only the table labels

    @classmethod
    def read(cls, path: Path, settings: Labels, slices: SliceTable, cache: Path) -> Self:
        """Combine the table and the labels of the competition. Raises UserError with file, row and column."""
        values, given = _values(path, slices, cache)
        used = given & np.isnan(slices.labels) if settings.mode == "add" else given
        labels = np.where(used, values, slices.labels)
        known = ~np.isnan(labels)
        weights = np.where(used, np.float32(settings.weight), np.float32(1)) * known
        return cls(labels, weights, (used & known).any(axis=1) & ~slices.labelled)

    def rows_to_add(self, slices: SliceTable, held_out: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows that only the table labels, without the patients of the rows `held_out`."""
        patients = slices.table["patient_id"]
        return np.flatnonzero(self.added & ~patients.isin(patients.iloc[held_out]).to_numpy())


def _values(path: Path, slices: SliceTable, cache: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Values [N, c] of a table, NaN where it is empty, and where it has a cell.

    It has the columns image_id and one per class, also named prob_<class>; or image_id, class and label. Other columns
    are ignored.
    """
    table = slices.pseudonyms.revealed(_read(path), slices.table)
    table.columns = [str(name).strip().removeprefix("prob_") for name in table.columns]
    long = {"class", "label"} <= {*table.columns}
    key = ["image_id", "class"] if long else ["image_id"]
    columns = ["label"] if long else [name for name in slices.classes if name in table]
    if "image_id" not in table or not columns:
        raise UserError(
            f"{path}: use the columns image_id and {', '.join(slices.classes)}, or image_id, class and label; it has"
            f" {', '.join(table.columns)}"
        )
    if table[[*key, *columns]].columns.has_duplicates:
        raise UserError(f"{path}: two columns have the same name; it has {', '.join(table.columns)}")
    ids = table["image_id"] = table["image_id"].astype(str).str.strip()
    rows = pd.Series(pd.Index(slices.table["image_id"]).get_indexer(pd.Index(ids)), table.index)
    unknown = (rows < 0) & ~ids.isin(quarantined_ids(cache))
    layout.refuse_rows(path, unknown, ids, "an image_id of this competition")
    if long:
        expected = f"in column 'class' {layout.one_of(table['class'].astype(str), slices.classes)}"
        layout.refuse_rows(path, ~table["class"].isin(slices.classes), table["class"], expected)
    layout.refuse_rows(path, table.duplicated(key, keep=False), ids, f"each {' and '.join(key)} once")

    values = np.full(slices.labels.shape, np.nan, np.float32)
    given = np.zeros(values.shape, bool)
    for c, name in enumerate(slices.classes):
        column = "label" if long else name
        if column not in table:
            continue
        cells = table.loc[table["class"] == name, column] if long else table[column]
        number = pd.to_numeric(cells, errors="coerce").astype("float64")
        words = cells[number.isna()].fillna("").astype(str).str.strip().str.lower()
        number[words.index] = pd.to_numeric(words.str.replace(",", "."), errors="coerce")
        wrong = ~number.between(0, 1)
        wrong[words.index] &= ~words.isin(EMPTY)
        expected = f"in column {column!r} 0 to 1, or nothing (unlabelled)"
        layout.refuse_rows(path, wrong, cells[wrong].astype(str), expected)
        at = rows[cells.index].to_numpy()
        values[at[at >= 0], c], given[at[at >= 0], c] = number[at >= 0], True
    return values, given


def _read(path: Path) -> pd.DataFrame:
    """A CSV file as text, or a Parquet file. Row r of an editor has index r - 2."""
    if path.suffix != ".parquet":
        separator, encoding = layout.dialect(path)
        return layout.read_text(path, separator=separator, encoding=encoding)
    try:
        source = io.BytesIO(content(path, MAX_TABLE))
        return pyarrow.parquet.read_table(source).to_pandas(ignore_metadata=True)
    except (ValueError, OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not a Parquet table ({' '.join(str(error).split())[:200]})") from None

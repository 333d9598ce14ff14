"""The slice table with folds and labels. Its row numbers are those of the HU cache."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import pyarrow.parquet
from numpy.typing import NDArray

from ich.ensemble import metrics
from ich.ensemble.predictions import sigmoid
from ich.errors import UserError, parsing
from ich.models.pseudonyms import KINDS, Pseudonyms
from ich.store.paths import Workspace
from ich.store.records import Record

FOLDS_REMEDY = (
    "restore the file that was there, or make new folds by `ich folds --force`"  # remedy for a damaged fold file
)


@dataclass(frozen=True)
class SliceTable:
    """All readable slices, one row each, whole series together and in order of position.

    table: the columns of slices.parquet (image_id, patient_id, study_id, series_id, position in mm, index, n_slices,
    split, one column per class), fold (NaN without labels) and series (one number per series).
    """

    table: pd.DataFrame
    classes: list[str]
    class_weights: list[float]  # weights of the classes in the competition's log loss
    values: str  # hu | grey: what the cache holds
    pseudonyms: Pseudonyms

    @classmethod
    def read(cls, workspace: Workspace, cache: Path) -> Self:
        record = Record(cache / "run.json").read()
        if record is None:
            raise UserError(f"{cache / 'run.json'}: this cache is not complete; run `ich prepare`")
        table = read_parquet(cache / "slices.parquet").assign(fold=math.nan)
        pseudonyms = Pseudonyms.of(workspace, record["settings"]["competition"]["format"])
        if workspace.folds.is_file():  # pre-training needs no folds
            with parsing(workspace.folds, FOLDS_REMEDY):
                folds = read_folds(workspace.folds, pseudonyms, table)
                key = "image_id" if "image_id" in folds else "study_id"  # folds.by slice or patient
                fold = folds.set_index(key)["fold"]
                table["fold"] = table[key].map(fold).where(table["split"] == "train")
            if pseudonyms.file is not None and table["fold"].isna().all():
                raise UserError(
                    f"{workspace.folds}: none of its pseudonyms is of {pseudonyms.file}. Restore the key with which"
                    " they were made, or run `ich folds --force` to make new folds"
                )
        with parsing(cache / "slices.parquet"):
            table["series"] = series_codes(table)
        return cls(table, record["classes"], record["class_weights"], record["values"], pseudonyms)

    @cached_property
    def labels(self) -> NDArray[np.float32]:
        """[n, c], NaN where unlabelled"""
        return self.table[self.classes].to_numpy("float32")

    @cached_property
    def labelled(self) -> NDArray[np.bool_]:
        """[n]: whether a row has a fold and all labels"""
        return self.table["fold"].notna().to_numpy() & ~np.isnan(self.labels).any(axis=1)

    @cached_property
    def fold_of(self) -> NDArray[np.float64]:
        """[n]: fold of each row, NaN if it has none"""
        return self.table["fold"].to_numpy("float64")

    def train_rows(self, fold: int) -> NDArray[np.int64]:
        return (self.labelled & (self.fold_of != fold)).nonzero()[0]

    def valid_rows(self, fold: int) -> NDArray[np.int64]:
        return (self.labelled & (self.fold_of == fold)).nonzero()[0]

    @cached_property
    def test_rows(self) -> NDArray[np.int64]:
        return (self.table["split"] == "test").to_numpy().nonzero()[0]

    def ids(self, rows: NDArray) -> pd.Index:
        return pd.Index(self.table["image_id"].iloc[rows])

    def log_loss(self, rows: NDArray, logits: NDArray) -> float:
        """The competition's weighted log loss of logits [n, c] of these rows."""
        return metrics.weighted_log_loss(self.labels[rows], sigmoid(logits), self.class_weights)

    def metrics(self, rows: NDArray, logits: NDArray) -> dict[str, float | None]:
        """Metrics for a run record; the AUC is None if no class has both labels."""
        auc = metrics.macro(metrics.class_auc(self.labels[rows], logits))
        return {"weighted_log_loss": self.log_loss(rows, logits), "macro_auc": None if math.isnan(auc) else auc}


def read_folds(path: Path, pseudonyms: Pseudonyms, slices: pd.DataFrame) -> pd.DataFrame:
    """Read a fold file. Its pseudonyms are replaced by the ids of the slices."""
    return pseudonyms.revealed(pd.read_csv(path, dtype=dict.fromkeys(KINDS, str)), slices)


def quarantined_ids(cache: Path) -> set[str]:
    """Image ids of the competition that are not in the slice table."""
    return set(pd.read_csv(cache / "quarantine.csv", dtype=str, keep_default_na=False)["image_id"])


def series_codes(table: pd.DataFrame) -> pd.Series:
    """int64 [n]: one number per series, in the order of the slice table."""
    return table.groupby(["split", "study_id", "series_id"], sort=False).ngroup()


def read_parquet(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a Parquet file of this program, without pandas' own metadata."""
    with parsing(path):
        return pyarrow.parquet.read_table(path, columns=columns).to_pandas(ignore_metadata=True)

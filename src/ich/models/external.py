"""external: predictions from elsewhere, such as a teammate's model, joined by image id.

oof: out-of-fold predictions of every labelled slice; test: predictions of every test slice. Both are CSV or Parquet
with the columns image_id, one per class, and optionally fold. New scans cannot be predicted.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pandas as pd
import pyarrow.parquet
from numpy.typing import NDArray
from scipy.special import logit

from ich.console import warn
from ich.errors import UserError
from ich.inputs import MAX_TABLE, content
from ich.models.artifacts import write_predictions
from ich.models.base import Fitted, Model
from ich.models.data import FoldData
from ich.models.slices import Predictions, Slices
from ich.models.table import quarantined_ids, read_parquet
from ich.training.run import Run

NEAREST = 1e-7  # smallest distance of a probability to 0 and 1, whose logits are infinite


class External(Model):
    def fit(self, data: FoldData, run: Run) -> "FittedExternal":
        """Read the tables. Raises UserError with file and row if they are malformed."""
        settings, fitted = self.settings, FittedExternal({"classes": data.table.classes}, run.name)
        oof = self._read(data, data.workspace.root / settings.oof, data.table.labelled.nonzero()[0])
        if "fold" in oof:
            given = pd.to_numeric(oof["fold"], errors="coerce").reindex(data.slices("valid").ids)
            other = given.index[given.to_numpy() != data.fold]
            if len(other):
                raise UserError(
                    f"{settings.oof}: image {other[0]} is in fold {given[other[0]]:g} there and in fold {data.fold} of"
                    f" {data.workspace.folds}; predict with these folds, or remove the column fold"
                )
        else:
            warning = f"{settings.oof} has no column fold: if it was made with other folds, scores may be optimistic"
            warn(f"external.{data.model}: {warning}", once=True)
            fitted.notes["warnings"] = [warning]
        parts = [oof.loc[data.slices("valid").ids]]
        if len(data.rows["test"]):
            if settings.test is None:
                raise UserError(f"external.{data.model}.test: name the file with the predictions of the test slices")
            test = self._read(data, data.workspace.root / settings.test, data.rows["test"])
            parts.append(test.loc[data.slices("test").ids])
        fitted.logits = pd.concat(parts)[data.table.classes]
        return fitted

    def _read(self, data: FoldData, path: Path, rows: NDArray[np.int64]) -> pd.DataFrame:
        """Logits of a file by image_id, and its column fold if it has one; it must hold every slice of `rows` once."""
        if not path.exists():
            raise UserError(f"external.{data.model}: {path}: no such file")
        try:
            parquet, source = path.suffix == ".parquet", io.BytesIO(content(path, MAX_TABLE))
            if parquet:
                table = pyarrow.parquet.read_table(source).to_pandas(ignore_metadata=True)
            else:
                table = pd.read_csv(source, dtype={"image_id": str})
        except (ValueError, OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{path}: not a CSV or Parquet table ({' '.join(str(error).split())[:200]})") from None
        classes, name = data.table.classes, self.settings.values
        given = table.columns.astype(str)
        table.columns = given.str.removeprefix("logit_" if name == "logit" else "prob_")
        missing = [column for column in ("image_id", *classes) if column not in table]
        if missing:
            raise UserError(f"{path}: no column {', '.join(missing)}; it has {', '.join(given)}; values is {name}")
        for column in ("image_id", *classes):
            same = given[table.columns.isin([column, f"{column}.1"])]  # pandas adds .1 to a name that occurs twice
            if len(same) > 1:
                raise UserError(f"{path}: columns {' and '.join(same)} are both {column}; remove one")
        ids = pd.Index(table["image_id"].astype(str))

        def refuse(bad: NDArray, what: str) -> None:
            if bad.any():
                row = int(np.flatnonzero(bad)[0])
                line = f"row {row + 1}" if parquet else f"line {row + 2}"
                raise UserError(f"{path}: {line}, image {ids[row]}: {what} ({int(bad.sum())} such rows)")

        refuse(ids.duplicated(), "a second row for this image")
        known = [*data.table.table["image_id"], *quarantined_ids(data.cache)]
        refuse(~ids.isin(known), "not an image of this competition")
        values = table[classes].apply(pd.to_numeric, errors="coerce").to_numpy("float64")
        refuse(np.asarray(~np.isfinite(values).all(axis=1)), f"a {name} is missing or not a finite number")
        if name == "probability":
            outside = np.asarray(((values < 0) | (values > 1)).any(axis=1))
            refuse(outside, "a probability outside 0..1; for logits write values: logit")
            values = logit(values.clip(NEAREST, 1 - NEAREST))
        wanted = data.table.ids(rows)
        absent = wanted[ids.get_indexer(wanted) < 0]
        if len(absent):
            raise UserError(f"{path}: no row for image {absent[0]} ({len(absent)} of {len(wanted)} images are missing)")
        found = pd.DataFrame(values, index=ids, columns=pd.Index(classes))
        return found.assign(fold=table["fold"].to_numpy()) if "fold" in table else found


@dataclass
class FittedExternal(Fitted):
    FILE: ClassVar[str] = "external.json"
    KEYS: ClassVar[frozenset[str]] = frozenset({"classes"})

    logits: pd.DataFrame = field(default_factory=pd.DataFrame)  # one column per class, by image_id

    def predict(self, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        rows = self.logits.index.get_indexer(slices.ids)
        if (rows < 0).any():
            unknown = slices.ids[rows < 0][0]
            raise UserError(f"{self.name}: no prediction of image {unknown}; an external model cannot score new scans")
        return Predictions(self.logits[slices.classes].to_numpy()[rows])

    def save(self, folder: Path) -> list[str]:
        predictions = Predictions(self.logits.to_numpy())
        write_predictions(folder, "external", self.logits.index, list(self.logits.columns), predictions)
        return [*super().save(folder), "external.parquet"]

    @classmethod
    def load(cls, folder: Path) -> Self:
        spec = cls.read_spec(folder)
        table = read_parquet(folder / "external.parquet").set_index("image_id")
        return cls(spec, logits=table.set_axis(spec["classes"], axis=1))

"""Prediction files of a fold: <split>.parquet, <split>_embeddings.npy and <split>_studies.parquet, joined by id."""

from pathlib import Path

import numpy as np
import pandas as pd

from ich.ensemble.predictions import aligned, logit_columns
from ich.errors import UserError, parsing
from ich.models.slices import Predictions
from ich.models.table import read_parquet
from ich.store.atomic import atomic
from ich.store.hashes import sha256_file
from ich.store.records import Record

BLOCK = 1 << 14  # rows checked at a time


def write_predictions(
    folder: Path, split: str, ids: pd.Index, classes: list[str], predictions: Predictions, fold: int | None = None
) -> dict[str, Path]:
    """Write a table of image_id, fold (valid only) and logit_<class> as float32, and float16 embeddings if any.

    Predictions of studies are a table of the same kind, with study_id.
    """
    files: dict[str, Path] = {}

    def write(path: Path, key: str, ids: pd.Index, logits: np.ndarray) -> None:
        table = pd.DataFrame(logits, columns=pd.Index(logit_columns(classes)))
        if split == "valid":
            table.insert(0, "fold", fold)
        table.insert(0, key, ids)
        with atomic(path) as temporary:
            table.to_parquet(temporary, index=False)
        files[path.name] = path

    write(folder / f"{split}.parquet", "image_id", ids, predictions.logits)
    if (studies := predictions.studies) is not None:
        write(folder / f"{split}_studies.parquet", "study_id", studies.index, studies.to_numpy(np.float32))
    if predictions.embeddings is not None:
        path = folder / f"{split}_embeddings.npy"
        write_array(path, predictions.embeddings)
        files[path.name] = path
    return files


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file. Unlike np.save, it raises OSError if the disk is full."""
    array = np.ascontiguousarray(array)
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data if array.size else b"")


def read_predictions(
    folder: Path, split: str, ids: pd.Index, classes: list[str], *, embeddings: bool = False
) -> Predictions:
    """Predictions in the order of `ids`. Raises UserError if a file differs from its recorded hash."""
    record = Record(folder / "run.json").read() or {"files": {}}
    path = folder / f"{split}.parquet"
    _require_recorded(record, path)
    table = read_parquet(path)
    with parsing(path):
        logits = aligned(table, ids, classes).astype(np.float32)
    if not embeddings:
        return Predictions(logits)
    path = folder / f"{split}_embeddings.npy"
    _require_recorded(record, path)
    with parsing(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype != np.float16 or array.ndim != 2 or len(array) != len(table):
            raise ValueError(f"{array.dtype} {list(array.shape)} for {len(table)} slices")
    return Predictions(logits, array[pd.Index(table["image_id"]).get_indexer(ids)])


def read_logits(path: Path, ids: pd.Index, classes: list[str], key: str = "image_id") -> np.ndarray:
    """Logits float64 [n, c] in the order of `ids`, from oof.parquet or test.parquet. key: study_id for studies."""
    table = read_parquet(path)
    with parsing(path):
        return aligned(table, ids, classes, key)


def _require_recorded(record: dict, path: Path) -> None:
    if not path.is_file() or sha256_file(path) != record["files"].get(path.name):
        raise UserError(f"{path} is not the file that its run.json records; rerun the stage that writes it")


def require_finite(what: str, ids: pd.Index, predictions: Predictions) -> None:
    """Raise UserError with the first slice that has a logit or an embedding that is not finite."""
    arrays = [("logits", "slices", ids, predictions.logits), ("embeddings", "slices", ids, predictions.embeddings)]
    if (studies := predictions.studies) is not None:
        arrays.append(("logits", "studies", studies.index, studies.to_numpy()))
    for name, unit, rows, array in arrays:
        if array is None:
            continue
        blocks = [np.isfinite(array[start : start + BLOCK]).all(axis=1) for start in range(0, len(array), BLOCK)]
        bad = np.flatnonzero(~np.concatenate(blocks)) if blocks else []
        if len(bad):
            raise UserError(
                f"{what}: the {name} of {len(bad)} of {len(rows)} {unit} are not finite, the first of {rows[bad[0]]};"
                " lower learning_rate, raise warmup_ratio, set max_grad_norm or train with precision fp32"
            )

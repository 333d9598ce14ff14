"""Slices to be predicted, and predictions of them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictions:
    """Predictions of one fold of a model, rows as in the slices that were asked for."""

    logits: NDArray[np.floating]
    """[n, c], kept as float32"""
    embeddings: NDArray[np.float16] | None = None
    """[n, d], of networks on single slices"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "logits", np.asarray(self.logits, dtype=np.float32))


@dataclass(frozen=True)
class Slices:
    """Slices to be predicted: `rows` of a slice table, whole series together and in order.

    table: image_id, patient_id, study_id, series_id, position (mm), index, n_slices and series (a number per series).
    images: the Hounsfield cache [N, S, S] in the order of the table, or None for models that read none. values: "hu",
    or "grey" for competitions of images.
    """

    table: pd.DataFrame
    rows: NDArray[np.int64]
    classes: list[str]
    images: Any = None
    values: str = "hu"
    workers: int | Literal["auto"] = "auto"
    """loader processes for the images"""

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows of the table that are asked for."""
        return self.table.iloc[self.rows]

    @property
    def ids(self) -> pd.Index:
        return pd.Index(self.frame["image_id"])

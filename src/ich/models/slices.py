"""Slices to predict, their geometry along the series, and predictions of them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

USUAL_GAP = 5.0  # mm between slices; networks read gaps as multiples of it


@dataclass(frozen=True)
class Predictions:
    """Predictions of one fold of a model, rows as in the slices that were asked for."""

    logits: NDArray[np.floating]  # [n, c], kept as float32
    embeddings: NDArray[np.float16] | None = None  # [n, d], of networks on single slices
    studies: pd.DataFrame | None = None
    """Logits [m, c] of the m studies of the slices, by study id; of models with `writes_studies`"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "logits", np.asarray(self.logits, dtype=np.float32))


@dataclass(frozen=True)
class Shape:
    """What networks are built for: the number of classes, hu or grey values, and pixels per side of the images."""

    classes: int
    values: str
    size: int


@dataclass(frozen=True)
class Slices:
    """Slices to predict: `rows` of a slice table, whole series together and in order.

    table: image_id, patient_id, study_id, series_id, position (mm), index, n_slices and series (one number per series).
    images: the HU cache [N, S, S] in the order of the table, or None for models that read no images. values: "hu", or
    "grey" for competitions of images.
    """

    table: pd.DataFrame
    rows: NDArray[np.int64]
    classes: list[str]
    images: Any = None
    values: str = "hu"
    workers: int | Literal["auto"] = "auto"  # loader processes for the images

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows of the table to predict."""
        return self.table.iloc[self.rows]

    @property
    def ids(self) -> pd.Index:
        return pd.Index(self.frame["image_id"])

    @property
    def offsets(self) -> NDArray[np.int64]:
        """[series + 1]: series k is the slices offsets[k]:offsets[k + 1]."""
        return np.append(np.flatnonzero(np.diff(self.frame["series"].to_numpy(), prepend=-1)), len(self))

    def some_series(self, count: int) -> NDArray[np.int64]:
        """Rows of whole series, evenly spread, with about `count` slices."""
        number = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        return self.rows[number % max(1, len(self) // count) == 0]


def geometry(table: pd.DataFrame) -> NDArray[np.float32]:
    """[n, 2]: the gap to the next slice in usual gaps minus 1, and the place in the series, -1..1."""
    gap = table.groupby("series")["position"].diff(-1).abs().to_numpy() / USUAL_GAP - 1
    place = 2 * (table["index"] + 0.5).to_numpy() / table["n_slices"].to_numpy() - 1
    return np.column_stack([np.nan_to_num(gap).clip(-1, 3), place]).astype(np.float32)


def positions(table: pd.DataFrame) -> NDArray[np.float64]:
    """[n]: mm along the series; slices are a usual gap apart in a series where one has no position."""
    placed = table["position"].notna().groupby(table["series"]).transform("all")
    return table["position"].where(placed, USUAL_GAP * table["index"]).to_numpy("float64")


def series_predictions(slices: Slices, outputs: NDArray[np.floating], *, pooled: bool) -> Predictions:
    """Predictions of the outputs of a sequence network: [n, c], or [n, 2 c] if `pooled`; see `StudyHead`.

    A study has the largest pooled logit of its series.
    """
    classes = pd.Index(slices.classes)
    logits = outputs[:, : len(classes)]
    if not pooled:
        return Predictions(logits)
    series = pd.DataFrame(outputs[:, len(classes) :], columns=classes)  # repeated for each slice
    return Predictions(logits, studies=series.groupby(slices.frame["study_id"].to_numpy(), sort=False).max())

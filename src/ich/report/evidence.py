"""The input of the report page: the results of a finished run as plain tables and arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True)
class Training:
    """The histories of a network by fold, one row per epoch, and its early stopping; of the first of its seeds."""

    histories: Mapping[int, Sequence[Mapping[str, float]]]
    stopped_by: str | None = None
    """The column of the history whose best epoch was kept; None if the last epoch was kept."""
    stopped_on_fold: bool = False  # True if that column was computed on the validation fold itself
    seeds: int = 1


@dataclass(frozen=True)
class Artifact:
    """The time, memory and versions of one artifact, and the SHA-256 of its main files."""

    stage: str
    name: str
    seconds: float
    peak_memory_mib: float
    versions: Mapping[str, str]
    files: Mapping[str, str]
    machine: str = ""


@dataclass(frozen=True)
class Evidence:
    """N slices, of which n are labelled and in a fold; c classes."""

    settings: Mapping[str, Any]  # the recipe; for own scans without competition.root
    synthetic: bool
    folds_by_slice: bool
    table: pd.DataFrame  # the slice table [N], with `fold` (NaN for test slices) and `series`, a number per series
    classes: list[str]
    class_weights: list[float]
    values: str  # hu | grey
    probability: NDArray[np.float64]  # the blend's out-of-fold probabilities [n, c] of the labelled slices
    test_probability: NDArray[np.float64]  # the blend's probabilities [m, c] of the test slices
    scores: Mapping[str, Any]  # scores.json
    tuned: Mapping[str, Any]  # thresholds.json
    cross_fitted: NDArray[np.float64]  # thresholds [n, c] of the other folds
    beta: float  # of the F-beta that the recipe tunes
    reliability: pd.DataFrame
    blends: Sequence[Mapping[str, Any]]  # blend.json of each fold
    logits: NDArray[np.float64]
    """Out-of-fold logits [models, labelled slices or a part of them, c] of all models, for their correlation."""
    trainings: Mapping[str, Training]
    mapped_by: str | None  # the CNN whose embeddings are mapped; None without a CNN
    embedding_map: pd.DataFrame | None
    cam_by: str | None  # the CNN of the Grad-CAM maps; None if no CNN of the recipe can make them
    suspicious: pd.DataFrame
    audit: pd.DataFrame | None
    quarantined: Sequence[str]  # the reason of each quarantined file
    warnings: Sequence[str]  # warnings of the stages, besides those in `scores` and `tuned`
    artifacts: Sequence[Artifact]
    privacy: Sequence[str] = ()  # sentences about ids and about text in the pixels

    @cached_property
    def all_labels(self) -> NDArray[np.float64]:
        """[N, c], NaN where unlabelled."""
        return self.table[self.classes].to_numpy("float64")

    @cached_property
    def labelled(self) -> NDArray[np.bool_]:
        """[N]: slices with a fold and all labels."""
        return self.table["fold"].notna().to_numpy() & ~np.isnan(self.all_labels).any(axis=1)

    @cached_property
    def rows(self) -> NDArray[np.intp]:
        """Row numbers [n] of the labelled slices."""
        return self.labelled.nonzero()[0]

    @cached_property
    def test_rows(self) -> NDArray[np.intp]:
        return (self.table["split"] == "test").to_numpy().nonzero()[0]

    @cached_property
    def labels(self) -> NDArray[np.float64]:
        """[n, c] of the labelled slices."""
        return self.all_labels[self.rows]

    @cached_property
    def folds(self) -> NDArray[np.int64]:
        """[n] of the labelled slices."""
        return self.table["fold"].to_numpy()[self.rows].astype("int64")

    @cached_property
    def decided(self) -> NDArray[np.bool_]:
        """Decisions [n, c] by the thresholds of the other folds."""
        return self.probability >= self.cross_fitted

    @property
    def fold_numbers(self) -> range:
        return range(len(self.blends))

    @cached_property
    def series(self) -> NDArray[np.int64]:
        """[N]"""
        return self.table["series"].to_numpy()

    @property
    def has_studies(self) -> bool:
        """False if all series are single images."""
        return bool((self.table["n_slices"] > 1).any())

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Class weights [c] that sum to 1."""
        return np.array(self.class_weights) / np.sum(self.class_weights)

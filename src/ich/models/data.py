"""Data of one fold of a model: slices, labels, the rows of each split and the predictions of its inputs."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ich.data.cache import HuCache
from ich.data.folds import patient_share
from ich.ensemble.alignment import into_space_of
from ich.errors import UserError
from ich.models.artifacts import read_predictions
from ich.models.inputs import input_splits
from ich.models.labels import TrainingLabels
from ich.models.slices import Predictions, Shape, Slices
from ich.models.table import SliceTable
from ich.recipe import Recipe, Supervised
from ich.store.hashes import seed_of
from ich.store.paths import Workspace

ROWS = 1 << 13  # embeddings that are rotated at a time


@dataclass(frozen=True)
class Start:
    """Initial weights of a network."""

    weights: Path  # .safetensors file
    classes: tuple[str, ...]  # those of its outputs, in order; () if they are not known
    seed: int = 0  # of several seeds in the file, the number of the one to use, modulo their number


@dataclass(frozen=True)
class FoldData:
    """Slice table, splits and inputs of one fold, joined by image id.

    rows: row numbers of the slice table per split. train; inner, the training patients held out for early stopping, if
    any; valid, the fold; test. Pre-training has the single split all.
    """

    recipe: Recipe
    workspace: Workspace
    model: str
    fold: int | None
    settings: Any
    table: SliceTable
    images: HuCache | None
    rows: dict[str, NDArray[np.int64]]
    cache: Path = Path()
    start: Start | None = None
    training: TrainingLabels | None = None  # of networks, with `labels` in the recipe

    @classmethod
    def read(cls, recipe: Recipe, workspace: Workspace, cache: Path, model: str, fold: int | None) -> Self:
        settings = recipe.pretrain[model] if fold is None else recipe.models[model]
        table = SliceTable.read(workspace, cache)
        images = HuCache.open(cache, table.table) if settings.reads_images else None
        if fold is None:
            return cls(recipe, workspace, model, fold, settings, table, images, {"all": np.arange(len(table.table))})
        training = None
        if recipe.labels is not None and isinstance(settings, Supervised):
            training = TrainingLabels.read(workspace.root / recipe.labels.file(fold), recipe.labels, table, cache)
        rows = _splits(table, settings, fold, training)
        return cls(recipe, workspace, model, fold, settings, table, images, rows, cache, training=training)

    @property
    def shape(self) -> Shape:
        return Shape(len(self.table.classes), self.table.values, self.recipe.image.size)

    def slices(self, split: str) -> Slices:
        workers = getattr(self.settings, "workers", 0)
        return Slices(self.table.table, self.rows[split], self.table.classes, self.images, self.table.values, workers)

    def labels(self, split: str) -> NDArray[np.float32]:
        """[n, c] of a split"""
        return self.table.labels[self.rows[split]]

    @property
    def targets(self) -> NDArray[np.float32]:
        """[n, c]: labels of the training rows; with `training` [n, 2, c]: labels times weights, and weights."""
        if self.training is None:
            return self.labels("train")
        rows = self.rows["train"]
        weights = self.training.weights[rows]
        return np.stack([np.nan_to_num(self.training.labels[rows]) * weights, weights], axis=1)

    @property
    def prevalence(self) -> NDArray[np.floating]:
        """[c]: frequency of the classes in the training rows."""
        if self.training is None:
            return self.labels("train").mean(axis=0)
        positive, weight = self.targets.sum(axis=0, dtype=np.float64)
        return positive / weight

    @property
    def in_sample_rows(self) -> NDArray[np.int64]:
        """The labelled rows of the other folds, and those that `training` adds."""
        rows = self.table.train_rows(self.fold or 0)
        if self.training is None:
            return rows
        return np.union1d(rows, self.training.rows_to_add(self.table, self.rows["valid"]))

    # ---- predictions of the input models

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        return () if self.fold is None else self.recipe.inputs_of(self.model)

    def inputs(self, split: str) -> dict[str, Predictions]:
        """Predictions of each input for the rows of a split, from the folds that `input_splits` lists.

        With features: aligned, embeddings of other folds are rotated into the space of this fold.
        """
        if not self.input_names:
            return {}
        splits = input_splits(getattr(self.settings, "features", "oof"), self.fold or 0, self.recipe.folds.n)
        parts = splits["train" if split == "inner" else split]
        return {name: self._input(name, self.rows[split], parts) for name in self.input_names}

    def _input(self, name: str, rows: NDArray[np.int64], parts: list[tuple[int, str]]) -> Predictions:
        if len(parts) == 1:
            return self._read(name, *parts[0], rows)
        logits, embeddings = np.empty((len(rows), len(self.table.classes)), np.float32), None
        for fold, source in parts:
            (at,) = np.nonzero(self.table.fold_of[rows] == fold)
            part = self._read(name, fold, source, rows[at])
            logits[at] = part.logits
            if part.embeddings is not None:
                if embeddings is None:
                    embeddings = np.empty((len(rows), part.embeddings.shape[1]), np.float16)
                embeddings[at] = part.embeddings
        return Predictions(logits, embeddings)

    def _read(self, name: str, fold: int, split: str, rows: NDArray[np.int64]) -> Predictions:
        """Predictions that a fold of an input recorded, in the order of `rows`."""
        folder, ids = self.workspace.fold(name, fold), self.table.ids(rows)
        folder = folder / "train" if split == "train" else folder
        reads_embeddings = self.settings.reads_embeddings
        predictions = read_predictions(folder, split, ids, self.table.classes, embeddings=reads_embeddings)
        if fold != self.fold and getattr(self.settings, "features", "") == "aligned":
            self._align(name, fold, predictions.embeddings)
        return predictions

    def _align(self, name: str, fold: int, embeddings: Any) -> None:
        """Rotate embeddings of another fold in place, by the embeddings of the test set in both folds."""
        ids = self.table.ids(self.table.test_rows)
        if not len(ids):
            return
        test: list[Any] = [
            read_predictions(self.workspace.fold(name, k), "test", ids, self.table.classes, embeddings=True).embeddings
            for k in (self.fold or 0, fold)
        ]

        def shared() -> Iterator[tuple[NDArray, NDArray]]:
            for start in range(0, len(ids), ROWS):
                yield test[0][start : start + ROWS], test[1][start : start + ROWS]

        rotate = into_space_of(shared)
        for start in range(0, len(embeddings), ROWS):
            embeddings[start : start + ROWS] = rotate(embeddings[start : start + ROWS])


def _splits(
    table: SliceTable, settings: Any, fold: int, training: TrainingLabels | None
) -> dict[str, NDArray[np.int64]]:
    """Row numbers of train, inner, valid and test.

    settings.labels is the share of the training patients whose labels are used. Models with the same seed draw the same
    patients: they can be compared, and a network that starts from another's weights has not seen its inner patients.
    The rows that `training` adds are of patients in neither valid nor inner, and have no out-of-fold features.
    """
    train = table.train_rows(fold)
    rows = {"valid": table.valid_rows(fold), "test": table.test_rows}

    def drawn(share: float, purpose: str) -> NDArray[np.bool_]:
        """Mask of the training rows of this share of the patients."""
        patients, positive = table.table["patient_id"].iloc[train].tolist(), table.labels[train].max(axis=1) > 0
        try:
            return patient_share(patients, positive, share, seed_of(settings.seed, fold, purpose))
        except ValueError as error:
            raise UserError(f"the {purpose} patients of fold {fold}: {error}") from None

    if getattr(settings, "labels", 1) < 1:
        train = train[drawn(settings.labels, "labels")]
    stop = getattr(settings, "early_stopping", None)
    if stop is not None and stop.split == "inner":
        inner = drawn(stop.share, "inner")
        rows["inner"], train = train[inner], train[~inner]
    if training is not None:
        train = train[training.weights[train].any(axis=1)]
        if getattr(settings, "features", "in_sample") == "in_sample":
            held_out = np.concatenate([rows["valid"], rows.get("inner", rows["valid"])])
            train = np.union1d(train, training.rows_to_add(table, held_out))
        for name, weight in zip(table.classes, training.weights[train].T, strict=True):
            if not weight.any():
                raise UserError(f"labels.table: no training label of {name} is left in fold {fold}; keep some of them")
    return {"train": train, **rows}

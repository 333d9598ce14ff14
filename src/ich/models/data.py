"""All that one fold of a model reads: slices, labels, the rows of each split and the predictions of its inputs."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.data.cache import HuCache
from ich.data.folds import patient_share
from ich.ensemble.alignment import into_space_of
from ich.errors import UserError
from ich.models.artifacts import read_predictions
from ich.models.slices import Predictions, Slices
from ich.models.table import SliceTable
from ich.recipe import Recipe
from ich.store.hashes import seed_of
from ich.store.paths import Workspace

ROWS = 1 << 13  # of embeddings that are aligned at a time


@dataclass(frozen=True)
class FoldData:
    """Slice table, splits and inputs of one fold, joined by image id.

    rows: row numbers of the slice table per split. train; inner, where training patients are set aside for early
    stopping; valid, the fold; test. Pre-training has one split, all.
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
    start: Path | None = None
    """A .safetensors file whose weights the network starts from."""

    @classmethod
    def read(cls, recipe: Recipe, workspace: Workspace, cache: Path, model: str, fold: int | None) -> Self:
        settings = recipe.pretrain[model] if fold is None else recipe.models[model]
        table = SliceTable.read(workspace, cache)
        images = HuCache.open(cache, table.table) if settings.reads_images else None
        rows = {"all": np.arange(len(table.table))} if fold is None else _splits(table, settings, fold)
        return cls(recipe, workspace, model, fold, settings, table, images, rows, cache)

    def slices(self, split: str) -> Slices:
        workers = getattr(self.settings, "workers", 0)
        return Slices(self.table.table, self.rows[split], self.table.classes, self.images, self.table.values, workers)

    @property
    def root(self) -> Path:
        """The repository, which paths in the recipe are relative to."""
        return self.workspace.root

    @cached_property
    def quarantined(self) -> set[str]:
        """Image ids that the competition has and the slice table lacks."""
        return set(pd.read_csv(self.cache / "quarantine.csv", dtype=str, keep_default_na=False)["image_id"])

    def labels(self, split: str) -> NDArray[np.float32]:
        """[n, c] of the rows of a split"""
        return self.table.labels[self.rows[split]]

    # ---- predictions of the input models

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        return () if self.fold is None else self.recipe.inputs_of(self.model)

    def inputs(self, split: str) -> dict[str, Predictions]:
        """Predictions of each input for the rows of a split.

        Validation and test rows come from the input's network of this fold. Training rows come from each row's own
        fold, whose network never saw it; or, with features: in_sample, from the network of this fold, which was
        trained on them. With features: aligned, embeddings of other folds are rotated into the space of this fold.
        """
        return {name: self._input(name, split) for name in self.input_names}

    def _input(self, name: str, split: str) -> Predictions:
        rows, classes = self.rows[split], self.table.classes
        embeddings, features = self.settings.reads_embeddings, getattr(self.settings, "features", "oof")
        here, ids = self.workspace.fold(name, self.fold or 0), self.table.ids(rows)
        if split in ("valid", "test"):
            return read_predictions(here, split, ids, classes, embeddings=embeddings)
        if features == "in_sample":
            return read_predictions(here / "train", "train", ids, classes, embeddings=embeddings)
        logits = np.empty((len(rows), len(classes)), np.float32)
        found: NDArray[np.float16] | None = None
        for fold in np.unique(self.table.fold_of[rows]).astype(int):
            (at,) = np.nonzero(self.table.fold_of[rows] == fold)
            part = read_predictions(self.workspace.fold(name, fold), "valid", ids[at], classes, embeddings=embeddings)
            logits[at] = part.logits
            if part.embeddings is not None:
                found = np.empty((len(rows), part.embeddings.shape[1]), np.float16) if found is None else found
                moved = self._aligned(name, fold, part.embeddings) if features == "aligned" else part.embeddings
                found[at] = moved
        return Predictions(logits, found)

    def _aligned(self, name: str, fold: int, embeddings: NDArray[np.float16]) -> NDArray[np.float16]:
        """Embeddings of another fold's network in the space of this fold's, by what both predict on the test set."""
        ids = self.table.ids(self.table.test_rows)
        if not len(ids):
            return embeddings
        both = [
            read_predictions(self.workspace.fold(name, k), "test", ids, self.table.classes, embeddings=True).embeddings
            for k in (self.fold or 0, fold)
        ]

        def shared() -> Iterator[tuple[NDArray, NDArray]]:
            for start in range(0, len(ids), ROWS):
                yield both[0][start : start + ROWS], both[1][start : start + ROWS]  # pyright: ignore[reportOptionalSubscript]

        move = into_space_of(shared)
        for start in range(0, len(embeddings), ROWS):
            embeddings[start : start + ROWS] = move(embeddings[start : start + ROWS])
        return embeddings


def _splits(table: SliceTable, settings: Any, fold: int) -> dict[str, NDArray[np.int64]]:
    """Row numbers of train, inner, valid and test.

    settings.labels: share of the training patients whose labels are used. Models of one seed draw the same patients, so
    that they can be compared, and where one starts from another's weights, those have not seen the inner patients.
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
    return {"train": train, **rows}

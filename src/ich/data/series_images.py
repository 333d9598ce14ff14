"""Whole series as images: the dataset of networks that are trained end to end."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ich.data.batches import Batches, real_slices
from ich.data.datasets import SliceDataset, as_tensor, covered, cutmix_draw, paste, sample_seed


class SeriesImagesBatch(NamedTuple):
    """B series with n slices in total; the longest has T slices."""

    images: torch.Tensor  # uint8 [n, C, S, S], in channels_last memory, one series after the other, without padding
    geometry: torch.Tensor  # float32 [B, T, 2], 0 beyond a series's end
    lengths: NDArray[np.int64]
    """[B]: slices per series; not a tensor, since the network needs them without waiting for a GPU"""
    targets: torch.Tensor | None  # float32 [n, c]
    rows: torch.Tensor  # int64 [n]: row numbers in the HU cache

    @property
    def inputs(self) -> tuple[torch.Tensor | NDArray[np.int64], ...]:
        return (self.images, self.geometry, self.lengths)

    def real(self, values: torch.Tensor) -> torch.Tensor:
        return real_slices(values, self.lengths)


class SeriesImages(Batches[SeriesImagesBatch]):
    """Series of a dataset of slices.

    slices: packed one series after the other, each in order of position. offsets: int64 [series + 1]; series k is the
    slices offsets[k]:offsets[k + 1]. series_ids: one name per series, of which its seed is made. geometry: float32
    [N, 2], rows as in the HU cache.

    All slices of a series are augmented in the same way. With CutMix, a series has one box and one partner; each slice
    is mixed with the partner's slice at the same relative position.
    """

    def __init__(
        self, slices: SliceDataset, offsets: NDArray[np.int64], series_ids: Sequence[str], geometry: NDArray[np.float32]
    ) -> None:
        self.slices, self.offsets, self.series_ids, self.geometry = slices, offsets, series_ids, geometry
        self.seed = slices.seed

    def __len__(self) -> int:
        return len(self.series_ids)

    def __getitems__(self, items: list[tuple[int, int]]) -> SeriesImagesBatch:
        images, targets = zip(*(self._series(epoch, k) for epoch, k in items), strict=True)
        chosen = np.concatenate([np.arange(*self.offsets[k : k + 2]) for _, k in items])
        rows = self.slices.rows[chosen]
        lengths = np.array([len(of) for of in images])
        geometry = np.zeros((len(items), lengths.max(), 2), np.float32)
        geometry[np.arange(lengths.max()) < lengths[:, None]] = self.geometry[rows]
        return SeriesImagesBatch(
            images=as_tensor(np.concatenate(images)),
            geometry=torch.from_numpy(geometry),
            lengths=lengths,
            targets=None if self.slices.targets is None else torch.from_numpy(np.concatenate(targets)),
            rows=torch.from_numpy(rows),
        )

    def _series(self, epoch: int, k: int) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """Images [T, S, S, C] of series k and their targets [T, c]."""
        chosen = np.arange(*self.offsets[k : k + 2])
        images = self._images(chosen, epoch, k, "")
        if self.slices.targets is None:
            return images, None
        targets = self.slices.targets[chosen]
        if alpha := self.slices.transform.cutmix:
            seed, size = sample_seed(self.seed, epoch, self.series_ids[k], "cutmix"), self.slices.hu.shape[-1]
            partner, box = cutmix_draw(seed, k, len(self), size, alpha)
            start, end = self.offsets[partner : partner + 2]
            others = start + (2 * np.arange(len(chosen)) + 1) * (end - start) // (2 * len(chosen))
            paste(images, self._images(others, epoch, k, "partner"), box)
            if share := covered(box, size):
                targets[:] = (1 - share) * targets + share * self.slices.targets[others]
        return images, targets

    def _images(self, chosen: NDArray[np.int64], epoch: int, k: int, use: str) -> NDArray[np.uint8]:
        seed = sample_seed(self.seed, epoch, self.series_ids[k], use)
        return self.slices.images(chosen, [seed] * len(chosen))

"""Whole studies as images, for networks that are trained from the slice to the study in one piece."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ich.data.batches import Batches, real_slices
from ich.data.datasets import SliceDataset, as_tensor, covered, cutmix_draw, paste, sample_seed


class StudyImagesBatch(NamedTuple):
    """B studies of n slices in all, the longest of T slices."""

    images: torch.Tensor
    """uint8 [n, C, S, S], in channels_last memory: one study after the other, without padding"""
    geometry: torch.Tensor
    """float32 [B, T, 2], 0 beyond a study's end"""
    lengths: NDArray[np.int64]
    """[B]: slices of each study; not a tensor, for the network needs them before a GPU has got that far"""
    targets: torch.Tensor | None
    """float32 [n, c]"""
    rows: torch.Tensor
    """int64 [n]: row numbers in the HU cache"""

    @property
    def inputs(self) -> tuple[torch.Tensor | NDArray[np.int64], ...]:
        return (self.images, self.geometry, self.lengths)

    @property
    def real_rows(self) -> torch.Tensor:
        return self.rows

    def real(self, values: torch.Tensor) -> torch.Tensor:
        """[n, ...] of [B, T, ...]."""
        return real_slices(values, self.lengths)


class StudyImages(Batches[StudyImagesBatch]):
    """Studies of a set of slices.

    slices: the slices of the studies, packed one study after the other, each in order of position. offsets: int64
    [studies + 1]; study k is the slices offsets[k]:offsets[k + 1]. study_ids: a name per study, which its changes
    depend on. geometry: float32 [N, 2], rows as in the HU cache.

    All slices of a study are changed in the same way. Where the slices have CutMix, a study has one box, and in it
    another study's slices from the same share of the way through it.
    """

    def __init__(
        self,
        slices: SliceDataset,
        offsets: NDArray[np.int64],
        study_ids: Sequence[str],
        geometry: NDArray[np.float32],
    ) -> None:
        if offsets[0] != 0 or offsets[-1] != len(slices) or (np.diff(offsets) < 1).any():
            raise ValueError(f"offsets must rise from 0 to {len(slices)} and leave no study empty")
        if len(study_ids) != len(offsets) - 1 or len(geometry) != len(slices.hu):
            raise ValueError(
                f"{len(study_ids)} study ids and a geometry of {len(geometry)} rows do not belong to "
                f"{len(offsets) - 1} studies and {len(slices.hu)} cached slices"
            )
        if slices.cutmix and len(study_ids) < 2:
            raise ValueError("CutMix mixes a study with another: it needs two studies")
        self.slices, self.offsets, self.study_ids, self.geometry = slices, offsets, study_ids, geometry
        self.seed = slices.seed

    def __len__(self) -> int:
        return len(self.study_ids)

    def __getitems__(self, items: list[tuple[int, int]]) -> StudyImagesBatch:
        images, targets = zip(*(self._study(epoch, k) for epoch, k in items), strict=True)
        chosen = np.concatenate([np.arange(*self.offsets[k : k + 2]) for _, k in items])
        rows = self.slices.rows[chosen]
        lengths = np.array([len(of) for of in images])
        geometry = np.zeros((len(items), lengths.max(), 2), np.float32)
        geometry[np.arange(lengths.max()) < lengths[:, None]] = self.geometry[rows]
        return StudyImagesBatch(
            images=as_tensor(np.concatenate(images)),
            geometry=torch.from_numpy(geometry),
            lengths=lengths,
            targets=None if self.slices.targets is None else torch.from_numpy(np.concatenate(targets)),
            rows=torch.from_numpy(rows),
        )

    def _study(self, epoch: int, k: int) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """Images [T, S, S, C] of study k and their targets [T, c]."""
        chosen = np.arange(*self.offsets[k : k + 2])
        images = self._changed(chosen, epoch, k, "")
        if self.slices.targets is None:
            return images, None
        targets = self.slices.targets[chosen]
        if self.slices.cutmix:
            seed, size = sample_seed(self.seed, epoch, self.study_ids[k], "cutmix"), self.slices.hu.shape[-1]
            partner, box = cutmix_draw(seed, k, len(self), size, self.slices.cutmix)
            chosen = self._same_place(len(chosen), partner)
            paste(images, self._changed(chosen, epoch, k, "partner"), box)
            if share := covered(box, size):
                targets[:] = (1 - share) * targets + share * self.slices.targets[chosen]
        return images, targets

    def _changed(self, chosen: NDArray[np.int64], epoch: int, k: int, use: str) -> NDArray[np.uint8]:
        seed = sample_seed(self.seed, epoch, self.study_ids[k], use)
        return self.slices.images(chosen, [seed] * len(chosen))

    def _same_place(self, length: int, partner: int) -> NDArray[np.int64]:
        """The slices of `partner` that `length` equal parts of it have in their middle."""
        start, end = self.offsets[partner : partner + 2]
        return start + (2 * np.arange(length) + 1) * (end - start) // (2 * length)

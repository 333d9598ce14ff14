"""Whole studies as pictures, for networks that are trained from the slice to the study in one piece."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ich.data.augment import sample_seed
from ich.data.batches import Batches, EpochBatches, cuts, loader, shortened
from ich.data.datasets import Shown, SliceDataset, covered, cutmix_draw


class StudyPicturesBatch(NamedTuple):
    images: torch.Tensor
    """uint8 [sum of lengths, C, S, S], in channels_last memory: the slices of all studies, one study after the other;
    with draws, what `ich.data.on_device` makes such pictures of, as in `ich.data.datasets.SliceBatch`"""
    geometry: torch.Tensor
    """float32 [B, T, 2], 0 beyond a study's end"""
    lengths: torch.Tensor
    """int64 [B]: slices of each study"""
    targets: torch.Tensor | None
    """float32 [B, T, c], 0 beyond a study's end"""
    rows: torch.Tensor
    """int64 [B, T]: row numbers in the HU cache, -1 beyond a study's end"""
    draws: torch.Tensor | None = None
    """float32 [sum of lengths, m, ...]; None: the loader has changed the pictures"""

    def pieces(self, parts: int) -> list[tuple["StudyPicturesBatch", float]]:
        """The batch cut into `parts`, or single studies if these are fewer; with each piece its share of the slices."""
        ends = [0, *self.lengths.cumsum(0).tolist()]
        cut: list[tuple[StudyPicturesBatch, float]] = []
        for k in cuts(len(self.rows), parts):
            inside = slice(ends[k.start], ends[k.stop])
            images, draws = self.images[inside], None if self.draws is None else self.draws[inside]
            geometry, lengths, targets, rows = (shortened(part, k, self.lengths) for part in self[1:-1])
            piece = StudyPicturesBatch(images, geometry, lengths, targets, rows, draws)
            cut.append((piece, len(images) / len(self.images)))
        return cut


class StudyPictures(Batches[StudyPicturesBatch]):
    """Studies of a set of slices.

    slices: the slices of the studies, packed one study after the other, each in order of position. offsets: int64
    [studies + 1]; study k is the slices offsets[k]:offsets[k + 1]. study_ids: a name a study, which its changes depend
    on. geometry: float32 [N, 2], rows as in the HU cache.

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

    def __getitems__(self, items: list[tuple[int, int]]) -> StudyPicturesBatch:
        studies = [self._study(epoch, k) for epoch, k in items]
        lengths = np.array([len(shown.images) for shown, _ in studies])
        place = np.arange(lengths.max())
        inside = place < lengths[:, None]
        starts = self.offsets[[k for _, k in items]]
        rows = np.where(inside, self.slices.rows[np.where(inside, starts[:, None] + place, 0)], -1)
        targets = None
        if self.slices.targets is not None:
            targets = np.zeros((*rows.shape, self.slices.targets.shape[1]), np.float32)
            targets[inside] = np.concatenate([of for _, of in studies if of is not None])
            targets = torch.from_numpy(targets)
        draws = [shown.draws for shown, _ in studies if shown.draws is not None]
        pictures = Shown(
            np.concatenate([shown.images for shown, _ in studies]), np.concatenate(draws) if draws else None
        )
        images, draws = pictures.tensors()
        return StudyPicturesBatch(
            images=images,
            geometry=torch.from_numpy(np.where(inside[..., None], self.geometry[rows], 0).astype(np.float32)),
            lengths=torch.from_numpy(lengths.astype(np.int64)),
            targets=targets,
            rows=torch.from_numpy(rows.astype(np.int64)),
            draws=draws,
        )

    def _study(self, epoch: int, k: int) -> tuple[Shown, NDArray[np.float32] | None]:
        """Pictures of study k and their targets [T, c]."""
        chosen = np.arange(self.offsets[k], self.offsets[k + 1])
        shown = self._changed(chosen, epoch, k, "")
        if self.slices.targets is None:
            return shown, None
        targets = self.slices.targets[chosen]
        if self.slices.cutmix:
            seed, size = sample_seed(self.seed, epoch, self.study_ids[k], "cutmix"), self.slices.hu.shape[-1]
            partner, box = cutmix_draw(seed, k, len(self), size, self.slices.cutmix)
            chosen = self._same_place(len(chosen), partner)
            shown = shown.with_boxes_of(self._changed(chosen, epoch, k, "partner"), [box] * len(chosen))
            if share := covered(box, size):
                targets[:] = (1 - share) * targets + share * self.slices.targets[chosen]
        return shown, targets

    def _changed(self, chosen: NDArray[np.int64], epoch: int, k: int, use: str) -> Shown:
        seed = sample_seed(self.seed, epoch, self.study_ids[k], use)
        return self.slices.pictures(chosen, [seed] * len(chosen))

    def _same_place(self, length: int, partner: int) -> NDArray[np.int64]:
        """The slices of `partner` that `length` equal parts of it have in their middle."""
        start, end = self.offsets[partner : partner + 2]
        return start + (2 * np.arange(length) + 1) * (end - start) // (2 * length)


def study_picture_loader(
    dataset: StudyPictures, epoch: int, batch_size: int, shuffle: bool, workers: int = 0
) -> DataLoader[StudyPicturesBatch]:
    """Iterate over one epoch of studies, all of them; the same batches whatever `workers`."""
    order = EpochBatches(len(dataset), batch_size, dataset.seed, epoch, shuffle=shuffle, drop_last=False)
    return loader(dataset, order, workers)

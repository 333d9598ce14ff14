"""Batches for the networks: slices out of the HU cache, studies out of packed arrays.

What a batch holds depends on (seed, epoch) alone: neither on the number of worker processes nor on the
batches drawn before.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ich.data.augment import Augment, cutmix_box, sample_seed
from ich.data.views import View, render
from ich.processes import end_with_parent


class SliceBatch(NamedTuple):
    images: torch.Tensor
    """uint8 [B, C, S, S], in channels_last memory"""
    targets: torch.Tensor | None
    """float32 [B, c]"""
    rows: torch.Tensor
    """int64 [B]: row numbers in the HU cache"""

    def pieces(self, parts: int) -> list[tuple["SliceBatch", float]]:
        """The batch cut into `parts`, or single slices if these are fewer; with each piece its share of the slices."""
        n = len(self.rows)
        cut = [(k, None if self.targets is None else self.targets[k]) for k in cuts(n, parts)]
        return [(SliceBatch(self.images[k], targets, self.rows[k]), (k.stop - k.start) / n) for k, targets in cut]


class TwoViewBatch(NamedTuple):
    first: torch.Tensor
    """uint8 [B, C, S, S], in channels_last memory"""
    second: torch.Tensor
    """the same slices, changed in another way"""
    rows: torch.Tensor
    """int64 [B]: row numbers in the HU cache"""


class StudyBatch(NamedTuple):
    features: torch.Tensor
    """float32 [B, T, D], 0 beyond a study's end"""
    base: torch.Tensor
    """float32 [B, T, c]: logits to start from"""
    geometry: torch.Tensor
    """float32 [B, T, 2]: the gap to the next slice, 0 at the last; the place in the study, -1..1"""
    lengths: torch.Tensor
    """int64 [B]: slices of each study"""
    targets: torch.Tensor | None
    """float32 [B, T, c]"""
    rows: torch.Tensor
    """int64 [B, T]: row numbers in the packed arrays, -1 beyond a study's end"""

    def pieces(self, parts: int) -> list[tuple["StudyBatch", float]]:
        """The batch cut into `parts`, or single studies if these are fewer; with each piece its share of the slices."""
        cut = [StudyBatch(*(shortened(part, k, self.lengths) for part in self)) for k in cuts(len(self.rows), parts)]
        return [(piece, int(piece.lengths.sum()) / int(self.lengths.sum())) for piece in cut]


def cuts(n: int, parts: int) -> list[slice]:
    """Places 0..n-1 cut into `parts` of nearly one size, none of them empty."""
    parts = min(parts, n)
    return [slice(n * k // parts, n * (k + 1) // parts) for k in range(parts)]


def shortened(values: torch.Tensor | None, k: slice, lengths: torch.Tensor) -> Any:
    """Those of the studies `k`, as long as the longest of them: values [B] or, padded, [B, T, ...]; lengths [B]."""
    if values is None or values.ndim == 1:
        return values if values is None else values[k]
    return values[k, : int(lengths[k].max())]


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, i), i below `n`; the order depends on (seed, epoch) alone.

    With `drop_last` an incomplete last batch is left out, unless it is the only one.
    """

    def __init__(self, n: int, batch_size: int, seed: int, epoch: int, *, shuffle: bool, drop_last: bool) -> None:
        if n < 1 or batch_size < 1:
            raise ValueError(f"need at least one sample and a batch size of 1, got {n} and {batch_size}")
        self.n, self.batch_size, self.seed, self.epoch = n, batch_size, seed, epoch
        self.shuffle, self.drop_last = shuffle, drop_last

    def __len__(self) -> int:
        return max(self.n // self.batch_size, 1) if self.drop_last else -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.n)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.n)
        for batch in range(len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, int(i)) for i in chosen]


Batch = TypeVar("Batch")


class Batches(Dataset[Batch]):
    """A data set that is asked for whole batches at a time, by (epoch, i)."""

    seed: int

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: list[tuple[int, int]]) -> Batch:
        raise NotImplementedError


class SliceDataset(Batches[SliceBatch]):
    """Slices of the HU cache as pictures.

    hu: int16 [N, S, S], usually a memory map. rows: int64 [n], the rows of `hu` this set consists of.
    neighbours: int64 [N, 3] of `ich.data.views.neighbour_rows`. image_ids: the n ids of `rows`.
    targets: float32 [n, c] or None. augment: None leaves the pictures as they are.
    cutmix: alpha of CutMix, 0 for none: a box of every picture shows the same place of another slice of the set, and
    the targets are mixed by the share of the area. (Yun et al., ICCV 2019, arXiv:1905.04899)
    """

    def __init__(
        self,
        hu: NDArray[np.int16],
        rows: NDArray[np.int64],
        neighbours: NDArray[np.int64],
        image_ids: Sequence[str],
        targets: NDArray[np.float32] | None,
        view: View,
        augment: Augment | None,
        seed: int,
        cutmix: float = 0.0,
    ) -> None:
        if len(image_ids) != len(rows) or (targets is not None and len(targets) != len(rows)):
            raise ValueError(
                f"{len(rows)} rows, {len(image_ids)} image ids and "
                f"{'no' if targets is None else len(targets)} targets do not belong together"
            )
        self.hu, self.rows, self.neighbours, self.image_ids = hu, rows, neighbours, image_ids
        if cutmix and (targets is None or len(rows) < 2):
            raise ValueError("CutMix mixes a slice and its targets with another's: it needs targets and two slices")
        self.targets, self.view, self.augment, self.seed = targets, view, augment, seed
        self.cutmix = cutmix

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, items: list[tuple[int, int]]) -> SliceBatch:
        chosen = np.array([i for _, i in items])
        images = self.pictures(chosen, [sample_seed(self.seed, epoch, self.image_ids[i]) for epoch, i in items])
        targets = None if self.targets is None else self.targets[chosen]
        if self.cutmix and targets is not None:
            self._mix(images, targets, items)
        return SliceBatch(
            images=channels_first(images),
            targets=None if targets is None else torch.from_numpy(targets),
            rows=torch.from_numpy(self.rows[chosen]),
        )

    def pictures(self, chosen: NDArray[np.integer], seeds: Sequence[int]) -> NDArray[np.uint8]:
        """The slices `chosen` (numbers in this set, [m]), each changed by its own seed: uint8 [m, S, S, C]."""
        rows = self.rows[chosen]
        needed = self.neighbours[rows] if self.view.kind == "neighbours" else rows[:, None]
        images = render(np.asarray(self.hu[needed]), self.view)
        if self.augment is not None:
            for image, seed in zip(images, seeds, strict=True):
                image[:] = self.augment(image, seed)
        return images

    def _mix(self, images: NDArray[np.uint8], targets: NDArray[np.float32], items: list[tuple[int, int]]) -> None:
        """CutMix of pictures [B, S, S, C] and targets [B, c], in place."""
        ids = [(epoch, self.image_ids[i]) for epoch, i in items]
        draws = [
            cutmix_draw(sample_seed(self.seed, *of, "cutmix"), i, len(self), images.shape[1], self.cutmix)
            for of, (_, i) in zip(ids, items, strict=True)
        ]
        partners = np.array([partner for partner, _ in draws])
        others = self.pictures(partners, [sample_seed(self.seed, *of, "partner") for of in ids])
        for place, (partner, box) in enumerate(draws):
            share = paste(images[place], others[place], box)
            if share and self.targets is not None:
                targets[place] = (1 - share) * targets[place] + share * self.targets[partner]


Box = tuple[int, int, int, int]


def cutmix_draw(seed: int, i: int, n: int, size: int, alpha: float) -> tuple[int, Box]:
    """The partner, any of `n` but `i`, and the box of one CutMix."""
    rng = np.random.default_rng(seed)
    partner = int(rng.integers(n - 1))
    return partner + (partner >= i), cutmix_box(size, alpha, rng)


def paste(image: NDArray[np.uint8], other: NDArray[np.uint8], box: Box) -> float:
    """Show `other` in the box of a picture, or of pictures [..., S, S, C], in place; return the box's share of it."""
    top, bottom, left, right = box
    image[..., top:bottom, left:right, :] = other[..., top:bottom, left:right, :]
    return (bottom - top) * (right - left) / (image.shape[-3] * image.shape[-2])


def channels_first(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [B, C, S, S] in channels_last memory, out of [B, S, S, C]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


class TwoViews(Batches[TwoViewBatch]):
    """Each slice of a data set under two independent changes, as contrastive learning wants them.

    Targets are not read. (SimCLR: Chen et al., ICML 2020, arXiv:2002.05709)
    """

    def __init__(self, dataset: SliceDataset) -> None:
        if dataset.augment is None or dataset.cutmix:
            raise ValueError("two views of a slice come of an augmentation, and without CutMix")
        self.dataset, self.seed = dataset, dataset.seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, items: list[tuple[int, int]]) -> TwoViewBatch:
        chosen = np.array([i for _, i in items])
        ids = [(epoch, self.dataset.image_ids[i]) for epoch, i in items]
        first, second = (
            channels_first(self.dataset.pictures(chosen, [sample_seed(self.seed, *of, view) for of in ids]))
            for view in ("first", "second")
        )
        return TwoViewBatch(first, second, torch.from_numpy(self.dataset.rows[chosen]))


def slice_loader(
    dataset: Batches[Batch], epoch: int, batch_size: int, shuffle: bool, workers: int = 0
) -> DataLoader[Batch]:
    """Iterate over one epoch of a dataset; the same batches whatever `workers`.

    A shuffled epoch is for training and drops an incomplete last batch, which would unsettle the batch
    statistics. Without a spare core, `workers=0` is the fastest.
    """
    order = EpochBatches(len(dataset), batch_size, dataset.seed, epoch, shuffle=shuffle, drop_last=shuffle)
    return loader(dataset, order, workers)


def loader(dataset: Batches[Batch], order: EpochBatches, workers: int) -> DataLoader[Batch]:
    """The batches of a data set in the given order, made by `workers` processes beside this one."""
    return DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=_shared,
        num_workers=workers,
        worker_init_fn=_begin_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # of its own: else it takes from the model's random numbers
    )


def _shared(batch: Any) -> Any:
    """The batch as it is; a worker's, in shared memory.

    It would get there anyway, but in a thread of torch's whose failure, where that memory is full, nobody hears of:
    everybody would wait for the batch for ever.
    """
    if get_worker_info() is not None:
        for part in batch:
            if part is not None:
                part.share_memory_()
    return batch


def _begin_worker(_worker: int) -> None:
    cv2.setNumThreads(0)
    end_with_parent(os.getppid())


@dataclass(frozen=True)
class Studies:
    """Slices of whole studies, packed one study after the other, each in order of position.

    features: float16 or float32 [N, D]. base: float32 [N, c]. geometry: float32 [N, 2], as in `StudyBatch`.
    targets: float32 [N, c] or None. offsets: int64 [studies + 1]; study k is rows offsets[k]:offsets[k + 1].
    """

    features: NDArray[np.floating]
    base: NDArray[np.float32]
    geometry: NDArray[np.float32]
    targets: NDArray[np.float32] | None
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.features)
        lengths = {len(self.base), len(self.geometry), n if self.targets is None else len(self.targets)}
        if lengths != {n}:
            raise ValueError(f"features, base, geometry and targets differ in length: {n} and {sorted(lengths)}")
        if self.offsets[0] != 0 or self.offsets[-1] != n or (np.diff(self.offsets) < 1).any():
            raise ValueError(f"offsets must rise from 0 to {n} and leave no study empty")


def study_loader(
    studies: Studies,
    chosen: NDArray[np.integer],
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    epoch: int = 0,
) -> Iterator[StudyBatch]:
    """Yield the `chosen` studies (numbers, [m]) in batches padded to their longest study."""
    for batch in EpochBatches(len(chosen), batch_size, seed, epoch, shuffle=shuffle, drop_last=False):
        yield study_batch(studies, np.asarray(chosen)[[i for _, i in batch]])


def study_batch(studies: Studies, chosen: NDArray[np.integer]) -> StudyBatch:
    """Pad the `chosen` studies to the longest of them."""
    starts, lengths = studies.offsets[chosen], np.diff(studies.offsets)[chosen]
    place = np.arange(lengths.max())
    inside = place < lengths[:, None]
    rows = np.where(inside, starts[:, None] + place, -1)

    def pad(packed: NDArray[np.floating]) -> torch.Tensor:
        return torch.from_numpy(np.where(inside[..., None], packed[rows], 0).astype(np.float32, copy=False))

    return StudyBatch(
        features=pad(studies.features),
        base=pad(studies.base),
        geometry=pad(studies.geometry),
        lengths=torch.from_numpy(lengths.astype(np.int64)),
        targets=None if studies.targets is None else pad(studies.targets),
        rows=torch.from_numpy(rows.astype(np.int64)),
    )


def from_the_other_end(batch: StudyBatch) -> StudyBatch:
    """The same studies with their slices numbered from the other end, as the scanner might have numbered them."""
    place = torch.arange(batch.rows.shape[1])
    turned = torch.where(place < batch.lengths[:, None], batch.lengths[:, None] - 1 - place, place)

    def turn(values: torch.Tensor) -> torch.Tensor:
        return values.take_along_dim(turned.reshape(*turned.shape, *[1] * (values.ndim - 2)), dim=1)

    # a gap lies between two slices, and the one after which it stands is now the other
    before = torch.nn.functional.pad(batch.geometry[:, :-1, 0], (1, 0))
    return StudyBatch(
        features=turn(batch.features),
        base=turn(batch.base),
        geometry=torch.stack([turn(before), -turn(batch.geometry[..., 1])], dim=-1),
        lengths=batch.lengths,
        targets=None if batch.targets is None else turn(batch.targets),
        rows=turn(batch.rows),
    )

"""Slices out of the HU cache as pictures: what the networks that read single slices read."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ich.data.augment import Augment, cutmix_box, sample_seed
from ich.data.batches import Batches, cuts
from ich.data.views import View, render


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

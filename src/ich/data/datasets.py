"""Slices out of the HU cache as pictures: what the networks that read single slices read."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ich.data.augment import Augment, cutmix_box, drawn, sample_seed
from ich.data.batches import Batches, cuts
from ich.data.views import View, render, render_rows


class SliceBatch(NamedTuple):
    images: torch.Tensor
    """uint8 [B, C, S, S], in channels_last memory; with draws, what `ich.data.on_device` makes such pictures of:
    int16 [B, m, k, S, S] Hounsfield units of `View.depth` slices, or uint8 [B, m, C, S, S], m of a picture"""
    targets: torch.Tensor | None
    """float32 [B, c]"""
    rows: torch.Tensor
    """int64 [B]: row numbers in the HU cache"""
    draws: torch.Tensor | None = None
    """float32 [B, m, ...]: how each is to be changed, see `ich.data.augment.drawn`; None: the loader has done it"""

    def pieces(self, parts: int) -> list[tuple["SliceBatch", float]]:
        """The batch cut into `parts`, or single slices if these are fewer; with each piece its share of the slices."""
        n = len(self.rows)
        cut: list[tuple[SliceBatch, float]] = []
        for k in cuts(n, parts):
            targets, draws = (None if part is None else part[k] for part in (self.targets, self.draws))
            cut.append((SliceBatch(self.images[k], targets, self.rows[k], draws), (k.stop - k.start) / n))
        return cut


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

    @property
    def on_device(self) -> bool:
        """Whether pictures are changed after the loader, by the draws that come with them."""
        return self.augment is not None and self.augment.settings.on == "device"

    def __getitems__(self, items: list[tuple[int, int]]) -> SliceBatch:
        chosen = np.array([i for _, i in items])
        shown = self.pictures(chosen, [sample_seed(self.seed, epoch, self.image_ids[i]) for epoch, i in items])
        targets = None if self.targets is None else self.targets[chosen]
        if self.cutmix and targets is not None:
            shown = self._mix(shown, targets, items)
        images, draws = shown.tensors()
        return SliceBatch(
            images=images,
            targets=None if targets is None else torch.from_numpy(targets),
            rows=torch.from_numpy(self.rows[chosen]),
            draws=draws,
        )

    def pictures(self, chosen: NDArray[np.integer], seeds: Sequence[int]) -> "Shown":
        """The slices `chosen` (numbers in this set, [m]), each changed by its own seed, here or later."""
        rows = self.rows[chosen]
        needed = self.neighbours[rows] if self.view.kind == "neighbours" else rows[:, None]
        if self.on_device:
            material = np.asarray(self.hu[needed])
            if self.view.minmax or self.view.clahe:
                material = np.moveaxis(render(material, self.view), -1, 1)
            return Shown(material[:, None], self.draws(seeds))
        images = render_rows(self.hu, needed, self.view)
        if self.augment is not None:
            for image, seed in zip(images, seeds, strict=True):
                image[:] = self.augment(image, seed)
        return Shown(images, None)

    def draws(self, seeds: Sequence[int]) -> NDArray[np.float32]:
        """What the augmentation does with each seed, [m, 1, ...]; the slices of a study share one."""
        if self.augment is None:
            raise ValueError("there is no augmentation to draw for")
        drawn_of = {seed: self.augment.draw(self.hu.shape[-1], seed) for seed in seeds}
        return np.stack([drawn_of[seed] for seed in seeds])[:, None]

    def _mix(self, shown: "Shown", targets: NDArray[np.float32], items: list[tuple[int, int]]) -> "Shown":
        """CutMix of pictures and, in place, of their targets [B, c]."""
        size, ids = self.hu.shape[-1], [(epoch, self.image_ids[i]) for epoch, i in items]
        draws = [
            cutmix_draw(sample_seed(self.seed, *of, "cutmix"), i, len(self), size, self.cutmix)
            for of, (_, i) in zip(ids, items, strict=True)
        ]
        partners = np.array([partner for partner, _ in draws])
        others = self.pictures(partners, [sample_seed(self.seed, *of, "partner") for of in ids])
        for place, (partner, box) in enumerate(draws):
            share = covered(box, size)
            if share and self.targets is not None:
                targets[place] = (1 - share) * targets[place] + share * self.targets[partner]
        return shown.with_boxes_of(others, [box for _, box in draws])


Box = tuple[int, int, int, int]


class Shown(NamedTuple):
    """Pictures, changed; or, with draws, what the device makes them of."""

    images: NDArray[Any]
    """uint8 [m, S, S, C]; with draws as in SliceBatch"""
    draws: NDArray[np.float32] | None

    def with_boxes_of(self, others: "Shown", boxes: Sequence[Box]) -> "Shown":
        """These pictures, each with another's in a box of it."""
        if self.draws is None or others.draws is None:
            for image, other, (top, bottom, left, right) in zip(self.images, others.images, boxes, strict=True):
                image[top:bottom, left:right] = other[top:bottom, left:right]
            return self
        drawn(self.draws)["box"][:, 0] = boxes
        pairs = ((self.images, others.images), (self.draws, others.draws))
        return Shown(*(np.concatenate(pair, axis=1) for pair in pairs))

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Pictures, uint8 [m, C, S, S] in channels_last memory, and None; or as they are."""
        if self.draws is None:
            return torch.from_numpy(self.images).permute(0, 3, 1, 2), None
        return torch.from_numpy(self.images), torch.from_numpy(self.draws)


def cutmix_draw(seed: int, i: int, n: int, size: int, alpha: float) -> tuple[int, Box]:
    """The partner, any of `n` but `i`, and the box of one CutMix."""
    rng = np.random.default_rng(seed)
    partner = int(rng.integers(n - 1))
    return partner + (partner >= i), cutmix_box(size, alpha, rng)


def covered(box: Box, size: int) -> float:
    """The box's share of a picture."""
    top, bottom, left, right = box
    return (bottom - top) * (right - left) / size**2


class TwoViews(Batches[TwoViewBatch | SliceBatch]):
    """Each slice of a data set under two independent changes, as contrastive learning wants them.

    Where the device makes the changes, a batch holds each slice once, with two draws. Targets are not read. (SimCLR:
    Chen et al., ICML 2020, arXiv:2002.05709)
    """

    def __init__(self, dataset: SliceDataset) -> None:
        if dataset.augment is None or dataset.cutmix:
            raise ValueError("two views of a slice come of an augmentation, and without CutMix")
        self.dataset, self.seed = dataset, dataset.seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, items: list[tuple[int, int]]) -> TwoViewBatch | SliceBatch:
        chosen = np.array([i for _, i in items])
        rows, ids = torch.from_numpy(self.dataset.rows[chosen]), [(e, self.dataset.image_ids[i]) for e, i in items]
        one, other = ([sample_seed(self.seed, *of, view) for of in ids] for view in ("first", "second"))
        first, draws = self.dataset.pictures(chosen, one).tensors()
        if draws is None:
            return TwoViewBatch(first, self.dataset.pictures(chosen, other).tensors()[0], rows)
        return SliceBatch(first, None, rows, torch.cat([draws, torch.from_numpy(self.dataset.draws(other))], dim=1))

"""Slices of the HU cache as images: the datasets of networks that read single slices."""

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from ich.data.augment import Augment
from ich.data.batches import Batches
from ich.data.windowing import HuArray, Windowing, render_rows


class SliceBatch(NamedTuple):
    images: torch.Tensor  # uint8 [B, C, S, S], in channels_last memory
    targets: torch.Tensor | None  # float32 [B, c]
    rows: torch.Tensor  # int64 [B]: row numbers in the HU cache
    masks: torch.Tensor | None = None  # uint8 [B, 1, S, S], bit c: class c is visible in the pixel

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        return (self.images,)

    def real(self, values: torch.Tensor) -> torch.Tensor:
        return values


class TwoViewBatch(NamedTuple):
    first: torch.Tensor  # uint8 [B, C, S, S], in channels_last memory
    second: torch.Tensor  # the same slices with another augmentation
    rows: torch.Tensor  # int64 [B]: row numbers in the HU cache
    targets: None = None

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        return (self.first, self.second)

    def real(self, values: torch.Tensor) -> torch.Tensor:
        return values


@dataclass(frozen=True)
class Transform:
    """From a cached slice to the image that a network reads.

    cutmix: alpha of CutMix, 0 for none. A box of every image shows the same place of another slice of the dataset, and
    the targets are mixed by the share of the area. (Yun et al., ICCV 2019, arXiv:1905.04899)
    """

    windowing: Windowing
    augment: Augment | None = None
    cutmix: float = 0.0
    seed: int = 0


class SliceDataset(Batches[SliceBatch]):
    """Slices of the HU cache as images.

    hu: int16 [N, S, S], usually a `HuCache`. rows: int64 [n], the rows of `hu` in this dataset. neighbours: int64
    [N, 3] of `neighbour_rows`. image_ids: the n ids of `rows`. targets: float32 [n, c] or None. masks: uint8 [S, S]
    of the slices with a bleed, as in `SliceBatch`, compressed by zlib, by number in this dataset; None without masks.
    """

    drops_last = True

    def __init__(
        self,
        hu: HuArray,
        rows: NDArray[np.int64],
        neighbours: NDArray[np.int64],
        image_ids: Sequence[str],
        targets: NDArray[np.float32] | None,
        transform: Transform,
        masks: Mapping[int, bytes] | None = None,
    ) -> None:
        self.hu, self.rows, self.neighbours, self.image_ids = hu, rows, neighbours, image_ids
        self.targets, self.transform, self.seed, self._masks = targets, transform, transform.seed, masks

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, items: list[tuple[int, int]]) -> SliceBatch:
        chosen = np.array([i for _, i in items])
        samples = [(epoch, self.image_ids[i]) for epoch, i in items]
        seeds = [sample_seed(self.seed, *sample) for sample in samples]
        images, masks = self.images(chosen, seeds), self.masks(chosen, seeds)
        targets = None if self.targets is None else self.targets[chosen]
        if self.transform.cutmix and self.targets is not None and targets is not None:
            n, size, alpha = len(self), self.hu.shape[-1], self.transform.cutmix
            draws = [
                cutmix_draw(sample_seed(self.seed, *sample, "cutmix"), i, n, size, alpha)
                for sample, (_, i) in zip(samples, items, strict=True)
            ]
            partners = np.array([partner for partner, _ in draws])
            seeds = [sample_seed(self.seed, *sample, "partner") for sample in samples]
            others, other_masks = self.images(partners, seeds), self.masks(partners, seeds)
            for k, (partner, box) in enumerate(draws):
                paste(images[k], others[k], box)
                if masks is not None and other_masks is not None:
                    paste(masks[k], other_masks[k], box)
                if share := covered(box, size):
                    targets[k] = (1 - share) * targets[k] + share * self.targets[partner]
        return SliceBatch(
            images=as_tensor(images),
            targets=None if targets is None else torch.from_numpy(targets),
            rows=torch.from_numpy(self.rows[chosen]),
            masks=None if masks is None else as_tensor(masks),
        )

    def images(self, chosen: NDArray[np.integer], seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Images uint8 [m, S, S, C] of slices `chosen` (numbers in this dataset, [m]), each augmented by its seed."""
        rows = self.rows[chosen]
        needed = self.neighbours[rows] if self.transform.windowing.kind == "neighbours" else rows[:, None]
        images = render_rows(self.hu, needed, self.transform.windowing)
        if self.transform.augment is not None:
            for image, seed in zip(images, seeds, strict=True):
                image[:] = self.transform.augment(image, seed)
        return images

    def masks(self, chosen: NDArray[np.integer], seeds: Sequence[int]) -> NDArray[np.uint8] | None:
        """The masks uint8 [m, S, S, 1] of `images`, augmented by the same seeds."""
        if self._masks is None:
            return None
        masks, augment = np.zeros((len(chosen), *self.hu.shape[1:], 1), np.uint8), self.transform.augment
        for k, (i, seed) in enumerate(zip(chosen.tolist(), seeds, strict=True)):
            if i in self._masks:
                mask = np.frombuffer(zlib.decompress(self._masks[i]), np.uint8).reshape(self.hu.shape[1:])
                masks[k, ..., 0] = mask if augment is None else augment.mask(mask, seed)
        return masks


class TwoViews(Batches[TwoViewBatch]):
    """Each slice of a dataset with two independent augmentations, for contrastive learning. Targets are ignored.

    (SimCLR: Chen et al., ICML 2020, arXiv:2002.05709)
    """

    drops_last = True

    def __init__(self, dataset: SliceDataset) -> None:
        self.dataset, self.seed = dataset, dataset.seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, items: list[tuple[int, int]]) -> TwoViewBatch:
        chosen = np.array([i for _, i in items])
        samples = [(epoch, self.dataset.image_ids[i]) for epoch, i in items]
        first, second = (
            as_tensor(self.dataset.images(chosen, [sample_seed(self.seed, *sample, use) for sample in samples]))
            for use in ("first", "second")
        )
        return TwoViewBatch(first, second, torch.from_numpy(self.dataset.rows[chosen]))


@dataclass(frozen=True)
class Views:
    """Test-time augmentation: a batch of images, and copies of it that are flipped or shifted.

    flip: also mirrored left to right. shift: also moved left, right, up and down by this fraction of the side, with
    black behind.
    """

    flip: bool = False
    shift: float = 0.0

    def __call__(self, batch: Any) -> Iterator[Any]:
        step = round(self.shift * batch.images.shape[-1])
        places = [(step, 0), (-step, 0), (0, step), (0, -step)] if step else []
        for images in (batch.images, *(pad(batch.images, (x, -x, y, -y)) for x, y in places)):
            yield batch._replace(images=images)
            if self.flip:
                yield batch._replace(images=images.flip(-1))


def as_tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    """Images [m, S, S, C] as a tensor [m, C, S, S] in channels_last memory."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def sample_seed(seed: int, epoch: int, image_id: str, use: str = "") -> int:
    """Hash (seed, epoch, image_id, use) to an integer of 63 bits, the same on every machine.

    use: separates several random numbers for the same image.
    """
    text = f"{seed}/{epoch}/{image_id}/{use}" if use else f"{seed}/{epoch}/{image_id}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


# ---- CutMix

Box = tuple[int, int, int, int]  # top, bottom, left, right; the ends exclusive


def cutmix_draw(seed: int, i: int, n: int, size: int, alpha: float) -> tuple[int, Box]:
    """Draw a partner, any of `n` but `i`, and the box of one CutMix."""
    rng = np.random.default_rng(seed)
    partner = int(rng.integers(n - 1))
    return partner + (partner >= i), cutmix_box(size, alpha, rng)


def cutmix_box(size: int, alpha: float, rng: np.random.Generator) -> Box:
    """Draw a box of an image of size x size.

    Its area is 1 - Beta(alpha, alpha) of the image's and its centre is uniform. It is cropped to the image, so it may
    be empty. (Yun et al., ICCV 2019, arXiv:1905.04899)
    """
    side = int(size * np.sqrt(1 - rng.beta(alpha, alpha)))
    top, left = (int(centre) - side // 2 for centre in rng.integers(size, size=2))
    return max(top, 0), min(top + side, size), max(left, 0), min(left + side, size)


def covered(box: Box, size: int) -> float:
    """Return the box's share of an image's area."""
    top, bottom, left, right = box
    return (bottom - top) * (right - left) / size**2


def paste(image: NDArray[np.uint8], other: NDArray[np.uint8], box: Box) -> None:
    """Copy the box of another image into `image`, both [..., S, S, C]."""
    top, bottom, left, right = box
    image[..., top:bottom, left:right, :] = other[..., top:bottom, left:right, :]

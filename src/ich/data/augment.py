"""Random augmentation of training images: the one module that uses albumentations.

The change of an image depends on its seed alone. albumentations 2.0.8 does not guarantee that: its generators repeat
themselves in loader workers, and `Compose.set_random_seed` gives every transform the same generator, so that an image
would be flipped exactly when it is also brightened. Therefore each transform is seeded before each image, and the
transforms are called one after the other without a Compose.
"""

import os
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks PyPI for a newer version
import albumentations as A

CROP_RATIO = 1.1  # largest ratio of the sides of a crop
SEED_STEP = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: keeps the transforms' seeds far apart


@dataclass(frozen=True)
class Augmentation:
    """Strength of each random change of a training image. A strength of 0 disables the change."""

    crop: float = 0.0
    """Smallest share of the image's area in a random crop of nearly its shape, which is resized to the whole."""
    flip: float = 0.5  # probability of a left-right mirror
    vertical_flip: float = 0.0  # probability of an upside-down mirror
    transpose: float = 0.0  # probability of swapping rows and columns
    shift: float = 0.06  # largest shift in each direction, as a share of the image's side
    scale: float = 0.1  # largest change of size, as a share
    rotate: float = 15.0  # largest rotation, degrees
    optical: float = 0.0  # largest coefficient of a lens distortion, barrel or pincushion; 0.05 is usual
    grid: float = 0.0  # largest stretch of the cells of a 5 x 5 grid, as a share; 0.3 is usual
    brightness: float = 0.1  # largest change of brightness, as a share of the grey scale
    contrast: float = 0.1  # largest change of contrast, as a share
    jitter: float = 1.0  # probability that brightness and contrast change
    noise: float = 0.0  # largest standard deviation of Gaussian noise, as a share of the grey scale
    dropout: float = 0.0  # probability of blacking out one to four rectangles of up to a fifth of the side


class Augment:
    """Callable that augments one image."""

    def __init__(self, settings: Augmentation) -> None:
        s = settings
        transforms: list[tuple[float, A.BasicTransform]] = [
            # the size is set per image
            (s.crop, A.RandomResizedCrop((1, 1), scale=(s.crop, 1), ratio=(1 / CROP_RATIO, CROP_RATIO), p=1)),
            (s.flip, A.HorizontalFlip(p=s.flip)),
            (s.vertical_flip, A.VerticalFlip(p=s.vertical_flip)),
            (s.transpose, A.Transpose(p=s.transpose)),
            (
                max(s.shift, s.scale, s.rotate),
                A.Affine(
                    scale=(1 - s.scale, 1 + s.scale),
                    translate_percent=(-s.shift, s.shift),
                    rotate=(-s.rotate, s.rotate),
                    keep_ratio=True,
                    border_mode=cv2.BORDER_CONSTANT,  # black, which is air in every window
                    p=1,
                ),
            ),
            (s.optical, A.OpticalDistortion(distort_limit=(-s.optical, s.optical), p=1)),
            (s.grid, A.GridDistortion(5, distort_limit=(-s.grid, s.grid), p=1)),
            (
                s.jitter * max(s.brightness, s.contrast),
                A.RandomBrightnessContrast(
                    brightness_limit=(-s.brightness, s.brightness), contrast_limit=(-s.contrast, s.contrast), p=s.jitter
                ),
            ),
            (s.noise, A.GaussNoise(std_range=(0, s.noise), p=1)),
            (s.dropout, A.CoarseDropout((1, 4), (0.05, 0.2), (0.05, 0.2), fill_mask=0, p=s.dropout)),
        ]
        self._transforms = [transform for strength, transform in transforms if strength]

    def __call__(self, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Return an augmented copy of uint8 [H, W, C]; the same seed makes the same change."""
        return self._changed({"image": image}, seed)["image"]

    def mask(self, mask: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Return a copy of the mask uint8 [H, W] of an image, moved and erased like the image with this seed.

        Each pixel has the value of the nearest one, so a mask may be a bit field.
        """
        return self._changed({"image": mask, "mask": mask}, seed)["mask"]

    def _changed(self, arrays: dict[str, NDArray[np.uint8]], seed: int) -> dict[str, NDArray[np.uint8]]:
        for place, transform in enumerate(self._transforms):
            own = (seed + place * SEED_STEP) % 2**64
            if isinstance(transform, A.CoarseDropout | A.GaussNoise):
                transform.set_random_seed(own)
            else:  # the others draw nothing from their numpy generator, and to make one costs twice as much
                transform.py_random.seed(own)
            if isinstance(transform, A.RandomResizedCrop):
                transform.size = arrays["image"].shape[:2]
            arrays = transform(**arrays)
        return arrays

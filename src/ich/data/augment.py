"""Random changes of a training slice: the one module that uses albumentations.

The change of an image depends on the seed it is given and on nothing else. Two habits of albumentations 2.0.8
stand against that: its generators repeat themselves in loader workers, and `Compose.set_random_seed` gives
every transform the same generator, so that an image would be flipped exactly when it is also brightened.
Here each transform gets a seed of its own before each image, and they are called one after the other without a
Compose, whose checks of boxes, masks and shapes have nothing to check.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks PyPI for a newer version
import albumentations as A

CROP_RATIO = 1.1  # largest width over height, or height over width, of a crop
SEED_STEP = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: keeps the transforms' seeds far apart


@dataclass(frozen=True)
class Augmentation:
    """How strongly training images vary. A strength of 0 leaves that change out."""

    crop: float = 0.0
    """Smallest share of the picture's area that a random crop of nearly the same shape keeps, resized to the whole."""
    flip: float = 0.5
    """Probability of a left-right mirror."""
    vertical_flip: float = 0.0
    """Probability of an upside-down mirror."""
    transpose: float = 0.0
    """Probability of swapping rows and columns."""
    shift: float = 0.06
    """Largest move in each direction, as a share of the picture's side."""
    scale: float = 0.1
    """Largest change of size, as a share."""
    rotate: float = 15.0
    """Largest rotation, degrees."""
    optical: float = 0.0
    """Largest distortion coefficient of a lens, barrel or pincushion; 0.05 is usual."""
    grid: float = 0.0
    """Largest stretch of the cells of a 5 x 5 grid, as a share; 0.3 is usual."""
    brightness: float = 0.1
    """Largest change of brightness, as a share of the grey scale."""
    contrast: float = 0.1
    """Largest change of contrast, as a share."""
    jitter: float = 1.0
    """Probability that brightness and contrast change."""
    noise: float = 0.0
    """Largest standard deviation of Gaussian noise, as a share of the grey scale."""
    dropout: float = 0.0
    """Probability of blacking out one to four rectangles of up to a fifth of the side."""


class Augment:
    """Callable that changes one image; see `build`."""

    def __init__(self, transforms: Sequence[A.BasicTransform]) -> None:
        self._transforms = transforms

    def __call__(self, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Return a changed copy of uint8 [H, W, C]; the same seed makes the same change."""
        for place, transform in enumerate(self._transforms):
            own = (seed + place * SEED_STEP) % 2**64
            if isinstance(transform, A.CoarseDropout | A.GaussNoise):
                transform.set_random_seed(own)
            else:  # the others draw nothing from their numpy generator, and to make one costs twice as much
                transform.py_random.seed(own)
            if isinstance(transform, A.RandomResizedCrop):
                transform.size = image.shape[:2]
            image = transform(image=image)["image"]
        return image


def build(settings: Augmentation) -> Augment:
    """Build the pipeline: crop, mirrors, one affine map, distortions, brightness and contrast, noise, rectangles."""
    transforms: list[A.BasicTransform] = []
    if settings.crop:
        scale, ratio = (settings.crop, 1), (1 / CROP_RATIO, CROP_RATIO)
        transforms.append(A.RandomResizedCrop(size=(1, 1), scale=scale, ratio=ratio, p=1))  # sized by each image
    for probability, mirror in (
        (settings.flip, A.HorizontalFlip),
        (settings.vertical_flip, A.VerticalFlip),
        (settings.transpose, A.Transpose),
    ):
        if probability:
            transforms.append(mirror(p=probability))
    if settings.shift or settings.scale or settings.rotate:
        transforms.append(
            A.Affine(
                scale=(1 - settings.scale, 1 + settings.scale),
                translate_percent=(-settings.shift, settings.shift),
                rotate=(-settings.rotate, settings.rotate),
                keep_ratio=True,
                border_mode=cv2.BORDER_CONSTANT,  # black, which is air in every window
                p=1,
            )
        )
    if settings.optical:
        transforms.append(A.OpticalDistortion(distort_limit=(-settings.optical, settings.optical), p=1))
    if settings.grid:
        transforms.append(A.GridDistortion(5, distort_limit=(-settings.grid, settings.grid), p=1))
    if settings.jitter and (settings.brightness or settings.contrast):
        transforms.append(
            A.RandomBrightnessContrast(
                brightness_limit=(-settings.brightness, settings.brightness),
                contrast_limit=(-settings.contrast, settings.contrast),
                p=settings.jitter,
            )
        )
    if settings.noise:
        transforms.append(A.GaussNoise(std_range=(0, settings.noise), p=1))
    if settings.dropout:
        transforms.append(
            A.CoarseDropout(
                num_holes_range=(1, 4),
                hole_height_range=(0.05, 0.2),
                hole_width_range=(0.05, 0.2),
                p=settings.dropout,
            )
        )
    return Augment(transforms)

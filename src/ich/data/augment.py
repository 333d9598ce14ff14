"""Random changes of a training slice: the one module that knows albumentations.

A picture's change depends on the seed it is given and on nothing else. Two habits of albumentations 2.0.8
stand against that: its generators repeat themselves in loader workers, and `Compose.set_random_seed` gives
every transform the same generator, so that a picture would be flipped exactly when it is also brightened.
Here each transform gets a seed of its own before each picture, and they are called one after the other without a
Compose, whose checks of boxes, masks and shapes have nothing to check.

The same draws, as numbers, are what `ich.data.on_device` changes whole batches by.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from albumentations import BasicTransform

CROP_RATIO = 1.1  # largest width over height, or height over width, of a crop
SEED_STEP = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: keeps the transforms' seeds far apart


@dataclass(frozen=True)
class Augmentation:
    """How strongly training pictures vary. A strength of 0 leaves that change out."""

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
    on: Literal["loader", "device"] = "loader"
    """Who changes the pictures: the loader, or the device that trains, a batch at a time, by the same draws."""


# What `Augment.draw` says of a picture, by name: how many numbers, and what they are; lengths in pixels.
DRAWN = {
    "place": 6,  # the 2 x 3 matrix from a pixel after crop, mirrors, transposition and affine map to its place before
    "warp": 6,  # with a crop, the affine map's alone: what comes from beyond the crop is black
    "lens": 1,  # distortion coefficient
    "columns": 7,  # where the grid's lines come from
    "rows": 7,
    "grey": 2,  # factor, and what is added then
    "noise": 2,  # standard deviation in grey values, and a key of 24 bits that says which noise
    "holes": 16,  # left, top, right, bottom of four rectangles
    "box": 4,  # top, bottom, left, right of CutMix; `draw` leaves it empty
}
GRID_STEPS = 5
MIRRORS = {  # two rows of a matrix, and whether its places have to be moved by a side
    "HorizontalFlip": ((-1, 0), (0, 1), 1, 0),
    "VerticalFlip": ((1, 0), (0, -1), 0, 1),
    "Transpose": ((0, 1), (1, 0), 0, 0),
}


def drawn(numbers: Any) -> dict[str, Any]:
    """Views of draws [..., all numbers], an array's or a tensor's, by name: [..., so many]."""
    parts, start = {}, 0
    for name, count in DRAWN.items():
        parts[name] = numbers[..., start : start + count]
        start += count
    return parts


class Augment:
    """Callable that changes one picture; see `build`."""

    def __init__(self, transforms: "Sequence[BasicTransform]", settings: Augmentation) -> None:
        from albumentations import CoarseDropout, GaussNoise, RandomResizedCrop

        self.settings = settings
        self._transforms = transforms
        self._crops = [transform for transform in transforms if isinstance(transform, RandomResizedCrop)]
        self._of_numpy = (CoarseDropout, GaussNoise)

    def __call__(self, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Return a changed copy of uint8 [H, W, C]; the same seed makes the same change."""
        self._seed(seed, *image.shape[:2])
        for transform in self._transforms:
            image = transform(image=image)["image"]
        return image

    def draw(self, size: int, seed: int) -> NDArray[np.float32]:
        """What the call with this seed does to a picture of size x size, as the numbers that `drawn` names.

        Noise is another of the same strength.
        """
        self._seed(seed, size, size)
        numbers = np.zeros(sum(DRAWN.values()))
        change, place = drawn(numbers), np.eye(3)
        change["warp"][[0, 4]] = change["grey"][0] = 1
        for transform in self._transforms:
            if transform.should_apply():
                place = self._draw(transform, size, place, change)
        change["place"][:] = place[:2].ravel()
        return numbers.astype(np.float32)

    def _seed(self, seed: int, height: int, width: int) -> None:
        for place, transform in enumerate(self._transforms):
            own = (seed + place * SEED_STEP) % 2**64
            if isinstance(transform, self._of_numpy):
                transform.set_random_seed(own)
            else:  # the others draw nothing from their numpy generator, and to make one costs twice as much
                transform.py_random.seed(own)
        for crop in self._crops:
            crop.size = (height, width)

    def _draw(self, transform: Any, size: int, place: NDArray[Any], change: dict[str, Any]) -> NDArray[Any]:
        """Write down what a transform that is applied draws; return `place` with it."""
        from albumentations.augmentations.geometric.functional import normalize_grid_distortion_steps

        given, last, uniform = {"shape": (size, size, 1)}, size - 1, transform.py_random.uniform
        match type(transform).__name__:
            case "RandomResizedCrop":
                left, top, right, bottom = transform.get_params_dependent_on_data(given, {})["crop_coords"]
                x, y = (right - left) / size, (bottom - top) / size
                return place @ np.array([[x, 0, left + x / 2 - 0.5], [0, y, top + y / 2 - 0.5], [0, 0, 1]])
            case "HorizontalFlip" | "VerticalFlip" | "Transpose" as mirror:
                x, y, right, down = MIRRORS[mirror]
                return place @ np.array([[*x, right * last], [*y, down * last], [0, 0, 1]])
            case "Affine":
                matrix = transform.get_params_dependent_on_data(given, {})["matrix"]
                inverse = cv2.invertAffineTransform(matrix[:2])
                if not self._crops:
                    return place @ np.vstack([inverse, [0, 0, 1]])
                change["warp"][:] = inverse.ravel()
            case "OpticalDistortion":
                change["lens"][:] = uniform(*transform.distort_limit)
            case "GridDistortion":
                steps = [[1 + uniform(*transform.distort_limit) for _ in range(GRID_STEPS + 1)] for _ in range(2)]
                even = normalize_grid_distortion_steps((size, size), GRID_STEPS, *steps)
                for lines, axis in (("columns", "steps_x"), ("rows", "steps_y")):
                    change[lines][1:] = np.cumsum(even[axis]) * (size // GRID_STEPS)
            case "RandomBrightnessContrast":
                grey = transform.get_params_dependent_on_data(given, {"image": np.empty((1, 1, 1), np.uint8)})
                change["grey"][:] = grey["alpha"], grey["beta"]
            case "GaussNoise":
                change["noise"][:] = uniform(*transform.std_range) * 255, transform.py_random.getrandbits(24)
            case "CoarseDropout":
                holes = transform.get_params_dependent_on_data(given, {})["holes"]
                change["holes"][: holes.size] = holes.ravel()
            case name:
                raise TypeError(f"{name} has no numbers that another device could change a picture by")
        return place


def build(settings: Augmentation) -> Augment:
    """Build the pipeline: crop, mirrors, one affine map, distortions, brightness and contrast, noise, rectangles."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks PyPI for a newer version
    import albumentations as A

    transforms: list[BasicTransform] = []
    if settings.crop:
        scale, ratio = (settings.crop, 1), (1 / CROP_RATIO, CROP_RATIO)
        transforms.append(A.RandomResizedCrop(size=(1, 1), scale=scale, ratio=ratio, p=1))  # sized by each picture
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
        transforms.append(A.GridDistortion(GRID_STEPS, distort_limit=(-settings.grid, settings.grid), p=1))
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
    return Augment(transforms, settings)


def cutmix_box(size: int, alpha: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A random box (top, bottom, left, right; the ends exclusive) of a picture of size x size, for CutMix.

    It covers 1 - Beta(alpha, alpha) of the area where it lies inside; the centre is uniform, and what reaches beyond
    the picture is cut off, so the box may also be empty. (Yun et al., ICCV 2019, arXiv:1905.04899)
    """
    side = int(size * np.sqrt(1 - rng.beta(alpha, alpha)))
    top, left = (int(centre) - side // 2 for centre in rng.integers(size, size=2))
    return max(top, 0), min(top + side, size), max(left, 0), min(left + side, size)


def sample_seed(seed: int, epoch: int, image_id: str, use: str = "") -> int:
    """Hash (seed, epoch, image_id, use) to an integer of 63 bits, the same on every machine.

    use: tells the draws of one picture apart where there are several.
    """
    text = f"{seed}/{epoch}/{image_id}/{use}" if use else f"{seed}/{epoch}/{image_id}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1

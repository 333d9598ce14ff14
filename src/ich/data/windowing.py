"""Windowing: Hounsfield units to the uint8 channels of a network's input."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from ich.data.units import HU_HIGH, HU_LOW


class HuArray(Protocol):
    """An array int16 [N, S, S], or a `HuCache`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> NDArray[np.int16]: ...


@dataclass(frozen=True)
class Window:
    """A window of `width` Hounsfield units around its centre `level`."""

    level: float
    width: float

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"a window's width must be above 0 HU, not {self.width} (level {self.level})")


@dataclass(frozen=True)
class Windowing:
    """The channels of an image.

    kind: "windows": the slice, one channel per window. "neighbours": the previous slice of the study, the slice and
    the next one, each in every window. "grey": one channel with the image's own grey values, which have no Hounsfield
    units and so no windows.
    minmax: stretch each channel of each image to 0..255 by its own minimum and maximum. A constant channel becomes 0.
    (docs/background/seeds.md, dual path)
    clahe: clip limit of the contrast limited adaptive histogram equalization that follows, in 8 x 8 tiles per channel;
    0 disables it. (Zuiderveld, Graphics Gems IV, 1994; docs/background/seeds.md, SDL + LRNN)
    """

    kind: Literal["windows", "neighbours", "grey"]
    windows: tuple[Window, ...] = ()
    minmax: bool = False
    clahe: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in {"windows", "neighbours", "grey"}:
            raise ValueError(f"unknown input {self.kind!r}; choose from windows, neighbours, grey")
        if (not self.windows) != (self.kind == "grey"):
            raise ValueError("grey values take no window; every other input needs at least one window")
        if not self.clahe >= 0:
            raise ValueError(f"clahe must be a clip limit above 0, or 0 to disable it, not {self.clahe}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**values, "windows": tuple(Window(**window) for window in values["windows"])})

    @property
    def channels(self) -> int:
        return 1 if self.kind == "grey" else self.depth * len(self.windows)

    @property
    def depth(self) -> int:
        """Number of slices that `render` reads per image."""
        return 3 if self.kind == "neighbours" else 1


@lru_cache(maxsize=32)
def _lookup_table(window: Window) -> NDArray[np.uint8]:
    """Grey values uint8 [65536], indexed by the bits of an int16 read as uint16.

    Values are first clipped to -1024..3071 HU. level - width / 2 and below is 0, level + width / 2 and above 255,
    linear and rounded in between.
    """
    hu = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.float64).clip(HU_LOW, HU_HIGH)
    grey = (hu - (window.level - window.width / 2)) / window.width * 255
    return np.rint(grey.clip(0, 255)).astype(np.uint8)


def render(hu: NDArray[np.int16], windowing: Windowing) -> NDArray[np.uint8]:
    """Convert Hounsfield units int16 [..., k, S, S] to images uint8 [..., S, S, channels], contiguous.

    k is `windowing.depth`: 3 (previous, this, next) for neighbours, else 1.
    """
    *batch, depth, height, width = hu.shape
    if hu.dtype != np.int16 or depth != windowing.depth:
        raise ValueError(f"expected int16 [..., {windowing.depth}, S, S], got {hu.dtype} {list(hu.shape)}")
    slices = hu.reshape(-1, height, width)
    images = render_rows(slices, np.arange(len(slices)).reshape(-1, depth), windowing)
    return images.reshape(*batch, height, width, windowing.channels)


def render_rows(hu: HuArray, rows: NDArray[np.integer], windowing: Windowing) -> NDArray[np.uint8]:
    """Images uint8 [n, S, S, channels] of rows [n, k] of `hu`, as by `render` of hu[rows]."""
    images = np.empty((len(rows), *hu.shape[1:], windowing.channels), np.uint8)
    tables = [_lookup_table(window) for window in windowing.windows]

    @lru_cache(maxsize=windowing.depth)  # in order of position, a slice is also its successor's neighbour
    def windowed(row: int) -> list[Any]:
        one = np.asarray(hu[row])
        if windowing.kind == "grey":
            return [_enhance(one.clip(0, 255).astype(np.uint8), windowing)]
        return [_enhance(cv2.LUT(one.view(np.uint16), table), windowing) for table in tables]

    for image, needed in zip(images, rows.tolist(), strict=True):  # one at a time stays in the processor's cache
        channels = [channel for row in needed for channel in windowed(row)]
        if len(channels) == 1:
            image[..., 0] = channels[0]
        else:
            cv2.merge(channels, image)
    return images


def _enhance(channel: Any, windowing: Windowing) -> Any:
    """Stretch and equalize one channel uint8 [S, S] as `windowing` requires."""
    if windowing.minmax:
        low, high = int(channel.min()), int(channel.max())
        grey = (np.arange(256) - low) / max(high - low, 1) * 255
        channel = cv2.LUT(channel, np.rint(grey.clip(0, 255)).astype(np.uint8))
    if windowing.clahe:
        channel = cv2.createCLAHE(clipLimit=windowing.clahe, tileGridSize=(8, 8)).apply(channel)
    return channel


def neighbour_rows(study: NDArray[np.integer], index: NDArray[np.integer]) -> NDArray[np.int64]:
    """Row numbers of the previous slice, the slice and the next slice of the same study, int64 [n, 3].

    study [n]: one code per study. index [n]: position of the slice in its study. Rows may be in any order and indices
    may have gaps. The first and the last slice of a study are their own neighbours.
    """
    order = np.lexsort((index, study))
    joined = study[order][1:] == study[order][:-1]
    rows = np.repeat(np.arange(len(study), dtype=np.int64)[:, None], 3, axis=1)
    rows[order[1:][joined], 0] = order[:-1][joined]
    rows[order[:-1][joined], 2] = order[1:][joined]
    return rows

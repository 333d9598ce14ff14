"""From Hounsfield units to the uint8 channels that a network sees."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ich.data.units import HU_HIGH, HU_LOW


class Slices(Protocol):
    """An array int16 [N, S, S], or a `HuCache`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> NDArray[np.int16]: ...


@dataclass(frozen=True)
class Window:
    """A grey-value window: `level` is its centre and `width` its full width, both in Hounsfield units."""

    level: float
    width: float

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"a window's width must be above 0 HU, not {self.width} (level {self.level})")


@dataclass(frozen=True)
class View:
    """What becomes of a slice.

    windows: a channel a window, all of the slice itself.
    neighbours: the previous slice of the study, this one and the next, each in every window.
    grey: one channel, the picture's own grey values; it has no Hounsfield units, so no window means anything to it.

    minmax: each channel of each picture is then stretched to 0..255 by its own minimum and maximum; one without
    any contrast becomes 0. (docs/background/seeds.md, dual path)
    clahe: clip limit of a contrast limited adaptive histogram equalisation of each channel in 8 x 8 tiles, after
    that; 0 leaves it out. (Zuiderveld, Graphics Gems IV, 1994; docs/background/seeds.md, SDL + LRNN)
    """

    kind: Literal["windows", "neighbours", "grey"]
    windows: tuple[Window, ...] = ()
    minmax: bool = False
    clahe: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in {"windows", "neighbours", "grey"}:
            raise ValueError(f"unknown view {self.kind!r}; use 'windows', 'neighbours' or 'grey'")
        if (not self.windows) != (self.kind == "grey"):
            raise ValueError("a view of grey values has no window; every other view needs at least one window")
        if not self.clahe >= 0:
            raise ValueError(f"clahe is a clip limit above 0, or 0 for none, not {self.clahe}")

    @property
    def channels(self) -> int:
        return 1 if self.kind == "grey" else self.depth * len(self.windows)

    @property
    def depth(self) -> int:
        """How many slices `render` needs for one picture."""
        return 3 if self.kind == "neighbours" else 1


@lru_cache(maxsize=32)
def table(window: Window) -> NDArray[np.uint8]:
    """The grey value of every 16-bit number, uint8 [65536], indexed by the bits of an int16 read as uint16.

    Values outside -1024..3071 HU count as those limits. 0 is level - width / 2 and below, 255 is
    level + width / 2 and above; linear and rounded in between.
    """
    hu = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.float64).clip(HU_LOW, HU_HIGH)
    grey = (hu - (window.level - window.width / 2)) / window.width * 255
    return np.rint(grey.clip(0, 255)).astype(np.uint8)


def render(hu: NDArray[np.int16], view: View) -> NDArray[np.uint8]:
    """Turn Hounsfield units int16 [..., k, S, S] into grey values uint8 [..., S, S, channels], contiguous.

    k is `view.depth`: 3 (previous, this, next) for neighbours, else 1. Grey values are taken as they are.
    """
    *batch, depth, height, width = hu.shape
    if hu.dtype != np.int16 or depth != view.depth:
        raise ValueError(
            f"a view of {view.kind} wants int16 [..., {view.depth}, S, S], got {hu.dtype} {list(hu.shape)}"
        )
    slices = hu.reshape(-1, height, width)
    shown = render_rows(slices, np.arange(len(slices)).reshape(-1, depth), view)
    return shown.reshape(*batch, height, width, view.channels)


def render_rows(hu: Slices, rows: NDArray[np.integer], view: View) -> NDArray[np.uint8]:
    """As `render` of hu[rows], uint8 [n, S, S, channels]; hu: int16 [N, S, S], rows: [n, k].

    One image at a time, which stays in the processor's cache. A slice that serves its successor too, as in images in
    order of position, is read and shown in each window once.
    """
    shown, tables = np.empty((len(rows), *hu.shape[1:], view.channels), np.uint8), [*map(table, view.windows)]

    @lru_cache(maxsize=view.depth)
    def in_each_window(row: int) -> list[Any]:
        one = np.asarray(hu[row])
        if view.kind == "grey":
            return [one.clip(0, 255).astype(np.uint8)]
        return [cv2.LUT(one.view(np.uint16), of_window) for of_window in tables]

    for picture, needed in zip(shown, rows.tolist(), strict=True):
        channels = [channel for row in needed for channel in in_each_window(row)]
        if len(channels) == 1:
            picture[..., 0] = channels[0]
        else:
            cv2.merge(channels, picture)
    return _adjusted(shown, view)


def _adjusted(shown: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """Adjust the contrast of images [..., S, S, channels] in place, one channel of an image at a time."""
    if view.minmax or view.clahe:
        equaliser = cv2.createCLAHE(clipLimit=view.clahe, tileGridSize=(8, 8))
        for picture in shown.reshape(-1, *shown.shape[-3:]):
            for place, channel in enumerate(cv2.split(picture)):
                stretched = cv2.LUT(channel, _stretch(channel)) if view.minmax else channel
                picture[..., place] = equaliser.apply(stretched) if view.clahe else stretched
    return shown


def _stretch(channel: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The look-up table uint8 [256] that takes a channel's minimum to 0 and its maximum to 255, rounded in between."""
    low, high = int(channel.min()), int(channel.max())
    grey = (np.arange(256) - low) / max(high - low, 1) * 255
    return np.rint(grey.clip(0, 255)).astype(np.uint8)


def neighbour_rows(study: NDArray[np.integer], index: NDArray[np.integer]) -> NDArray[np.int64]:
    """The row numbers of the previous, this and the next slice of the same study, int64 [n, 3].

    `study` [n] holds a code a study and `index` [n] the place of the slice in it; rows may stand in any
    order and indices may have holes. The first and the last slice of a study are their own neighbours.
    """
    if study.shape != index.shape or study.ndim != 1:
        raise ValueError(f"study {list(study.shape)} and index {list(index.shape)} must be [n], the same n")
    order = np.lexsort((index, study))
    joined = study[order][1:] == study[order][:-1]
    rows = np.repeat(np.arange(len(study), dtype=np.int64)[:, None], 3, axis=1)
    rows[order[1:][joined], 0] = order[:-1][joined]
    rows[order[:-1][joined], 2] = order[1:][joined]
    return rows

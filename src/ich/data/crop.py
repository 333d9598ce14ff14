"""Crop slices to a square around the head, or without their black edges, and resize them."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np

from ich.data.units import HU_LOW

AIR = HU_LOW
BLACK = {"hu": -300, "grey": 10}  # by Raw.values: the highest value of background
SMALLEST = 0.02  # minimum share of the image for a head


class Piece(NamedTuple):
    """Bounding rectangle and area of a component of a mask; all 0 for an empty mask."""

    left: int
    top: int
    across: int
    down: int
    area: int


def resized(image: np.ndarray, box: tuple[int, int, int], size: int, beyond: int = AIR) -> np.ndarray:
    """The square `box` (row, column, side) of a slice at size x size; `beyond` fills what is outside of the slice."""
    return _resize(_square(image, box, beyond), size)


def resize_all(slices: Iterable[np.ndarray], box: tuple[int, int, int], beyond: int, size: int) -> Iterator[np.ndarray]:
    """Yield the slices, `resized` with the same `box`, as int16 [k, size, size]; each overwrites the one before.

    Slices have one shape. At non-integer factors, OpenCV resizes four channels in nearly the time of one, with the same
    result. So four slices are resized as the channels of one image.
    """
    side = box[2]
    together = 4 if side > size and side % size else 1
    block, rest = np.empty((together, size, size), np.int16), iter(slices)
    while some := list(islice(rest, together)):
        if together == 1:
            _resize(_square(some[0], box, beyond), size, block[0])
        else:
            channels = cv2.merge((*some, *some, *some, *some)[:4])
            cv2.split(_resize(_square(channels, box, beyond), size), list(block))
        yield block[: len(some)]


def _resize(square: np.ndarray, size: int, into: np.ndarray | None = None) -> np.ndarray:
    method = cv2.INTER_AREA if len(square) >= size else cv2.INTER_LINEAR
    return cv2.resize(square, (size, size), into, interpolation=method)


def _square(image: np.ndarray, box: tuple[int, int, int], beyond: int) -> np.ndarray:
    row, column, side = box
    top, left = max(row, 0), max(column, 0)
    inside = image[top : row + side, left : column + side]
    below, right = side - (top - row) - inside.shape[0], side - (left - column) - inside.shape[1]
    if below or right or top > row or left > column:
        edges = (top - row, below, left - column, right)
        return cv2.copyMakeBorder(inside, *edges, cv2.BORDER_CONSTANT, value=[beyond] * 4)  # per channel
    return inside


def head_piece(image: np.ndarray) -> Piece:
    """The head in a slice: the largest component of tissue, on a coarse grid, without head-rest and table."""
    step = _step(image.shape)
    tissue = (image[::step] > BLACK["hu"])[:, ::step]  # rows first: that is faster
    opened = _opened(np.ascontiguousarray(tissue).view(np.uint8))
    largest, remaining = Piece(0, 0, 0, 0, 0), cv2.countNonZero(opened)
    while remaining > largest.area:  # remove one component after the other; this is faster than labelling
        row, column = divmod(int(opened.argmax()), opened.shape[1])
        area, _, _, (left, top, across, down) = cv2.floodFill(opened, None, (column, row), 0, flags=8)  # pyright: ignore
        remaining -= area
        if area > largest.area:
            largest = Piece(left, top, across, down, area)
    return largest


def box_around(pieces: Sequence[Piece], shape: tuple[int, ...], margin: float = 0.02) -> tuple[int, int, int]:
    """A square (row, column, side) around the head in all slices of a series, from the `head_piece` of each."""
    step, (rows, columns) = _step(shape), shape
    most = max(piece.area for piece in pieces)
    if most < max(1, SMALLEST * (rows // step) * (columns // step)):
        return 0, 0, max(rows, columns)
    large = [piece for piece in pieces if piece.area > 0.2 * most]
    top, left = min(piece.top for piece in large) * step, min(piece.left for piece in large) * step
    below, right = max(p.top + p.down for p in large) * step, max(p.left + p.across for p in large) * step
    side = round(float(max(below - top, right - left)) * (1 + 2 * margin))
    return (top + below - side) // 2, (left + right - side) // 2, side


def edge_box(image: np.ndarray, black: int) -> tuple[int, int, int]:
    """A square (row, column, side) around the largest component above `black`, exact to the pixel.

    The component is found on a coarse grid without head-rest and table, as in `head_piece`. The whole image if it
    covers less than 2 % of it. (docs/background/seeds.md, dual path)
    """
    rows, columns = image.shape
    step = _step(image.shape)
    lit = image > black
    count, labels, stats, _ = cv2.connectedComponentsWithStats(_opened(lit[::step, ::step].astype(np.uint8)))
    areas = stats[1:, cv2.CC_STAT_AREA]
    if count == 1 or areas.max() < SMALLEST * labels.size:
        return 0, 0, max(rows, columns)
    largest = (labels == 1 + areas.argmax()).astype(np.uint8)
    near = cv2.dilate(largest, np.ones((3, 3), np.uint8)).repeat(step, axis=0).repeat(step, axis=1)
    left, top, across, down = cv2.boundingRect(near[:rows, :columns] * lit.astype(np.uint8))
    side = max(across, down)
    return top + (down - side) // 2, left + (across - side) // 2, side


def _step(shape: tuple[int, ...]) -> int:
    """Pixels per cell of the coarse grid."""
    return max(1, max(shape) // 128)


def _opened(mask: np.ndarray) -> np.ndarray:
    """A mask, uint8 of 0 and 1, opened with a disc of 5 % of the image.

    This removes the thin shells of head-rest and table, and separates them from the scalp that they touch.
    """
    width = max(3, round(0.05 * max(mask.shape))) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    return cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc)

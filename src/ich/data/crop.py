"""The square of a slice that the cache holds: around the head, without the black edges, and at which size."""

from collections.abc import Sequence

import cv2
import numpy as np

from ich.data.units import HU_LOW

AIR = HU_LOW
BLACK = {"hu": -300, "grey": 10}  # of Raw.values: the highest value that is no tissue
SMALLEST = 0.02  # share of the picture that a head has at least


def resized(picture: np.ndarray, box: tuple[int, int, int], size: int, beyond: int = AIR) -> np.ndarray:
    """The square `box` (row, column, side) of a slice, `beyond` where it reaches beyond, at size x size by area."""
    row, column, side = box
    top, left = max(row, 0), max(column, 0)
    inside = picture[top : row + side, left : column + side]
    below, right = side - (top - row) - inside.shape[0], side - (left - column) - inside.shape[1]
    if below or right or top > row or left > column:
        inside = cv2.copyMakeBorder(inside, top - row, below, left - column, right, cv2.BORDER_CONSTANT, value=[beyond])
    method = cv2.INTER_AREA if side >= size else cv2.INTER_LINEAR
    return cv2.resize(inside, (size, size), interpolation=method)


def head_box(slices: Sequence[np.ndarray], margin: float = 0.02) -> tuple[int, int, int]:
    """A square (row, column, side) around the head in all slices of a series, not fooled by head-rest and table.

    The head is the largest piece of tissue once thin things are worn away: opening with a disc of 5 % of the picture
    removes the shells of head-rest and table, and where they touch the scalp, cuts them off.
    """
    low, high, area = [], [], []
    step = _step(slices[0])
    for picture in slices:
        piece = _largest(picture[::step, ::step] > BLACK["hu"])
        if piece.any():
            left, top, across, down = cv2.boundingRect(piece)
            low.append((top, left))
            high.append((top + down, left + across))
            area.append(int(piece.sum()))
    rows, columns = slices[0].shape
    if not area or max(area) < SMALLEST * (rows // step) * (columns // step):
        return 0, 0, max(rows, columns)
    large = np.asarray(area) > 0.2 * max(area)
    first = np.asarray(low)[large].min(axis=0) * step
    last = np.asarray(high)[large].max(axis=0) * step
    side = round(float((last - first).max()) * (1 + 2 * margin))
    row, column = ((first + last - side) // 2).tolist()
    return row, column, side


def edge_box(picture: np.ndarray, black: int) -> tuple[int, int, int]:
    """A square (row, column, side) around the largest piece of one slice that is above `black`, its black edges aside.

    Rows and columns that are not black would be all of them: the table reaches across the picture and the head-rest
    stands below the head. So the piece is looked for as in `head_box`, on a coarse grid, and its edges are then read
    from the pixels. The whole picture where no piece has 2 % of it. (docs/seeds.md, dual path)
    """
    rows, columns = picture.shape
    step = _step(picture)
    lit = picture > black
    piece = _largest(lit[::step, ::step])
    if piece.sum() < SMALLEST * piece.size:
        return 0, 0, max(rows, columns)
    near = cv2.dilate(piece, np.ones((3, 3), np.uint8)).repeat(step, axis=0).repeat(step, axis=1)
    left, top, across, down = cv2.boundingRect(near[:rows, :columns] * lit.astype(np.uint8))
    side = max(across, down)
    return top + (down - side) // 2, left + (across - side) // 2, side


def _step(picture: np.ndarray) -> int:
    """Every how many pixels a slice is looked at in the search for the head."""
    return max(1, max(picture.shape) // 128)


def _largest(tissue: np.ndarray) -> np.ndarray:
    """uint8 [rows, columns] of 0 and 1: the largest piece of a mask once thin things are worn away, or nothing."""
    width = max(3, round(0.05 * max(tissue.shape))) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    # The skull closes the brain, so holes (ventricles are tissue, sinuses are not) do not matter to the box.
    opened = cv2.morphologyEx(tissue.astype(np.uint8), cv2.MORPH_OPEN, disc)
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(opened)
    if count == 1:
        return opened
    return (pieces == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.uint8)

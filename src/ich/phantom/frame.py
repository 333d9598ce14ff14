"""Shapes and smooth random fields on the tilted planes of a CT series."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ich.phantom.shapes import FAR, Array, Coordinates, Point, Shape, smooth_min

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Frame:
    """Square pixel grids on a stack of parallel planes, in head coordinates (mm).

    Head coordinates: x to the patient's left (image right), y to the back (image bottom), z to the vertex, the origin
    near the foramina of Monro. `origins` [planes, 3] are the plane centres; `row` and `column` the steps of one pixel
    to the right and down; `normal` any vector out of the plane. Planes are sorted along the normal.
    """

    origins: NDArray[np.float64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    normal: NDArray[np.float64]
    size: int

    def at(self, box: Box | None = None) -> Coordinates:
        """Head coordinates x, y, z of all samples or those of a box, each float32 [planes, rows, columns]."""
        planes, rows, columns = box or (slice(None), slice(None), slice(None))
        steps = np.arange(self.size) - (self.size - 1) / 2
        i, j = steps[rows, None], steps[columns]
        origins = self.origins[planes].astype(np.float32)
        x, y, z = (
            origins[:, a, None, None] + (self.column[a] * i + self.row[a] * j).astype(np.float32) for a in range(3)
        )
        return x, y, z

    def box(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> Box:
        """The smallest box of samples that contains the axis-parallel block low..high (head coordinates, mm)."""
        corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
        inverse = np.linalg.inv(np.stack([self.row, self.column, self.normal], axis=1))
        point, plane = corners @ inverse.T, self.origins @ inverse.T
        first = int(np.searchsorted(plane[:, 2], point[:, 2].min(), side="left"))
        last = int(np.searchsorted(plane[:, 2], point[:, 2].max(), side="right"))
        if first >= last:
            return slice(0, 0), slice(0, 0), slice(0, 0)
        # In tilted planes, a point's pixel changes from plane to plane.
        from_, to, middle = plane[first:last].min(0), plane[first:last].max(0), (self.size - 1) / 2
        start = np.maximum(np.floor(point.min(0) - to + middle), 0).astype(int)
        stop = np.minimum(np.ceil(point.max(0) - from_ + middle).astype(int) + 1, self.size)
        rows, columns = (slice(int(start[a]), max(int(start[a]), int(stop[a]))) for a in (1, 0))
        return slice(first, last), rows, columns


def union(
    frame: Frame, shapes: Iterable[Shape], k: float = 0.0, coordinates: Coordinates | None = None, far: float = FAR
) -> Array:
    """Signed distance to the union of shapes on a frame, cut off at `far` mm outside.

    Each shape is evaluated in its own box. coordinates: displaced ones that replace the frame's; they may differ by
    less than `far`.
    """
    field = np.full((len(frame.origins), frame.size, frame.size), far, np.float32)
    for shape in shapes:
        low, high = shape.bounds()
        box = frame.box(low - far, high + far)
        if field[box].size:
            x, y, z = frame.at(box) if coordinates is None else (c[box] for c in coordinates)
            field[box] = smooth_min(field[box], shape.distance(x, y, z), k)
    return field


class Noise:
    """A smooth random field over the head with unit variance; `scale`: standard deviation of its smoothing, in mm.

    With `sheets`, it is band-limited and divided by its gradient: values approximate the distance in mm to its zeros.
    """

    PITCH = 4.0  # mm between nodes
    HALF = 120.0  # mm from the middle to the border

    def __init__(self, rng: np.random.Generator, scale: float, sheets: bool = False) -> None:
        def smoothed(field: Array, sigma: float) -> Array:
            return ndimage.gaussian_filter(field, sigma, mode="wrap", truncate=2.5)

        side, sigma = int(2 * self.HALF / self.PITCH) + 1, scale / self.PITCH
        grid = smoothed(rng.standard_normal((side, side, side), dtype=np.float32), sigma)
        if sheets:
            grid -= smoothed(grid, 1.6 * sigma)
        grid /= grid.std()
        if sheets:
            gx, gy, gz = np.gradient(grid, self.PITCH)
            slope = smoothed(np.sqrt(gx * gx + gy * gy + gz * gz), 1.0)
            grid /= slope + 0.15 * slope.mean()
        self.grid = grid

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """Evaluate the field at points (mm), linear between its nodes, constant beyond its border."""
        points = np.stack([x, y, z])
        points += self.HALF
        points *= 1 / self.PITCH
        return ndimage.map_coordinates(self.grid, points, order=1, mode="nearest", prefilter=False)

    def on(self, frame: Frame, stretch: Point = (1.0, 1.0, 1.0)) -> Array:
        """Evaluate the field on every other pixel of a frame and interpolate. `stretch` multiplies the coordinates."""
        coarse = replace(frame, row=2 * frame.row, column=2 * frame.column, size=frame.size // 2)
        values = self(*(a * s for a, s in zip(coarse.at(), stretch, strict=True)))
        return np.stack([cv2.resize(plane, (frame.size, frame.size)) for plane in values])

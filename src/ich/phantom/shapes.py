"""Implicit shapes and smooth random fields, evaluated on the tilted planes of a CT series."""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Everything here is computed in float32; the stubs call much of it float64.
Array = NDArray[np.floating]
Point = tuple[float, float, float]
Box = tuple[slice, slice, slice]
FAR = 12.0


@dataclass(frozen=True)
class Ellipsoid:
    """Axis-parallel ellipsoid: centre and radii in mm."""

    centre: Point
    radii: Point

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """Approximate signed distance in mm, negative inside (exact at the surface to first order)."""
        rx, ry, rz = (np.float32(r) for r in self.radii)
        u, v, w = (
            (x - np.float32(self.centre[0])) / rx,
            (y - np.float32(self.centre[1])) / ry,
            (z - np.float32(self.centre[2])) / rz,
        )
        norm = np.sqrt(u * u + v * v + w * w)
        gradient = np.sqrt((u / rx) ** 2 + (v / ry) ** 2 + (w / rz) ** 2)
        return norm * (norm - 1) / np.maximum(gradient, np.float32(1e-4))

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Two opposite corners of the surrounding box."""
        centre, radii = np.array(self.centre), np.array(self.radii)
        return centre - radii, centre + radii


@dataclass(frozen=True)
class Capsule:
    """Segment from `start` to `end` with a radius that runs from one value to the other, in mm."""

    start: Point
    end: Point
    radius: float
    end_radius: float

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """Approximate signed distance in mm, negative inside."""
        ax, ay, az = (np.float32(v) for v in self.start)
        dx, dy, dz = (np.float32(b - a) for a, b in zip(self.start, self.end, strict=True))
        length = max(float(dx * dx + dy * dy + dz * dz), 1e-6)
        px, py, pz = x - ax, y - ay, z - az
        t = np.clip((px * dx + py * dy + pz * dz) / np.float32(length), 0, 1)
        px, py, pz = px - t * dx, py - t * dy, pz - t * dz
        radius = np.float32(self.radius) + t * np.float32(self.end_radius - self.radius)
        return np.sqrt(px * px + py * py + pz * pz) - radius

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Two opposite corners of the surrounding box."""
        ends = np.array([self.start, self.end])
        radius = max(self.radius, self.end_radius)
        return ends.min(0) - radius, ends.max(0) + radius


Shape = Ellipsoid | Capsule


def mirrored(shape: Shape) -> tuple[Shape, Shape]:
    """The shape and its image on the other side of the head (x -> -x)."""
    if isinstance(shape, Ellipsoid):
        x, y, z = shape.centre
        return shape, Ellipsoid((-x, y, z), shape.radii)
    (ax, ay, az), (bx, by, bz) = shape.start, shape.end
    return shape, Capsule((-ax, ay, az), (-bx, by, bz), shape.radius, shape.end_radius)


def smooth_min(a: Array, b: Array, k: float) -> Array:
    """Union of two signed distances with a fillet of about k mm."""
    if k <= 0:
        return np.minimum(a, b)
    h = np.maximum(np.float32(k) - np.abs(a - b), 0) / np.float32(k)
    return np.minimum(a, b) - h * h * np.float32(k / 4)


def soft(distance: Array, edge: float) -> Array:
    """Occupancy in [0, 1] of a signed distance: a linear step `edge` mm wide around its zero."""
    step = distance * np.float32(-1 / edge)
    step += np.float32(0.5)
    return np.clip(step, 0, 1, out=step)


def smooth_step(low: float, high: float, value: Array) -> Array:
    """0 below `low`, 1 above `high`, a cubic between."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


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

    def coarser(self) -> "Frame":
        """The same planes with pixels twice as wide."""
        return Frame(self.origins, 2 * self.row, 2 * self.column, self.normal, self.size // 2)

    def below(self, z: float) -> "Frame":
        """The planes that reach below a height (the first ones: the normal points up)."""
        reach = abs(self.row[2]) + abs(self.column[2])
        return Frame(
            self.origins[self.origins[:, 2] < z + reach * self.size / 2],
            self.row,
            self.column,
            self.normal,
            self.size,
        )

    @property
    def whole(self) -> Box:
        """The box of all samples."""
        return slice(0, len(self.origins)), slice(0, self.size), slice(0, self.size)

    def at(self, box: Box) -> tuple[Array, Array, Array]:
        """Head coordinates x, y, z of the samples in a box, each float32 of the box's shape."""
        centre = (self.size - 1) / 2
        i = (np.arange(box[1].start, box[1].stop) - centre)[None, :, None]
        j = (np.arange(box[2].start, box[2].stop) - centre)[None, None, :]
        origins = self.origins[box[0]]
        x, y, z = (
            (origins[:, a, None, None].astype(np.float32) + (self.column[a] * i + self.row[a] * j).astype(np.float32))
            for a in range(3)
        )
        return x, y, z

    def box(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> Box:
        """The smallest box of samples that holds the axis-parallel block low..high (head coordinates, mm)."""
        corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
        inverse = np.linalg.inv(np.stack([self.row, self.column, self.normal], axis=1))
        point, plane = corners @ inverse.T, self.origins @ inverse.T
        first = int(np.searchsorted(plane[:, 2], point[:, 2].min(), side="left"))
        last = int(np.searchsorted(plane[:, 2], point[:, 2].max(), side="right"))
        if first >= last:
            return slice(0, 0), slice(0, 0), slice(0, 0)
        centre = (self.size - 1) / 2
        ranges = [slice(first, last)]
        for a in (1, 0):
            from_, to = plane[first:last, a].min(), plane[first:last, a].max()
            start = int(np.floor(point[:, a].min() - to + centre))
            stop = int(np.ceil(point[:, a].max() - from_ + centre)) + 1
            start, stop = max(start, 0), min(stop, self.size)
            ranges.append(slice(start, max(start, stop)))
        return ranges[0], ranges[1], ranges[2]


def union(
    frame: Frame,
    shapes: Iterable[Shape],
    k: float = 0.0,
    coordinates: tuple[Array, Array, Array] | None = None,
    far: float = FAR,
) -> Array:
    """Signed distance to the union of shapes on a frame, cut off at `far` mm outside: a shape is looked at in its box.

    `coordinates` replaces the frame's own: displaced ones, near enough to them that `far` covers the difference.
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
    """A smooth random field over the head, unit variance; `scale` is the standard deviation of its smoothing, in mm."""

    PITCH = 4.0
    HALF = 120.0

    def __init__(self, rng: np.random.Generator, scale: float, band: bool = False) -> None:
        side = int(2 * self.HALF / self.PITCH) + 1
        white = rng.standard_normal((side, side, side), dtype=np.float32)
        sigma = scale / self.PITCH
        grid = ndimage.gaussian_filter(white, sigma, mode="wrap", truncate=2.5)
        if band:
            grid -= ndimage.gaussian_filter(grid, 1.6 * sigma, mode="wrap", truncate=2.5)
        self.grid: Array = (grid / grid.std()).astype(np.float32)

    def per_gradient(self) -> "Noise":
        """The same zero surfaces, the values now about the distance to them in mm."""
        gx, gy, gz = np.gradient(self.grid, self.PITCH)
        slope = np.sqrt(gx * gx + gy * gy + gz * gz)
        slope = ndimage.gaussian_filter(slope, 1.0, mode="wrap", truncate=2.5)
        self.grid = (self.grid / (slope + 0.15 * slope.mean())).astype(np.float32)
        return self

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """The field at points (mm), linear between its nodes, repeated outside the head."""
        points = np.stack([x, y, z])
        points += np.float32(self.HALF)
        points *= np.float32(1 / self.PITCH)
        return ndimage.map_coordinates(self.grid, points, order=1, mode="nearest", prefilter=False)

    def on(self, frame: Frame, stretch: Point = (1.0, 1.0, 1.0)) -> Array:
        """The field on a frame, read at every other pixel, where it is smooth enough. `stretch` multiplies the axes."""
        coarse = frame.coarser()
        values = self(*(a * np.float32(s) for a, s in zip(coarse.at(coarse.whole), stretch, strict=True)))
        fine = np.empty((len(values), frame.size, frame.size), np.float32)
        for k, plane in enumerate(values):
            cv2.resize(plane, (frame.size, frame.size), dst=fine[k], interpolation=cv2.INTER_LINEAR)
        return fine

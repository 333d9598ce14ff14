"""Implicit shapes: signed distances in mm, and how to combine them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Everything here is computed in float32; the stubs call much of it float64.
Array = NDArray[np.floating]
Point = tuple[float, float, float]
Coordinates = tuple[Array, Array, Array]
FAR = 12.0  # mm; larger distances are not computed


@dataclass(frozen=True)
class Ellipsoid:
    """Axis-parallel ellipsoid: centre and radii in mm."""

    centre: Point
    radii: Point

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """Approximate signed distance in mm, negative inside (exact at the surface to first order)."""
        cx, cy, cz = (np.float32(c) for c in self.centre)
        rx, ry, rz = (np.float32(r) for r in self.radii)
        u, v, w = (x - cx) / rx, (y - cy) / ry, (z - cz) / rz
        norm = np.sqrt(u * u + v * v + w * w)
        gradient = np.sqrt((u / rx) ** 2 + (v / ry) ** 2 + (w / rz) ** 2)
        return norm * (norm - 1) / np.maximum(gradient, 1e-4)

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Two opposite corners of the bounding box."""
        centre, radii = np.array(self.centre), np.array(self.radii)
        return centre - radii, centre + radii


@dataclass(frozen=True)
class Capsule:
    """Segment from `start` to `end` with a radius that changes linearly along it, in mm."""

    start: Point
    end: Point
    radius: float
    end_radius: float

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """Approximate signed distance in mm, negative inside."""
        ax, ay, az = (np.float32(v) for v in self.start)
        dx, dy, dz = (np.float32(b - a) for a, b in zip(self.start, self.end, strict=True))
        px, py, pz = x - ax, y - ay, z - az
        t = np.clip((px * dx + py * dy + pz * dz) / (dx * dx + dy * dy + dz * dz), 0, 1)
        px, py, pz = px - t * dx, py - t * dy, pz - t * dz
        radius = np.float32(self.radius) + t * np.float32(self.end_radius - self.radius)
        return np.sqrt(px * px + py * py + pz * pz) - radius

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Two opposite corners of the bounding box."""
        ends = np.array([self.start, self.end])
        radius = max(self.radius, self.end_radius)
        return ends.min(0) - radius, ends.max(0) + radius


Shape = Ellipsoid | Capsule


def mirrored(shape: Shape) -> list[Shape]:
    """The shape and its image on the other side of the head (x -> -x)."""
    if isinstance(shape, Ellipsoid):
        x, y, z = shape.centre
        return [shape, Ellipsoid((-x, y, z), shape.radii)]
    (ax, ay, az), (bx, by, bz) = shape.start, shape.end
    return [shape, Capsule((-ax, ay, az), (-bx, by, bz), shape.radius, shape.end_radius)]


def smooth_min(a: Array, b: Array, k: float) -> Array:
    """Union of two signed distances with a fillet of about k mm."""
    if k == 0:
        return np.minimum(a, b)
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.minimum(a, b) - h * h * (k / 4)


def smooth_step(low: float, high: float, value: Array) -> Array:
    """Cubic step: 0 below `low`, 1 above `high`."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def soft(distance: Array, edge: float | Array) -> Array:
    """Occupancy in [0, 1] of a signed distance: a linear step of `edge` mm around zero."""
    step = distance * (np.float32(-1) / edge)
    step += 0.5
    return np.clip(step, 0, 1, out=step)


def mix(hu: Array, weight: Array, value: float | Array) -> None:
    """Blend `value` into `hu` by `weight` in [0, 1], in place."""
    hu += weight * (value - hu)

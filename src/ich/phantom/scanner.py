"""The scanner: positions and file format of the slices, noise, and artifacts of motion, bone and metal."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ich.phantom.anatomy import Head
from ich.phantom.frame import Frame
from ich.phantom.shapes import Array, Point, soft

SUBPLANES = 3
FINE_EDGE = 0.9


@dataclass(frozen=True)
class Scan:
    """One acquisition. Positions and spacings in mm, in DICOM's patient coordinates (x left, y back, z up)."""

    centres: NDArray[np.float64]  # [slices, 3] centre of each image
    tilt: float  # of the gantry about x, radians
    pixel: float
    size: int
    thickness: float
    pose: NDArray[np.float64]  # [3, 3] scanner -> atlas coordinates of the head
    noise: float  # standard deviation in the brain, HU
    sharpness: float  # standard deviation of the reconstruction's blur, mm
    cupping: float  # HU that the skull adds to the adjacent brain
    streaks: float  # HU of the dark bands between the petrous bones
    moved: tuple[int, float, float] | None  # first of two moved slices, degrees, mm
    rest: tuple[float, float, float, float]  # head-rest: radius, distance behind the head, half opening in radians, HU
    signed: bool
    intercept: float
    padded: bool
    explicit_vr: bool

    @property
    def orientation(self) -> tuple[float, float, float, float, float, float]:
        """ImageOrientationPatient: the direction of a row, then of a column."""
        return 1.0, 0.0, 0.0, 0.0, float(np.cos(self.tilt)), float(-np.sin(self.tilt))

    @property
    def positions(self) -> NDArray[np.float64]:
        """ImagePositionPatient of each slice, the centre of its first pixel, [slices, 3]."""
        half = (self.size - 1) / 2 * self.pixel
        axes = np.array(self.orientation)
        return np.round(self.centres - half * axes[:3] - half * axes[3:], 4)

    @property
    def offsets(self) -> Array:
        """Distance of each column or row from the middle of the image, mm, float32 [size]."""
        return ((np.arange(self.size) - (self.size - 1) / 2) * self.pixel).astype(np.float32)

    def frame(self, grid: int) -> Frame:
        """All sub-planes of all slices as a grid x grid frame in the atlas coordinates of the head."""
        axes = np.array(self.orientation).reshape(2, 3)
        normal = np.cross(axes[0], axes[1])
        steps = ((np.arange(SUBPLANES) + 0.5) / SUBPLANES - 0.5) * self.thickness
        origins = (self.centres[:, None, :] + steps[None, :, None] * normal).reshape(-1, 3)
        step = self.pixel * self.size / grid
        row, column = product(axes, self.pose.T) * step
        return Frame(product(origins, self.pose.T), row, column, product(self.pose, normal[:, None])[:, 0], grid)


def product(a: Array, b: Array) -> NDArray[np.float64]:
    """Matrix product without BLAS, whose rounding depends on the machine."""
    return (a[:, :, None] * b[None]).sum(1)


def draw_scan(rng: np.random.Generator, head: Head, slices: int, size: int) -> Scan:
    """Draw a scan of this head with about `slices` slices of `size` x `size` pixels."""
    count = max(4, round(slices * rng.uniform(0.85, 1.15)))
    tilt = float(np.deg2rad(rng.uniform(3, 18))) if rng.random() < 0.9 else 0.0
    pose = _draw_pose(rng, head, tilt)
    bottom, top = rng.uniform(-74, -56), (85 + rng.uniform(-4, 5)) * head.scale[2]
    gaps = np.full(count - 1, (top - bottom) / (count - 1))
    irregular = rng.random()
    if irregular < 0.05:  # thin through the skull base, thick above it
        gaps *= np.where(np.arange(count - 1) < count // 3, 0.6, 1.2)
    elif irregular < 0.08:  # one slice was lost
        gaps[rng.integers(1, count - 2)] *= 2
    heights = bottom + np.concatenate([[0.0], np.cumsum(np.round(gaps, 2))])
    centres = np.stack([np.full(count, rng.normal(0, 4)), np.full(count, 3 + rng.normal(0, 5)), heights], axis=1)
    signed = rng.random() < 0.45
    moves = rng.random() < 0.07
    return Scan(
        centres=centres,
        tilt=tilt,
        pixel=round(rng.uniform(218, 256) / size, 6),
        size=size,
        thickness=min(float(np.median(gaps)) * np.cos(tilt), 5.2),
        pose=pose,
        noise=rng.uniform(2.3, 4.2),
        sharpness=rng.uniform(0.45, 0.75),
        cupping=rng.uniform(0, 4),
        streaks=rng.gamma(2.0, 3.0),
        moved=(int(rng.integers(1, count - 2)), rng.normal(0, 3), rng.normal(0, 3)) if moves else None,
        rest=(rng.uniform(104, 125), rng.uniform(4, 12), rng.uniform(0.9, 1.5), rng.uniform(-250, 150)),
        signed=signed,
        intercept=0.0 if signed and rng.random() < 0.3 else -1024.0,
        padded=signed and rng.random() < 0.6,
        explicit_vr=rng.random() < 0.5,
    )


def _draw_pose(rng: np.random.Generator, head: Head, tilt: float) -> NDArray[np.float64]:
    """Scanner -> atlas [3, 3]: a small rotation about each axis, then the head's scale and asymmetry."""
    roll, lean, nod = np.deg2rad(rng.normal(0, (5.0, 2.5, 4.0)))
    nod = nod - 0.9 * tilt
    cz, sz, cy, sy, cx, sx = np.cos(roll), np.sin(roll), np.cos(lean), np.sin(lean), np.cos(nod), np.sin(nod)
    about_z = np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
    about_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
    shear = np.array([[1, head.shear[0], head.shear[1]], [0, 1, head.shear[2]], [0, 0, 1]])
    turn = product(about_x, product(about_y, about_z))
    return product(shear, turn) / np.array(head.scale)[:, None]


def head_rest(scan: Scan, behind: float) -> Array:
    """Hounsfield units [size, size] of air with the head-rest and the table below it.

    behind: y (scanner, mm) of the back of the head. Both extend along z, and the gantry tilts about x through the
    centre of the image, so their section is the same in every slice.
    """
    u = scan.offsets
    x = u[None, :] + np.float32(scan.centres[0, 0])
    y = u[:, None] * np.float32(np.cos(scan.tilt)) + np.float32(scan.centres[0, 1])
    radius, gap, opening, shell = scan.rest
    bottom = np.float32(behind + gap)
    ring = np.sqrt(x * x + (y - (bottom - radius)) ** 2)
    arc = np.maximum(np.abs(ring - (radius + 6)) - 6, np.abs(x) - np.float32(radius * np.sin(opening)))
    arc = np.maximum(arc, bottom - np.float32(radius) - y)
    table = np.maximum(np.abs(y - (bottom + 24 - x * x / 900) - 10) - 10, np.abs(x) - 190)
    hu = np.full(ring.shape, -1000, np.float32)
    hu += soft(arc, 1.5) * 60 + soft(np.abs(arc + 1.2) - 1.2, 1.5) * (940 + shell)
    hu += soft(table, 1.5) * 90 + soft(np.abs(table + 1) - 1, 1.5) * 640
    return hu


def _add_metal_streaks(scan: Scan, image: Array, index: int, metal: tuple[Point, float], rays: Array) -> None:
    """Add the streaks of a metal clip to its slice, in place. rays [n]: their weights over 180 degrees."""
    point, strength = metal
    axes = np.array(scan.orientation).reshape(2, 3)
    place = product(np.linalg.inv(scan.pose), np.array(point)[:, None])[:, 0] - scan.centres[index]
    if abs(float((place * np.cross(axes[0], axes[1])).sum())) > 0.9 * scan.thickness:
        return
    dx = scan.offsets[None, :] - np.float32((place * axes[0]).sum())
    dy = scan.offsets[:, None] - np.float32((place * axes[1]).sum())
    rays = np.concatenate([rays, rays])  # a ray continues on the other side of the clip
    angle = (np.arctan2(dy, dx) + np.float32(np.pi)) * (len(rays) / (2 * np.pi))
    first = np.floor(angle).astype(np.int32)
    part = angle - first
    value = rays[first % len(rays)] * (1 - part) + rays[(first + 1) % len(rays)] * part
    away = np.hypot(dx, dy) / 8
    image += strength * value / (1 + away * np.sqrt(away))


def acquire(
    scan: Scan, index: int, image: Array, cavity: Array, metal: tuple[Point, float] | None, rng: np.random.Generator
) -> NDArray[np.int16]:
    """Reconstruct a slice: add artifacts, blur and noise to `image` [size, size] in HU.

    cavity: distance to the inside of the skull, mm, [size, size]. metal: a clip in head coordinates and the strength
    of its streaks in HU.
    """
    image = image + scan.cupping * np.exp(np.minimum(cavity, 0) * 0.2) * (cavity < 0)
    level = float((scan.pose * scan.centres[index]).sum(1)[2] + 30)  # mm above the petrous bones
    u, v = scan.offsets[None, :], scan.offsets[:, None]
    streaks = scan.streaks * float(np.exp(-0.5 * (level / 9) ** 2))
    if streaks >= 0.5:  # dark and bright bands between the petrous bones
        band = np.exp(-(((v - 6 - 0.04 * u) / 6) ** 2)) - 0.6 * np.exp(-(((v - 19 + 0.05 * u) / 4) ** 2))
        band += 0.5 * np.exp(-(((v + 8 + 0.09 * u) / 3) ** 2))
        image -= streaks * band * np.exp(-((u / 52) ** 4))
    if metal is not None:
        _add_metal_streaks(scan, image, index, metal, rng.standard_normal(72).astype(np.float32))
    if scan.moved is not None and scan.moved[0] <= index < scan.moved[0] + 2:
        # The head moved during the rotation: a part of the projections shows it elsewhere.
        _, degrees, shift = scan.moved
        half = (scan.size - 1) / 2
        turn = cv2.getRotationMatrix2D((half, half), degrees, 1.0)
        turn[:, 2] += shift / scan.pixel
        image = 0.6 * image + 0.4 * cv2.warpAffine(image, turn, image.shape, borderMode=cv2.BORDER_REPLICATE)
    blurred = cv2.GaussianBlur(image, (0, 0), scan.sharpness / scan.pixel)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), max(0.55 / scan.pixel, 0.3))
    noise *= np.float32(scan.noise * (1 + 0.5 * np.exp(-0.5 * (level / 25) ** 2)) / noise.std())
    hu = np.clip(np.rint(blurred + noise), -1024, 3071).astype(np.int16)
    if scan.padded:
        u = np.arange(scan.size) - (scan.size - 1) / 2
        hu[np.hypot(u[None, :], u[:, None]) > scan.size / 2] = np.int16(-2000 + scan.intercept)
    return hu

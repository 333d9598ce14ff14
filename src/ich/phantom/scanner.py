"""The scanner: where the slices lie, how their files are coded, and what noise, motion, bone and metal do to them."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ich.phantom.anatomy import Head
from ich.phantom.shapes import Array, Frame, Point, soft

SUBPLANES = 3
FINE_EDGE = 0.9


@dataclass(frozen=True)
class Scan:
    """One acquisition. Positions and spacings in mm, scanner coordinates as DICOM has them (x left, y back, z up)."""

    centres: NDArray[np.float64]  # [slices, 3] middle of each image
    tilt: float  # of the gantry about x, radians
    pixel: float
    size: int
    thickness: float
    pose: NDArray[np.float64]  # [3, 3] scanner -> atlas coordinates of the head
    noise: float  # standard deviation in the brain, HU
    sharpness: float  # standard deviation of the reconstruction's blur, mm
    cupping: float  # HU that the skull adds to the brain beside it
    streaks: float  # HU of the dark bands between the petrous bones
    moved: tuple[int, float, float] | None  # first slice that moved, degrees, mm
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

    def frame(self, grid: int) -> Frame:
        """All sub-planes of all slices as a grid x grid frame in the atlas coordinates of the head."""
        axes = np.array(self.orientation)
        normal = np.cross(axes[:3], axes[3:])
        steps = ((np.arange(SUBPLANES) + 0.5) / SUBPLANES - 0.5) * self.thickness
        origins = (self.centres[:, None, :] + steps[None, :, None] * normal).reshape(-1, 3)
        step = self.pixel * self.size / grid
        turn = self.pose
        return Frame(
            (origins[:, None, :] * turn[None]).sum(-1),
            (turn * axes[:3]).sum(-1) * step,
            (turn * axes[3:]).sum(-1) * step,
            (turn * normal).sum(-1),
            grid,
        )


def _pose(rng: np.random.Generator, head: Head, tilt: float) -> NDArray[np.float64]:
    """Scanner -> atlas: the head's own scale and asymmetry after a small rotation about each axis."""
    roll, lean, nod = np.deg2rad(rng.normal(0, (5.0, 2.5, 4.0)))
    nod = nod - 0.9 * tilt
    cz, sz, cy, sy, cx, sx = np.cos(roll), np.sin(roll), np.cos(lean), np.sin(lean), np.cos(nod), np.sin(nod)
    about_z = np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
    about_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
    shear = np.array([[1, head.shear[0], head.shear[1]], [0, 1, head.shear[2]], [0, 0, 1]])
    turn = (about_x[:, :, None] * (about_y[:, :, None] * about_z[None]).sum(1)[None]).sum(1)
    return np.array((shear[:, :, None] * turn[None]).sum(1)) / np.array(head.scale)[:, None]


def draw_scan(rng: np.random.Generator, head: Head, slices: int, size: int) -> Scan:
    """A scan of this head with about `slices` slices of `size` x `size` pixels."""
    count = max(4, round(slices * rng.uniform(0.85, 1.15)))
    tilt = float(np.deg2rad(rng.uniform(3, 18))) if rng.random() < 0.9 else 0.0
    pose = _pose(rng, head, tilt)
    bottom, top = rng.uniform(-74, -56), (85 + rng.uniform(-4, 5)) * head.scale[2]
    gaps = np.full(count - 1, (top - bottom) / (count - 1))
    irregular = rng.random()
    if irregular < 0.05:  # thin through the skull base, thick above it
        gaps *= np.where(np.arange(count - 1) < count // 3, 0.6, 1.2)
    elif irregular < 0.08:  # one slice was lost
        gaps[int(rng.integers(1, count - 2))] *= 2
    heights = bottom + np.concatenate([[0.0], np.cumsum(np.round(gaps, 2))])
    centres = np.stack([np.full(count, rng.normal(0, 4)), np.full(count, 3 + rng.normal(0, 5)), heights], axis=1)
    signed = bool(rng.random() < 0.45)
    turned = rng.random() < 0.07
    return Scan(
        centres=centres,
        tilt=tilt,
        pixel=round(float(rng.uniform(218, 256)) / size, 6),
        size=size,
        thickness=min(float(np.median(gaps)) * np.cos(tilt), 5.2),
        pose=pose,
        noise=float(rng.uniform(2.3, 4.2)),
        sharpness=float(rng.uniform(0.45, 0.75)),
        cupping=float(rng.uniform(0, 4)),
        streaks=float(rng.gamma(2.0, 3.0)),
        moved=(int(rng.integers(1, count - 2)), float(rng.normal(0, 3)), float(rng.normal(0, 3))) if turned else None,
        rest=(
            float(rng.uniform(104, 125)),
            float(rng.uniform(4, 12)),
            float(rng.uniform(0.9, 1.5)),
            float(rng.uniform(-250, 150)),
        ),
        signed=signed,
        intercept=0.0 if signed and rng.random() < 0.3 else -1024.0,
        padded=signed and bool(rng.random() < 0.6),
        explicit_vr=bool(rng.random() < 0.5),
    )


def head_rest(scan: Scan, behind: float) -> Array:
    """Hounsfield units [size, size] of air with the head-rest and, under it, the table.

    `behind` is the y (scanner, mm) of the back of the head. Both run along z, and the gantry tilts about x through the
    middle of the image: their section is the same in every slice.
    """
    u = ((np.arange(scan.size) - (scan.size - 1) / 2) * scan.pixel).astype(np.float32)
    x = u[None, :] + np.float32(scan.centres[0, 0])
    y = u[:, None] * np.float32(np.cos(scan.tilt)) + np.float32(scan.centres[0, 1])
    radius, gap, opening, shell = scan.rest
    bottom = np.float32(behind + gap)
    ring = np.sqrt(x * x + (y - (bottom - radius)) ** 2)
    arc = np.maximum(np.abs(ring - np.float32(radius + 6)) - 6, np.abs(x) - np.float32(radius * np.sin(opening)))
    arc = np.maximum(arc, bottom - np.float32(radius) - y)
    table = np.maximum(np.abs(y - (bottom + 24 - x * x / np.float32(900)) - 10) - 10, np.abs(x) - 190)
    hu = np.full(ring.shape, -1000, np.float32)
    hu += soft(arc, 1.5) * 60 + soft(np.abs(arc + 1.2) - 1.2, 1.5) * np.float32(940 + shell)
    hu += soft(table, 1.5) * 90 + soft(np.abs(table + 1) - 1, 1.5) * 640
    return hu


def _streaks(scan: Scan, image: Array, level: float) -> None:
    """Dark and bright bands between the petrous bones, in place. `level`: height above them in mm."""
    strength = scan.streaks * float(np.exp(-0.5 * (level / 9) ** 2))
    if strength < 0.5:
        return
    u = ((np.arange(scan.size) - (scan.size - 1) / 2) * scan.pixel).astype(np.float32)
    x, y = u[None, :], u[:, None]
    band = np.exp(-(((y - 6 - 0.04 * x) / 6) ** 2)) - np.float32(0.6) * np.exp(-(((y - 19 + 0.05 * x) / 4) ** 2))
    band += np.float32(0.5) * np.exp(-(((y + 8 + 0.09 * x) / 3) ** 2))
    image -= np.float32(strength) * band * np.exp(-((x / 52) ** 4))


def _metal_streaks(scan: Scan, image: Array, index: int, metal: tuple[Point, float], rng: np.random.Generator) -> None:
    """Rays of a metal clip in the slices that hold it, in place."""
    point, strength = metal
    place = (np.linalg.inv(scan.pose) * np.array(point)).sum(1) - scan.centres[index]
    axes = np.array(scan.orientation)
    u0, v0 = float((place * axes[:3]).sum()), float((place * axes[3:]).sum())
    height = float((place * np.cross(axes[:3], axes[3:])).sum())
    rays = rng.standard_normal(72).astype(np.float32)
    if abs(height) > 0.9 * scan.thickness:
        return
    rays = np.concatenate([rays, rays])  # a ray goes through the clip and out on the other side
    u = ((np.arange(scan.size) - (scan.size - 1) / 2) * scan.pixel).astype(np.float32)
    dx, dy = u[None, :] - np.float32(u0), u[:, None] - np.float32(v0)
    angle = (np.arctan2(dy, dx) + np.float32(np.pi)) * np.float32(len(rays) / (2 * np.pi))
    first = np.floor(angle).astype(np.int32)
    part = angle - first
    value = rays[first % 144] * (1 - part) + rays[(first + 1) % 144] * part
    away = np.hypot(dx, dy) / np.float32(8)
    image += np.float32(strength) * value / (1 + away * np.sqrt(away))


def _shaken(scan: Scan, image: Array, degrees: float, shift: float) -> Array:
    """The head moved during the turn: part of the projections saw it elsewhere."""
    half = (scan.size - 1) / 2
    turn = cv2.getRotationMatrix2D((half, half), degrees, 1.0)
    turn[:, 2] += shift / scan.pixel
    other = cv2.warpAffine(image, turn, (scan.size, scan.size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.float32(0.6) * image + np.float32(0.4) * other


def acquire(
    scan: Scan,
    index: int,
    image: Array,
    cavity: Array,
    metal: tuple[Point, float] | None,
    rng: np.random.Generator,
) -> NDArray[np.int16]:
    """The reconstructed slice in HU: `image` [size, size] with artefacts, blur and noise, as the file will hold it."""
    image = image + np.float32(scan.cupping) * np.exp(np.minimum(cavity, 0) * np.float32(0.2)) * (cavity < 0)
    level = float((scan.pose * scan.centres[index]).sum(1)[2] + 30)
    _streaks(scan, image, level)
    if metal is not None:
        _metal_streaks(scan, image, index, metal, rng)
    if scan.moved is not None and scan.moved[0] <= index < scan.moved[0] + 2:
        image = _shaken(scan, image, scan.moved[1], scan.moved[2])
    image = cv2.GaussianBlur(image, (0, 0), scan.sharpness / scan.pixel).astype(np.float32, copy=False)
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    blurred = cv2.GaussianBlur(grain, (0, 0), max(0.55 / scan.pixel, 0.3))
    blurred *= np.float32(scan.noise * (1 + 0.5 * np.exp(-0.5 * (level / 25) ** 2)) / blurred.std())
    image += blurred
    low, high = (-1024.0, 3071.0)
    hu = np.clip(np.rint(image), low, high).astype(np.int16)
    if scan.padded:
        u = np.arange(scan.size) - (scan.size - 1) / 2
        hu[np.hypot(u[None, :], u[:, None]) > scan.size / 2] = np.int16(-2000 + scan.intercept)
    return hu

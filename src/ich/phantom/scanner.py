"""The scanner: positions and file format of the slices, noise, and artifacts of motion, bone and metal."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ich.phantom.anatomy import Head
from ich.phantom.frame import Frame
from ich.phantom.shapes import Array, Point, soft

SUBPLANES = 3
FINE_EDGE = 0.9
REAL_PIXEL = 0.49  # mm; noise is drawn as on pixels of this size
BRAIN = 32.0  # HU that a change of contrast leaves as it is
SOFT, DENSE = 100.0, 1500.0  # HU: the density of bone varies above SOFT; DENSE is compact bone
UNEVEN = 90  # random densities of bone per row and column
TAIL = 6.0  # mm, side of the two box filters of the kernel's tail

Scanners = Literal["usual", "wide", "other"]


@dataclass(frozen=True)
class Spread:
    """5th, 50th and 95th percentile of a property that differs between scans."""

    low: float
    middle: float
    high: float

    def draw(self, rng: np.random.Generator, factor: float = 1.0) -> float:
        """Draw a value; positive ones vary by a factor. `factor` multiplies the distance from the middle."""
        z = float(np.clip(rng.normal() / 1.645, -1.25, 1.25)) * factor
        side = self.high if z > 0 else self.low
        if self.low > 0:
            return self.middle * (side / self.middle) ** abs(z)
        return self.middle + (side - self.middle) * abs(z)


@dataclass(frozen=True)
class Ranges:
    """Differences between scans. The defaults were fitted to RSNA 2019 with `python -m benchmarks.phantom`."""

    factor: float = 1.0  # multiplies all distances from the middle
    slices: Spread = Spread(0.76, 0.93, 1.46)  # relative to the mean number
    thickness: Spread = Spread(0.65, 1.1, 1.9)  # relative to the distance of the slices
    tilt: Spread = Spread(0, 0, 23)  # degrees
    view: Spread = Spread(221, 250, 250)  # field of view, mm
    offset: Spread = Spread(-7.5, -2.5, 5.5)  # calibration, HU
    contrast: Spread = Spread(0.88, 1.05, 1.5)  # of soft tissue
    bone: Spread = Spread(0.8, 1.2, 1.5)  # density of compact bone
    porous: Spread = Spread(0.55, 0.82, 2.0)  # above 1: spongy bone is nearly as dense as compact bone
    noise: Spread = Spread(1.6, 2.65, 4.1)  # standard deviation in the brain, HU
    grain: Spread = Spread(0.305, 0.355, 0.43)  # standard deviation of the noise's blur, mm
    sharpness: Spread = Spread(0.45, 0.65, 1.25)  # standard deviation of the image's blur, mm
    tail: Spread = Spread(0.03, 0.08, 0.34)  # share of bone's density that the kernel spreads some mm far
    cupping: Spread = Spread(1, 4, 15)  # HU within 7 mm of the skull: beam hardening
    streaks: Spread = Spread(1, 5, 16)  # HU between the petrous bones
    starved: Spread = Spread(0.1, 0.7, 3)  # HU of horizontal streaks at the skull base
    rest: Spread = Spread(-150, 150, 600)  # HU of the head-rest
    moves: float = 0.07  # share of the scans with motion


RANGES: dict[Scanners, Ranges] = {
    "usual": Ranges(),
    "wide": Ranges(factor=2, view=Spread(200, 240, 265), moves=0.2),
    "other": Ranges(  # thin slices, a sharp kernel, much noise, little contrast
        thickness=Spread(0.5, 0.7, 1),
        tilt=Spread(5, 14, 22),
        view=Spread(195, 215, 235),
        offset=Spread(1, 4, 9),
        contrast=Spread(0.7, 0.8, 0.95),
        noise=Spread(3.5, 5.5, 8),
        grain=Spread(0.2, 0.25, 0.3),
        sharpness=Spread(0.3, 0.4, 0.5),
        tail=Spread(0.01, 0.02, 0.05),
        cupping=Spread(0.2, 1, 3),
        starved=Spread(0.5, 2, 6),
        rest=Spread(-500, -300, 0),
    ),
}


@dataclass(frozen=True)
class Scan:
    """One acquisition. Positions and spacings in mm, in DICOM's patient coordinates (x left, y back, z up).

    Properties without a comment are those of Ranges.
    """

    centres: NDArray[np.float64]  # [slices, 3] centre of each image
    tilt: float  # of the gantry about x, radians
    pixel: float
    size: int
    thickness: float
    pose: NDArray[np.float64]  # [3, 3] scanner -> atlas coordinates of the head
    offset: float  # calibration, HU
    contrast: float
    bone: float
    porous: float
    noise: float
    grain: float
    sharpness: float
    tail: float
    cupping: float
    streaks: float
    starved: float
    moved: tuple[int, float, float] | None  # first of two moved slices, degrees, mm
    rest: tuple[float, float, float, float]  # head-rest: radius, distance behind the head, height of its walls, mm; HU
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


def draw_scan(rng: np.random.Generator, head: Head, slices: int, size: int, scanners: Scanners = "usual") -> Scan:
    """Draw a scan of this head with about `slices` slices of `size` x `size` pixels.

    scanners: usual for the ranges of RSNA 2019, wide for larger ones, other for those of another hospital.
    """
    ranges = RANGES[scanners]

    def drawn(spread: Spread) -> float:
        return spread.draw(rng, ranges.factor)

    count = max(4, round(slices * drawn(ranges.slices)))
    tilt = float(np.deg2rad(min(drawn(ranges.tilt), 30)))
    pose = _draw_pose(rng, head, tilt)
    bottom, top = rng.uniform(-74, -56), (87 + rng.uniform(-4, 6)) * head.scale[2]
    gaps = np.full(count - 1, (top - bottom) / (count - 1))
    irregular = rng.random()
    if irregular < 0.05:  # thin through the skull base, thick above it
        gaps *= np.where(np.arange(count - 1) < count // 3, 0.6, 1.2)
    elif irregular < 0.08:  # one slice was lost
        gaps[rng.integers(1, count - 2)] *= 2
    heights = bottom + np.concatenate([[0.0], np.cumsum(np.round(gaps, 2))])
    centres = np.stack([np.full(count, rng.normal(0, 4)), np.full(count, 3 + rng.normal(0, 5)), heights], axis=1)
    signed = rng.random() < 0.45
    moves = rng.random() < ranges.moves
    thickness = min(float(np.median(gaps)) * np.cos(tilt) * drawn(ranges.thickness), 9)
    return Scan(
        centres=centres,
        tilt=tilt,
        pixel=round(drawn(ranges.view) / size, 6),
        size=size,
        thickness=thickness,
        pose=pose,
        offset=drawn(ranges.offset),
        contrast=drawn(ranges.contrast),
        bone=drawn(ranges.bone),
        porous=drawn(ranges.porous),
        noise=drawn(ranges.noise),
        grain=drawn(ranges.grain),
        sharpness=drawn(ranges.sharpness),
        tail=drawn(ranges.tail),
        cupping=drawn(ranges.cupping),
        streaks=drawn(ranges.streaks),
        starved=drawn(ranges.starved),
        moved=(int(rng.integers(1, count - 2)), rng.normal(0, 3), rng.normal(0, 3)) if moves else None,
        rest=(
            rng.uniform(96, 122),
            rng.uniform(5, 16),
            float(rng.choice((40, 160))) * rng.uniform(0.5, 1.1),
            drawn(ranges.rest),
        ),
        signed=signed,
        intercept=0.0 if signed and rng.random() < 0.3 else -1024.0,
        padded=signed and rng.random() < 0.6,
        explicit_vr=rng.random() < 0.5,
    )


def _draw_pose(rng: np.random.Generator, head: Head, tilt: float) -> NDArray[np.float64]:
    """Scanner -> atlas [3, 3]: a small rotation about each axis, then the head's scale and asymmetry."""
    roll, lean, nod = np.deg2rad(rng.normal(0, (5.0, 2.5, 5.0)))
    nod = nod - 0.6 * tilt
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
    centre of the image, so their section is the same in every slice: an arc or a cup with upright walls.
    """
    u = scan.offsets
    x = u[None, :] + np.float32(scan.centres[0, 0])
    y = u[:, None] * np.float32(np.cos(scan.tilt)) + np.float32(scan.centres[0, 1])
    radius, gap, walls, rest = scan.rest
    bottom = np.float32(behind + gap)
    depth = np.maximum(y - (bottom - radius), 0)
    outer = np.sqrt(x * x + depth * depth) - np.float32(radius + 3)
    above = bottom - np.float32(walls) - y
    table = np.maximum(np.abs(y - (bottom + 24 - x * x / 900) - 10) - 10, np.abs(x) - 190)
    hu = np.full(outer.shape, -1000, np.float32)
    hu += soft(np.maximum(outer, above), 1.5) * 40
    hu += soft(np.maximum(np.abs(outer + 1.4) - 1.4, above), 1.2) * (960 + rest)
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


def _calibrated(scan: Scan, image: Array, rng: np.random.Generator) -> Array:
    """Apply the scanner's contrast of soft tissue and of bone, and the tail of its kernel, to Hounsfield units."""
    dense = np.maximum(image - np.float32(SOFT), 0)
    uneven = rng.standard_normal((UNEVEN, UNEVEN), dtype=np.float32) * np.float32(0.25) + np.float32(1)
    image = image + (scan.contrast - 1) * (np.clip(image, 0, SOFT) - np.float32(BRAIN)) + np.float32(scan.offset)
    spongy = 1 + np.minimum(dense, DENSE - SOFT) * np.float32((scan.porous - 1) / (DENSE - SOFT))
    measured = dense / spongy * (scan.bone * scan.porous)
    measured *= cv2.resize(uneven, image.shape, interpolation=cv2.INTER_CUBIC)
    side = max(round(TAIL / scan.pixel), 1)
    spread = cv2.blur(cv2.blur(measured, (side, side)), (side, side))
    image += measured - dense + np.float32(scan.tail) * (spread - measured)
    return image


def noise(scan: Scan, level: float, rng: np.random.Generator) -> Array:
    """Noise [size, size] in HU: that of pixels of REAL_PIXEL mm, averaged over larger ones. level: as in `acquire`."""
    excess = (scan.pixel**2 - REAL_PIXEL**2) / 12  # mm2 by which larger pixels blur more
    blur = np.sqrt(max(scan.grain**2 + excess, 0.01))
    hu = rng.standard_normal((scan.size, scan.size), dtype=np.float32)
    hu = cv2.GaussianBlur(hu, (0, 0), max(blur / scan.pixel, 0.3))
    amount = scan.noise * scan.grain / blur * (1 + 0.5 * np.exp(-0.5 * (level / 25) ** 2))
    hu *= np.float32(amount / hu.std())
    starved = scan.starved * float(np.exp(-0.5 * (level / 18) ** 2))
    if starved >= 0.5:  # too few photons pass the petrous bones from side to side
        rows = rng.standard_normal((scan.size // 2, 5), dtype=np.float32)
        hu += np.float32(starved) * cv2.resize(rows, (scan.size, scan.size), interpolation=cv2.INTER_CUBIC)
    return hu


def acquire(
    scan: Scan, index: int, image: Array, cavity: Array, metal: tuple[Point, float] | None, rng: np.random.Generator
) -> NDArray[np.int16]:
    """Reconstruct a slice: add artifacts, blur and noise to `image` [size, size] in HU.

    cavity: distance to the inside of the skull, mm, [size, size]. metal: a clip in head coordinates and the strength
    of its streaks in HU.
    """
    image = _calibrated(scan, image, rng)
    image += np.float32(scan.cupping) * np.exp(np.minimum(cavity, 0) * np.float32(0.15)) * (cavity < 0)
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
    hu = np.clip(np.rint(blurred + noise(scan, level, rng)), -1024, 3071).astype(np.int16)
    if scan.padded:
        u = np.arange(scan.size) - (scan.size - 1) / 2
        hu[np.hypot(u[None, :], u[:, None]) > scan.size / 2] = np.int16(-2000 + scan.intercept)
    return hu

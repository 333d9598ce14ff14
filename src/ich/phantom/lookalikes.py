"""What looks like a bleed and is none, and what else time and surgeons leave in a head."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ich.phantom.anatomy import Brain, Cranium
from ich.phantom.shapes import Array, Box, Capsule, Ellipsoid, Frame, Point, Shape, smooth_step, soft, union


@dataclass(frozen=True)
class Extras:
    """Findings of one patient other than bleeds."""

    dense: tuple[tuple[Shape, float], ...]  # small dense things and their HU
    infarcts: tuple[tuple[Ellipsoid, float], ...]  # old infarcts and by how many HU they are darker
    cyst: Ellipsoid | None
    swelling: tuple[Point, float] | None  # scalp haematoma: where, mm
    metal: tuple[Point, float] | None  # a clip: where, strength of its streaks in HU


@dataclass
class Insert:
    """A small shape on fine pixels: its box, occupancy and HU."""

    box: Box
    weight: Array
    density: float

    def paint(self, hu: Array, planes: slice) -> None:
        """Put the shape into sub-planes `planes` [planes, size, size] of a slice, in place."""
        first, last = max(self.box[0].start, planes.start), min(self.box[0].stop, planes.stop)
        if first >= last:
            return
        weight = self.weight[first - self.box[0].start : last - self.box[0].start]
        part = hu[first - planes.start : last - planes.start, self.box[1], self.box[2]]
        part += weight * (np.float32(self.density) - part)


def _calcifications(rng: np.random.Generator) -> list[tuple[Shape, float]]:
    found: list[tuple[Shape, float]] = []
    if rng.random() < 0.6:
        for sign in (1, -1):
            if rng.random() < 0.85:
                centre = (sign * rng.normal(23, 1), rng.normal(33, 1.5), rng.normal(11, 2))
                radius = rng.uniform(1.6, 4.2)
                found.append((Ellipsoid(centre, (radius * 0.7, radius, radius)), float(rng.uniform(70, 320))))
    if rng.random() < 0.7:
        radius = rng.uniform(1.2, 3.4)
        found.append((Ellipsoid((rng.normal(0, 0.7), 24, 3), (radius, radius, radius)), float(rng.uniform(90, 300))))
    for _ in range(int(rng.random() < 0.3) + int(rng.random() < 0.15)):
        y, z = rng.uniform(-66, -20), rng.uniform(34, 60)
        end = (0.0, float(y + rng.uniform(4, 18)), float(z + rng.uniform(-4, 8)))
        found.append((Capsule((0.0, y, z), end, rng.uniform(1.0, 2.2), 1.0), float(rng.uniform(110, 500))))
    if rng.random() < 0.08:  # basal ganglia, faint: the best imitation of a small bleed
        density = float(rng.uniform(55, 110))
        radii = ((sign, rng.uniform(2.5, 5)) for sign in (1, -1))
        found += [(Ellipsoid((sign * 20, -6, 3), (r * 0.8, r * 1.4, r)), density) for sign, r in radii]
    for sign in (1, -1):
        if rng.random() < 0.12:
            found.append((Capsule((sign * 13, 0, -16), (sign * 20, 8, -18), 1.0, 1.4), float(rng.uniform(150, 500))))
    return found


def _normal(rng: np.random.Generator) -> list[tuple[Shape, float]]:
    """Vessels of the base, now and then one dense with clot, and the lenses of the eyes."""
    density = float(rng.normal(46, 5))
    found: list[tuple[Shape, float]] = [(Capsule((0, -7, -38), (0, -9, -18), 1.9, 1.9), density + 3)]
    for sign in (1, -1):
        dense = density + (rng.uniform(8, 20) if rng.random() < 0.05 else 0)
        found.append((Capsule((sign * 6, -14, -9), (sign * 24, -19, -6), 1.6, 1.3), float(dense)))
        found.append((Ellipsoid((sign * 31.5, -88.5, -27), (4.6, 2.2, 4.6)), 78.0))
    return found


def draw(rng: np.random.Generator) -> Extras:
    """Findings at random."""
    dense = _calcifications(rng) + _normal(rng)
    infarcts: list[tuple[Ellipsoid, float]] = []
    while len(infarcts) < 3 and rng.random() < 0.3:
        side = int(rng.choice((-1, 1)))
        if rng.random() < 0.5:
            centre, radius = (
                (side * rng.uniform(12, 26), rng.uniform(-20, 16), rng.uniform(0, 24)),
                rng.uniform(2.5, 5),
            )
        else:
            y = rng.uniform(-50, 60)
            centre, radius = (side * rng.uniform(38, 54), y, rng.uniform(-8, 44)), rng.uniform(9, 24)
        a, b, c = radius * np.exp(rng.normal(0, 0.25, 3))
        infarcts.append((Ellipsoid(centre, (a, b, c)), float(rng.uniform(8, 20))))
    cyst = None
    if rng.random() < 0.05:
        places = ((0.0, 68.0, -38.0), (44.0, -40.0, -22.0), (-44.0, -40.0, -22.0))
        a, b, c = rng.uniform(10, 20, 3)
        cyst = Ellipsoid(places[int(rng.integers(3))], (float(a), float(b), float(c)))
    swelling = None
    if rng.random() < 0.15:
        angle, z = rng.uniform(0, 2 * np.pi), rng.uniform(-5, 55)
        ring = np.sqrt(1 - ((z - 6) / 82) ** 2)
        swelling = (
            (float(75 * ring * np.sin(angle)), float(-92 * ring * np.cos(angle)), float(z)),
            float(rng.uniform(4, 13)),
        )
    metal = None
    if rng.random() < 0.05:
        sign = int(rng.choice((-1, 1)))
        metal = (
            (float(sign * rng.uniform(3, 30)), float(rng.uniform(-26, -8)), float(rng.uniform(-12, -2))),
            float(rng.uniform(40, 130)),
        )
        a = metal[0]
        dense.append((Capsule(a, (a[0] + sign * 6, a[1] - 5, a[2] + 2), 1.3, 1.3), 3000.0))
    elif rng.random() < 0.05:  # a shunt's catheter, from a burr hole into a ventricle
        sign = int(rng.choice((-1, 1)))
        dense.append((Capsule((sign * 36, -46, 74), (sign * 7, -14, 16), 1.4, 1.4), 420.0))
    return Extras(tuple(dense), tuple(infarcts), cyst, swelling, metal)


def apply(extras: Extras, frame: Frame, bone: Cranium, brain: Brain) -> None:
    """Old infarcts and cysts, in place."""
    for scar, darker in extras.infarcts:
        field = scar.distance(brain.x, brain.y, brain.z) + 3 * bone.noise
        weight = smooth_step(3, -3, field) * (bone.posterior > 2)
        brain.delta -= np.float32(darker) * weight
        brain.width += np.where(brain.width > 0, weight * np.float32(1.2), np.float32(0))
    if extras.cyst is not None:
        brain.cistern = np.minimum(brain.cistern, union(frame, [extras.cyst], 0.0))


def inserts(extras: Extras, frame: Frame) -> Sequence[Insert]:
    """The dense findings on the fine frame."""
    made: list[Insert] = []
    pixel = float(np.sqrt((frame.row**2).sum()))
    for shape, density in extras.dense:
        low, high = shape.bounds()
        box = frame.box(low - 1, high + 1)
        if all(s.stop > s.start for s in box):
            made.append(Insert(box, soft(shape.distance(*frame.at(box)), pixel), density))
    return made

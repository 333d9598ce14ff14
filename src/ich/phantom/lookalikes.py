"""Findings other than bleeds: look-alikes of bleeds, old infarcts, cysts, clips and shunts."""

from dataclasses import dataclass

import numpy as np

from ich.phantom.anatomy import Brain, Cranium
from ich.phantom.frame import Box, Frame, union
from ich.phantom.shapes import Array, Capsule, Ellipsoid, Point, Shape, mirrored, mix, smooth_step, soft


@dataclass(frozen=True)
class Extras:
    """Findings of one patient other than bleeds."""

    dense: list[tuple[Shape, float]]  # small dense objects and their HU
    infarcts: list[tuple[Ellipsoid, float]]  # old infarcts and by how many HU they are darker
    cyst: Ellipsoid | None
    swelling: tuple[Point, float] | None  # scalp haematoma: position, height in mm
    metal: tuple[Point, float] | None  # a clip: position, strength of its streaks in HU


def draw_extras(rng: np.random.Generator) -> Extras:
    """Draw the findings of a patient."""
    dense = _calcifications(rng) + _vessels_and_lenses(rng)
    infarcts: list[tuple[Ellipsoid, float]] = []
    while len(infarcts) < 3 and rng.random() < 0.3:
        side = int(rng.choice((-1, 1)))
        if rng.random() < 0.5:
            centre = (side * rng.uniform(12, 26), rng.uniform(-20, 16), rng.uniform(0, 24))
            radius = rng.uniform(2.5, 5)
        else:
            y = rng.uniform(-50, 60)
            centre, radius = (side * rng.uniform(38, 54), y, rng.uniform(-8, 44)), rng.uniform(9, 24)
        a, b, c = radius * np.exp(rng.normal(0, 0.25, 3))
        infarcts.append((Ellipsoid(centre, (a, b, c)), rng.uniform(8, 20)))
    cyst = None
    if rng.random() < 0.05:
        a, b, c = rng.uniform(10, 20, 3)
        places = ((0.0, 68.0, -38.0), (44.0, -40.0, -22.0), (-44.0, -40.0, -22.0))
        cyst = Ellipsoid(places[rng.integers(3)], (a, b, c))
    swelling = None
    if rng.random() < 0.15:
        angle, z = rng.uniform(0, 2 * np.pi), rng.uniform(-5, 55)
        ring = float(np.sqrt(1 - ((z - 6) / 82) ** 2))
        swelling = (75 * ring * float(np.sin(angle)), -92 * ring * float(np.cos(angle)), z), rng.uniform(4, 13)
    metal = None
    if rng.random() < 0.05:
        sign = int(rng.choice((-1, 1)))
        x, y, z = sign * rng.uniform(3, 30), rng.uniform(-26, -8), rng.uniform(-12, -2)
        metal = (x, y, z), rng.uniform(40, 130)
        dense.append((Capsule((x, y, z), (x + sign * 6, y - 5, z + 2), 1.3, 1.3), 3000.0))
    elif rng.random() < 0.05:  # a shunt's catheter, from a burr hole into a ventricle
        sign = int(rng.choice((-1, 1)))
        dense.append((Capsule((sign * 36, -46, 74), (sign * 7, -14, 16), 1.4, 1.4), 420.0))
    return Extras(dense, infarcts, cyst, swelling, metal)


def _calcifications(rng: np.random.Generator) -> list[tuple[Shape, float]]:
    """Draw calcifications of choroid plexus, pineal gland, falx, basal ganglia and carotid arteries."""
    found: list[tuple[Shape, float]] = []
    if rng.random() < 0.6:
        for sign in (1, -1):
            if rng.random() < 0.85:
                centre = (sign * rng.normal(23, 1), rng.normal(33, 1.5), rng.normal(11, 2))
                radius = rng.uniform(1.6, 4.2)
                found.append((Ellipsoid(centre, (radius * 0.7, radius, radius)), rng.uniform(70, 320)))
    if rng.random() < 0.7:
        radius = rng.uniform(1.2, 3.4)
        found.append((Ellipsoid((rng.normal(0, 0.7), 24, 3), (radius, radius, radius)), rng.uniform(90, 300)))
    for _ in range((rng.random() < 0.3) + (rng.random() < 0.15)):
        y, z = rng.uniform(-66, -20), rng.uniform(34, 60)
        end = (0.0, y + rng.uniform(4, 18), z + rng.uniform(-4, 8))
        found.append((Capsule((0.0, y, z), end, rng.uniform(1.0, 2.2), 1.0), rng.uniform(110, 500)))
    if rng.random() < 0.08:  # faint, in the basal ganglia: very similar to a small bleed
        density = rng.uniform(55, 110)
        for sign in (1, -1):
            radius = rng.uniform(2.5, 5)
            found.append((Ellipsoid((sign * 20, -6, 3), (radius * 0.8, radius * 1.4, radius)), density))
    carotids = mirrored(Capsule((13, 0, -16), (20, 8, -18), 1.0, 1.4))
    found += [(carotid, rng.uniform(150, 500)) for carotid in carotids if rng.random() < 0.12]
    return found


def _vessels_and_lenses(rng: np.random.Generator) -> list[tuple[Shape, float]]:
    """Draw the basal arteries, sometimes dense with clot, and the lenses of the eyes."""
    density = rng.normal(46, 5)
    found: list[tuple[Shape, float]] = [(Capsule((0, -7, -38), (0, -9, -18), 1.9, 1.9), density + 3)]
    for sign in (1, -1):
        clot = rng.uniform(8, 20) if rng.random() < 0.05 else 0
        found.append((Capsule((sign * 6, -14, -9), (sign * 24, -19, -6), 1.6, 1.3), density + clot))
        found.append((Ellipsoid((sign * 31.5, -88.5, -27), (4.6, 2.2, 4.6)), 78.0))
    return found


def add_to_brain(extras: Extras, frame: Frame, bone: Cranium, brain: Brain) -> None:
    """Add old infarcts and the cyst to the brain, in place."""
    for scar, darker in extras.infarcts:
        field = scar.distance(brain.x, brain.y, brain.z) + 3 * bone.noise
        weight = smooth_step(3, -3, field) * (bone.tentorium > 2)
        brain.delta -= darker * weight
        brain.width += np.where(brain.width > 0, weight * 1.2, 0.0)
    if extras.cyst is not None:
        brain.cistern = np.minimum(brain.cistern, union(frame, [extras.cyst]))


def inserts(extras: Extras, frame: Frame) -> list[tuple[Box, Array, float]]:
    """Evaluate the dense findings on the fine frame: box, occupancy and HU of each."""
    made: list[tuple[Box, Array, float]] = []
    pixel = float(np.sqrt((frame.row**2).sum()))
    for shape, density in extras.dense:
        low, high = shape.bounds()
        box = frame.box(low - 1, high + 1)
        if all(s.stop > s.start for s in box):
            made.append((box, soft(shape.distance(*frame.at(box)), pixel), density))
    return made


def paint(inserts: list[tuple[Box, Array, float]], hu: Array, planes: slice) -> None:
    """Add the inserts to the sub-planes `planes` of a slice, `hu` [planes, size, size], in place."""
    for (depth, rows, columns), weight, density in inserts:
        first, last = max(depth.start, planes.start), min(depth.stop, planes.stop)
        if first < last:
            part = hu[first - planes.start : last - planes.start, rows, columns]
            mix(part, weight[first - depth.start : last - depth.start], density)

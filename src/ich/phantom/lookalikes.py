"""Findings other than bleeds: vessels, calcifications, tumours, infarcts, and what surgery leaves."""

from dataclasses import dataclass

import numpy as np

from ich.phantom.anatomy import Brain, Cranium, Head, darken
from ich.phantom.frame import Box, Frame, union
from ich.phantom.shapes import Array, Capsule, Ellipsoid, Point, Shape, mirrored, mix, smooth_step, soft


@dataclass(frozen=True)
class Change:
    """An infarct or a tumour: its outline, how it changes the brain, and the oedema around it."""

    outline: Ellipsoid
    hu: float  # added
    widens: float  # mm by which sulci are wider there; < 0: narrower
    oedema: tuple[float, float] = (1.0, 0.0)  # mm, HU


@dataclass(frozen=True)
class Extras:
    """Findings of one patient other than bleeds."""

    dense: list[tuple[Shape, float]]  # small objects and their HU
    changes: list[Change]
    cyst: Ellipsoid | None
    swelling: tuple[Point, float] | None  # scalp haematoma: position, height in mm
    metal: tuple[Point, float] | None  # a clip: position, strength of its streaks in HU


def draw_extras(rng: np.random.Generator, head: Head) -> Extras:
    """Draw the findings of a patient. They do not depend on the bleeds."""
    dense = _vessels(rng, head) + _plexus(rng, head) + _calcifications(rng) + _surgery(rng)
    cyst = None
    if rng.random() < 0.06:
        a, b, c = rng.uniform(8, 22, 3)
        places = ((0.0, 68.0, -38.0), (44.0, -40.0, -22.0), (-44.0, -40.0, -22.0), (30.0, -58.0, 30.0))
        cyst = Ellipsoid(places[rng.integers(4)], (a, b, c))
    swelling = None
    if rng.random() < 0.15:
        swelling = _on_skull(rng.uniform(0, 360), rng.uniform(-5, 55), 8), rng.uniform(4, 13)
    metal = None
    if rng.random() < 0.05:
        sign = int(rng.choice((-1, 1)))
        x, y, z = sign * rng.uniform(3, 30), rng.uniform(-26, -8), rng.uniform(-12, -2)
        metal = (x, y, z), rng.uniform(20, 130)
        dense.append((Capsule((x, y, z), (x + sign * 6, y - 5, z + 2), 1.3, 1.3), 3000.0))
    if head.agent:
        dense += _pial_vessels(rng, head)
    return Extras(dense, _changes(rng, head), cyst, swelling, metal)


def _on_skull(azimuth: float, z: float, out: float = 0.0) -> Point:
    """A point `out` mm outside the inner table; azimuth in degrees: forehead 0, patient's left 90, back 180."""
    ring, angle = np.sqrt(max(1 - ((z - 6) / 76) ** 2, 0.05)), np.deg2rad(azimuth)
    return float((66 * ring + out) * np.sin(angle)), float(-(84 * ring + out) * np.cos(angle)), z


def _changes(rng: np.random.Generator, head: Head) -> list[Change]:
    """Draw infarcts, more in old brains, and tumours."""
    found: list[Change] = []
    while len(found) < 3 and rng.random() < 0.15 + 0.3 * head.atrophy:
        side = int(rng.choice((-1, 1)))
        kind, darker = rng.random(), rng.uniform(5, 22)
        if kind < 0.45:  # lacune
            centre = (side * rng.uniform(10, 30), rng.uniform(-24, 18), rng.uniform(-2, 26))
            radius, widens = rng.uniform(2, 6), 0.0
        elif kind < 0.9:  # territory up to the cortex: fresh and swollen, or old and shrunken
            centre = (side * rng.uniform(34, 56), rng.uniform(-55, 65), rng.uniform(-10, 50))
            radius, widens = rng.uniform(8, 30), 1.6 if darker > 11 else -1.5
        else:  # cerebellum
            centre, radius = (
                (side * rng.uniform(18, 36), rng.uniform(38, 56), rng.uniform(-42, -26)),
                rng.uniform(6, 16),
            )
            widens = 0.0
        a, b, c = radius * np.exp(rng.normal(0, 0.3, 3))
        found.append(Change(Ellipsoid(centre, (a, b, c)), -darker, widens))
    if rng.random() < 0.05:  # meningioma: dense, next to skull or falx
        centre = _on_skull(rng.uniform(0, 360), rng.uniform(0, 60), -8) if rng.random() < 0.6 else (8.0, -45.0, 35.0)
        a, b, c = rng.uniform(7, 18) * np.exp(rng.normal(0, 0.15, 3))
        rim = rng.uniform(2, 25) if rng.random() < 0.5 else 1.0
        found.append(Change(Ellipsoid(centre, (a, b, c)), rng.uniform(6, 24), -6, (rim, rng.uniform(4, 14))))
    for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.06 else 0):  # metastases or a glioma
        side = int(rng.choice((-1, 1)))
        centre = (side * rng.uniform(18, 48), rng.uniform(-55, 58), rng.uniform(-35, 55))
        a, b, c = rng.uniform(3, 16) * np.exp(rng.normal(0, 0.2, 3))
        rim = rng.uniform(4, 30), rng.uniform(6, 15)
        found.append(Change(Ellipsoid(centre, (a, b, c)), rng.uniform(-14, 16), -4, rim))
    return found


def _vessels(rng: np.random.Generator, head: Head) -> list[tuple[Shape, float]]:
    """Draw arteries at the base, some dense with clot, deep and bridging veins, and the lenses of the eyes."""
    blood = head.sinus - 4
    width = rng.uniform(0.7, 1.35)
    bend = rng.normal(0, 2.5)
    found: list[tuple[Shape, float]] = [
        (Capsule((bend, -6, -38), (bend / 2, -9, -18), 1.9 * width, 1.9 * width), blood + 3),
        (Capsule((0, -16, -8), (0, -36, 2), 1.2 * width, 1.0 * width), blood),  # anterior cerebral arteries
        (Capsule((0, -10, 17), (0, 24, 13), 1.2 * width, 1.6 * width), blood - 2),  # internal cerebral veins
        (Capsule((0, 26, 10), (0, 38, 12), 2.2 * width, 2.0 * width), blood),  # vein of Galen
        (Capsule((0, 38, 12), (0, 78, -10), 1.8 * width, 2.4 * width), blood),  # straight sinus
    ]
    for sign in (1, -1):
        clot = rng.uniform(8, 25) if rng.random() < 0.05 else 0
        found.append((Capsule((sign * 6, -14, -9), (sign * 24, -19, -6), 1.6 * width, 1.3 * width), blood + clot))
        for _ in range(int(rng.integers(1, 4))):  # branches in the Sylvian fissure
            y = rng.uniform(-24, 12)
            end = (sign * rng.uniform(39, 46), y + rng.normal(6, 4), rng.uniform(2, 20))
            found.append((Capsule((sign * 40, y, rng.uniform(-6, 4)), end, 1.1 * width, 0.8), blood))
        found.append((Capsule((sign * 8, -14, -16), (sign * 7, -16, -9), 2.2 * width, 2.0 * width), blood))  # carotid
        found.append((Capsule((sign * 14, 2, -62), (sign * 2, -2, -42), 1.6 * width, 1.6 * width), blood))  # vertebral
        for _ in range(int(rng.integers(0, 3))):  # bridging veins
            azimuth, z = sign * rng.uniform(10, 170), rng.uniform(25, 62)
            start, end = _on_skull(azimuth, z, -1.5), _on_skull(azimuth + rng.normal(0, 8), z + 9, -2)
            found.append((Capsule(start, end, 1.2 * width, 1.4 * width), blood))
        found.append((Ellipsoid((sign * 31.5, -88.5, -27), (4.6, 2.2, 4.6)), 78.0))
    return found


def _pial_vessels(rng: np.random.Generator, head: Head) -> list[tuple[Shape, float]]:
    """Draw vessels on the cortex and in the insula, which a contrast agent shows."""
    found: list[tuple[Shape, float]] = []
    for _ in range(60):
        azimuth, z = rng.uniform(0, 360), rng.uniform(-10, 68)
        inward, radius = rng.uniform(-22, -3), rng.uniform(0.4, 0.9)
        start = _on_skull(azimuth, z, inward)
        end = _on_skull(azimuth + rng.normal(0, 6), z + rng.normal(0, 5), inward + rng.normal(2, 4))
        found.append((Capsule(start, end, radius, radius), head.sinus - 4))
    for _ in range(12):
        x, y, z = float(rng.choice((-1, 1))) * rng.uniform(37, 43), rng.uniform(-26, 14), rng.uniform(-6, 16)
        end = x + rng.normal(0, 2), y + rng.normal(0, 3), z + rng.normal(6, 4)
        found.append((Capsule((x, y, z), end, 1.0, 0.8), head.sinus - 4))
    return found


def _plexus(rng: np.random.Generator, head: Head) -> list[tuple[Shape, float]]:
    """Draw the choroid plexus in both atria: grey like brain, often dense, often calcified."""
    found: list[tuple[Shape, float]] = []
    calcified = rng.random() < 0.6
    for sign in (1, -1):
        x, y, z = sign * rng.normal(22, 1.5), rng.normal(32, 2), rng.normal(11, 2)
        radius, density = rng.uniform(1.2, 3.2), rng.uniform(32, 55) + 0.5 * head.agent
        found.append((Capsule((x, y, z), (x - sign * 9, y - 18, z + 8), radius, 1.2), density))
        if calcified and rng.random() < 0.85:
            for _ in range(int(rng.integers(1, 4))):
                a, b, c = radius * rng.uniform(0.3, 1.0, 3)
                dx, dy, dz = rng.normal(0, 1.2, 3)
                found.append((Ellipsoid((x + dx, y + dy, z + dz), (a, b, c)), rng.uniform(60, 320)))
    return found


def _calcifications(rng: np.random.Generator) -> list[tuple[Shape, float]]:
    """Draw calcifications of pineal gland, falx, tentorium, basal ganglia, carotid arteries, and old scars."""
    found: list[tuple[Shape, float]] = []
    if rng.random() < 0.7:
        for _ in range(int(rng.integers(1, 4))):
            a, b, c = rng.uniform(0.8, 3.2, 3)
            found.append((Ellipsoid((rng.normal(0, 1.2), 24 + rng.normal(0, 2), 3), (a, b, c)), rng.uniform(70, 300)))
    for _ in range((rng.random() < 0.35) + (rng.random() < 0.2)):
        y, z = rng.uniform(-66, -20), rng.uniform(34, 60)
        end = (0.0, y + rng.uniform(4, 22), z + rng.uniform(-4, 8))
        found.append((Capsule((0.0, y, z), end, rng.uniform(1.0, 2.6), 1.0), rng.uniform(80, 500)))
    if rng.random() < 0.15:
        density, size = rng.uniform(50, 130), rng.uniform(2, 5.5)  # in the basal ganglia: similar to a small bleed
        for sign in (1, -1):
            radius = size * rng.uniform(0.6, 1.1)
            x, y, z = sign * rng.normal(20, 1.5), rng.normal(-5, 3), rng.normal(3, 2)
            found.append((Ellipsoid((x, y, z), (radius * 0.7, radius * 1.5, radius)), density))
    while rng.random() < 0.08:
        x, y, z = rng.normal(0, 28), rng.normal(0, 32), rng.uniform(-35, 55)
        a, b, c = rng.uniform(1, 4, 3)
        found.append((Ellipsoid((x, y, z), (a, b, c)), rng.uniform(60, 300)))
    carotids = mirrored(Capsule((13, 0, -16), (20, 8, -18), 1.0, 1.4))
    found += [(carotid, rng.uniform(150, 500)) for carotid in carotids if rng.random() < 0.15]
    return found


def _surgery(rng: np.random.Generator) -> list[tuple[Shape, float]]:
    """Draw catheters, burr holes, bone flaps, air, and clips and leads on the scalp."""
    found: list[tuple[Shape, float]] = []
    side = int(rng.choice((-1, 1)))
    if rng.random() < 0.1:  # a catheter from a burr hole into a ventricle
        starts = ((36.0, -46.0, 74.0), (58.0, 62.0, 34.0), (44.0, 76.0, 12.0))
        end, radius = (side * 7.0, -16 + rng.normal(0, 4), 16 + rng.normal(0, 3)), rng.uniform(1.1, 1.8)
        x, y, z = starts[rng.integers(3)]
        found.append((Capsule((side * x, y, z), end, radius, radius), rng.uniform(90, 500)))
        found.append((Capsule((side * x, y, z), (side * 80.0, y + 12, z - 40), 1.5, 1.5), rng.uniform(150, 700)))
    if rng.random() < 0.06:
        azimuth, z, turn = side * rng.uniform(20, 150), rng.uniform(10, 45), rng.uniform(8, 20)
        if rng.random() < 0.3:  # craniectomy
            x, y, z = _on_skull(side * rng.uniform(70, 110), z, 4)
            found.append((Ellipsoid((x, y, z), (8, rng.uniform(18, 42), rng.uniform(18, 36))), rng.uniform(26, 42)))
        else:  # burr holes, saw cuts between them and thick dura below
            for at in (azimuth - turn, azimuth + turn):
                hole = Capsule(_on_skull(at, z, -1), _on_skull(at, z, 12), 5, 5)
                found.append((hole, rng.uniform(5, 45)))
                found.append((Capsule(_on_skull(at, z - 20, 1), _on_skull(at, z + 12, 5), 1.2, 1.2), 30.0))
            start, end = _on_skull(azimuth - turn, z, -2), _on_skull(azimuth + turn, z + 4, -2)
            found.append((Capsule(start, end, rng.uniform(1, 2.5), rng.uniform(1, 2.5)), rng.uniform(40, 65)))
        for _ in range(int(rng.integers(0, 4))):  # air
            x, y, z = rng.normal(0, 20), rng.uniform(-74, -55), rng.uniform(20, 50)
            a, b, c = rng.uniform(1.5, 7, 3)
            found.append((Ellipsoid((x, y, z), (a, b, c)), -900.0))
    for _ in range(int(rng.integers(1, 8)) if rng.random() < 0.1 else 0):
        x, y, z = _on_skull(rng.uniform(0, 360), rng.uniform(-40, 60), rng.uniform(10, 17))
        found.append((Ellipsoid((x, y, z), (1.2, 1.2, rng.uniform(1, 12))), rng.uniform(200, 3000)))
    return found


def add_to_brain(extras: Extras, frame: Frame, bone: Cranium, brain: Brain) -> None:
    """Add infarcts, tumours and the cyst to the brain, in place."""
    for change in extras.changes:
        field = change.outline.distance(brain.x, brain.y, brain.z) + 0.3 * min(change.outline.radii) * bone.noise
        weight = smooth_step(2, -2, field)
        if change.oedema[1]:
            darken(bone, brain, field, *change.oedema)
        brain.delta += change.hu * weight
        brain.width += np.where(brain.width > 0, change.widens, min(change.widens, 0)) * weight
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

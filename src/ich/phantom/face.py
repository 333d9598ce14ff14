"""Skull base, face, neck and scalp: what the low slices show around and below the brain."""

from dataclasses import dataclass

import numpy as np

from ich.phantom.anatomy import Cranium, Head
from ich.phantom.lookalikes import Extras
from ich.phantom.shapes import (
    Array,
    Capsule,
    Ellipsoid,
    Frame,
    Shape,
    mirrored,
    smooth_min,
    smooth_step,
    union,
)


@dataclass
class Face:
    """Signed distances on a coarse frame, mm, negative inside."""

    skin: Array  # the body's surface
    bone: Array
    air: Array
    muscle: Array
    eye: Array


def _bones() -> list[Shape]:
    return [
        *mirrored(Capsule((57, 24, -33), (17, -4, -31), 10, 6.5)),
        *mirrored(Ellipsoid((55, 27, -45), (10, 15, 18))),
        Capsule((0, -16, -26), (0, 6, -62), 6, 5),
        Ellipsoid((0, -27, -32), (17, 13, 11)),
        *mirrored(Capsule((60, -58, -44), (67, -32, -43), 3.2, 2.6)),
        *mirrored(Capsule((67, -32, -43), (60, -4, -42), 2.6, 3.5)),
        *mirrored(Capsule((48, -68, -20), (52, -64, -48), 4.0, 7.0)),
        *mirrored(Capsule((46, -72, -18), (20, -88, -12), 4.5, 5.0)),
        Capsule((-20, -88, -12), (20, -88, -12), 5.5, 5.5),
        Capsule((0, -90, -16), (0, -100, -36), 3.5, 2.5),
        *mirrored(Capsule((50, -8, -48), (47, -24, -104), 5.0, 4.0)),
        *mirrored(Capsule((15, -33, -42), (17, -34, -84), 2.2, 1.6)),
        Ellipsoid((0, -68, -84), (27, 26, 4)),
        Capsule((0, -46, -50), (0, -92, -60), 1.0, 1.0),
        *mirrored(Ellipsoid((17, 9, -67), (6, 9, 6))),
        Capsule((0, 4, -72), (0, 5, -110), 5.5, 6),
        *mirrored(Ellipsoid((21, 12, -81), (9, 8, 8))),
        *mirrored(Capsule((24, 20, -82), (14, 36, -84), 4, 4)),
        Capsule((-14, 36, -84), (14, 36, -84), 4, 4),
    ]


def _cavities(head: Head) -> list[tuple[Shape, float]]:
    """Air spaces with the thickness of their bony wall."""
    frontal, _, sphenoid, maxillary, _, nose = head.air
    spaces: list[tuple[Shape, float]] = [
        (Ellipsoid((0, -35, -31), (11, 9, 8)), 1.5 if sphenoid > 0.3 else -1),
        (Ellipsoid((9, -86, -6), (11, 5, 9)), 1.6 if frontal > 0.5 else -1),
        (Ellipsoid((-11, -86, -7), (13, 5, 10)), 1.6 if frontal > 0.35 else -1),
        (Ellipsoid((33, -61, -58), (14, 17, 16)), 1.3),
        (Ellipsoid((-33, -61, -58), (14, 17, 16)), 1.3 if maxillary > 0.4 else -1),
        (Ellipsoid((0, -28, -74), (13, 10, 14)), 0.0),
    ]
    for sign in (1, -1):
        spaces += [
            (Ellipsoid((sign * 4.5, -68, -62), (2.2 + 1.4 * nose, 26, 20)), 0.0),
            (Ellipsoid((sign * 10.5, -68, -66), (1.8 * nose + 0.4, 22, 9)), 0.6),
            (Capsule((sign * 47, 4, -41), (sign * 82, 9, -42), 2.6, 4.0), 0.0),
        ]
    return spaces


def _cells(head: Head) -> list[tuple[list[Shape], float]]:
    """Bones blown up with air, and how thick the walls between their cells are, mm."""
    mastoid, ethmoid = 0.6 + 1.3 * (1 - head.air[4]), 0.4 + 1.3 * (1 - head.air[1])
    return [
        (list(mirrored(Ellipsoid((56, 27, -43), (9.5, 13, 16)))), mastoid),
        (list(mirrored(Ellipsoid((6.5, -60, -27), (6, 21, 12)))), ethmoid),
    ]


def _muscles() -> list[Shape]:
    return [
        *mirrored(Ellipsoid((63, -32, -20), (7, 25, 27))),
        *mirrored(Ellipsoid((36, -22, -62), (13, 16, 18))),
        *mirrored(Ellipsoid((60, -32, -78), (6, 16, 27))),
        *mirrored(Ellipsoid((22, 60, -80), (20, 18, 28))),
        *mirrored(Ellipsoid((44, 44, -80), (15, 22, 26))),
        *mirrored(Ellipsoid((18, 84, -82), (16, 7, 32))),
        *mirrored(Ellipsoid((58, 32, -84), (8, 15, 22))),
        *mirrored(Ellipsoid((17, -6, -74), (12, 7, 18))),
        *mirrored(Capsule((14, -34, -27), (30, -68, -29), 2.2, 2.2)),
        *mirrored(Capsule((13, -38, -27), (20, -72, -28), 1.4, 2.2)),
        *mirrored(Capsule((17, -36, -26), (44, -72, -28), 1.4, 2.2)),
        *mirrored(Ellipsoid((8.5, -68, -70), (3.4, 20, 6))),
        *mirrored(Ellipsoid((62, -4, -74), (9, 12, 18))),
        Ellipsoid((0, -44, -96), (26, 24, 12)),
    ]


def _skin(head: Head, frame: Frame, bone: Cranium) -> Array:
    """The body's surface: scalp over the vault, cheeks, nose, neck and ears."""
    scalp = np.float32(head.scalp) * (1 + np.float32(0.12) * bone.noise)
    scalp = scalp * (1 + np.float32(0.9) * smooth_step(45, 66, np.abs(bone.x)) * smooth_step(22, -10, bone.z))
    skin = bone.outer - scalp
    x, y, z = bone.x, bone.y, bone.z
    face = Ellipsoid((0, -36, -56), (70, 61, 62)).distance(x, y, z)
    neck = Capsule((0, 26, -52), (0, 30, -160), 60, 58).distance(x, y, z)
    back = Ellipsoid((0, 52, -64), (52, 42, 40)).distance(x, y, z)
    skin = smooth_min(skin, smooth_min(smooth_min(face, neck, 10), back, 10), 10)
    nose = union(frame, [Capsule((0, -88, -34), (0, -106, -66), 6, 11)])
    ears = union(frame, list(mirrored(Capsule((74, 13, -28), (74, 15, -52), 7.0, 5.0))), 2)
    concha = union(frame, list(mirrored(Capsule((81, 9, -28), (81, 11, -50), 5.0, 3.5))), 2)
    return np.minimum(smooth_min(skin, nose, 6), np.maximum(ears, -concha))


def face(head: Head, frame: Frame, bone: Cranium, extras: Extras) -> Face:
    """Everything outside the cavity of the skull but the vault's bone."""
    skin = _skin(head, frame, bone)
    haematoma = None
    if extras.swelling is not None:
        (sx, sy, sz), high = extras.swelling
        square = (bone.x - sx) ** 2 + (bone.y - sy) ** 2 + (bone.z - sz) ** 2
        bulge = np.float32(high) * np.exp(square * np.float32(-0.5 / 17**2))
        skin = skin - bulge
        haematoma = np.maximum(skin + 2, bone.outer - bulge)
    bones = union(frame, _bones(), 2) + np.float32(0.6) * bone.noise
    air = np.full_like(skin, 12)
    for shape, wall in _cavities(head):
        if wall < 0:
            continue
        space = union(frame, [shape])
        air = np.minimum(air, space)
        bones = np.maximum(bones, -space)
        if wall > 0:
            bones = np.minimum(bones, np.abs(space - np.float32(wall / 2)) - np.float32(wall / 2 + 0.3))
    for cells, wall in _cells(head):
        for shape in cells:
            corners = shape.bounds()
            box = frame.box(corners[0] - 3, corners[1] + 3)
            if air[box].size == 0:
                continue
            x, y, z = frame.at(box)
            space = shape.distance(x, y, z)
            walls = np.abs(head.sulci(x * np.float32(2.6), y * np.float32(2.6), z * np.float32(2.2))) / np.float32(2.4)
            filled = np.maximum(space, np.float32(wall) - walls)
            air[box] = np.minimum(air[box], filled)
            bones[box] = np.maximum(np.minimum(bones[box], space - 1), -filled)
    orbit = union(frame, list(mirrored(Capsule((13, -36, -25), (31, -80, -27), 5, 19))))
    shell = np.maximum(np.abs(orbit - 1.2) - np.float32(1.4), -74 - bone.y)
    bones = np.minimum(np.maximum(bones, -orbit), shell)
    air = np.maximum(air, -np.minimum(orbit, 12))
    low = frame.below(-5)
    count = len(low.origins)
    flesh = np.maximum(skin + (9 + 2 * bone.noise), bone.z + 16)
    flesh[:count] = np.maximum(flesh[:count], 1.3 - np.abs(head.sulci.on(low, (0.7, 0.7, 0.45))))
    flesh = np.maximum(flesh, -orbit)
    muscle = np.minimum(union(frame, _muscles(), 1.0), flesh)
    if haematoma is not None:
        muscle = np.minimum(muscle, haematoma)
    eye = union(frame, list(mirrored(Ellipsoid((31.5, -79, -27), (12.2, 12.2, 12.2)))))
    skin = np.minimum(skin, eye - 1)
    return Face(skin, bones, air, muscle, eye)

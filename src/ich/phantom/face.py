"""Skull base, face, neck and scalp."""

from dataclasses import dataclass, replace

import numpy as np

from ich.phantom.anatomy import Cranium, Head
from ich.phantom.frame import Frame, union
from ich.phantom.shapes import FAR, Array, Capsule, Ellipsoid, Point, Shape, mirrored, smooth_min, smooth_step


@dataclass
class Face:
    """Signed distances on a coarse frame, mm, negative inside."""

    skin: Array  # the body's surface
    bone: Array
    air: Array
    muscle: Array
    eye: Array


BONES = [  # petrous bone, mastoid, clivus, sphenoid, zygoma, orbit, nose, mandible, pterygoid, palate, axis and atlas
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
MUSCLES = [  # of mastication, of the neck and of the eyes; parotid glands and tongue
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
ORBITS = mirrored(Capsule((13, -36, -25), (31, -80, -27), 5, 19))
EYES = mirrored(Ellipsoid((31.5, -79, -27), (12.2, 12.2, 12.2)))
EARS = mirrored(Capsule((74, 13, -28), (74, 15, -52), 7.0, 5.0))
CONCHAE = mirrored(Capsule((81, 9, -28), (81, 11, -50), 5.0, 3.5))
NOSE = [Capsule((0, -88, -34), (0, -106, -66), 6, 11)]


def _cavities(air: tuple[float, ...]) -> list[tuple[Shape, float]]:
    """Air spaces and the thickness of their bony wall in mm."""
    frontal, _, sphenoid, maxillary, _, nose = air
    spaces: list[tuple[bool, Shape, float]] = [
        (sphenoid > 0.3, Ellipsoid((0, -35, -31), (11, 9, 8)), 1.5),
        (frontal > 0.5, Ellipsoid((9, -86, -6), (11, 5, 9)), 1.6),
        (frontal > 0.35, Ellipsoid((-11, -86, -7), (13, 5, 10)), 1.6),
        (True, Ellipsoid((33, -61, -58), (14, 17, 16)), 1.3),
        (maxillary > 0.4, Ellipsoid((-33, -61, -58), (14, 17, 16)), 1.3),
        (True, Ellipsoid((0, -28, -74), (13, 10, 14)), 0.0),
    ]
    for sign in (1, -1):
        spaces += [
            (True, Ellipsoid((sign * 4.5, -68, -62), (2.2 + 1.4 * nose, 26, 20)), 0.0),
            (True, Ellipsoid((sign * 10.5, -68, -66), (1.8 * nose + 0.4, 22, 9)), 0.6),
            (True, Capsule((sign * 47, 4, -41), (sign * 82, 9, -42), 2.6, 4.0), 0.0),
        ]
    return [(shape, wall) for aerated, shape, wall in spaces if aerated]


def _skin(head: Head, frame: Frame, bone: Cranium) -> Array:
    """The body's surface: scalp over the vault, cheeks, nose, neck and ears."""
    x, y, z = bone.x, bone.y, bone.z
    scalp = head.scalp * (1 + 0.12 * bone.noise)
    scalp = scalp * (1 + 0.9 * smooth_step(45, 66, np.abs(x)) * smooth_step(22, -10, z))
    face = Ellipsoid((0, -36, -56), (70, 61, 62)).distance(x, y, z)
    neck = Capsule((0, 26, -52), (0, 30, -160), 60, 58).distance(x, y, z)
    back = Ellipsoid((0, 52, -64), (52, 42, 40)).distance(x, y, z)
    skin = smooth_min(bone.outer - scalp, smooth_min(smooth_min(face, neck, 10), back, 10), 10)
    skin = smooth_min(skin, union(frame, NOSE), 6)
    return np.minimum(skin, np.maximum(union(frame, EARS, 2), -union(frame, CONCHAE, 2)))


def face(head: Head, frame: Frame, bone: Cranium, swelling: tuple[Point, float] | None) -> Face:
    """Evaluate everything outside the skull. swelling: position and height (mm) of a scalp haematoma."""
    skin = _skin(head, frame, bone)
    haematoma = np.full_like(skin, FAR)
    if swelling is not None:
        (x, y, z), height = swelling
        square = (bone.x - x) ** 2 + (bone.y - y) ** 2 + (bone.z - z) ** 2
        bulge = height * np.exp(square * (-0.5 / 17**2))
        skin = skin - bulge
        haematoma = np.maximum(skin + 2, bone.outer - bulge)

    bones = union(frame, BONES, 2) + 0.6 * bone.noise
    air = np.full_like(skin, FAR)
    for shape, wall in _cavities(head.air):
        space = union(frame, [shape])
        air = np.minimum(air, space)
        bones = np.maximum(bones, -space)
        if wall > 0:
            bones = np.minimum(bones, np.abs(space - wall / 2) - (wall / 2 + 0.3))
    # Mastoid and ethmoid: air cells in bone; the less air, the thicker the walls between the cells.
    mastoid = [(shape, 0.6 + 1.3 * (1 - head.air[4])) for shape in mirrored(Ellipsoid((56, 27, -43), (9.5, 13, 16)))]
    ethmoid = [(shape, 0.4 + 1.3 * (1 - head.air[1])) for shape in mirrored(Ellipsoid((6.5, -60, -27), (6, 21, 12)))]
    for shape, wall in mastoid + ethmoid:
        low, high = shape.bounds()
        box = frame.box(low - 3, high + 3)
        if air[box].size:
            x, y, z = frame.at(box)
            space = shape.distance(x, y, z)
            filled = np.maximum(space, wall - np.abs(head.sulci(x * 2.6, y * 2.6, z * 2.2)) / 2.4)
            air[box] = np.minimum(air[box], filled)
            bones[box] = np.maximum(np.minimum(bones[box], space - 1), -filled)
    orbit = union(frame, ORBITS)
    shell = np.maximum(np.abs(orbit - 1.2) - 1.4, -74 - bone.y)
    bones = np.minimum(np.maximum(bones, -orbit), shell)
    air = np.maximum(air, -orbit)

    # Below the skull base, sheets of fat separate the muscles. Planes are sorted upwards.
    flesh = np.maximum(skin + (6.5 + 2 * bone.noise), bone.z + 16)
    low = frame.origins[:, 2] < (abs(frame.row[2]) + abs(frame.column[2])) * frame.size / 2 - 5
    sheets = head.sulci.on(replace(frame, origins=frame.origins[low]), (0.7, 0.7, 0.45))
    flesh[low] = np.maximum(flesh[low], 0.8 - np.abs(sheets))
    flesh = np.maximum(flesh, -orbit)
    muscle = np.minimum(np.minimum(union(frame, MUSCLES, 1.0), flesh), haematoma)
    eye = union(frame, EYES)
    return Face(np.minimum(skin, eye - 1), bones, air, muscle, eye)

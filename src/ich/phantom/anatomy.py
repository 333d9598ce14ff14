"""One patient's cranium and brain as signed distances on a stack of planes."""

from dataclasses import dataclass

import numpy as np

from ich.phantom.frame import Frame, Noise, union
from ich.phantom.shapes import (
    FAR,
    Array,
    Capsule,
    Coordinates,
    Ellipsoid,
    Point,
    Shape,
    mirrored,
    smooth_min,
    smooth_step,
)


@dataclass(frozen=True)
class Head:
    """Properties of a patient, the same in every scan. Lengths in mm, densities in Hounsfield units."""

    scale: Point  # of the atlas along x, y, z
    shear: Point  # asymmetry: x by y, x by z, y by z
    taper: float  # how much wider the back of the head is than its front
    boxy: float  # 0: elliptic, 1: rectangular outline
    dents: float  # mm, standard deviation of the irregularities of its outline
    skull: float  # thickness of the vault
    scalp: float
    atrophy: float  # 0: narrow, 1: wide sulci and ventricles
    gyri: float  # number of gyri per length
    ventricles: tuple[float, float]  # radius factor, patient's left (x > 0) and right
    midline: float  # bow of the falx to one side
    white: float
    grey: float
    csf: float
    diploe: float
    leukoaraiosis: float  # darkening of the white matter around the ventricles
    texture: float  # standard deviation of the brain's uneven density
    agent: float  # Hounsfield units that a contrast agent adds to the blood, 0 without one
    sinus: float  # density of the blood in vessels and dural sinuses
    dura: float  # density of falx and tentorium
    falx: float  # thickness of the falx relative to the average
    hyperostosis: float  # mm by which the frontal bone bulges inwards
    air: tuple[float, ...]  # 0..1: air in frontal, ethmoid, sphenoid and maxillary sinuses, mastoid cells, nose
    sulci: Noise
    smooth: Noise


def draw_head(rng: np.random.Generator) -> Head:
    """Draw a patient's head."""
    atrophy = rng.beta(1.4, 1.6)
    ventricle = 0.66 + 0.75 * atrophy + rng.normal(0, 0.1) + (rng.uniform(0.3, 1.2) if rng.random() < 0.06 else 0)
    side = 1 + rng.normal(0, 0.1)
    white = rng.normal(27.5, 1.6)
    agent = rng.uniform(25, 95) if rng.random() < 0.14 else 0.0
    return Head(
        scale=(rng.normal(0.99, 0.035), rng.normal(0.99, 0.035), rng.normal(0.99, 0.035)),
        shear=(rng.normal(0, 0.04), rng.normal(0, 0.03), rng.normal(0, 0.03)),
        taper=rng.normal(0.13, 0.05),
        boxy=rng.uniform(0.05, 0.45),
        dents=rng.uniform(0.6, 1.8),
        skull=float(np.clip(rng.normal(5.8, 1.4), 3.5, 10.5)),
        scalp=float(np.clip(rng.normal(5.5, 1.5), 3.0, 10.0)),
        atrophy=atrophy,
        gyri=rng.uniform(1.25, 1.6),
        ventricles=(ventricle * side, ventricle * (2 - side)),
        midline=rng.normal(0, 1.5),
        agent=agent,
        white=white + 0.02 * agent,  # 2 % of white and 5 % of grey matter is blood
        grey=white + max(rng.normal(9.5, 1.5), 5.0) + 0.05 * agent,
        csf=float(np.clip(rng.normal(7, 2.5), 1, 14)),
        diploe=rng.normal(600, 110),
        leukoaraiosis=max(0.0, rng.normal(3, 4)) * atrophy * 2,
        texture=rng.uniform(0.6, 2.0),
        sinus=float(np.clip(rng.normal(53, 7), 40, 75)) + agent,
        dura=float(np.clip(rng.normal(62, 10), 42, 95)) + 0.35 * agent,
        falx=float(np.exp(rng.normal(0.1, 0.3))),
        hyperostosis=rng.uniform(2, 7) if rng.random() < 0.08 else 0.0,
        air=tuple(np.clip(rng.normal(0.85, 0.3, 6), 0, 1).tolist()),
        sulci=Noise(rng, 5.2, sheets=True),
        smooth=Noise(rng, 11.0),
    )


@dataclass
class Cranium:
    """Signed distances on a coarse frame, mm, negative inside, and head coordinates `x`, `y`, `z`."""

    x: Array
    y: Array
    z: Array
    noise: Array  # smooth, unit variance
    vault: Array  # inside of the vault without the skull base
    cavity: Array  # inside of the skull
    outer: Array  # outside of the skull's vault
    tentorium: Array  # > 0 above the tentorial sheet, < 0 below it


@dataclass
class Brain:
    """Signed distances inside the cavity, mm; `x`, `y`, `z` are the tissue's head coordinates before displacement."""

    x: Array
    y: Array
    z: Array
    sulcus: Array  # zero in the middle of a sulcus or the Sylvian fissure
    width: Array  # half width of the sulci there; falls below zero where they end
    cistern: Array
    ventricle: Array
    nuclei: Array  # thalamus, lentiform nucleus, caudate
    falx: Array  # > 0 where there is no falx between the hemispheres
    falx_x: Array  # signed distance to the mid-sagittal sheet
    leaf: Array  # < 0 where the tentorium is
    delta: Array  # Hounsfield units added to the tissue


CANAL = [  # foramen magnum, spinal canal and posterior fossa, then the middle fossae
    Capsule((0, 4, -6), (0, 12, -60), 17, 15),
    Capsule((0, 12, -60), (0, 18, -80), 15.5, 13),
    Capsule((0, 18, -80), (0, 20, -140), 10, 9),
    Ellipsoid((0, 39, -30), (57, 45, 34)),
    *mirrored(Ellipsoid((39, -12, -22), (25, 38, 21))),
]
RIDGES = [  # petrous bone, sphenoid wing
    *mirrored(Capsule((60, 24, -30), (15, -5, -30), 10, 6)),
    *mirrored(Capsule((60, -34, -9), (38, -37, -11), 4, 3)),
    *mirrored(Capsule((38, -37, -11), (13, -22, -15), 3, 3)),
]
LATERAL_VENTRICLE = [  # frontal horn, body, occipital and temporal horn: from, to, radii at a factor of 1
    ((13, -34, 9), (5.5, -12, 15), 3.6, 3.4),
    ((15, -33, 15), (6.5, -10, 20), 3.2, 3.6),
    ((6.5, -12, 19), (13, 14, 22), 4.0, 4.0),
    ((13, 14, 22), (24, 33, 13), 4.2, 5.8),
    ((24, 33, 10), (25, 58, 4), 5.2, 1.8),
    ((25, 34, 8), (33, 16, -12), 4.6, 2.4),
    ((33, 16, -12), (28, -8, -20), 2.4, 1.6),
]
NUCLEI = [
    *mirrored(Ellipsoid((10.5, 7, 5), (7.5, 13, 9.5))),
    *mirrored(Ellipsoid((24, -5, 3), (5.5, 15, 9.5))),
    *mirrored(Ellipsoid((12, -22, 9), (5.5, 8, 8))),
]


def cranium(head: Head, frame: Frame) -> Cranium:
    """Evaluate the cavity of the skull with its three fossae and the outside of the vault."""
    x, y, z = frame.at()
    noise = head.smooth.on(frame)
    wide = x / (1 + head.taper / 85 * y - 0.05 / 85**2 * y * y)
    w = (z - 6) / np.where(z > 6, np.float32(73), np.float32(80))
    u, v, w = (wide / 67) ** 2, (y / 84) ** 2, w**2
    norm = (1 - head.boxy) * np.sqrt(u + v + w) + head.boxy * np.sqrt(np.sqrt(u * u + v * v + w * w))
    vault = (norm - 1) * 72 + noise * head.dents
    floor = 12 * np.exp(-(((np.abs(x) - 29) / 14) ** 2) - ((y + 73) / 19) ** 2) - 17 + 2 * noise
    floor -= 8 * smooth_step(-5, 15, y)
    cavity = -smooth_min(-vault, z - floor, 6)
    cavity = smooth_min(cavity, union(frame, CANAL, 4, far=30.0), 5)
    ridge = union(frame, RIDGES, 3)
    # `union` cuts distances off at FAR mm; stretched there, they do not cut off the cavity's depth.
    cavity = -smooth_min(-cavity, ridge + 9 * np.maximum(ridge - 5, 0), 3)
    thick = head.skull * (1 + 0.16 * noise)
    thick *= 1 + 0.30 * smooth_step(-50, -85, y) + 0.35 * smooth_step(60, 85, y)
    thick *= 1 - 0.35 * smooth_step(52, 64, np.abs(x)) * smooth_step(25, 0, z)
    thick *= 1 - 0.68 * smooth_step(3, 11, -vault) * smooth_step(30, 10, z)
    thick *= 1 + 0.9 * np.exp(-((x / 9) ** 2) - ((y - 84) / 9) ** 2 - ((z + 14) / 12) ** 2)
    outer = cavity - np.maximum(thick, 1.9) + 9 * smooth_step(-62, -70, z)
    if head.hyperostosis > 0:
        cavity += head.hyperostosis * smooth_step(-42, -66, y) * smooth_step(3, 14, np.abs(x)) * (0.8 + 0.5 * noise)
    apex = np.where(y > 25, 12 - 0.52 * (y - 25), 12.0)
    slope = np.clip(0.76 - 0.009 * (y - 25), 0.15, 0.9)
    return Cranium(x, y, z, noise, vault, cavity, outer, (z - apex + slope * np.abs(x)) * 0.8)


def _cisterns(atrophy: float) -> list[Shape]:
    """Basal cisterns: suprasellar, around the brainstem, quadrigeminal, around the medulla."""
    w = 0.75 + 0.6 * atrophy
    return [
        Ellipsoid((0, -13, -9), (9 * w, 8 * w, 6)),
        *mirrored(Capsule((5, -14, -8), (24, -19, -6), 2.8 * w, 2.0 * w)),
        *mirrored(Capsule((24, -19, -6), (37, -16, -5), 2.0 * w, 2.4 * w)),
        *mirrored(Capsule((7, -7, -9), (17, 4, -8), 2.4 * w, 2.0 * w)),
        *mirrored(Capsule((17, 4, -8), (16, 20, -4), 2.0 * w, 2.1 * w)),
        *mirrored(Capsule((16, 20, -4), (0, 27, -2), 2.2 * w, 3.0 * w)),
        Capsule((0, 27, -4), (0, 30, 6), 3.2 * w, 2.4 * w),
        Capsule((0, -8, -18), (0, -6, -40), 3.0 * w, 3.2 * w),
        *mirrored(Capsule((4, -6, -36), (24, 4, -38), 2.6 * w, 3.0 * w)),
        Capsule((0, 0, -52), (0, 6, -66), 5.0, 4.0),
        Ellipsoid((0, 54, -56), (9 * w, 10 * w, 8 * w)),
    ]


def _sulci(
    head: Head, bone: Cranium, moved: Coordinates, falx_x: Array, falx: Array, cerebrum: Array
) -> tuple[Array, Array, Array]:
    """Sulci and Sylvian fissure: signed distance to their middle, half width, and the insular cistern.

    cerebrum: > 0 above the tentorium and before the petrous bones.
    """
    x, y, z = moved
    depth, ax = -bone.cavity, np.abs(x)
    # Pulled out along the radius, the noise's sheets meet the surface nearly at right angles.
    finer, within = np.float32(head.gyri), bone.cavity < 6
    pull, bend = finer / np.maximum(1 + bone.cavity[within] / 100, 0.6), 4 * bone.noise[within]
    sulcus = np.full_like(x, FAR)
    sulcus[within] = head.sulci(x[within] * pull * 0.8 + bend, y[within] * pull - bend, z[within] * pull) / finer
    inward = np.minimum(depth, np.abs(falx_x) + np.maximum(falx, 0))
    half = (0.25 + 1.1 * head.atrophy) * (1 + 0.4 * bone.noise)
    width = half * smooth_step(30, 6, inward) - 0.3 * np.maximum(inward - 20, 0)
    width -= 0.6 * half * smooth_step(12, 18, depth)  # the medial sulci are the narrow ones
    # The Sylvian fissure: a sheet from the pterion in to the insula, wider than other sulci.
    fissure = z - (0.32 * (y + 20) - 6) + 4 * np.sin(ax / 9)
    insula = ax - (40 - 5 / 15**2 * (y + 9) ** 2)
    fissure = np.where(ax > 38, fissure, np.sqrt(fissure * fissure + insula * insula) * np.sign(fissure))
    near = smooth_step(34, 39, ax) * smooth_step(-46, -38, y) * smooth_step(26, 16, y) * (bone.tentorium > 0)
    sheet = near * smooth_step(10, 5, np.abs(fissure))
    sulcus += sheet * (fissure - sulcus)
    width += sheet * (0.7 + 2.2 * head.atrophy - width)
    along, up = np.maximum(np.abs(y + 9) - 15, 0), np.maximum(np.abs(z - 2) - 9, 0)
    island = np.sqrt((insula / 1.6) ** 2 + along**2 + up**2) * 1.6 - (0.6 + 1.8 * head.atrophy)
    return sulcus, np.where(cerebrum < 2, -9.0, width), island


def brain(head: Head, frame: Frame, bone: Cranium, moved: Coordinates) -> Brain:
    """Evaluate the brain; `moved`: the coordinates of its tissue before bleeds displaced it."""
    x, y, z = moved
    falx_x = (x - head.midline * (1 - (y / 85) ** 2)) / (head.falx * (1 + 0.2 * bone.noise))
    falx = 1 - np.sqrt(((y - 4) / 44) ** 2 + ((z - 2) / 31) ** 2)
    falx = np.maximum(falx * 34, 3 - bone.tentorium)
    notch = 1 - np.sqrt((x / 17) ** 2 + ((y - 4) / 25) ** 2)
    petrous = 22 - 0.75 * (58 - np.abs(x)) - y
    leaf = np.maximum(notch * 17, petrous)
    cerebrum = np.maximum(bone.tentorium, petrous)
    sulcus, width, insula = _sulci(head, bone, moved, falx_x, falx, cerebrum)

    lateral = [
        mirrored(Capsule(start, end, factor * radius, factor * end_radius))[side]
        for side, factor in enumerate(head.ventricles)
        for start, end, radius, end_radius in LATERAL_VENTRICLE
    ]
    factor = sum(head.ventricles) / 2
    midline = [  # third ventricle, aqueduct, fourth ventricle
        Ellipsoid((0, 3, 2), (1.1 + 2.0 * factor, 15, 10)),
        Ellipsoid((0, -7, -4), (1.0 + 1.6 * factor, 6, 6)),
        Capsule((0, 16, -5), (0, 22, -24), 0.9, 0.9),
        Ellipsoid((0, 25, -36), (4.0 + 3.4 * factor, 4.6 + factor, 10)),
    ]
    ventricle = np.maximum(union(frame, lateral, 5, moved) + 0.5 * bone.noise, 1 - np.abs(falx_x))
    ventricle = np.minimum(ventricle, union(frame, midline, 1.5, moved))
    cistern = np.minimum(union(frame, _cisterns(head.atrophy), 2.5, moved) + 0.5 * bone.noise, insula)
    nuclei = union(frame, NUCLEI, 1.5, moved)

    # Differences from white matter: texture, leukoaraiosis, brainstem, and the cerebellum's folia.
    delta = bone.noise * head.texture
    if head.leukoaraiosis > 0.3:
        delta -= head.leukoaraiosis * smooth_step(11, 1, ventricle + 4 * bone.noise) * (bone.tentorium > 0)
    folia = np.sin(np.sqrt(x * x + (y - 12) ** 2 + (z + 10) ** 2) * (2 * np.pi / 7.5) + bone.noise)
    lobe = smooth_step(22, 30, y + np.abs(x) * 0.25)
    delta += smooth_step(0, -4, cerebrum) * (lobe * (5 + 2 * folia) + (1 - lobe) * 2)
    return Brain(x, y, z, sulcus, width, cistern, ventricle, nuclei, falx, falx_x, leaf, delta)


def darken(bone: Cranium, brain: Brain, distance: Array, reach: float, darker: float) -> None:
    """Add oedema to the white matter within `reach` mm of a lesion, by `darker` HU, in place; it spares the cortex."""
    white = smooth_step(1, 4, np.abs(brain.sulcus) - brain.width)
    brain.delta -= darker * smooth_step(reach, 0.4 * reach, distance + 0.3 * reach * bone.noise) * white

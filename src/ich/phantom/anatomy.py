"""One patient's cranium and brain: drawn once, then evaluated as signed distances on any stack of planes."""

from dataclasses import dataclass

import numpy as np

from ich.phantom.shapes import (
    Array,
    Capsule,
    Ellipsoid,
    Frame,
    Noise,
    Point,
    Shape,
    mirrored,
    smooth_min,
    smooth_step,
    union,
)


@dataclass(frozen=True)
class Head:
    """What is a patient's own, whatever the scan. Lengths in mm, densities in Hounsfield units."""

    scale: Point  # of the atlas along x, y, z
    shear: Point  # asymmetry: x by y, x by z, y by z
    skull: float  # thickness of the vault
    scalp: float
    atrophy: float  # 0 young and tight .. 1 wide sulci and ventricles
    ventricles: tuple[float, float]  # radius factor, patient's left (x > 0) and right
    midline: float  # bow of the falx to one side
    white: float
    grey: float
    csf: float
    diploe: float
    leukoaraiosis: float  # darkening of the white matter round the ventricles
    sinus: float  # density of the blood in the dural sinuses
    dura: float  # density of falx and tentorium
    air: tuple[float, ...]  # how well the paranasal and mastoid cells are filled with air, 0..1
    sulci: Noise
    smooth: Noise


def draw_head(rng: np.random.Generator) -> Head:
    """A patient's head at random."""
    atrophy = float(rng.beta(1.6, 2.0))
    ventricle = 0.72 + 0.75 * atrophy + rng.normal(0, 0.08)
    side = 1 + rng.normal(0, 0.09)
    white = float(rng.normal(28, 1.0))
    return Head(
        scale=(float(rng.normal(1.0, 0.035)), float(rng.normal(1.0, 0.035)), float(rng.normal(1.0, 0.035))),
        shear=(float(rng.normal(0, 0.03)), float(rng.normal(0, 0.02)), float(rng.normal(0, 0.03))),
        skull=float(np.clip(rng.normal(6.8, 1.2), 4.5, 10.5)),
        scalp=float(np.clip(rng.normal(5.5, 1.5), 3.0, 10.0)),
        atrophy=atrophy,
        ventricles=(float(ventricle * side), float(ventricle * (2 - side))),
        midline=float(rng.normal(0, 1.5)),
        white=white,
        grey=white + float(rng.normal(8.0, 0.8)),
        csf=float(rng.normal(7, 1.5)),
        diploe=float(rng.normal(600, 110)),
        leukoaraiosis=float(max(0.0, rng.normal(2, 4)) * atrophy * 2),
        sinus=float(rng.normal(48, 5)),
        dura=float(rng.normal(52, 4)),
        air=tuple(float(v) for v in np.clip(rng.normal(0.85, 0.3, 6), 0, 1)),
        sulci=Noise(rng, 5.2, band=True).per_gradient(),
        smooth=Noise(rng, 11.0),
    )


@dataclass
class Cranium:
    """Signed distances on a coarse frame, mm, negative inside; and where the brain has been pushed to."""

    x: Array
    y: Array
    z: Array
    noise: Array  # smooth, unit variance
    vault: Array  # inside of the vault alone, as if it had no floor
    cavity: Array  # inside of the skull
    outer: Array  # outside of the skull's vault
    posterior: Array  # > 0 above the tentorium, < 0 below it


@dataclass
class Brain:
    """Signed distances of what lies in the cavity, mm; `x`, `y`, `z` are undisplaced head coordinates of the tissue."""

    x: Array
    y: Array
    z: Array
    sulcus: Array  # signed: zero in the middle of a sulcus or the Sylvian fissure
    width: Array  # half width of the sulci there; falls below zero where they end
    cistern: Array
    ventricle: Array
    nuclei: Array  # thalamus, lentiform nucleus, caudate
    falx: Array  # > 0 where the hemispheres are joined and no falx is
    falx_x: Array  # signed distance to the mid-sagittal sheet
    tentorium: Array  # signed distance to the tentorial sheet
    leaf: Array  # < 0 where the tentorium is
    delta: Array  # Hounsfield units added to the tissue


def cranium(head: Head, frame: Frame) -> Cranium:
    """The cavity of the skull with its three fossae, and the outside of the vault."""
    x, y, z = frame.at(frame.whole)
    noise = head.smooth.on(frame)
    wide = x / (1 + np.float32(0.11 / 85) * y - np.float32(0.05 / 85**2) * y * y)
    u, v = wide / np.float32(67), y / np.float32(84)
    w = (z - 6) / np.where(z > 6, np.float32(73), np.float32(80))
    u, v, w = u * u, v * v, w * w
    norm = np.float32(0.7) * np.sqrt(u + v + w) + np.float32(0.3) * np.sqrt(np.sqrt(u * u + v * v + w * w))
    vault = (norm - 1) * np.float32(72) + noise * np.float32(0.9)
    floor = np.float32(-17) + 12 * np.exp(-(((np.abs(x) - 28) / 15) ** 2) - ((y + 54) / 22) ** 2)
    floor -= 8 * smooth_step(-5, 15, y)
    cavity = -smooth_min(-vault, z - floor, 6)
    canal = [
        Capsule((0, 4, -6), (0, 12, -60), 17, 15),
        Capsule((0, 12, -60), (0, 18, -80), 15.5, 13),
        Capsule((0, 18, -80), (0, 20, -140), 10, 9),
        Ellipsoid((0, 39, -30), (57, 45, 34)),
        *mirrored(Ellipsoid((39, -12, -22), (25, 38, 21))),
    ]
    cavity = smooth_min(cavity, union(frame, canal, 4, far=30.0), 5)
    ridges = [
        *mirrored(Capsule((60, 24, -30), (15, -5, -30), 10, 6)),
        *mirrored(Capsule((60, -34, -9), (38, -37, -11), 4, 3)),
        *mirrored(Capsule((38, -37, -11), (13, -22, -15), 3, 3)),
    ]
    ridge = union(frame, ridges, 3)
    # The union ends FAR mm off the ridges: stretch it there, so that the cavity's depth does not end with it.
    cavity = -smooth_min(-cavity, ridge + 9 * np.maximum(ridge - 5, 0), 3)
    thick = head.skull * (1 + np.float32(0.16) * noise)
    thick *= 1 + np.float32(0.30) * smooth_step(-50, -85, y) + np.float32(0.35) * smooth_step(60, 85, y)
    thick *= 1 - np.float32(0.35) * smooth_step(52, 64, np.abs(x)) * smooth_step(25, 0, z)
    thick *= 1 - np.float32(0.68) * smooth_step(3, 11, -vault) * smooth_step(30, 10, z)
    thick *= 1 + np.float32(0.9) * np.exp(-((x / 9) ** 2) - ((y - 84) / 9) ** 2 - ((z + 14) / 12) ** 2)
    apex = np.where(y > 25, 12 - np.float32(0.52) * (y - 25), np.float32(12))
    slope = np.clip(np.float32(0.76) - np.float32(0.009) * (y - 25), 0.15, 0.9)
    outer = cavity - np.maximum(thick, 1.9) + 9 * smooth_step(-62, -70, z)
    return Cranium(x, y, z, noise, vault, cavity, outer, (z - apex + slope * np.abs(x)) * np.float32(0.8))


def ventricle_shapes(head: Head) -> tuple[list[Shape], list[Shape]]:
    """The lateral ventricles, and those of the midline."""
    lateral: list[Shape] = []
    for sign, f in zip((1, -1), head.ventricles, strict=True):
        for start, end, r0, r1 in (
            ((13, -34, 9), (5.5, -12, 15), 3.6, 3.4),
            ((15, -33, 15), (6.5, -10, 20), 3.2, 3.6),
            ((6.5, -12, 19), (13, 14, 22), 4.0, 4.0),
            ((13, 14, 22), (24, 33, 13), 4.2, 5.8),
            ((24, 33, 10), (25, 58, 4), 5.2, 1.8),
            ((25, 34, 8), (33, 16, -12), 4.6, 2.4),
            ((33, 16, -12), (28, -8, -20), 2.4, 1.6),
        ):
            lateral.append(
                Capsule((sign * start[0], start[1], start[2]), (sign * end[0], end[1], end[2]), r0 * f, r1 * f)
            )
    mean = sum(head.ventricles) / 2
    middle: list[Shape] = [
        Ellipsoid((0, 3, 2), (1.1 + 2.0 * mean, 15, 10)),
        Ellipsoid((0, -7, -4), (1.0 + 1.6 * mean, 6, 6)),
        Capsule((0, 16, -5), (0, 22, -24), 0.9, 0.9),
        Ellipsoid((0, 25, -36), (4.0 + 3.4 * mean, 4.6 + mean, 10)),
    ]
    return lateral, middle


def _cisterns(head: Head) -> list[Shape]:
    """Basal cisterns: suprasellar star, round the brainstem, quadrigeminal plate, round the medulla."""
    w = 0.75 + 0.6 * head.atrophy
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
    head: Head, bone: Cranium, moved: tuple[Array, Array, Array], falx_x: Array, joined: Array
) -> tuple[Array, Array, Array]:
    """Sulci and Sylvian fissure: signed distance to their middle, half width, and the cistern on the insula."""
    x, y, z = moved
    depth, above, ax = -bone.cavity, bone.posterior, np.abs(x)
    # Pulled out to the surface along the radius, the noise cuts its sheets at right angles to it.
    pull = 1 / np.maximum(np.float32(1) + np.clip(bone.cavity, -70, 5) / np.float32(82), 0.6)
    sulcus = head.sulci(x * pull * np.float32(0.75), y * pull, z * pull)
    inward = np.minimum(depth, np.abs(falx_x) + np.maximum(joined, 0))
    half = np.float32(0.3 + 1.3 * head.atrophy) * (1 + np.float32(0.25) * bone.noise)
    width = half * smooth_step(28, 4, inward) - np.float32(0.6) * np.maximum(inward - 16, 0)
    width -= np.float32(0.6) * half * smooth_step(12, 18, depth)  # the medial sulci are the narrow ones
    # The Sylvian fissure: a sheet from the pterion in to the insula, wider than other sulci.
    fissure = (z - (np.float32(-6) + np.float32(0.32) * (y + 20))) + 4 * np.sin(ax / np.float32(9))
    insula = ax - (40 - np.float32(5 / 15**2) * (y + 9) ** 2)
    fissure = np.where(ax > 38, fissure, np.sqrt(fissure * fissure + insula * insula) * np.sign(fissure))
    near = smooth_step(34, 39, ax) * smooth_step(-46, -38, y) * smooth_step(26, 16, y) * (above > 0)
    sheet = near * smooth_step(10, 5, np.abs(fissure))
    sulcus = sulcus + sheet * (fissure - sulcus)
    width += sheet * (np.float32(0.7 + 2.2 * head.atrophy) - width)
    along, up = np.maximum(np.abs(y + 9) - 15, 0), np.maximum(np.abs(z - 2) - 9, 0)
    island = np.sqrt((insula / np.float32(1.6)) ** 2 + along**2 + up**2)
    island = island * np.float32(1.6) - np.float32(0.6 + 1.8 * head.atrophy)
    return sulcus, np.where(above < 2, np.float32(-9), width), island


def brain(head: Head, frame: Frame, bone: Cranium, moved: tuple[Array, Array, Array]) -> Brain:
    """The brain; `moved` are the coordinates its tissue had before any bleed pushed it."""
    x, y, z = moved
    falx_x = x - np.float32(head.midline) * (1 - (y / np.float32(85)) ** 2)
    joined = 1 - np.sqrt(((y - 4) / np.float32(44)) ** 2 + ((z - 2) / np.float32(31)) ** 2)
    joined = np.maximum(joined * np.float32(34), np.float32(3) - bone.posterior)
    sulcus, width, island = _sulci(head, bone, moved, falx_x, joined)
    lateral, middle = ventricle_shapes(head)
    ventricle = union(frame, lateral, 5, moved) + np.float32(0.5) * bone.noise
    ventricle = np.maximum(ventricle, np.float32(1.0) - np.abs(falx_x))
    ventricle = np.minimum(ventricle, union(frame, middle, 1.5, moved))
    cistern = union(frame, _cisterns(head), 2.5, moved) + np.float32(0.5) * bone.noise
    thalamus, lentiform, caudate = (
        Ellipsoid((10.5, 7, 5), (7.5, 13, 9.5)),
        Ellipsoid((24, -5, 3), (5.5, 15, 9.5)),
        Ellipsoid((12, -22, 9), (5.5, 8, 8)),
    )
    notch = 1 - np.sqrt((x / np.float32(17)) ** 2 + ((y - 4) / np.float32(25)) ** 2)
    petrous = (np.float32(22) - np.float32(0.75) * (58 - np.abs(x))) - y
    return Brain(
        x=x,
        y=y,
        z=z,
        sulcus=sulcus,
        width=width,
        cistern=np.minimum(cistern, island),
        ventricle=ventricle,
        nuclei=union(frame, [*mirrored(thalamus), *mirrored(lentiform), *mirrored(caudate)], 1.5, moved),
        falx=joined,
        falx_x=falx_x,
        tentorium=bone.posterior,
        leaf=np.maximum(notch * np.float32(17), petrous),
        delta=_density(head, bone, moved, ventricle),
    )


def _density(head: Head, bone: Cranium, moved: tuple[Array, Array, Array], ventricle: Array) -> Array:
    """Departures of the tissue from plain white matter: texture, leukoaraiosis, folia of the cerebellum, brainstem."""
    x, y, z = moved
    delta = bone.noise * np.float32(0.8)
    if head.leukoaraiosis > 0.3:
        rim = smooth_step(13, 1, ventricle) * (bone.posterior > 0)
        delta -= np.float32(head.leukoaraiosis) * rim * (1 + np.float32(0.3) * bone.noise)
    below = smooth_step(0, -4, bone.posterior)
    folia = np.sin(np.sqrt(x * x + (y - 12) ** 2 + (z + 10) ** 2) * np.float32(2 * np.pi / 7.5))
    lobe = smooth_step(22, 30, y + np.abs(x) * np.float32(0.25))
    return delta + below * (lobe * (5 + np.float32(1.4) * folia) + (1 - lobe) * 2)

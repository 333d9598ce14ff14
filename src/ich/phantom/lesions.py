"""Bleeds on the coarse frame: their shape, their density, and the push they give to the brain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ich.phantom.anatomy import Brain, Cranium, Head
from ich.phantom.bleeds import Bleed, Form
from ich.phantom.shapes import Array, Ellipsoid, smooth_step


@dataclass
class Lesion:
    """A bleed on the coarse frame: a signed distance (or a fraction, for a layer or a space) and its density in HU."""

    bleed: Bleed
    field: Array
    density: Array


@dataclass
class Site:
    """The head that a bleed is put into. `gravity`: the unit vector, in head coordinates, that points to the table."""

    head: Head
    bone: Cranium
    brain: Brain
    gravity: NDArray[np.float64]


def displaced(bleeds: Sequence[Bleed], bone: Cranium) -> tuple[Array, Array, Array]:
    """Where the tissue now at each sample lay before the bleeds pushed it, head coordinates in mm."""
    x, y, z = bone.x, bone.y, bone.z
    for bleed in bleeds:
        if bleed.push <= 0:
            continue
        cx, cy, cz = (np.float32(c) for c in bleed.centre)
        px, py, pz = bone.x - cx, bone.y - cy, bone.z - cz
        square = px * px + py * py + pz * pz
        if bleed.form == "blob":
            radius = np.float32(bleed.thickness)
            gain = np.float32(-bleed.push) * np.exp(square * np.float32(-0.5) / (2 * radius) ** 2)
            gain = gain / np.sqrt(square + radius**2)
            x, y, z = x + gain * px, y + gain * py, z + gain * pz
            continue
        norm = np.sqrt(cx * cx + (0.7 * cy) ** 2 + (0.6 * (cz - 6)) ** 2)
        gain = np.float32(bleed.push) * np.exp(square * np.float32(-0.5 / 50**2)) / norm
        x, y, z = x + gain * cx, y + gain * np.float32(0.7) * cy, z + gain * np.float32(0.6) * (cz - 6)
    return x, y, z


def _reach(bleed: Bleed) -> tuple[np.float32, np.float32, np.float32]:
    rx, ry, rz = (np.float32(max(r, 1e-3)) for r in bleed.reach)
    return rx, ry, rz


def _offset(bleed: Bleed, site: Site) -> tuple[Array, Array, Array]:
    cx, cy, cz = (np.float32(c) for c in bleed.centre)
    return site.bone.x - cx, site.bone.y - cy, site.bone.z - cz


def _lens(bleed: Bleed, site: Site) -> Array:
    """Depth under the inner table against a paraboloid: convex on both sides, and zero where a suture is."""
    x, y, z = _offset(bleed, site)
    _, back, up = _reach(bleed)
    depth = -site.bone.cavity
    across = np.maximum(x**2 + z**2 - depth * depth, 0)
    u = (y / np.where(y < 0, np.float32(bleed.front), back)) ** 2 + across / (up * up)
    return (depth - np.float32(bleed.thickness) * (1 - u)) * np.float32(0.8)


def _crescent(bleed: Bleed, site: Site) -> Array:
    """Of even thickness over a hemisphere, thinning at its ends; it stops at the falx and at the tentorium."""
    _, y, z = _offset(bleed, site)
    _, ry, rz = _reach(bleed)
    side = np.float32(np.sign(bleed.centre[0]))
    u = (y / ry) ** 2 + (z / rz) ** 2 + np.float32(0.08) * site.bone.noise
    field = -site.bone.vault - np.float32(bleed.thickness) * (1 - u) / np.sqrt(np.float32(0.15) + np.abs(1 - u))
    return np.maximum(field, np.maximum(3 - side * site.brain.falx_x, 1.5 - site.bone.posterior))


def _sheet(bleed: Bleed, above: Array, u: Array, edge: Array) -> Array:
    """A layer on one side of the falx or the tentorium: `above` the distance to it, `edge` > 0 where it ends."""
    half = np.float32(bleed.thickness / 2) * np.clip(1 - u, -1, 1)
    return np.maximum(np.abs(above - np.float32(bleed.thickness / 2)) - half, edge)


def _falcine(bleed: Bleed, site: Site) -> Array:
    _, y, z = _offset(bleed, site)
    _, ry, rz = _reach(bleed)
    side = np.float32(np.sign(bleed.centre[0]))
    return _sheet(bleed, side * site.brain.falx_x, (y / ry) ** 2 + (z / rz) ** 2, site.brain.falx + 2)


def _tentorial(bleed: Bleed, site: Site) -> Array:
    x, y, _ = _offset(bleed, site)
    rx, ry, _ = _reach(bleed)
    return _sheet(bleed, site.bone.posterior, (x / rx) ** 2 + (y / ry) ** 2, site.brain.leaf + 1)


def _blob(bleed: Bleed, site: Site) -> Array:
    """A rough ellipsoid up to the walls of the ventricles; darkens the tissue round it."""
    bone, brain = site.bone, site.brain
    shift, fine = np.float32(bleed.offset), np.float32(1.8)
    rough = site.head.smooth(bone.x * fine + shift, bone.y * fine, bone.z * fine + shift)
    field = Ellipsoid(bleed.centre, bleed.reach).distance(bone.x, bone.y, bone.z)
    field += np.float32(0.22 * bleed.thickness) * rough * smooth_step(3 * bleed.thickness, 0, field)
    brain.delta -= np.float32(12) * smooth_step(bleed.oedema, 0, field) * (1 + np.float32(0.2) * bone.noise)
    return np.maximum(np.maximum(field, 0.4 - brain.ventricle), 2.5 + bone.cavity)


def _layer(bleed: Bleed, site: Site) -> Array:
    """The share of blood in the fluid of a ventricle: settled towards the table up to a level."""
    bone, g = site.bone, site.gravity.astype(np.float32)
    height = bone.x * g[0] + bone.y * g[1] + bone.z * g[2]
    side, level, _ = bleed.centre
    softness = bleed.reach[0]
    field = smooth_step(-softness, softness, height - np.float32(level) + 2 * bone.noise)
    return field * smooth_step(-3, 3, np.float32(side) * site.brain.falx_x) if side else field


def _space(bleed: Bleed, site: Site) -> Array:
    """The share of blood in the fluid of sulci and cisterns, patchy in one region; clots part the gyri there."""
    bone, brain = site.bone, site.brain
    x, y, z = _offset(bleed, site)
    shift = np.float32(bleed.offset)
    patchy = site.head.smooth(bone.x + shift, bone.y + shift, bone.z)
    far = np.sqrt(x**2 + y**2 + z**2) / _reach(bleed)[0] + np.float32(0.18) * patchy
    field = smooth_step(1.05, 0.7, far)
    brain.width += np.where(brain.width > -0.5, np.float32(2.6), np.float32(0)) * field
    brain.cistern -= np.float32(1.6) * field
    return field


_FORMS: dict[Form, Callable[[Bleed, Site], Array]] = {
    "lens": _lens,
    "crescent": _crescent,
    "falcine": _falcine,
    "tentorial": _tentorial,
    "blob": _blob,
    "layer": _layer,
    "space": _space,
}


def shape(bleed: Bleed, site: Site) -> Lesion:
    """The bleed on the coarse frame. Oedema and parted gyri go into the site's brain, in place."""
    field = _FORMS[bleed.form](bleed, site)
    density = np.float32(bleed.density) + np.float32(bleed.texture) * site.bone.noise
    if bleed.gradient:
        _, y, _ = _offset(bleed, site)
        density += np.float32(bleed.gradient) * np.clip(y / _reach(bleed)[1], -1, 1) * np.float32(0.5)
    return Lesion(bleed, field, density)

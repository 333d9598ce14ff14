"""Bleeds on the coarse frame: shape, density, and displacement of the brain."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ich.phantom.anatomy import Brain, Cranium, darken
from ich.phantom.bleeds import Bleed
from ich.phantom.shapes import Array, Coordinates, Ellipsoid, smooth_step, soft
from ich.phantom.tissue import Upsampler

# A bleed is visible in a pixel that it changes by CONTRAST HU and that is BRIGHT HU denser than cortex, or of which it
# fills the share COVER: an isodense subdural is visible by its shape, isodense fluid is not.
CONTRAST, BRIGHT, COVER = 12.0, 3.0, 0.5


@dataclass
class Lesion:
    """A bleed on the coarse frame: a signed distance (or a fraction, for a layer or a space) and its density in HU."""

    bleed: Bleed
    field: Array
    density: Array


def displaced(bleeds: Sequence[Bleed], bone: Cranium) -> Coordinates:
    """Head coordinates (mm) of each sample's tissue before the bleeds displaced it."""
    x, y, z = bone.x, bone.y, bone.z
    for bleed in bleeds:
        if bleed.push == 0:
            continue
        cx, cy, cz = (np.float32(c) for c in bleed.centre)
        px, py, pz = bone.x - cx, bone.y - cy, bone.z - cz
        square = px * px + py * py + pz * pz
        if bleed.form == "blob":
            radius = np.float32(bleed.thickness)
            gain = np.float32(-bleed.push) * np.exp(square * np.float32(-0.5) / (2 * radius) ** 2)
            gain = gain / np.sqrt(square + radius**2)
            x, y, z = x + gain * px, y + gain * py, z + gain * pz
        else:
            norm = np.sqrt(cx * cx + (0.7 * cy) ** 2 + (0.6 * (cz - 6)) ** 2)
            gain = np.float32(bleed.push) * np.exp(square * (-0.5 / 50**2)) / norm
            x, y, z = x + gain * cx, y + gain * np.float32(0.7) * cy, z + gain * np.float32(0.6) * (cz - 6)
    return x, y, z


def shape(bleed: Bleed, bone: Cranium, brain: Brain, gravity: NDArray[np.float64]) -> Lesion:
    """Evaluate the bleed on the coarse frame; adds oedema, compressed and widened sulci to `brain`, in place.

    gravity: unit vector in head coordinates that points to the table.
    """
    cx, cy, cz = (np.float32(c) for c in bleed.centre)
    rx, ry, rz = (np.float32(max(r, 1e-3)) for r in bleed.reach)
    x, y, z = bone.x - cx, bone.y - cy, bone.z - cz
    thickness, side = np.float32(bleed.thickness), np.sign(cx)
    gx, gy, gz = gravity.astype(np.float32)
    mottle = 0.7 * bone.noise + 0.7 * np.clip(brain.sulcus * np.float32(0.4), -1.5, 1.5)
    match bleed.form:
        case "lens":
            # Depth under the inner table minus a paraboloid: convex on both sides, and zero at sutures.
            depth = -bone.cavity
            across = np.maximum(x**2 + z**2 - depth * depth, 0)
            u = (y / np.where(y < 0, np.float32(bleed.front), ry)) ** 2 + across / (rz * rz)
            field = (depth - thickness * (1 - u)) * 0.8
        case "crescent":
            # Of even thickness over a hemisphere, thin at its ends; bounded by falx and tentorium.
            u = (y / ry) ** 2 + (z / rz) ** 2 + 0.08 * bone.noise
            field = -bone.vault - thickness * (1 + 0.15 * mottle) * (1 - u) / np.sqrt(0.15 + np.abs(1 - u))
            field = np.maximum(field, np.maximum(3 - side * brain.falx_x, 1.5 - bone.tentorium))
        case "falcine" | "tentorial":
            # A layer on one side of the sheet, up to its edge.
            if bleed.form == "falcine":
                above, u, edge = side * brain.falx_x, (y / ry) ** 2 + (z / rz) ** 2, brain.falx + 2
            else:
                above, u, edge = bone.tentorium, (x / rx) ** 2 + (y / ry) ** 2, brain.leaf + 1
            field = np.abs(above - thickness / 2) - thickness / 2 * np.clip(1 - u, -1, 1)
            field = np.maximum(field, edge)
        case "blob":
            # A rough ellipsoid on one side, bounded by the ventricles, that darkens the tissue around it.
            field = Ellipsoid(bleed.centre, bleed.reach).distance(bone.x, bone.y, bone.z)
            field += bleed.rough * bleed.thickness * mottle * smooth_step(3 * bleed.thickness, 0, field)
            darken(bone, brain, field, *bleed.oedema)
            field = np.maximum(np.maximum(field, 0.4 - brain.ventricle), 2.5 + bone.cavity)
            if abs(cx) > 8:
                field = np.maximum(field, 1 - side * brain.falx_x)
        case "layer":
            # The share of blood in the ventricles' fluid: settled towards the table up to a level.
            height = bone.x * gx + bone.y * gy + bone.z * gz
            field = bleed.share * smooth_step(-bleed.reach[0], bleed.reach[0], height - cy + 2 * bone.noise)
            if side:
                field = field * smooth_step(-3, 3, side * brain.falx_x)
        case "space":
            # The share of blood in the fluid of sulci and cisterns, patchy in one region; clots widen the sulci there.
            field = smooth_step(1.05, 0.7, np.sqrt(x**2 + y**2 + z**2) / rx + 0.25 * bone.noise)
            brain.width += np.where(brain.width > -0.5, np.float32(2.4 * bleed.share**2), np.float32(0)) * field
            brain.cistern -= 1.2 * bleed.share**2 * field
            field *= bleed.share
    if bleed.push:
        brain.width -= 0.12 * bleed.push * smooth_step(45, 0, field)
    density = bleed.density + bleed.texture * mottle
    above, soft_over = bleed.settled
    if above:
        density += above * (smooth_step(-soft_over, soft_over, x * gx + y * gy + z * gz) - 0.5)
    return Lesion(bleed, field, density)


def paint(
    lesions: Sequence[Lesion],
    up: Upsampler,
    hu: Array,
    spaces: Array,
    ventricles: Array,
    skull: Array,
    edge: float,
    grey: float,
) -> NDArray[np.uint8]:
    """Add the lesions to the contents of the skull, in place; returns the mask of the slice.

    hu, and the occupancies of subarachnoid spaces, ventricles and skull: float32 [planes, rows, columns]. edge: mm,
    the width of sharp edges. grey: HU of the cortex. Bit k of the mask [rows, columns] is set where a bleed of kind k
    is visible.
    """
    seen: dict[int, Array] = {}
    filled: dict[int, Array] = {}
    for lesion in lesions:
        fluid = {"layer": ventricles, "space": spaces}.get(lesion.bleed.form)
        if fluid is not None:
            weight = up(lesion.field) * fluid
        elif up.low(lesion.field) < 1:
            weight = soft(up(lesion.field), edge + lesion.bleed.blur)
        else:  # not in this slice
            continue
        weight *= skull
        change = weight * (up(lesion.density) - hu)
        hu += change
        keep, kind = 1 - weight, lesion.bleed.kind
        seen = {k: before * keep for k, before in seen.items()}
        filled = {k: before * keep for k, before in filled.items()}
        seen[kind] = seen.get(kind, 0) + np.abs(change)
        filled[kind] = filled.get(kind, 0) + weight * (fluid is None)
    mask = np.zeros(hu.shape[1:], np.uint8)
    for kind, change in seen.items():
        bright = (change.mean(0) >= CONTRAST) & (hu.mean(0) >= grey + BRIGHT)
        visible = bright | (filled[kind].mean(0) >= COVER)
        mask |= visible.astype(np.uint8) << np.uint8(kind)
    return mask

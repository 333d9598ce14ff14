"""Hounsfield units of a slice: shapes from the coarse frame on fine pixels."""

import cv2
import numpy as np

from ich.phantom.anatomy import Brain, Cranium, Head
from ich.phantom.face import Face
from ich.phantom.shapes import FAR, Array, mix, soft

AIR, FAT, SKIN, MUSCLE, CORTICAL = -1000.0, -95.0, 45.0, 58.0, 1350.0


class Upsampler:
    """Resample one slice's sub-planes from the coarse frame to fine pixels, in a window around a shape."""

    def __init__(self, planes: slice, size: int, around: Array) -> None:
        """around [all planes, grid, grid]: the window contains all pixels with this distance below 8 mm."""
        grid = around.shape[-1]
        near = around[planes].min(0) < 8
        # Windows end on pixels of both frames if their sizes have a common divisor.
        step = min(4 * grid // int(np.gcd(grid, size)), grid)
        coarse, fine = [slice(0, 0)] * 2, [slice(0, 0)] * 2
        for axis in (0, 1):
            found = np.flatnonzero(near.any(1 - axis))
            if found.size:
                start, stop = int(found[0]) // step * step, min((int(found[-1]) // step + 1) * step, grid)
                coarse[axis] = slice(start, stop)
                fine[axis] = slice(start * size // grid, stop * size // grid)
        self.coarse, self.fine = (planes, *coarse), tuple(fine)
        self.shape = tuple(s.stop - s.start for s in fine)

    def __bool__(self) -> bool:
        return min(self.shape) > 0

    def __call__(self, field: Array) -> Array:
        """Field [all planes, grid, grid] -> float32 [this slice's planes, rows, columns]."""
        part = field[self.coarse]
        fine = np.empty((len(part), *self.shape), np.float32)
        for k, plane in enumerate(part):
            cv2.resize(plane, self.shape[::-1], dst=fine[k])
        return fine

    def low(self, field: Array) -> float:
        """The field's minimum in the window."""
        return float(field[self.coarse].min())


def oblique(distance: Array, edge: float) -> Array:
    """Width of the soft edge [rows, columns] that makes an oblique surface continuous between the sub-planes, mm."""
    return np.maximum(np.abs(distance[-1] - distance[0]) / (len(distance) - 1), np.float32(edge))


def outside(up: Upsampler, head: Head, bone: Cranium, face: Face, edge: float) -> Array:
    """Hounsfield units outside the cavity of the skull, float32 [planes, rows, columns]."""
    skin = up(face.skin)
    hu = np.full(skin.shape, AIR, np.float32)
    body = soft(skin, edge)
    mix(hu, body, FAT)
    if up.low(face.muscle) < 1:
        mix(hu, soft(up(face.muscle), 2 * edge) * body, MUSCLE)
    mix(hu, soft(np.abs(skin + 1.4) - 1.3, edge) * body, SKIN)
    outer = up(bone.outer)
    density = np.clip((np.maximum(outer, -up(bone.cavity)) + 2.6) * (1 / 1.4), 0, 1)
    density *= CORTICAL - head.diploe
    density += head.diploe
    mix(hu, soft(outer, oblique(outer, edge)), density)  # filled: `inside` replaces the cavity
    if up.low(face.bone) < 1:
        base = up(face.bone)
        mix(hu, soft(base, edge), np.clip(1250 + base * 120, 600, 1250))
    if up.low(face.eye) < 1:
        eye = up(face.eye)
        mix(hu, soft(eye, edge), 50)
        mix(hu, soft(eye + 1.4, edge), 9)
    if up.low(face.air) < 1:
        mix(hu, soft(up(face.air), edge), AIR)
    return hu


def inside(
    up: Upsampler, head: Head, bone: Cranium, brain: Brain, cavity: Array, edge: float
) -> tuple[Array, Array, Array]:
    """Contents of the skull: HU, and the occupancies of subarachnoid spaces and ventricles.

    cavity and the results: float32 [planes, rows, columns].
    """
    falx_x, falx = up(brain.falx_x), up(brain.falx)
    pia = -cavity - (0.8 + 1.7 * head.atrophy)
    np.minimum(pia, np.abs(falx_x) - (0.9 + 1.2 * head.atrophy) + np.clip(falx, 0, FAR), out=pia)
    np.minimum(pia, np.abs(up(brain.sulcus)) - up(brain.width), out=pia)
    if up.low(brain.cistern) < 4:
        np.minimum(pia, up(brain.cistern), out=pia)
    dura = soft(np.abs(falx_x) - 1.1, edge) * soft(falx + 2, 2.0)
    sinuses: list[Array] = []  # sagittal at the root of the falx, transverse at that of the tentorium
    if up.low(brain.falx) < -8:
        sinus = np.abs(falx_x) - 0.75 * cavity - (3.0 + up(bone.noise))
        sinuses.append(np.maximum(sinus, falx + 8))
    if up.low(brain.leaf) < 1:
        tent, leaf = up(bone.tentorium), up(brain.leaf)
        sheet, half = np.abs(tent), oblique(tent, edge) / 2
        np.minimum(pia, sheet - 1.2 + np.clip(leaf + 1, 0, FAR), out=pia)
        thin = (np.clip(tent + half, -0.9, 0.9) - np.clip(tent - half, -0.9, 0.9)) / (2 * half)
        np.maximum(dura, thin * soft(leaf, 2.0), out=dura)
        sinuses.append(np.maximum(sheet - 0.75 * cavity - (3.2 + up(bone.noise)), leaf + 2))

    grey = soft(pia - 3.0, 3.0)
    if up.low(brain.nuclei) < 1:
        np.maximum(grey, soft(up(brain.nuclei), 3.0), out=grey)
    hu = grey * (head.grey - head.white)
    hu += head.white
    hu += up(brain.delta)
    spaces, ventricles = soft(pia, 1.2 * edge), np.zeros_like(hu)
    mix(hu, spaces, head.csf)
    if up.low(brain.ventricle) < 1:
        ventricles = soft(up(brain.ventricle), edge)
        mix(hu, ventricles, head.csf)
    if head.agent:  # a contrast agent also shows the dura that lines the skull
        np.maximum(dura, soft(-cavity - 1, edge), out=dura)
    mix(hu, dura, head.dura)
    for sinus in sinuses:
        mix(hu, soft(sinus, 1.5), head.sinus)
    return hu, spaces, ventricles

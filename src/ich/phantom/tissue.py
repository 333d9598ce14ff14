"""Hounsfield units of a slice: shapes from the coarse frame on fine pixels, averaged through the slice's thickness."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ich.phantom.anatomy import Brain, Cranium, Head
from ich.phantom.face import Face
from ich.phantom.shapes import FAR, Array, soft

AIR, FAT, SKIN, MUSCLE, CORTICAL = -1000.0, -95.0, 25.0, 58.0, 1350.0


@dataclass
class Fields:
    """All signed distances of a study on its coarse frame."""

    head: Head
    bone: Cranium
    brain: Brain
    face: Face


class Upsampler:
    """Brings one slice's sub-planes from the coarse frame to fine pixels, all of them or those of a window."""

    def __init__(self, planes: slice, size: int, grid: int, around: Array | None = None) -> None:
        """`around` [all planes, grid, grid]: keep to where this distance is below 8 mm in the slice."""
        self.planes = planes
        rows = columns = slice(0, grid)
        # Windows end on pixels of both frames where these have a common divisor.
        step = grid // int(np.gcd(grid, size))
        if around is not None:
            near = around[planes].min(0) < 8
            rows, columns = (
                _span(np.flatnonzero(near.any(axis)), 4 * step, grid) if near.any() else slice(0, 0) for axis in (1, 0)
            )
        self.coarse = (planes, rows, columns)
        self.fine = tuple(slice(s.start * size // grid, s.stop * size // grid) for s in (rows, columns))
        self.shape = (self.fine[1].stop - self.fine[1].start, self.fine[0].stop - self.fine[0].start)

    def __bool__(self) -> bool:
        return min(self.shape) > 0

    def __call__(self, field: Array) -> Array:
        """Field [all planes, grid, grid] -> float32 [this slice's planes, rows, columns]."""
        part = field[self.coarse]
        fine = np.empty((len(part), self.shape[1], self.shape[0]), np.float32)
        for k, plane in enumerate(part):
            cv2.resize(plane, self.shape, dst=fine[k], interpolation=cv2.INTER_LINEAR)
        return fine

    def low(self, field: Array) -> float:
        """The field's least value in this slice."""
        return float(field[self.coarse].min())


def _span(found: NDArray[np.intp], step: int, grid: int) -> slice:
    step = min(step, grid)
    return slice(int(found[0]) // step * step, min(-(-(int(found[-1]) + 1) // step) * step, grid))


def mix(hu: Array, weight: Array, value: float | Array) -> None:
    """hu := hu + weight x (value - hu), in place."""
    hu += weight * (value - hu)


def outside(fields: Fields, up: Upsampler, cavity: Array, edge: float) -> Array:
    """Everything but the contents of the skull, float32 [planes, size, size]."""
    head, bone, face = fields.head, fields.bone, fields.face
    skin = up(face.skin)
    hu = np.full(skin.shape, AIR, np.float32)
    body = soft(skin, edge)
    mix(hu, body, FAT)
    if up.low(face.muscle) < 1:
        mix(hu, soft(up(face.muscle), 2 * edge) * body, MUSCLE)
    mix(hu, soft(np.abs(skin + 1.4) - 1.3, edge) * body, SKIN)
    outer = up(bone.outer)
    table = np.maximum(outer, -cavity)
    density = np.clip((table + 2.6) * (1 / 1.4), 0, 1)
    density *= CORTICAL - head.diploe
    density += head.diploe
    mix(hu, soft(table, edge), density)
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


def inside(fields: Fields, up: Upsampler, cavity: Array, edge: float) -> tuple[Array, Array, Array]:
    """Contents of the skull: HU, and the occupancies of the subarachnoid spaces and of the ventricles."""
    head, brain = fields.head, fields.brain
    falx_x, joined = up(brain.falx_x), up(brain.falx)
    medial = np.abs(falx_x) - (0.9 + 1.2 * head.atrophy)
    medial += np.clip(joined, 0, FAR)
    pia = -cavity - (0.8 + 1.7 * head.atrophy)
    np.minimum(pia, medial, out=pia)
    np.minimum(pia, np.abs(up(brain.sulcus)) - up(brain.width), out=pia)
    if up.low(brain.leaf) < 1:
        np.minimum(pia, np.abs(up(brain.tentorium)) - 1.2 + np.clip(up(brain.leaf) + 1, 0, FAR), out=pia)
    if up.low(brain.cistern) < 4:
        np.minimum(pia, up(brain.cistern), out=pia)
    grey = soft(pia - 3.0, 3.0)
    if up.low(brain.nuclei) < 1:
        np.maximum(grey, soft(up(brain.nuclei), 3.0), out=grey)
    hu = grey * (head.grey - head.white)
    hu += head.white
    hu += up(brain.delta)
    spaces = soft(pia, 1.2 * edge)
    mix(hu, spaces, head.csf)
    ventricles = np.zeros_like(hu)
    if up.low(brain.ventricle) < 1:
        ventricles = soft(up(brain.ventricle), edge)
        mix(hu, ventricles, head.csf)
    dura = soft(np.abs(falx_x) - 1.1, edge) * soft(joined + 2, 2.0)
    if up.low(brain.leaf) < 1:
        np.maximum(dura, soft(np.abs(up(brain.tentorium)) - 0.9, edge) * soft(up(brain.leaf), 2.0), out=dura)
    mix(hu, dura, head.dura)
    # The sagittal sinus along the falx's root and the transverse ones along the tentorium's.
    if up.low(brain.falx) < -8:
        sinus = np.abs(falx_x) - 0.75 * cavity - (3.0 + up(fields.bone.noise))
        np.maximum(sinus, joined + 8, out=sinus)
        mix(hu, soft(sinus, 1.5), head.sinus)
    if up.low(brain.leaf) < 1:
        sinus = np.abs(up(brain.tentorium)) - 0.75 * cavity - (3.2 + up(fields.bone.noise))
        np.maximum(sinus, up(brain.leaf) + 2, out=sinus)
        mix(hu, soft(sinus, 1.5), head.sinus)
    return hu, spaces, ventricles

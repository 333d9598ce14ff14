"""Stored values to Hounsfield units: significant bits, padding, slope and intercept."""

from dataclasses import dataclass

import numpy as np

HU_LOW, HU_HIGH = -1024, 3071  # what the cache keeps: air to the densest bone, 12 bits

LIMITS = {np.dtype(t): (int(np.iinfo(t).min), int(np.iinfo(t).max)) for t in (np.int8, np.uint8, np.int16, np.uint16)}


@dataclass(frozen=True)
class Scale:
    """How a frame's stored values become Hounsfield units."""

    bits: int  # stored
    signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None  # stored values from..to that mean "nothing was measured here"


def hounsfield(stored: np.ndarray, scale: Scale) -> np.ndarray:
    """int16 of the shape of `stored` (integers of 1 or 2 bytes, any byte order), clipped to HU_LOW..HU_HIGH.

    Padding becomes air. Photometric interpretation has no part in it: the modality transformation comes before it
    (PS3.3, C.11.1), so that MONOCHROME1 means the same units, shown inverted.
    """
    stored = significant(stored, scale)
    slope, intercept = scale.slope, scale.intercept
    nothing = _padded(stored, scale)
    if not scale.signed and scale.bits == 12 and abs(intercept) < 100:
        # Some RSNA files of this kind are stored 1000 too low, wrapped at 4096, and name an intercept near 0.
        # Undone as in public solutions of the 2019 challenge: shift, wrap, intercept -1000.
        stored, intercept = (stored + np.uint16(1000)) % 4096, -1000.0
    result = _shifted(stored, int(intercept)) if slope == 1 and intercept == int(intercept) else None
    if result is None:
        result = np.clip(np.rint(stored * slope + intercept), HU_LOW, HU_HIGH).astype(np.int16)
    if nothing is not None:
        result[nothing] = HU_LOW
    return result


def _shifted(stored: np.ndarray, intercept: int) -> np.ndarray | None:
    """`stored` + `intercept`, clipped, with one array's worth of memory; None where that does not work out.

    Clipped first, the sum fits 16 bits, and then it does not matter that it is taken modulo 2^16.
    """
    low, high = max(HU_LOW - intercept, LIMITS[stored.dtype][0]), min(HU_HIGH - intercept, LIMITS[stored.dtype][1])
    if stored.dtype.itemsize != 2 or low > high:
        return None
    result = np.clip(stored, low, high).view(np.int16)
    result += np.uint16(intercept % 0x10000).view(np.int16)
    return result


def significant(stored: np.ndarray, scale: Scale) -> np.ndarray:
    """Native integers without what lies above the stored bits (overlays were kept there once), the sign extended."""
    size = stored.dtype.itemsize
    order = stored.dtype.byteorder
    native = stored.view(np.dtype(f"{order}{'i' if scale.signed else 'u'}{size}"))
    native = native.astype(native.dtype.newbyteorder("="), copy=False)
    shift = size * 8 - scale.bits
    if shift == 0:
        return native
    if not scale.signed:
        return native & native.dtype.type((1 << scale.bits) - 1)
    native = native << shift
    native >>= shift
    return native


def _padded(stored: np.ndarray, scale: Scale) -> np.ndarray | None:
    """Where the stored values are padding; None where none is or where clipping will make air of it anyway."""
    if scale.padding is None:
        return None
    low, high = scale.padding
    if scale.slope > 0 and high * scale.slope + scale.intercept <= HU_LOW:
        return None
    return (stored >= low) & (stored <= high)

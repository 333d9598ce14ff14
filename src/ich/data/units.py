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


def hounsfield(stored: np.ndarray, scale: Scale, *, in_place: bool = False) -> np.ndarray:
    """int16 of the shape of `stored` (integers of 1 or 2 bytes, any byte order), clipped to HU_LOW..HU_HIGH.

    Padding becomes air. Photometric interpretation has no part in it: the modality transformation comes before it
    (PS3.3, C.11.1), so that MONOCHROME1 means the same units, shown inverted.

    in_place: `stored` is not needed any more, and its memory may become the result's.
    """
    stored = _significant(stored.astype(stored.dtype.newbyteorder("="), copy=not in_place), scale)
    slope, intercept = scale.slope, scale.intercept
    nothing = _padded(stored, scale)
    if not scale.signed and scale.bits == 12 and abs(intercept) < 100:
        # Some RSNA files of this kind are stored 1000 too low, wrapped at 4096, and name an intercept near 0.
        # Undone as in public solutions of the 2019 challenge: shift, wrap, intercept -1000.
        stored += 1000
        stored &= 0xFFF
        intercept = -1000.0
    result = _shifted(stored, int(intercept), scale) if slope == 1 and intercept == int(intercept) else None
    if result is None:
        result = np.clip(np.rint(stored * slope + intercept), HU_LOW, HU_HIGH).astype(np.int16)
    if nothing is not None:
        result[nothing] = HU_LOW
    return result


def _shifted(stored: np.ndarray, intercept: int, scale: Scale) -> np.ndarray | None:
    """`stored` + `intercept`, clipped, in the memory of `stored`; None where that does not work out.

    Clipped first, the sum fits 16 bits, and then it does not matter that it is taken modulo 2^16.
    """
    low, high = max(HU_LOW - intercept, LIMITS[stored.dtype][0]), min(HU_HIGH - intercept, LIMITS[stored.dtype][1])
    if stored.dtype.itemsize != 2 or low > high:
        return None
    half = 1 << (scale.bits - 1)
    least, most = (-half, half - 1) if scale.signed else (0, 2 * half - 1)
    if least < low or most > high:
        np.clip(stored, low, high, out=stored)
    result = stored.view(np.int16)
    if intercept:
        result += np.uint16(intercept % 0x10000).view(np.int16)
    return result


def _significant(stored: np.ndarray, scale: Scale) -> np.ndarray:
    """Native integers without what lies above the stored bits (overlays were kept there once), the sign extended.

    In the memory of `stored`. What fits int16 is int16, which numpy clips six times as fast as uint16.
    """
    size = stored.dtype.itemsize
    shift = size * 8 - scale.bits
    if scale.signed:
        stored = stored.view(f"i{size}")
        if shift:
            stored <<= shift
            stored >>= shift
    elif shift:
        stored &= (1 << scale.bits) - 1
        stored = stored.view(f"i{size}")
    return stored


def _padded(stored: np.ndarray, scale: Scale) -> np.ndarray | None:
    """Where the stored values are padding; None where none is or where clipping will make air of it anyway."""
    if scale.padding is None:
        return None
    low, high = scale.padding
    if scale.slope > 0 and high * scale.slope + scale.intercept <= HU_LOW:
        return None
    return (stored >= low) & (stored <= high)

"""Stored values to Hounsfield units: significant bits, padding, slope and intercept."""

from dataclasses import dataclass

import numpy as np

HU_LOW, HU_HIGH = -1024, 3071  # the range of the cache: air to dense bone, 12 bits


@dataclass(frozen=True)
class Scale:
    """Conversion of the stored values of a frame to Hounsfield units."""

    bits: int  # stored
    signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None  # stored values from..to outside of the measured region


def hounsfield(stored: np.ndarray, scale: Scale, *, in_place: bool = False) -> np.ndarray:
    """Hounsfield units: int16 of the shape of `stored`, clipped to HU_LOW..HU_HIGH; padding becomes air.

    The photometric interpretation applies after this transformation and does not change units (PS3.3, C.11.1).

    stored: integers of 1, 2 or 4 bytes, in any byte order.
    in_place: reuse the memory of `stored` for the result.
    """
    stored = _significant(stored.astype(stored.dtype.newbyteorder("="), copy=not in_place), scale)
    slope, intercept = scale.slope, scale.intercept
    padded = _padded(stored, scale)
    if not scale.signed and scale.bits == 12 and abs(intercept) < 100:
        # Some RSNA files store such values 1000 too low, wrapped at 4096, with an intercept near 0.
        # Undone as in public solutions of the 2019 challenge.
        stored += 1000
        stored &= 0xFFF
        intercept = -1000.0
    result = _shifted(stored, int(intercept), scale) if slope == 1 and intercept == int(intercept) else None
    if result is None:
        result = np.clip(np.rint(stored * slope + intercept), HU_LOW, HU_HIGH).astype(np.int16)
    if padded is not None:
        result[padded] = HU_LOW
    return result


def _shifted(stored: np.ndarray, intercept: int, scale: Scale) -> np.ndarray | None:
    """`stored` + `intercept`, clipped, in the memory of `stored`; None where 16 bits do not suffice.

    Values are clipped first, so that the sum, modulo 2^16, is exact.
    """
    limits = np.iinfo(stored.dtype)
    low, high = max(HU_LOW - intercept, limits.min), min(HU_HIGH - intercept, limits.max)
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
    """Keep the stored bits (older files have overlays above them) and extend the sign; in the memory of `stored`.

    Values that fit int16 become int16, which numpy clips six times as fast as uint16.
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
    """Mask of padding; None where there is none, or where clipping turns it into air anyway."""
    if scale.padding is None:
        return None
    low, high = scale.padding
    if scale.slope > 0 and high * scale.slope + scale.intercept <= HU_LOW:
        return None
    return (stored >= low) & (stored <= high)

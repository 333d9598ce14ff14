"""PNG files of the page: exact values of slices, small slices, and Grad-CAM overlays."""

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 160  # pixels of a small slice
OPACITY = 0.65  # of the overlay at the maximum of the map
SHIFT = 128  # so that -128..127 HU, most of a head, share one high byte


def png(image: NDArray[np.uint8]) -> bytes:
    """Encode an image [h, w], or [h, w, 3] of blue, green, red."""
    options = [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_FILTERED]
    return cv2.imencode(".png", image, options)[1].tobytes()


def planes(values: NDArray[np.int16], low: int) -> str:
    """Encode a slice [h, w] without loss as a grey PNG [2h, w] in base64: the high bytes above the low bytes.

    The bytes are those of value - low + SHIFT. viewer.js restores the values.
    Raises ValueError for values below `low`.
    """
    shifted = values.astype(np.int32) - low + SHIFT
    if shifted.min() < SHIFT:
        raise ValueError(f"values must not be below {low}, got {values.min()}")
    stacked = np.vstack([shifted >> 8, shifted & 0xFF]).astype(np.uint8)
    return base64.b64encode(png(stacked)).decode("ascii")


def resized(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize an image [S, S] to SIDE pixels, by area means if it shrinks."""
    method = cv2.INTER_AREA if grey.shape[0] > SIDE else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(grey, (SIDE, SIDE), interpolation=method), dtype=np.uint8)


def overlaid(grey: NDArray[np.uint8], heat: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blend a map [h, w] of 0..255 over an image [S, S] with the colours of inferno; returns BGR [S, S, 3].

    Inferno's lightness grows with the map, so it does not need colour vision. The image stays grey where the map is 0.
    """
    wide = cv2.resize(heat, grey.shape[::-1], interpolation=cv2.INTER_LINEAR)
    share = OPACITY * np.sqrt(wide[..., None] / 255.0)
    mixed = (1 - share) * cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR) + share * cv2.applyColorMap(wide, cv2.COLORMAP_INFERNO)
    return np.rint(mixed).astype(np.uint8)

"""Small pictures for the page, as PNG files."""

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 160  # pixels
STRONGEST = 0.65  # how much of the ramp's colour covers the picture where the map is at its maximum


def sized(grey: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.uint8]:
    """A picture [S, S] with `side` pixels a side: the means of areas, or as many pixels of the same grey."""
    smaller = grey.shape[0] > side
    found = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return np.asarray(found, dtype=np.uint8)


def overlaid(grey: NDArray[np.uint8], strength: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture [S, S] below a map [h, w] of 0..255, as blue, green, red [S, S, 3].

    The ramp goes from dark violet over orange to yellow and grows lighter with the map, so that it can be read without
    seeing colours. Where the map is 0 the picture stays grey.
    """
    wide = cv2.resize(strength, grey.shape[::-1], interpolation=cv2.INTER_LINEAR)
    share = STRONGEST * np.sqrt(wide[..., None] / 255.0)
    mixed = (1 - share) * cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR) + share * cv2.applyColorMap(wide, cv2.COLORMAP_INFERNO)
    return np.rint(mixed).astype(np.uint8)


def png(picture: NDArray[np.uint8]) -> bytes:
    """The file of a picture [S, S], or [S, S, 3] of blue, green, red."""
    done, file = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done, "OpenCV writes PNG"
    return file.tobytes()

"""Pictures as text that a browser takes apart without loss.

The format, {"shape": [..., h, w], "bytes": 1 or 2, "data": text}:
1. Each picture [h, w] holds whole numbers 0..255 (bytes: 1) or 0..65535 (bytes: 2). Each pixel is guessed from those
   before it, as the middle one of: the left neighbour, the upper one, left + upper - upper left. Beyond the edges is 0.
   (Weinberger et al., The LOCO-I lossless image compression algorithm, 2000)
2. The pixel less the guess, as a signed number of `bytes` bytes (modulo 256 or 65536), is written as 0, -1, 1, -2,
   2 ... -> 0, 1, 2, 3, 4 ..., so that what is nearly right is small.
3. The low bytes of all pixels, picture by picture and row by row, then all the high bytes if there are two.
4. These bytes deflated as a zlib stream (RFC 1950), which browsers undo by DecompressionStream("deflate"), in base64.

Noise does not compress: of a head, 0.6 to 0.7 bytes a pixel remain, with the base64 0.85 to 0.95. Ten studies of 35
slices at 256 x 256 pixels come to 20 MB.
"""

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def packed(values: NDArray[np.integer], low: int = 0) -> dict[str, Any]:
    """Pictures [..., h, w] of whole numbers from `low` on, at most 65535 above it; `low` becomes 0.

    Raises ValueError for values out of these bounds.
    """
    raised = values.astype(np.int32) - low
    if values.ndim < 2 or (values.size and not 0 <= raised.min() <= raised.max() <= 0xFFFF):
        raise ValueError(f"only pictures [..., h, w] of {low} to {low + 0xFFFF} can be packed, not {values.shape}")
    size = 1 if not values.size or raised.max() <= 0xFF else 2
    bits = 8 * size
    half = 1 << (bits - 1)
    error = ((raised - _guessed(raised) + half) & ((1 << bits) - 1)) - half
    folded = (error << 1) ^ (error >> (bits - 1))
    planes = b"".join((folded >> (8 * k) & 0xFF).astype(np.uint8).tobytes() for k in range(size))
    # FILTERED is made for small errors of a guess: 5 % shorter
    deflate = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_FILTERED)
    data = deflate.compress(planes) + deflate.flush()
    return {"shape": list(values.shape), "bytes": size, "data": base64.b64encode(data).decode("ascii")}


def _guessed(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """The middle one of left, upper, and left + upper - upper left of each pixel [..., h, w]."""
    edged = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(1, 0), (1, 0)])
    left, upper, corner = edged[..., 1:, :-1], edged[..., :-1, 1:], edged[..., :-1, :-1]
    return np.clip(left + upper - corner, np.minimum(left, upper), np.maximum(left, upper))

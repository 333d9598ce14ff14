"""Grey values of PNG images, for competitions that have images instead of CT slices."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ich.data.dicom import Geometry, Reason, Unreadable
from ich.data.refusal import exhausted, require_same
from ich.inputs import content

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_SIDE = 4096  # pixels
MAX_FILE = 1 << 28  # bytes; twice the largest image, uncompressed
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # PNG's bits by colour type


def geometry(path: Path) -> Geometry:
    """A study of its own for each image, named like its file. Raises Unreadable."""
    data = _checked(path)
    rows, columns = struct.unpack(">II", data[16:24])[::-1]
    name, unknown = path.stem, float("nan")
    values = {"patient_id": name, "study_id": name, "series_id": name, "position": None, "instance": 0, "tilt": 0.0}
    sizes = {"row_spacing": unknown, "column_spacing": unknown, "rows": rows, "columns": columns}
    return Geometry(**values, **sizes, crc=zlib.crc32(data))


def grey(path: Path, crc: int | None = None) -> NDArray[np.int16]:
    """Grey values 0..255, int16 [rows, columns], of a grey or colour PNG of 1 to 16 bits. Raises Unreadable.

    Colours are converted to luminance (Rec. 601), 16 bits to 8, transparent pixels to black. crc: that of its Geometry.
    """
    data = _checked(path)
    require_same(zlib.crc32(data), crc)
    if not data.rstrip(b"\0").endswith(b"IEND\xaeB`\x82"):  # OpenCV silently fills in the rest
        raise Unreadable(Reason.TRUNCATED, "the PNG file is cut off")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise Unreadable(Reason.NOT_DECODED, "PNG")
    full = 65535.0 if image.dtype == np.uint16 else 255.0
    if image.ndim == 2:
        return np.rint(image * (255 / full)).astype(np.int16)
    shade = cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_BGR2GRAY) * (255 / full)
    if image.shape[2] == 4:
        shade = shade * (image[..., 3] / full)
    return np.rint(shade).astype(np.int16)


def _checked(path: Path) -> bytes:
    """The bytes of a PNG file whose header gives a possible size. Raises Unreadable."""
    try:
        data = content(path, MAX_FILE)
    except OSError as error:
        if exhausted(error):
            raise
        raise Unreadable(Reason.UNREADABLE, error.strerror or type(error).__name__) from None
    if not data.startswith(SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 33:
        raise Unreadable(Reason.NOT_IMAGE)
    columns, rows, bits, colour = struct.unpack(">IIBB", data[16:26])
    if not (0 < rows <= LARGEST_SIDE and 0 < columns <= LARGEST_SIDE) or bits not in DEPTHS.get(colour, ()):
        raise Unreadable(Reason.BAD_SIZE, f"{rows} x {columns}, {bits} bits, colour type {colour}")
    return data

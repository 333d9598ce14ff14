"""Grey values of PNG images, for competitions that have images instead of CT slices."""

import struct
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ich.data.dicom import Geometry, Reason, Unreadable
from ich.data.refusal import exhausted

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_SIDE = 4096  # pixels; judged from the header before memory is taken
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # PNG's bits by colour type


def geometry(path: Path) -> Geometry:
    """A picture says nothing of patient or place: each is a study named like its file. Raises Unreadable."""
    rows, columns = struct.unpack(">II", _checked(path)[16:24])[::-1]
    name, unknown = path.stem, float("nan")
    values = {"patient_id": name, "study_id": name, "series_id": name, "position": None, "instance": 0, "tilt": 0.0}
    return Geometry(**values, row_spacing=unknown, column_spacing=unknown, rows=rows, columns=columns)


def grey(path: Path) -> NDArray[np.int16]:
    """Grey values 0..255, int16 [rows, columns], of a grey or coloured PNG of 1 to 16 bits. Raises Unreadable.

    Colour becomes luminance (Rec. 601); 16 bits become 8; what is transparent becomes black.
    """
    data = _checked(path)
    if not data.rstrip(b"\0").endswith(b"IEND\xaeB`\x82"):  # decoders fill up what is missing without a word
        raise Unreadable(Reason.TRUNCATED, "the end of the PNG file is missing")
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise Unreadable(Reason.NOT_DECODED, "PNG")
    full = 65535.0 if picture.dtype == np.uint16 else 255.0
    if picture.ndim == 2:
        return np.rint(picture * (255 / full)).astype(np.int16)
    shade = cv2.cvtColor(np.ascontiguousarray(picture[..., :3]), cv2.COLOR_BGR2GRAY) * (255 / full)
    if picture.shape[2] == 4:
        shade = shade * (picture[..., 3] / full)
    return np.rint(shade).astype(np.int16)


def _checked(path: Path) -> bytes:
    """The file's bytes, once its first chunk promises a picture of a possible size."""
    try:
        data = path.read_bytes()
    except OSError as error:
        if exhausted(error):
            raise
        raise Unreadable(Reason.UNREADABLE, error.strerror or type(error).__name__) from None
    if not data.startswith(SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 33:
        raise Unreadable(Reason.NOT_PICTURE)
    columns, rows, bits, colour = struct.unpack(">IIBB", data[16:26])
    if not (0 < rows <= LARGEST_SIDE and 0 < columns <= LARGEST_SIDE) or bits not in DEPTHS.get(colour, ()):
        raise Unreadable(Reason.BAD_SIZE, f"{rows} x {columns}, {bits} bits, colour type {colour}")
    return data

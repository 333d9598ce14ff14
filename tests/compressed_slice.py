"""Slices in every supported compression, for tests of decoding."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder

import plain_slice
from ich.data import dicom
from ich.data.dicom import SliceHeader

HEADER = replace(plain_slice.HEADER, image_id="1.2.3", bits_stored=12, signed=False, intercept=-1024.0)
JPEG_LS = "1.2.840.10008.1.2.4.80"


def noisy_ramp(rows: int, columns: int, high: int) -> np.ndarray:
    """uint16 [rows, columns] from 0 to `high`."""
    rng = np.random.default_rng(5)
    ramp = np.linspace(0, high, rows * columns).reshape(rows, columns)
    stored = np.clip(ramp + rng.normal(0, high / 50, ramp.shape), 0, high).astype(np.uint16)
    stored[0, 0], stored[-1, -1] = 0, high
    return stored


def rle(stored: np.ndarray) -> bytes:
    return RLELosslessEncoder.encode(
        stored,
        rows=stored.shape[0],
        columns=stored.shape[1],
        samples_per_pixel=1,
        number_of_frames=1,
        bits_allocated=16,
        bits_stored=16,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
    )


LOSSLESS: dict[str, Callable[[np.ndarray], bytes]] = {
    "1.2.840.10008.1.2.5": rle,
    "1.2.840.10008.1.2.4.57": lambda a: imagecodecs.jpeg8_encode(a, lossless=True, predictor=4),
    "1.2.840.10008.1.2.4.70": lambda a: imagecodecs.jpeg8_encode(a, lossless=True, predictor=1),
    JPEG_LS: imagecodecs.jpegls_encode,
    "1.2.840.10008.1.2.4.81": imagecodecs.jpegls_encode,
    "1.2.840.10008.1.2.4.90": lambda a: imagecodecs.jpeg2k_encode(a, reversible=True, codecformat="j2k"),
    "1.2.840.10008.1.2.4.91": lambda a: imagecodecs.jpeg2k_encode(a, reversible=True, codecformat="jp2"),
    "1.2.840.10008.1.2.4.201": lambda a: imagecodecs.htj2k_encode(a, reversible=True),
    "1.2.840.10008.1.2.4.202": lambda a: imagecodecs.htj2k_encode(a, reversible=True),
    "1.2.840.10008.1.2.4.203": lambda a: imagecodecs.htj2k_encode(a, reversible=True),
}
LOSSY: dict[str, Callable[[np.ndarray], bytes]] = {
    "1.2.840.10008.1.2.4.50": lambda a: imagecodecs.jpeg8_encode(a.astype(np.uint8), level=98),
    "1.2.840.10008.1.2.4.51": lambda a: imagecodecs.jpeg8_encode(a, level=98, bitspersample=12),
}
ENCODERS = LOSSLESS | LOSSY


def write_compressed(
    path: Path,
    syntax: str,
    frames: list[bytes],
    shape: tuple[int, int],
    header: SliceHeader = HEADER,
    fragments_per_frame: int = 1,
    **elements: object,
) -> Path:
    """Write a file whose pixels are compressed `frames`, with `elements` set in its header."""
    dicom.write(path, np.zeros(shape, np.uint16), header)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.PixelData = encapsulate(frames, fragments_per_frame=fragments_per_frame)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path

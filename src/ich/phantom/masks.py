"""masks.npz: the bleeds of a synthetic competition, one bit field per slice."""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ich.data.crop import resized
from ich.inputs import regular
from ich.phantom.study import CLASSES

MAX_FILE = 1 << 32  # bytes
EPOCH = (1980, 1, 1, 0, 0, 0)  # date of each file in the archive, so that the bytes depend on the masks alone


def add_mask(archive: zipfile.ZipFile, image_id: str, mask: NDArray[np.uint8]) -> None:
    """Add the mask [size, size] of a slice. Bit k: CLASSES[k] is visible in the pixel."""
    entry = zipfile.ZipInfo(f"{image_id}.npy", EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(entry, "w") as file:
        np.lib.format.write_array(file, mask, allow_pickle=False)


def class_masks(
    path: Path, image_ids: Sequence[str], boxes: NDArray[np.integer], size: int, classes: Sequence[str]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Read masks and crop and resize them like their images: yield k and uint8 [size, size] of each image_ids[k].

    Slices without a bleed are not in the file, and are left out. Bit c: a bleed of classes[c] covers half of the pixel.
    boxes [n, 3]: the square (row, column, side) of each crop, in pixels; it may extend beyond the slice.
    """
    with open(path, "rb", opener=regular(MAX_FILE)) as file, np.load(file, allow_pickle=False) as stored:
        for k, image_id in enumerate(image_ids):
            if image_id in stored:
                mask, found = stored[image_id], np.zeros((size, size), np.uint8)
                row, column, side = boxes[k].tolist()
                for c, name in enumerate(classes):
                    chosen = mask != 0 if name == "any" else (mask >> CLASSES.index(name)) & 1
                    covered = resized(chosen.astype(np.float32), (row, column, side), size, 0) >= 0.5
                    found |= covered.astype(np.uint8) << c
                yield k, found


def lesion_masks(
    path: Path, image_ids: Sequence[str], boxes: NDArray[np.integer], size: int, name: str
) -> NDArray[np.bool_]:
    """Masks of one class as in `class_masks`, bool [n, size, size]; empty for slices without a bleed."""
    masks = np.zeros((len(image_ids), size, size), dtype=bool)
    for k, mask in class_masks(path, image_ids, boxes, size, [name]):
        masks[k] = mask
    return masks

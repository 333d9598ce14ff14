"""masks.npz: the bleeds of a synthetic competition, one bit field per slice."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ich.data.crop import resized
from ich.inputs import regular

MAX_FILE = 1 << 32  # bytes
EPOCH = (1980, 1, 1, 0, 0, 0)  # date of each file in the archive, so that the bytes depend on the masks alone


def add_mask(archive: zipfile.ZipFile, image_id: str, mask: NDArray[np.uint8]) -> None:
    """Add the mask [size, size] of a slice. Bit k: CLASSES[k] is visible in the pixel."""
    entry = zipfile.ZipInfo(f"{image_id}.npy", EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(entry, "w") as file:
        np.lib.format.write_array(file, mask, allow_pickle=False)


def lesion_masks(
    path: Path, image_ids: Sequence[str], boxes: NDArray[np.integer], size: int, bit: int | None
) -> NDArray[np.bool_]:
    """Read the masks of slices and crop and resize them like their images, bool [n, size, size].

    boxes [n, 3]: the square (row, column, side) of each crop, in pixels; it may extend beyond the slice. A pixel
    belongs to a bleed that covers half of it. Slices without a bleed are not in the file. bit: the index of a subtype
    in CLASSES; None for all of them.
    """
    masks = np.zeros((len(image_ids), size, size), dtype=bool)
    with open(path, "rb", opener=regular(MAX_FILE)) as file, np.load(file, allow_pickle=False) as stored:
        for k, image_id in enumerate(image_ids):
            if image_id in stored:
                mask = stored[image_id]
                chosen = mask != 0 if bit is None else (mask >> bit) & 1
                row, column, side = boxes[k].tolist()
                masks[k] = resized(chosen.astype(np.float32), (row, column, side), size, 0) >= 0.5
    return masks

"""Where the bleeds of a synthetic competition are: masks.npz, a bit field a slice, written and read."""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

EPOCH = (1980, 1, 1, 0, 0, 0)  # each member's date, so that the same masks are the same bytes

Masks = dict[str, NDArray[np.uint8]]  # image id -> [size, size], bit k: CLASSES[k] is visible in the pixel


@contextmanager
def mask_writer(path: Path) -> Iterator[Callable[[Masks], None]]:
    """Yield a function that adds the masks of some slices to the new file."""
    with zipfile.ZipFile(path, "w") as archive:

        def add(masks: Masks) -> None:
            for image_id, mask in masks.items():
                member = zipfile.ZipInfo(f"{image_id}.npy", EPOCH)
                member.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(member, "w") as file:
                    np.lib.format.write_array(file, mask, allow_pickle=False)

        yield add


def lesion_masks(
    path: Path, image_ids: Sequence[str], boxes: NDArray[np.integer], size: int, bit: int | None
) -> NDArray[np.bool_]:
    """Where the bleeds of some slices are in the pictures that the networks see, bool [n, size, size].

    boxes [n, 3]: the square (row, column, side) that was cut out of each slice, in its pixels; it may reach beyond.
    A picture's pixel belongs to a bleed that covers half of it. A slice without a bleed has no mask and gets none.
    bit: one subtype, its place in CLASSES; None for all of them.
    """
    masks = np.zeros((len(image_ids), size, size), dtype=bool)
    with np.load(path, allow_pickle=False) as stored:
        known = set(stored.files)
        for place, (image_id, (row, column, side)) in enumerate(zip(image_ids, boxes.tolist(), strict=True)):
            if image_id in known:
                mask = stored[image_id]
                chosen = mask != 0 if bit is None else (mask >> bit) & 1 == 1
                masks[place] = _cropped(chosen.astype(np.float32), row, column, side, size) >= 0.5
    return masks


def _cropped(mask: NDArray[np.float32], row: int, column: int, side: int, size: int) -> NDArray[np.float32]:
    """The square of a mask at size x size: by area where it shrinks, as the pictures are made."""
    wide = np.zeros((side, side), dtype=np.float32)
    part = mask[max(row, 0) : max(row + side, 0), max(column, 0) : max(column + side, 0)]
    top, left = max(-row, 0), max(-column, 0)
    wide[top : top + part.shape[0], left : left + part.shape[1]] = part
    method = cv2.INTER_AREA if side >= size else cv2.INTER_LINEAR
    return cv2.resize(wide, (size, size), interpolation=method).astype(np.float32, copy=False)

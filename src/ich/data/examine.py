"""Read header and pixels of each file once for `ich check`; only hashes of the pixels are kept."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ich.data import dicom, images
from ich.data.dicom import Geometry, Unreadable
from ich.data.files import located
from ich.data.slice_table import Progress, Quarantined, quarantine_list, read_each


class Image(NamedTuple):
    """A hash of the pixels of one slice."""

    digest: str
    blank: bool  # all values are the same


File = tuple[Geometry | Unreadable, list[Image | Unreadable]]  # the header, and the image of each frame


def examine(root: Path, paths: Sequence[str], jobs: int, on_done: Progress, values: str = "hu") -> list[File]:
    """Read header and pixels of each file, in order; `values` as in Raw. Refuses the same files as prepare."""
    return read_each(read_file, root, paths, values, jobs, on_done)


def read_file(path: Path, values: str) -> File:
    try:
        with located(path) as file:
            if values == "grey":
                return images.geometry(file), [_hashed(images.grey(file))]
            with dicom.opened(file) as ct:
                return ct.geometry(), [_hashed(ct.hounsfield(frame)) for frame in range(ct.frames)]
    except Unreadable as refusal:
        return refusal, []


def _hashed(units: np.ndarray | Unreadable) -> Image | Unreadable:
    if isinstance(units, Unreadable):
        return units
    # Units are hashed, not stored values, so that copies in another encoding are found.
    digest = hashlib.sha256(repr(units.shape).encode() + units.tobytes()).hexdigest()[:32]
    return Image(digest, bool((units == units.flat[0]).all()))


def with_images(
    table: pd.DataFrame, paths: Iterable[str], examined: Sequence[File]
) -> tuple[pd.DataFrame, list[Quarantined]]:
    """The slices with readable pixels, with instance_uid, rows, columns, digest and blank; and the refused ones.

    Path and instance_uid of the frames of a multi-frame file get the frame number appended.
    """
    read = []
    for path, (first, shown) in zip(paths, examined, strict=True):
        for header, image in zip((first, *first.further) if isinstance(first, Geometry) else (), shown, strict=True):
            kept = ("", False, image) if isinstance(image, Unreadable) else (*image, None)
            number = f"#{header.frame}" if len(shown) > 1 else ""
            read.append((path, header.frame, number, header.instance_uid, header.rows, header.columns, *kept))
    columns = ["path", "frame", "number", "instance_uid", "rows", "columns", "digest", "blank", "refusal"]
    table = table.merge(
        pd.DataFrame(read, columns=pd.Index(columns)), on=["path", "frame"], how="left", validate="one_to_one"
    )
    refused = quarantine_list(table, {i: why for i, why in enumerate(table["refusal"]) if isinstance(why, Unreadable)})
    named = table["instance_uid"] != ""
    table["instance_uid"] += table["number"].where(named, "")
    table["path"] += table["number"]
    return table[table["refusal"].isna()].drop(columns=["refusal", "number"]).reset_index(drop=True), refused

"""Every file read once, header and pixels, for `ich check`: nothing is kept of a picture but its hash."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ich.data import dicom, pictures
from ich.data.cache import CHUNK, Progress, Quarantined
from ich.data.dicom import Geometry, Reason, Unreadable
from ich.data.files import BadArchive, located
from ich.processes import side_by_side


@dataclass(frozen=True)
class Picture:
    """What is kept of the pixels of one slice: a hash of its units, and whether they are all the same."""

    digest: str
    blank: bool


File = tuple[Geometry | Unreadable, list[Picture | Unreadable]]  # the header, and the picture of each frame


def examine(root: Path, paths: Sequence[str], jobs: int, on_done: Progress, values: str = "hu") -> list[File]:
    """Read header and pixels of each file, in order, once; `values` as in Raw. What prepare refuses is refused."""
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    found: list[File] = []
    for part in side_by_side(_examined, ((root, chunk, values) for chunk in chunks), jobs):
        found += part
        on_done(len(part))
    return found


def _examined(root: Path, paths: Sequence[str], values: str) -> list[File]:
    found: list[File] = []
    for path in paths:
        try:
            with located(root / path) as file:
                if values == "hu":
                    found.append(dicom.survey(file, _picture))
                else:
                    found.append((pictures.geometry(file), [_picture(pictures.grey(file))]))
        except Unreadable as refusal:
            found.append((refusal, []))
        except BadArchive as error:
            found.append((Unreadable(Reason.UNREADABLE, str(error)), []))
    return found


def _picture(units: np.ndarray) -> Picture:
    # The shape belongs to the picture; and units, not stored values: a copy in another encoding is found too.
    digest = hashlib.sha256(repr(units.shape).encode() + units.tobytes()).hexdigest()[:32]
    return Picture(digest, bool((units == units.flat[0]).all()))


def with_pictures(
    table: pd.DataFrame, paths: Iterable[str], examined: Sequence[File]
) -> tuple[pd.DataFrame, list[Quarantined]]:
    """The slices whose pixels could be read, with instance_uid, rows, columns, digest and blank; and the others.

    A frame of a multi-frame file gets its number behind path and instance_uid, so that each slice has its own.
    """
    read = [
        (path, header.frame, header.instance_uid, header.rows, header.columns, *_kept(seen), len(shown) > 1)
        for path, (first, shown) in zip(paths, examined, strict=True)
        if isinstance(first, Geometry)
        for header, seen in zip((first, *first.further), shown, strict=True)
    ]
    columns = ["path", "frame", "instance_uid", "rows", "columns", "digest", "blank", "refusal", "several"]
    known = pd.DataFrame(read, columns=pd.Index(columns))
    table = table.merge(known, on=["path", "frame"], how="left", validate="one_to_one")
    lost = table["refusal"].notna()
    said = table.loc[lost, ["image_id", "split", "path", "refusal"]].itertuples(index=False)
    refused = [Quarantined(i, split, path, why.reason.name.lower(), why.detail) for i, split, path, why in said]
    number = ("#" + table["frame"].astype(str)).where(table["several"], "")
    named = table["instance_uid"] != ""
    table = table.assign(path=table["path"] + number, instance_uid=(table["instance_uid"] + number).where(named, ""))
    return table[~lost].drop(columns=["refusal", "several"]).reset_index(drop=True), refused


def _kept(seen: Picture | Unreadable) -> tuple[str, bool, Unreadable | None]:
    return ("", False, seen) if isinstance(seen, Unreadable) else (seen.digest, seen.blank, None)

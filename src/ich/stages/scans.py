"""New scans: the DICOM files of a folder or archive, and their slice table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ich.console import progress
from ich.data.competitions import Raw
from ich.data.competitions.layout import refused
from ich.data.dicom import Geometry, Unreadable
from ich.data.files import INSIDE, below, checked, escaped, image_ids, with_members
from ich.data.slice_table import Quarantined, read_geometries, slice_table
from ich.errors import UserError
from ich.processes import cores
from ich.store import raw


@dataclass(frozen=True)
class Scans:
    root: Path  # folder that all paths are relative to
    files: Sequence[str]  # files and archives
    headers: Mapping[str, Geometry | Unreadable]  # of the files and the members of archives
    slices: pd.DataFrame  # the slice table; empty if no header is readable
    quarantined: list[Quarantined]

    def identities(self) -> dict[str, tuple[int, str]]:
        """Return size and sample of each file."""
        found: dict[str, tuple[int, str]] = {}
        with progress("predict: raw files", len(self.files), "files", inner=True) as advance:
            for name, sample in raw.samples(self.root, self.files):
                found[name] = ((self.root / name).stat().st_size if sample else 0, sample)
                advance(1)
        return found


def read_scans(source: Path, classes: Sequence[str], values: str) -> Scans:
    """Read the headers of a DICOM file, a .zip archive, or a folder of both at any depth.

    values: "hu" or "grey", as in bundle.json. Raises UserError if there are no files.
    """
    shown = escaped(str(source))
    if not source.exists():
        raise UserError(f"{shown}: no such file or folder")
    try:
        root, found = (source, below(source)) if source.is_dir() else (source.parent, checked([source.name]))
    except OSError as error:
        raise UserError(f"{shown}: cannot read the folder ({error.strerror})") from None
    real = found.names
    found = with_members(root, found)
    if not found.names:
        why = "".join(f" ({name}: {why})" for name, why in [*found.refused.items()][:1])
        raise UserError(f"{shown}: no files in this {'folder' if source.is_dir() else 'archive'}{why}")
    ids = image_ids([name.replace(INSIDE, "/") for name in found.names])
    files = pd.DataFrame({"image_id": ids, "split": "test", "path": found.names})
    labels = pd.DataFrame({"image_id": pd.Series(dtype="str")} | {name: pd.Series(dtype="float") for name in classes})
    with progress("predict: headers", len(found.names), "files") as advance:
        geometries = read_geometries(root, found.names, cores(), advance, values)
    try:
        slices, unread = slice_table(Raw(files, labels, [], dict.fromkeys(classes, 1.0), "", ()), geometries)
    except ValueError as error:
        raise UserError(f"{shown}: {error}") from None
    headers = dict(zip(found.names, geometries, strict=True))
    return Scans(root, real, headers, slices, [*unread, *refused(found, "test")])

"""The slice table: one row per readable slice; and the quarantine list of the other files."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from ich.data import dicom, images
from ich.data.competitions import Raw, Selection
from ich.data.dicom import Geometry, Reason, Unreadable
from ich.data.files import escaped, located
from ich.data.refusal import Quarantined
from ich.data.rules import SAME_PLACE
from ich.processes import run_parallel

CHUNK = 64  # files per task of a process
ID_OF = {"slice": "image_id", "study": "study_id"}  # the column that labels are joined by, by Raw.level
SERIES = ["split", "study_id", "series_id"]
Progress = Callable[[int], None]
Result = TypeVar("Result")


# ---- headers


def read_geometry(path: Path, values: str) -> Geometry | Unreadable:
    """Read the identity and position of a file or an archive's member; `values` as in Raw."""
    try:
        with located(path) as file:
            return dicom.geometry(file) if values == "hu" else images.geometry(file)
    except Unreadable as refusal:
        return refusal


def read_geometries(
    root: Path, paths: Sequence[str], jobs: int, on_done: Progress, values: str = "hu"
) -> list[Geometry | Unreadable]:
    """Read the geometry of each file, in order, with `jobs` processes."""
    return read_each(read_geometry, root, paths, values, jobs, on_done)


def read_each(
    read: Callable[[Path, str], Result], root: Path, paths: Sequence[str], values: str, jobs: int, on_done: Progress
) -> list[Result]:
    """Call `read(path, values)` for each file, in order, with `jobs` processes."""
    tasks = ((read, [root / path for path in paths[i : i + CHUNK]], values) for i in range(0, len(paths), CHUNK))
    found: list[Result] = []
    for part in run_parallel(_read_chunk, tasks, jobs):
        found += part
        on_done(len(part))
    return found


def _read_chunk(read: Callable[[Path, str], Result], paths: Sequence[Path], values: str) -> list[Result]:
    return [read(path, values) for path in paths]


def burned_in(geometries: Sequence[Geometry | Unreadable]) -> str:
    """A sentence about the files whose pixels may show text; empty if there are none."""
    counts = Counter(g.burned_in for g in geometries if isinstance(g, Geometry) and g.burned_in)
    if not counts:
        return ""
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(counts.items()))
    return (
        f"The pixels of {counts.total()} files may show text such as the patient's name ({reasons}). Inspect them"
        " before you share images"
    )


# ---- the table


def slice_table(raw: Raw, geometries: Sequence[Geometry | Unreadable]) -> tuple[pd.DataFrame, list[Quarantined]]:
    """Build the slice table of the readable headers and the quarantine list.

    Columns: image_id, patient_id, study_id, series_id, position (mm), index, n_slices, split, tilt (degrees),
    row_spacing, column_spacing (mm), one float32 column per class (NaN: unlabelled), frame, path, crc. Each frame of a
    multi-frame file is a slice with image_id `<file>#<frame>`, counted from 0. The slices of a series are adjacent and
    sorted by position; if any of them has no position, by instance number. Slices at the same position are sorted by
    acquisition, instance number and image id. The label of a study is given to each of its slices. A study of an
    unknown patient is a patient of its own.
    """
    classes = list(raw.classes)
    geometries = _without_same_ids(raw.files["image_id"], geometries)
    refused = {i: g for i, g in enumerate(geometries) if isinstance(g, Unreadable)}
    frames = [
        (i, header, f"#{header.frame}" if first.further else "")
        for i, first in enumerate(geometries)
        if isinstance(first, Geometry)
        for header in (first, *first.further)
    ]
    table = raw.files.iloc[[i for i, _, _ in frames]].reset_index(drop=True)
    table["image_id"] += pd.Series([suffix for _, _, suffix in frames], dtype="str")
    headers = pd.DataFrame([vars(header) for _, header, _ in frames], columns=list(Geometry.__annotations__))
    table = pd.concat([table, headers], axis=1).merge(
        raw.labels, on=ID_OF[raw.level], how="left", validate="many_to_one"
    )
    if table["image_id"].duplicated().any():
        twice = table.loc[table["image_id"].duplicated(), "image_id"].iloc[0]
        raise ValueError(f"image {twice} is in two folders; keep one of its files")
    table["patient_id"] = _patients(raw, table)
    table[classes] = table[classes].astype("float32")
    table.loc[table["study_id"].isin(raw.test_studies), "split"] = "test"
    table.loc[table["split"] == "test", classes] = np.nan
    table = _in_order(table)
    columns = ["image_id", "patient_id", "study_id", "series_id", "position", "index", "n_slices", "split"]
    columns += ["tilt", "row_spacing", "column_spacing", *classes, "frame", "path", "crc"]
    return table[columns], [*quarantine_list(raw.files, refused), *raw.refused, *_without_file(raw, table)]


def _without_same_ids(ids: pd.Series, geometries: Sequence[Geometry | Unreadable]) -> list[Geometry | Unreadable]:
    """Refuse a file whose image id `a#0` is also that of a frame of the multi-frame file `a`."""
    read = [(name, first) for name, first in zip(ids, geometries, strict=True) if isinstance(first, Geometry)]
    frames = {f"{name}#{k}" for name, first in read if first.further for k in range(1 + len(first.further))}
    same = {name for name, first in read if not first.further} & frames
    refusal = Unreadable(Reason.SAME_ID)
    return [refusal if name in same else first for name, first in zip(ids, geometries, strict=True)]


def _patients(raw: Raw, table: pd.DataFrame) -> pd.Series:
    """The patient of each slice, from the label table or PatientID, of this or another slice of its study."""
    sources = [table["patient_id"].where(table["patient_id"] != "")]
    if raw.patients:
        sources.append(table[ID_OF[raw.level]].map(raw.patients).astype("str"))
    patients = table["study_id"]
    for source in sources:  # the later ones have priority
        if source.isna().any():
            of_study = source.groupby(table["study_id"]).transform("first")
            patients = source.fillna(of_study).fillna(patients)
        else:
            patients = source
    return patients


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    table = table.astype(dict.fromkeys(("position", "acquisition", "instance"), "float64"))
    series = table.groupby(SERIES, sort=False)
    placed = series["position"].transform("count") == series["position"].transform("size")
    table = table.assign(
        order=(table["position"] / SAME_PLACE).round().where(placed, table["instance"]),
        is_test=table["split"] == "test",
    )
    keys = ["is_test", "study_id", "series_id", "order", "acquisition", "instance", "image_id"]
    return with_indices(table.sort_values(keys, ignore_index=True, kind="stable"))


def without_labels(raw: Raw, table: pd.DataFrame) -> str:
    """Why no training slice has a label for each class; empty if one has."""
    train, key = table[table["split"] == "train"], ID_OF[raw.level]
    if train[list(raw.classes)].notna().all(axis=1).any():
        return ""
    ids = raw.labels[key]
    if ids.empty or train[key].isin(ids).any():
        return "no readable training slice has a label for each class"
    what = {"image_id": "image", "study_id": "StudyInstanceUID"}[key]
    return (
        f"no readable training slice has a label. The first label is of {what} {ids.iloc[0]!r}, but"
        f" {train['path'].iloc[0]} is of {what} {train[key].iloc[0]!r}"
    )


def apply_selection(table: pd.DataFrame, selection: Selection) -> tuple[pd.DataFrame, list[Quarantined]]:
    """Split a slice table into the slices that a competition's `select` keeps and the quarantined others."""
    reasons = {i: Unreadable(Reason[name.upper()], detail) for i, (name, detail) in selection.reasons.items()}
    return with_indices(table[selection.keep.to_numpy()].reset_index(drop=True)), quarantine_list(table, reasons)


def with_indices(table: pd.DataFrame) -> pd.DataFrame:
    """Add each slice's position in its series and the series' length; the slices of a series are adjacent, in order."""
    series = table.groupby(SERIES, sort=False)
    counts = series["image_id"].transform("size").astype("int32")
    return table.assign(index=series.cumcount().astype("int32"), n_slices=counts)


def without_overlap(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Drop the training studies of patients who are also in the test set; returns the table and a note."""
    train = table["split"] == "train"
    both = train & table["patient_id"].isin(table.loc[~train, "patient_id"])
    counts = table.loc[both, ["patient_id", "study_id", "image_id"]].nunique()
    note = (
        f"{counts['patient_id']} patients of the test set are in the training set too: their {counts['study_id']}"
        f" training studies ({counts['image_id']} slices) are left out"
    )
    return table[~both].reset_index(drop=True), note if both.any() else ""


def quarantine_list(files: pd.DataFrame, refused: Mapping[int, Unreadable]) -> list[Quarantined]:
    """List the rejected rows of a table with image_id, split and path."""
    names = files[["image_id", "split", "path"]].astype(str).to_numpy()
    reasons = {i: (refused[i].reason.name.lower(), refused[i].detail) for i in sorted(refused)}
    return [Quarantined(names[i, 0], names[i, 1], names[i, 2], *reason) for i, reason in reasons.items()]


def _without_file(raw: Raw, table: pd.DataFrame) -> list[Quarantined]:
    """List the images (studies) of the labels or the sample submission without a (readable) file."""
    present = set(raw.files["image_id"]) | set(table["image_id"])
    present |= set(table["study_id"]) if raw.level == "study" else set()
    promised = [("train", escaped(i)) for i in raw.labels[ID_OF[raw.level]]] + [("test", i) for i in raw.test_ids]
    reason = Reason.LABEL_WITHOUT_FILE.name.lower()
    return [Quarantined(i, split, "", reason, "") for split, i in promised if i not in present]

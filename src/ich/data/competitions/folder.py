"""Your own data: DICOM files in folders or .zip archives at any depth, and labels.csv.

labels.csv has a column image_id (the file name without .dcm; with its folders, from the root, where two files share
the name) or study_id (the StudyInstanceUID), and one column of 0 and 1 per class. Images below a folder test/, or with
test in a column split, are the test set. Without either there is no test set and no submission.
"""

import re
from pathlib import Path, PurePosixPath

import pandas as pd

from ich.data import files as found_files
from ich.data.competitions import layout
from ich.data.competitions.layout import LayoutError, Raw

SUBMITS = "probabilities"
LABELS = "labels.csv"
CLASS_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9_]{0,63}$")  # also the name of columns and files
IDENTIFIERS = ("image_id", "study_id", "patient_id", "series_id", "split")
TAKEN = {*IDENTIFIERS, "path", "position", "index", "n_slices", "tilt", "fold", "series", "row_spacing"}
TAKEN |= {"column_spacing", "crop_row", "crop_column", "crop_side", "raw_rows", "raw_columns", "frame"}
OTHER = (".csv", ".txt", ".md", ".json", ".xml", ".pdf", ".html", ".htm", ".yaml", ".yml", ".xlsx", ".doc", ".docx")
OTHER += (".jpg", ".jpeg", ".png", ".gif", ".exe", ".inf", ".ini", ".zip", ".gz", ".tar", ".7z", ".nii", ".py")


def raw(root: Path) -> Raw:
    """Read the scans and labels below `root`."""
    if root.is_file():
        raise LayoutError(f"{root}: this is a file; put it into a folder with its {LABELS}, and set root to the folder")
    layout.require_folder(root)
    labels, classes, key = _labels(root / LABELS)
    paths, notes = _paths(root)
    names = ["/".join(_plain(path)) for path in paths]
    files = layout.file_table(
        found_files.image_ids(names), ["test" if name.startswith("test/") else "train" for name in names], paths
    )
    layout.refuse_same_id(files)
    tested: frozenset[str] = frozenset()
    if "split" in labels:
        marked = labels.loc[labels["split"] == "test", key]
        if key == "study_id":
            tested = frozenset(marked)
            notes.append(f"{LABELS}: {len(tested)} studies are the test set")
        else:
            files.loc[files["image_id"].isin(marked), "split"] = "test"
    test_ids = files.loc[files["split"] == "test", "image_id"].tolist()
    if key == "image_id":
        known = labels["image_id"].isin(files["image_id"])
        if not known.any():
            raise LayoutError(
                f"{root / LABELS}: none of its {len(labels)} images has a file; the first id is"
                f" {labels['image_id'].iloc[0]!r}, but write ids like {files['image_id'].iloc[0]!r}"
                f" ({files['path'].iloc[0]})"
            )
        test = labels["image_id"].isin(test_ids)
        unlabelled = int((~files["image_id"].isin(labels["image_id"]) & (files["split"] == "train")).sum())
        if unlabelled:
            notes.append(f"{unlabelled} files have no row in {LABELS}; they count as unlabelled")
    else:
        test = labels["study_id"].isin(tested)
        notes.append(f"{LABELS} has labels of studies: each slice gets those of its study, as weak labels")
    kept = labels.loc[~test, [key, *classes]].reset_index(drop=True)
    level = "study" if key == "study_id" else "slice"
    weights = dict.fromkeys(classes, 1.0)
    return Raw(files, kept, test_ids, weights, "", tuple(notes), level=level, test_studies=tested)


def solution(root: Path) -> pd.DataFrame | None:
    """All labels, by image_id or study_id; those of test images are used to score predictions."""
    labels, classes, key = _labels(root / LABELS)
    return labels[[key, *classes]]


def submission(root: Path, values: pd.DataFrame) -> pd.DataFrame:
    """`values` (image_id and one column per class), sorted by image_id."""
    return values[["image_id", *(c for c in values.columns if c != "image_id")]].sort_values("image_id")


def _plain(path: str) -> tuple[str, ...]:
    """The parts of a path, with archives as folders: scans.zip!/a/1.dcm is scans/a/1.dcm."""
    archive, inside, name = path.partition(found_files.INSIDE)
    return (*PurePosixPath(archive).with_suffix("").parts, *PurePosixPath(name).parts) if inside else (path,)


def _is_dicom(name: str) -> bool:
    """Any name but those of other formats: DICOM files often have no suffix, and UIDs contain dots."""
    return not name.startswith(".") and name.upper() != "DICOMDIR" and not name.lower().endswith(OTHER)


def _paths(root: Path) -> tuple[list[str], list[str]]:
    """Files and members of archives, relative to `root` and sorted, and notes on ignored ones."""
    notes: list[str] = []
    everything = layout.find(root, "", lambda name: True)
    paths = [path for path in everything if _is_dicom(path.rpartition("/")[2])]
    for archive in (path for path in everything if path.lower().endswith(".zip")):
        try:
            members, refused = found_files.members(root / archive)
        except found_files.BadArchive as error:
            raise LayoutError(str(error)) from None
        notes += refused
        paths += [archive + found_files.INSIDE + m for m in members if _is_dicom(m.rpartition("/")[2])]
    if not paths:
        raise LayoutError(f"{root}: no DICOM file at any depth below it, nor in a .zip; put the scans there")
    return sorted(paths), notes


def _labels(path: Path) -> tuple[pd.DataFrame, list[str], str]:
    """The table sorted by its key (text), its classes (float32) and the key: image_id or study_id."""
    if not path.is_file():
        raise LayoutError(f"{path}: no such file; write a row per image or study: image_id or study_id, then classes")
    table = layout.read_text(path)
    table = table.loc[:, [c for c in table.columns if c and not c.startswith("Unnamed:")]]  # the index of a spreadsheet
    table.columns = table.columns.str.strip()
    key = next((k for k in ("image_id", "study_id") if k in table.columns), None)
    if key is None:
        raise LayoutError(f"{path}: no column image_id or study_id; it has {', '.join(map(repr, table.columns))}")
    classes = [c for c in table.columns if c not in IDENTIFIERS]
    if not classes or len(set(classes)) < len(classes):
        raise LayoutError(f"{path}: add one column per class to {key}, each with a different name")
    for name in classes:
        if not CLASS_NAME.match(name) or name in TAKEN:
            raise LayoutError(f"{path}: {name!r} cannot be a class; use letters, digits and _, as in 'subdural'")
    table[key] = table[key].str.strip()
    if key == "image_id":
        table[key] = table[key].str.removesuffix(".dcm")
    layout.require_ids(path, table[key], f"an {key}", once=True)
    if "split" in table:
        table["split"] = table["split"].str.strip()
        layout.refuse_rows(path, ~table["split"].isin(["train", "test"]), table["split"], "split train or test")
    for name in classes:
        expected = f"in column {name!r} (each column but {', '.join(IDENTIFIERS)} is a class)"
        table[name] = layout.digits(path, table[name].str.strip(), expected)
    return table.sort_values(key, ignore_index=True), classes, key

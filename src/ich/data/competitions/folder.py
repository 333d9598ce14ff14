"""Your own data: DICOM files in folders or .zip archives at any depth, and labels.csv.

labels.csv has a column image_id (the file name without .dcm; with its folders, from the root, where two files share
the name), SOPInstanceUID or study_id (the StudyInstanceUID), and one column of 0 and 1 per class. A column patient_id
replaces PatientID; others are ignored. Images below a folder test/, or with test in a column split, are the test set.
Without either there is no test set and no submission.
"""

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from ich.data import dicom
from ich.data import files as found_files
from ich.data.competitions import layout
from ich.data.competitions.layout import LayoutError, Raw
from ich.data.refusal import Quarantined

SUBMITS = "probabilities"
PUBLIC_IDS = False
LABELS = "labels.csv"
CLASS_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9_]{0,63}$")  # also the name of columns and files
IDENTIFIERS = ("image_id", "study_id", "patient_id", "series_id", "split")
INSTANCE = "SOPInstanceUID"
DICOM_NAMES = {"StudyInstanceUID": "study_id", "SeriesInstanceUID": "series_id", "PatientID": "patient_id"}
COLUMNS = {name.lower(): name for name in (*IDENTIFIERS, INSTANCE)}  # by what people write
COLUMNS |= {name.lower(): column for name, column in DICOM_NAMES.items()}
UNLABELLED = ("", "nan", "na")  # as spreadsheets, pandas and R write it
FRAME = r"#\d+$"  # of an image_id
TAKEN = {*IDENTIFIERS, "path", "position", "index", "n_slices", "tilt", "fold", "series", "row_spacing"}
TAKEN |= {"column_spacing", "crop_row", "crop_column", "crop_side", "raw_rows", "raw_columns", "frame"}
OTHER = (".csv", ".txt", ".md", ".json", ".xml", ".pdf", ".html", ".htm", ".yaml", ".yml", ".xlsx", ".doc", ".docx")
OTHER += (".jpg", ".jpeg", ".png", ".gif", ".exe", ".inf", ".ini", ".zip", ".gz", ".tar", ".7z", ".nii", ".py")


def raw(root: Path) -> Raw:
    """Read the scans and labels below `root`."""
    if root.is_file():
        raise LayoutError(f"{root}: this is a file; put it into a folder with its {LABELS}, and set root to the folder")
    layout.require_folder(root)
    (files, refused), notes = _files(root), list[str]()
    if not (root / LABELS).is_file():
        return _unlabelled(root, files, refused)
    labels, classes, key, ignored = _labels(root, files)
    if ignored:
        notes.append(f"{LABELS}: ignored columns: {', '.join(ignored)}")
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
        of_file = labels["image_id"].str.replace(FRAME, "", regex=True)
        known = labels["image_id"].isin(files["image_id"]) | of_file.isin(files["image_id"])
        if not known.any():
            raise LayoutError(
                f"{root / LABELS}: none of its {len(labels)} images has a file; the first id is"
                f" {labels['image_id'].iloc[0]!r}, but write ids like {files['image_id'].iloc[0]!r}"
                f" ({files['path'].iloc[0]})"
            )
        test = labels["image_id"].isin(test_ids)
        labelled = files["image_id"].isin(labels["image_id"]) | files["image_id"].isin(of_file)
        unlabelled = int((~labelled & (files["split"] == "train")).sum())
        if unlabelled:
            notes.append(f"{unlabelled} files have no row in {LABELS}; they count as unlabelled")
    else:
        test = labels["study_id"].isin(tested)
        notes.append(f"{LABELS} has labels of studies: each slice gets those of its study, as weak labels")
    patients = {}
    if "patient_id" in labels:
        named = labels[labels["patient_id"] != ""]
        patients = dict(zip(named[key], named["patient_id"], strict=True))
        notes.append(f"{LABELS}: patients are those of its column patient_id")
    kept = labels.loc[~test, [key, *classes]].reset_index(drop=True)
    level = "study" if key == "study_id" else "slice"
    weights = dict.fromkeys(classes, 1.0)
    more = {"level": level, "test_studies": tested, "patients": patients, "refused": refused}
    return Raw(files, kept, test_ids, weights, "", tuple(notes), **more)


def submission_ids(root: Path) -> list[str]:
    """Return nothing: there is no sample submission."""
    return []


def solution(root: Path) -> pd.DataFrame | None:
    """All complete labels, by image_id or study_id; those of test images are used to score predictions."""
    labels, classes, key, _ = _labels(root, _files(root)[0])
    return labels[[key, *classes]].dropna(ignore_index=True)


def submission(root: Path, values: pd.DataFrame) -> pd.DataFrame:
    """`values` (image_id and one column per class), sorted by image_id."""
    return values[["image_id", *(c for c in values.columns if c != "image_id")]].sort_values("image_id")


def _unlabelled(root: Path, files: pd.DataFrame, refused: list[Quarantined]) -> Raw:
    """Scans without labels, which `ich check` can check."""
    excel = next((path for path in sorted(root.glob("labels.xls*"))), None)
    what = "no such file; write one row per image or study: image_id or study_id, then classes"
    why = f"{root / LABELS}: {what}" if excel is None else f"{excel}: this is an Excel file; save it as {LABELS}"
    test_ids = files.loc[files["split"] == "test", "image_id"].tolist()
    labels = pd.DataFrame({"image_id": pd.Series(dtype="str")})
    return Raw(files, labels, test_ids, {}, "", (), no_labels=why, refused=refused)


def _plain(root: Path, path: str) -> str:
    """The path with archives as folders: scans.zip!/a/1.dcm is scans/a/1.dcm."""
    if found_files.INSIDE not in path or found_files.member(root / path) is None:
        return path
    archive, _, name = path.rpartition(found_files.INSIDE)
    return f"{PurePosixPath(archive).with_suffix('')}/{name}"


def _is_dicom(name: str) -> bool:
    """Any name but those of other formats: DICOM files often have no suffix, and UIDs contain dots."""
    return not name.startswith(".") and name.upper() != "DICOMDIR" and not name.lower().endswith(OTHER)


def _files(root: Path) -> tuple[pd.DataFrame, list[Quarantined]]:
    """`Raw.files` and `Raw.refused`, with members of archives."""
    found = layout.find(root, "", lambda name: _is_dicom(name) or name.lower().endswith(".zip"))
    found = found_files.with_members(root, found, _is_dicom)
    if not found.names:
        why = "".join(f" ({path}: {why})" for path, why in [*found.refused.items()][:1])
        raise LayoutError(f"{root}: no DICOM file at any depth below it, nor in a .zip; put the scans there{why}")
    names = [_plain(root, path) for path in found.names]
    splits = ["test" if name.startswith("test/") else "train" for name in names]
    files = layout.file_table(found_files.image_ids(names), splits, found.names)
    layout.refuse_same_id(files)
    return files, layout.refused(found, "train")


class Labels(NamedTuple):
    table: pd.DataFrame  # sorted by its key: ids as text, classes as float32
    classes: list[str]
    key: str  # image_id or study_id
    ignored: list[str]  # other columns


def _labels(root: Path, files: pd.DataFrame) -> Labels:
    """Read labels.csv: commas, semicolons or tabs; labels 0, 1, true, false, or nothing where unlabelled."""
    path = root / LABELS
    separator, encoding = layout.dialect(path)
    table = layout.read_text(path, separator=separator, encoding=encoding)
    table = table.loc[:, [c for c in table.columns if c and not c.startswith("Unnamed:")]]  # the index of a spreadsheet
    columns = table.columns.str.strip()
    table.columns = [COLUMNS.get(c.lower(), c) for c in columns]
    if table.columns.has_duplicates:
        first = table.columns[table.columns.duplicated()][0]
        same = ", ".join(map(repr, columns[table.columns == first]))
        raise LayoutError(f"{path}: columns {same} are the same; remove one")
    key = next((k for k in ("image_id", INSTANCE, "study_id") if k in table.columns), None)
    if key is None:
        raise LayoutError(f"{path}: no column image_id or study_id; it has {', '.join(map(repr, table.columns))}")
    others = [c for c in table.columns if c not in (*IDENTIFIERS, INSTANCE)]
    if not others:
        raise LayoutError(f"{path}: add one column per class to {key}, each with a different name")
    values = {name: _values(table[name]) for name in others}
    # In a class, more values are labels than are not, which are errors. Without a class, all columns are wrong classes.
    classes = [c for c, (label, wrong) in values.items() if label.notna().sum() > wrong.sum()] or others
    for name in classes:
        if not CLASS_NAME.match(name) or name in TAKEN:
            raise LayoutError(f"{path}: {name!r} cannot be a class; use letters, digits and _, as in 'subdural'")
    for name in table.columns.difference(others):
        table[name] = table[name].fillna("").str.strip()
    if key == "image_id":
        table[key] = table[key].str.removesuffix(".dcm")
    layout.require_ids(path, table[key], f"an {key}" if key == "image_id" else f"a {key}", once=True)
    if "split" in table:
        layout.refuse_rows(path, ~table["split"].isin(["train", "test"]), table["split"], "split train or test")
    for name in classes:
        label, wrong = values[name]
        layout.refuse_rows(path, wrong, table[name], f"in column {name!r} 0, 1 or nothing (unlabelled)")
        table[name] = label
    ignored = [c for c in table.columns if c not in (key, "patient_id", "split", *classes)]
    if key == INSTANCE:
        table, key = _by_image(root, table, files), "image_id"
    return Labels(table.sort_values(key, ignore_index=True), classes, key, ignored)


def _values(column: pd.Series) -> tuple[pd.Series, pd.Series]:
    """The labels of a column, float32 with NaN where there is none, and bool: it is neither a label nor empty."""
    words = column.fillna("").str.strip().str.lower().replace({"true": "1", "false": "0"})
    number = pd.to_numeric(words.str.replace(",", "."), errors="coerce")
    label = number.where(number.isin([0, 1])).astype("float32")
    return label, label.isna() & ~words.isin(UNLABELLED)


def _by_image(root: Path, table: pd.DataFrame, files: pd.DataFrame) -> pd.DataFrame:
    """Replace SOPInstanceUID by image_id, by the headers of all files; an unknown one stays as it is."""
    found = []
    for image_id, path in zip(files["image_id"], files["path"], strict=True):
        try:
            with found_files.located(root / path) as file:
                first = dicom.geometry(file)
        except dicom.Unreadable:
            continue
        names = [f"{image_id}#{k}" for k in range(1 + len(first.further))] if first.further else [image_id]
        found += [(name, first.instance_uid, path) for name in names]
    images = pd.DataFrame(found, columns=["image_id", INSTANCE, "path"], dtype="str")
    if found and not table[INSTANCE].isin(images[INSTANCE]).any():
        raise LayoutError(
            f"{root / LABELS}: none of its {len(table)} images has a file; the first {INSTANCE} is"
            f" {table[INSTANCE].iloc[0]!r}, but that of {images['path'].iloc[0]} is {images[INSTANCE].iloc[0]!r}"
        )
    joined = table.merge(images[["image_id", INSTANCE]], on=INSTANCE, how="left")
    return joined.assign(image_id=joined["image_id"].fillna(joined[INSTANCE]))

"""NTU DLMI class competition: five subtypes without `any`; rows `dicom name, subtype, 0/1`, five per image.

Folders train1 (labelled), train2 (unlabelled) and test, with files at any depth.
"""

from pathlib import Path

import pandas as pd

from ich.data.competitions import layout
from ich.data.competitions.layout import SUBTYPES, LayoutError, Raw
from ich.data.refusal import Quarantined

SUBMITS = "decisions"  # scored by F1 one year, F2 another
PUBLIC_IDS = True
SAMPLES = ("sample_submission.csv", "sampleSubmission.csv", "sample.csv")
LABELS = ("train.csv", "train1.csv", "train_labels.csv", "labels.csv", "label.csv")


def raw(root: Path) -> Raw:
    """Read the competition below `root`."""
    layout.require_folder(root)
    labels_csv = layout.first_existing(root, LABELS, "label table")
    labels, notes = _labels(labels_csv)
    tables, refused = zip(*(_files(root, folder) for folder in ("train1", "train2", "test")), strict=True)
    files = pd.concat(tables, ignore_index=True)
    layout.refuse_same_id(files)
    in_train1 = files["path"].str.startswith("train1/")
    unlabelled = int((in_train1 & ~files["image_id"].isin(labels["image_id"])).sum())
    if unlabelled:
        notes.append(f"train1: {unlabelled} files have no label in {labels_csv.name}; they count as unlabelled")
    weights = dict.fromkeys(SUBTYPES, 1.0)
    refused = [item for part in refused for item in part]
    return Raw(files, labels, submission_ids(root), weights, _sample(root).name, tuple(notes), refused=refused)


def submission_ids(root: Path) -> list[str]:
    """Return the images of the sample submission."""
    return list(dict.fromkeys(_sample_rows(_sample(root))["image_id"]))


def solution(root: Path) -> pd.DataFrame | None:
    """Labels of the test set (image_id and one column per class), if known: solution.csv with `id,label`."""
    path = root / "solution.csv"
    if not path.is_file():
        return None
    table = layout.read_columns(path, ("id", "label"))
    parts = layout.parts_of(path, table["id"], SUBTYPES)
    label = layout.digits(path, table["label"], "label")
    long = parts.assign(image_id=_image_id(parts["image_id"]), label=label)
    return layout.wide(path, layout.agreed(path, long, ["image_id", "class"])[0], SUBTYPES)


def submission(root: Path, values: pd.DataFrame) -> pd.DataFrame:
    """`values` (image_id and one column per class) as id,label in the order of the sample submission."""
    sample = _sample_rows(_sample(root))
    return layout.in_sample_order(sample, values[["image_id", *SUBTYPES]], "label")


def _sample(root: Path) -> Path:
    return layout.first_existing(root, SAMPLES, "sample submission")


def _sample_rows(path: Path) -> pd.DataFrame:
    rows = layout.sample_rows(path, "id", SUBTYPES)
    return rows.assign(image_id=_image_id(rows["image_id"]))


def _image_id(names: pd.Series) -> pd.Series:
    """The image id of a file name, which may include folders and .dcm."""
    return names.str.strip().str.rsplit("/", n=1).str[-1].str.removesuffix(".dcm")


def _files(root: Path, folder: str) -> tuple[pd.DataFrame, list[Quarantined]]:
    if not (root / folder).is_dir():
        if folder == "train2":  # optional: it has no labels
            return layout.file_table([], "train", []), []
        raise LayoutError(f"{root}: no folder {folder}; unpack the competition's archive there")
    return layout.images(root, folder, ".dcm", "test" if folder == "test" else "train")


def _labels(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Labels as one row per image, and notes. The table has a header, or none."""
    table = layout.read_text(path, header=False)
    if table.shape[1] not in (3, 4):
        raise LayoutError(f"{path}: {table.shape[1]} columns; expected dicom name, subtype, 0/1")
    table = table.iloc[:, -3:].set_axis(["name", "class", "label"], axis=1)  # an index column may come first
    first = table.iloc[0]
    if first["class"] not in SUBTYPES and not str(first["label"]).strip().isdigit():
        table = table.iloc[1:]
    if table.empty:
        raise LayoutError(f"{path}: not a whole CSV file (a header and no rows); download it again")
    table = table.assign(name=_image_id(table["name"]), **{"class": table["class"].str.strip()})
    layout.require_ids(path, table["name"], "a dicom name")
    expected = f"in the second column {layout.one_of(table['class'].dropna(), SUBTYPES)}"
    layout.refuse_rows(path, ~table["class"].isin(SUBTYPES), table["class"], expected)
    table["label"] = layout.digits(path, table["label"].str.strip(), "in the third column")
    unique, notes = layout.agreed(path, table, ["name", "class"])
    return layout.wide(path, unique.rename(columns={"name": "image_id"}), SUBTYPES), notes

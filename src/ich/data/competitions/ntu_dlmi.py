"""NTU DLMI class competition: five subtypes and no `any`; rows `dicom name, subtype, 0/1`, five an image.

Folders train1 (labelled), train2 (unlabelled) and test, the files at any depth below them.
"""

from pathlib import Path

import pandas as pd

from ich.data.competitions import layout
from ich.data.competitions.layout import SUBTYPES, LayoutError, Raw

SUBMITS = "decisions"  # the competition is scored by F1 one year, F2 another
SAMPLES = ("sample_submission.csv", "sampleSubmission.csv", "sample.csv")
LABELS = ("train.csv", "train1.csv", "train_labels.csv", "labels.csv", "label.csv")


def raw(root: Path) -> Raw:
    """Read the layout below `root`."""
    layout.require_folder(root)
    labels_csv = layout.first_existing(root, LABELS, "label table")
    labels, dropped = _labels(labels_csv)
    sample = layout.first_existing(root, SAMPLES, "sample submission")
    files = pd.concat([_files(root, "train1"), _files(root, "train2"), _files(root, "test")], ignore_index=True)
    layout.refuse_same_id(files)
    in_train1 = files["path"].str.startswith("train1/")
    notes = [f"{labels_csv.name}: {dropped} repeated rows dropped"] if dropped else []
    bare = int((in_train1 & ~files["image_id"].isin(labels["image_id"])).sum())
    if bare:
        notes.append(f"train1: {bare} files have no label in {labels_csv.name}; they count as unlabelled")
    test_ids = list(dict.fromkeys(_image_id(layout.sample_rows(sample, "id", SUBTYPES)["image_id"])))
    return Raw(files, labels, test_ids, dict.fromkeys(SUBTYPES, 1.0), sample.name, tuple(notes))


def solution(root: Path) -> pd.DataFrame | None:
    """Labels of the test set (image_id and a column a class), where they are known: solution.csv, `id,label`."""
    path = root / "solution.csv"
    if not path.is_file():
        return None
    table = layout.read_columns(path, ("id", "label"))
    parts = layout.parts_of(path, table["id"], SUBTYPES)
    label = layout.digits(path, table["label"], "label")
    return layout.wide(path, parts.assign(image_id=_image_id(parts["image_id"]), label=label), SUBTYPES)


def submission(root: Path, values: pd.DataFrame) -> pd.DataFrame:
    """`values` (image_id and a column a class) as id,label in the order of the sample submission."""
    sample = layout.sample_rows(layout.first_existing(root, SAMPLES, "sample submission"), "id", SUBTYPES)
    sample["image_id"] = _image_id(sample["image_id"])
    return layout.in_sample_order(sample, values[["image_id", *SUBTYPES]], "label")


def _image_id(names: pd.Series) -> pd.Series:
    """The image of a name in a table, which may have a folder before it and .dcm behind."""
    return names.str.strip().str.rsplit("/", n=1).str[-1].str.removesuffix(".dcm")


def _files(root: Path, folder: str) -> pd.DataFrame:
    if not (root / folder).is_dir():
        if folder == "train2":  # what has no labels may be left out
            return layout.file_table([], "train", [])
        raise LayoutError(f"{root}: no folder {folder}; unpack the competition's archive there")
    paths = layout.find(root, folder, layout.with_suffix(".dcm"))
    if not paths:
        raise LayoutError(
            f"{root / folder}: no .dcm file at any depth below it; unpack the competition's archive there"
        )
    ids = [path.rpartition("/")[2][: -len(".dcm")] for path in paths]
    return layout.file_table(ids, "test" if folder == "test" else "train", paths)


def _labels(path: Path) -> tuple[pd.DataFrame, int]:
    """Wide labels, and how many repeated rows were dropped. The table has a header, or it has none."""
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
    layout.refuse_rows(path, table["name"].isna() | (table["name"] == ""), table["name"], "a dicom name")
    expected = f"in the second column {layout.one_of(table['class'].dropna(), SUBTYPES)}"
    layout.refuse_rows(path, ~table["class"].isin(SUBTYPES), table["class"], expected)
    table["label"] = layout.digits(path, table["label"].str.strip(), "in the third column")
    unique, dropped = layout.agreed(path, table, ["name", "class"])
    return layout.wide(path, unique.rename(columns={"name": "image_id"}), SUBTYPES), dropped

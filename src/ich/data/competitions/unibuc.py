"""UniBuc class competition: PNG images and one class; `id,class` in train_labels.txt and validation_labels.txt.

The images have no Hounsfield units, no patient and no study: each is a study of its own. Those of the validation
labels join the training set, for the folds are made anew.
"""

from pathlib import Path

import pandas as pd

from ich.data.competitions import layout
from ich.data.competitions.layout import LayoutError, Raw

CLASS = "hemorrhage"
SUBMITS = "decisions"  # scored by F1
SAMPLES = ("sample_submission.txt", "sample_submission.csv")
LABELS = (("train_labels.txt", "train_labels.csv"), ("validation_labels.txt", "validation_labels.csv"))


def raw(root: Path) -> Raw:
    """Read the layout below `root`; which image is for training and which for the test is in the tables."""
    layout.require_folder(root)
    labels, notes = _joined([layout.first_existing(root, names, "label table") for names in LABELS])
    sample = layout.first_existing(root, SAMPLES, "sample submission")
    test_ids = _wanted(sample)["id"].tolist()
    both = sorted(set(test_ids) & set(labels["image_id"]))
    if both:
        raise LayoutError(f"{sample}: image {both[0]} is in the label tables too; a test image has no label")
    paths = layout.find(root, "", layout.with_suffix(".png"))
    if not paths:
        raise LayoutError(f"{root}: no .png file at any depth below it; unpack the competition's archive there")
    ids = [path.rpartition("/")[2][: -len(".png")] for path in paths]
    files = layout.file_table(ids, "train", paths)
    test, known = files["image_id"].isin(test_ids), files["image_id"].isin(labels["image_id"])
    files.loc[test, "split"] = "test"
    if (~test & ~known).any():
        notes.append(f"{int((~test & ~known).sum())} images are in no table and ignored")
    files = files[test | known].reset_index(drop=True)
    if files.empty:
        raise LayoutError(
            f"{root}: none of the {len(ids)} images is in a table; ids are file names without .png, as"
            f" {labels['image_id'].iloc[0]} in the labels and {ids[0]} among the images"
        )
    layout.refuse_same_id(files)
    return Raw(files, labels, test_ids, {CLASS: 1.0}, sample.name, tuple(notes), values="grey")


def solution(root: Path) -> pd.DataFrame | None:
    """Labels of the test set (image_id and the class), where they are known: solution.csv, `id,class`."""
    path = root / "solution.csv"
    return layout.agreed(path, _labels(path), ["image_id"])[0] if path.is_file() else None


def submission(root: Path, values: pd.DataFrame) -> pd.DataFrame:
    """`values` (image_id and the class) as id,class in the order of the sample submission."""
    wanted = _wanted(layout.first_existing(root, SAMPLES, "sample submission"))
    table = wanted.merge(values.rename(columns={"image_id": "id", CLASS: "class"}), on="id", how="left")
    return table[["id", "class"]]


def _wanted(path: Path) -> pd.DataFrame:
    """The column id of the sample submission, as text: 000123 keeps its zeros."""
    table = _with_ids(path, ("id",))
    layout.refuse_rows(path, table["id"].duplicated(), table["id"], "each id once")
    return table


def _labels(path: Path) -> pd.DataFrame:
    table = _with_ids(path, ("id", "class"))
    return pd.DataFrame({"image_id": table["id"], CLASS: layout.digits(path, table["class"].str.strip(), "class")})


def _with_ids(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    table = layout.read_columns(path, columns)
    table["id"] = table["id"].str.strip().str.removesuffix(".png")
    layout.refuse_rows(path, table["id"].isna() | (table["id"] == ""), table["id"], "an id")
    return table


def _joined(paths: list[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Both label tables as one, sorted, and what there is to say of them."""
    notes: list[str] = []
    parts: list[pd.DataFrame] = []
    for path in paths:
        unique, dropped = layout.agreed(path, _labels(path), ["image_id"])
        parts.append(unique)
        if dropped:
            notes.append(f"{path.name}: {dropped} repeated rows dropped")
    labels = pd.concat(parts, ignore_index=True)
    twice = labels["image_id"].duplicated()
    if twice.any():
        raise LayoutError(
            f"{paths[1]}: image {labels.loc[twice, 'image_id'].iloc[0]} is in {paths[0].name} too; keep it in one"
        )
    notes.append(f"{len(parts[1])} images of {paths[1].name} join the training set; folds are made anew")
    return labels.sort_values("image_id", ignore_index=True), notes

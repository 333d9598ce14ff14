"""RSNA 2019 Intracranial Hemorrhage Detection: `ID_<9 hex>_<class>,Label`, six rows a slice, one folder a split."""

import os
from pathlib import Path

import pandas as pd

from ich.data.competitions.layout import LayoutError, Raw, first_existing, read_columns, refuse_rows

CLASSES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
CLASS_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 2.0)  # of the competition's weighted log loss


def raw(root: Path) -> Raw:
    """Read the layout below `root`: stage-2 names, or stage-1 names where those are missing."""
    if not root.is_dir():
        raise LayoutError(f"{root}: no such folder; put the competition there (see input/README.md)")
    train_csv = first_existing(root, ("stage_2_train.csv", "stage_1_train.csv"), "label table")
    labels, dropped = _labels(train_csv)
    sample = _sample(root)
    test_ids = list(dict.fromkeys(_image_and_class(sample)["image_id"]))
    folders = {
        "train": first_existing(root, ("stage_2_train", "stage_1_train"), "folder of training slices"),
        "test": first_existing(root, ("stage_2_test", "stage_1_test"), "folder of test slices"),
    }
    files = pd.concat([_files(root, folder, split) for split, folder in folders.items()], ignore_index=True)
    notes = (f"{train_csv.name}: {dropped} repeated rows dropped",) if dropped else ()
    return Raw(files, labels, test_ids, dict(zip(CLASSES, CLASS_WEIGHTS, strict=True)), sample.name, notes)


def solution(root: Path) -> pd.DataFrame | None:
    """Labels of the test set (image_id and a column a class), where the competition has published them."""
    path = root / "solution.csv"
    return _labels(path)[0] if path.is_file() else None


def submission(root: Path, values: pd.DataFrame) -> pd.DataFrame:
    """`values` (image_id and a column a class) as ID,Label in the order of the sample submission."""
    wanted = _image_and_class(_sample(root))
    long = values.melt(id_vars="image_id", value_vars=list(CLASSES), var_name="class", value_name="Label")
    table = wanted.merge(long, on=["image_id", "class"], how="left", validate="one_to_one")
    return table[["ID", "Label"]]


def _files(root: Path, folder: Path, split: str) -> pd.DataFrame:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(".dcm"))
    if not names:
        raise LayoutError(f"{folder}: no .dcm file in it; unpack the competition's archive there")
    return pd.DataFrame(
        {
            "image_id": [name.removesuffix(".dcm") for name in names],
            "split": split,
            "path": [f"{folder.relative_to(root).as_posix()}/{name}" for name in names],
        }
    )


def _sample(root: Path) -> Path:
    names = ("stage_2_sample_submission.csv", "stage_1_sample_submission.csv")
    return first_existing(root, names, "sample submission")


def _image_and_class(path: Path) -> pd.DataFrame:
    """ID, image_id and class of each row of a long table; duplicates refused."""
    table = read_columns(path, ("ID",))
    table[["image_id", "class"]] = table["ID"].str.rsplit("_", n=1, expand=True).reindex(columns=[0, 1])
    refuse_rows(path, ~table["class"].isin(CLASSES), table["ID"], f"ID_<image>_<class>, class one of {CLASSES}")
    refuse_rows(path, table["ID"].duplicated(), table["ID"], "each ID once")
    return table


def _labels(path: Path) -> tuple[pd.DataFrame, int]:
    """Wide labels, and how many repeated rows were dropped. Repeated rows that disagree are refused."""
    table = read_columns(path, ("ID", "Label"))
    refuse_rows(path, ~table["Label"].isin(["0", "1", "0.0", "1.0"]), table["Label"], "Label 0 or 1")
    table["Label"] = table["Label"].astype("float32")
    unique = table.drop_duplicates()
    conflict = unique["ID"].duplicated(keep=False)
    if conflict.any():
        names = ", ".join(sorted(set(unique.loc[conflict, "ID"]))[:3])
        raise LayoutError(f"{path}: the same ID with Label 0 and 1: {names}; keep one row of each")
    parts = unique["ID"].str.rsplit("_", n=1, expand=True).reindex(columns=[0, 1])
    refuse_rows(path, ~parts[1].isin(CLASSES), unique["ID"], f"ID_<image>_<class>, class one of {CLASSES}")
    wide = unique.assign(image_id=parts[0], kind=parts[1]).pivot(index="image_id", columns="kind", values="Label")
    wide = wide.reindex(columns=list(CLASSES))
    if wide.isna().any(axis=None):
        image, kind = wide.isna().stack().pipe(lambda missing: missing[missing].index[0])
        raise LayoutError(f"{path}: image {image} has no row for {kind}; six rows an image are expected")
    wide = wide.rename_axis(columns=None).sort_index().reset_index()
    return wide, len(table) - len(unique)

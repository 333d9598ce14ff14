"""RSNA 2019 Intracranial Hemorrhage Detection: `ID_<9 hex>_<class>,Label`, six rows a slice, one folder a split."""

import os
from pathlib import Path

import pandas as pd

from ich.data.competitions import layout
from ich.data.competitions.layout import SUBTYPES, LayoutError, Raw

CLASSES = (*SUBTYPES, "any")
CLASS_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 2.0)  # of the competition's weighted log loss
SUBMITS = "probabilities"
STAGES = ("stage_2", "stage_1")


def raw(root: Path) -> Raw:
    """Read the layout below `root`: stage-2 names, or stage-1 names where there is none of those."""
    layout.require_folder(root)
    train_csv = _named(root, "train.csv", "label table")
    labels, dropped = _labels(train_csv)
    sample = _sample(root)
    test_ids = list(dict.fromkeys(layout.sample_rows(sample, "ID", CLASSES)["image_id"]))
    folders = {
        "train": _named(root, "train", "folder of training slices"),
        "test": _named(root, "test", "folder of test slices"),
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
    return layout.in_sample_order(
        layout.sample_rows(_sample(root), "ID", CLASSES), values[["image_id", *CLASSES]], "Label"
    )


def _named(root: Path, name: str, what: str) -> Path:
    """A piece of the one stage whose files are there: the stages' files do not go together."""
    stages = [stage for stage in STAGES if next(root.glob(f"{stage}_*"), None) is not None]
    return layout.first_existing(root, tuple(f"{stage}_{name}" for stage in (stages or STAGES)[:1]), what)


def _files(root: Path, folder: Path, split: str) -> pd.DataFrame:
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.name.endswith(".dcm") and not e.name.startswith("."))
    if not names:
        raise LayoutError(f"{folder}: no .dcm file in it; unpack the competition's archive there")
    relative = folder.relative_to(root).as_posix()
    return layout.file_table(
        [name.removesuffix(".dcm") for name in names], split, [f"{relative}/{name}" for name in names]
    )


def _sample(root: Path) -> Path:
    return _named(root, "sample_submission.csv", "sample submission")


def _labels(path: Path) -> tuple[pd.DataFrame, int]:
    """Wide labels, and how many repeated rows were dropped. Repeated rows that disagree are refused."""
    table = layout.read_columns(path, ("ID", "Label"))
    table["Label"] = layout.digits(path, table["Label"], "Label")
    unique, dropped = layout.agreed(path, table, ["ID"])
    return layout.wide(
        path, layout.parts_of(path, unique["ID"], CLASSES).assign(label=unique["Label"]), CLASSES
    ), dropped

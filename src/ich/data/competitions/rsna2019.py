"""RSNA 2019 Intracranial Hemorrhage Detection: `ID_<9 hex>_<class>,Label`, six rows per slice, a folder per split."""

import os
from pathlib import Path

import pandas as pd

from ich.data.competitions import layout
from ich.data.competitions.layout import SUBTYPES, LayoutError, Raw
from ich.data.files import checked
from ich.data.refusal import Quarantined

CLASSES = (*SUBTYPES, "any")
CLASS_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 2.0)  # of the competition's weighted log loss
SUBMITS = "probabilities"
PUBLIC_IDS = True
STAGES = ("stage_2", "stage_1")


def raw(root: Path) -> Raw:
    """Read the competition below `root`: files named stage_2_*, or stage_1_* if there are none."""
    layout.require_folder(root)
    labels, notes = _labels(_named(root, "train.csv", "label table"))
    train = _named(root, "train", "folder of training slices")
    test = _named(root, "test", "folder of test slices")
    (files, refused), (test_files, also_refused) = _files(train, "train"), _files(test, "test")
    files = pd.concat([files, test_files], ignore_index=True)
    weights: dict[str, float] = dict(zip(CLASSES, CLASS_WEIGHTS, strict=True))
    refused = [*refused, *also_refused]
    return Raw(files, labels, submission_ids(root), weights, _sample(root).name, tuple(notes), refused=refused)


def submission_ids(root: Path) -> list[str]:
    """Return the images of the sample submission."""
    return list(dict.fromkeys(layout.sample_rows(_sample(root), "ID", CLASSES)["image_id"]))


def solution(root: Path) -> pd.DataFrame | None:
    """Labels of the test set (image_id and one column per class), if published: solution.csv."""
    path = root / "solution.csv"
    return _labels(path)[0] if path.is_file() else None


def submission(root: Path, values: pd.DataFrame) -> pd.DataFrame:
    """`values` (image_id and one column per class) as ID,Label in the order of the sample submission."""
    sample = layout.sample_rows(_sample(root), "ID", CLASSES)
    return layout.in_sample_order(sample, values[["image_id", *CLASSES]], "Label")


def _named(root: Path, name: str, what: str) -> Path:
    """A file or folder of the one stage that is used: the stages' files do not match each other."""
    stages = [stage for stage in STAGES if next(root.glob(f"{stage}_*"), None) is not None]
    return layout.first_existing(root, tuple(f"{stage}_{name}" for stage in (stages or STAGES)[:1]), what)


def _sample(root: Path) -> Path:
    return _named(root, "sample_submission.csv", "sample submission")


def _files(folder: Path, split: str) -> tuple[pd.DataFrame, list[Quarantined]]:
    names = [name for name in os.listdir(folder) if name.endswith(".dcm") and not name.startswith(".")]
    found = checked(f"{folder.name}/{name}" for name in names)
    if not found.names:
        raise LayoutError(f"{folder}: no .dcm file in it; unpack the competition there")
    ids = [name.rpartition("/")[2][: -len(".dcm")] for name in found.names]
    return layout.file_table(ids, split, found.names), layout.refused(found, split)


def _labels(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Labels as one row per image, and notes."""
    table = layout.read_columns(path, ("ID", "Label"))
    table["Label"] = layout.digits(path, table["Label"], "Label")
    unique, notes = layout.agreed(path, table, ["ID"])
    long = layout.parts_of(path, unique["ID"], CLASSES).assign(label=unique["Label"])
    return layout.wide(path, long, CLASSES), notes

"""UniBuc class competition: PNG images and one class; `id,class` in train_labels.txt and validation_labels.txt.

The images have no Hounsfield units, patients or studies: each is a study of its own. The images of the validation
labels join the training set, as new folds are made.
"""

from pathlib import Path

import pandas as pd

from ich.data.competitions import layout
from ich.data.competitions.layout import LayoutError, Raw

CLASS = "hemorrhage"
SUBMITS = "decisions"  # scored by F1
PUBLIC_IDS = True
SAMPLES = ("sample_submission.txt", "sample_submission.csv")
LABELS = (("train_labels.txt", "train_labels.csv"), ("validation_labels.txt", "validation_labels.csv"))


def raw(root: Path) -> Raw:
    """Read the competition below `root`; the tables tell training and test images apart."""
    layout.require_folder(root)
    labels, notes = _joined([layout.first_existing(root, names, "label table") for names in LABELS])
    sample, tested = _sample(root), submission_ids(root)
    both = sorted(set(tested) & set(labels["image_id"]))
    if both:
        raise LayoutError(f"{sample}: image {both[0]} is in the label tables too; remove it from one of them")
    files, refused = layout.images(root, "", ".png", "train")
    test, known = files["image_id"].isin(tested), files["image_id"].isin(labels["image_id"])
    files.loc[test, "split"] = "test"
    unknown = int((~test & ~known).sum())
    if unknown == len(files):
        raise LayoutError(
            f"{root}: none of the {len(files)} images is in a table; ids are file names without .png, but the first"
            f" label is of {labels['image_id'].iloc[0]} and the first image is {files['image_id'].iloc[0]}"
        )
    if unknown:
        notes.append(f"{unknown} images are in no table and ignored")
    files = files[test | known].reset_index(drop=True)
    layout.refuse_same_id(files)
    return Raw(files, labels, tested, {CLASS: 1.0}, sample.name, tuple(notes), values="grey", refused=refused)


def submission_ids(root: Path) -> list[str]:
    """Return the images of the sample submission."""
    return _sample_ids(_sample(root))["id"].tolist()


def solution(root: Path) -> pd.DataFrame | None:
    """Labels of the test set (image_id and the class), if known: solution.csv with `id,class`."""
    path = root / "solution.csv"
    return _labels(path)[0] if path.is_file() else None


def submission(root: Path, values: pd.DataFrame) -> pd.DataFrame:
    """`values` (image_id and the class) as id,class in the order of the sample submission."""
    sample = _sample_ids(_sample(root))
    table = sample.merge(values.rename(columns={"image_id": "id", CLASS: "class"}), on="id", how="left")
    return table[["id", "class"]]


def _sample(root: Path) -> Path:
    return layout.first_existing(root, SAMPLES, "sample submission")


def _sample_ids(path: Path) -> pd.DataFrame:
    """The column id of the sample submission, as text: 000123 keeps its zeros."""
    return _read(path, ("id",), once=True)


def _labels(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """image_id and the class, and notes."""
    table = _read(path, ("id", "class"))
    labels = pd.DataFrame({"image_id": table["id"], CLASS: layout.digits(path, table["class"].str.strip(), "class")})
    return layout.agreed(path, labels, ["image_id"])


def _read(path: Path, columns: tuple[str, ...], *, once: bool = False) -> pd.DataFrame:
    table = layout.read_columns(path, columns)
    table["id"] = table["id"].str.strip().str.removesuffix(".png")
    layout.require_ids(path, table["id"], "an id", once=once)
    return table


def _joined(paths: list[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Both label tables as one, sorted, and notes."""
    (train, dropped), (valid, also_dropped) = (_labels(path) for path in paths)
    labels = pd.concat([train, valid], ignore_index=True)
    twice = labels["image_id"].duplicated()
    if twice.any():
        first = labels.loc[twice, "image_id"].iloc[0]
        raise LayoutError(f"{paths[1]}: image {first} is in {paths[0].name} too; keep it in one")
    note = f"{len(valid)} images of {paths[1].name} join the training set; folds are made anew"
    return labels.sort_values("image_id", ignore_index=True), [*dropped, *also_dropped, note]

"""What always holds of the slice table, its pixels, the quarantine list and the folds; asked of finished files.

Each check yields (names, what is wrong with them), the names none where all is well, and raises ValueError or KeyError
for what is not even laid out as it should be. Nothing here is worked out by the code that wrote the files.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.data import folds as fold_table
from ich.data.refusal import Reason

SAME_PLACE = 1e-3  # mm
CHUNK = 64  # slices: 32 MiB at full size
RANGES = {"hu": (-1024, 3071), "grey": (0, 255)}  # by what the pixels are
Broken = Iterator[tuple[Sequence[str] | pd.Series | pd.Index, str]]


def slice_table(table: pd.DataFrame, classes: Sequence[str]) -> Broken:
    """Each image once, labels 0 or 1 and none on test slices, a series together and in the order of its positions."""
    ids, labels, test = table["image_id"], table[list(classes)], table["split"] == "test"
    number = table.groupby(["split", "study_id", "series_id"], sort=False, dropna=False).ngroup()
    series = table.groupby(number.to_numpy(), sort=False)
    place = (table["position"] / SAME_PLACE).round()
    placed = place.notna().groupby(number).transform("all")  # else the series stands in the order of its numbers
    yield ids[ids.duplicated()], "stands in it twice"
    yield ids[~table["split"].isin(["train", "test"])], "is in neither split"
    yield ids[(labels.notna() & ~labels.isin([0, 1])).any(axis=1)], "has a label that is neither 0 nor 1"
    yield ids[test & labels.notna().any(axis=1)], "is a test slice and has a label"
    yield ids[number.duplicated() & (number != number.shift())], "lies apart from its series"
    yield ids[table["index"] != series.cumcount()], "has an index that is not its place in its series"
    yield ids[table["n_slices"] != series["image_id"].transform("size")], "has another n_slices than its series"
    yield ids[placed & (place.groupby(number).diff() < 0)], "lies before the slice above it in its series"


def pixels(hu: NDArray, image_ids: pd.Series, values: str, advance: Callable[[int], None]) -> Broken:
    """int16 [n, s, s], row i of image i, read in chunks: Hounsfield units or grey values in their range."""
    rows, (low, high) = len(image_ids), RANGES[values]
    if hu.dtype != np.int16 or hu.ndim != 3 or len(hu) != rows or hu.shape[1] != hu.shape[2]:
        raise ValueError(
            f"{hu.dtype} {list(hu.shape)} where int16 [{rows}, s, s] belongs, a row a row of slices.parquet"
        )
    outside = np.zeros(rows, dtype=bool)
    for start in range(0, rows, CHUNK):
        block = np.asarray(hu[start : start + CHUNK])
        outside[start : start + CHUNK] = (block.min(axis=(1, 2)) < low) | (block.max(axis=(1, 2)) > high)
        advance(len(block))
    yield image_ids[outside], f"has values outside {low}..{high}"


def quarantine(table: pd.DataFrame) -> Broken:
    """Each row with a reason of the closed list."""
    known = [reason.name.lower() for reason in Reason]
    yield table["image_id"][~table["reason"].isin(known)], "is quarantined for a reason that there is not"
    yield table["image_id"][~table["split"].isin(["train", "test"])], "is in neither split"


def folds(assigned: pd.DataFrame, labelled: pd.DataFrame, n: int) -> Broken:
    """Each labelled slice in one of the `n` folds; by study no patient in two, and each study its patient's.

    assigned: a row a study, or a row a slice where it has image_id; labelled: the labelled rows of the slice table.
    """
    key = _key(assigned)
    yield assigned[key][assigned[key].duplicated()], "stands in it twice"
    yield assigned[key][~assigned["fold"].isin(range(n))], f"has a fold outside 0..{n - 1}"
    yield (
        assigned[key][pd.Index(labelled[key].unique()).get_indexer(pd.Index(assigned[key])) < 0],
        "has no labelled slice",
    )
    fold = fold_of(assigned, labelled)
    yield fold.index[fold.isna()], "has labels and no fold"
    if key == "study_id":
        torn = fold.groupby(labelled["patient_id"].to_numpy()).nunique()
        yield torn.index[torn > 1], "is a patient in two folds"
        fold_table.check(assigned, labelled, n)


def fold_of(assigned: pd.DataFrame, labelled: pd.DataFrame) -> pd.Series:
    """Fold of each labelled slice by image_id, NaN without; of a key that stands twice the first row's."""
    key = _key(assigned)
    fold = dict(zip(assigned[key][::-1], assigned["fold"][::-1], strict=True))
    return pd.Series([fold.get(name) for name in labelled[key]], index=labelled["image_id"], dtype="float64")


def _key(assigned: pd.DataFrame) -> str:
    return "image_id" if "image_id" in assigned else "study_id"

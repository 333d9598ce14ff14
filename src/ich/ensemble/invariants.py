"""Invariants of a model's tables, the thresholds and the submission, for `ich verify`.

Each check yields (names, what is wrong with them), with empty names if the invariant holds. It raises ValueError or
KeyError for another layout. Nothing is shared with the code that wrote the files.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.ensemble.predictions import logit_columns
from ich.ensemble.thresholds import NEVER

CHUNK = 1 << 16  # rows of embeddings: 256 MiB at 2048 dimensions
Broken = Iterator[tuple[Sequence[str] | pd.Series | pd.Index, str]]


def predictions(
    table: pd.DataFrame, wanted: pd.Index, classes: Sequence[str], folds: pd.Series | None = None, key: str = "image_id"
) -> Broken:
    """Each wanted id once and no other, finite logits, and the fold of each id as in `folds` (by id)."""
    columns = logit_columns(classes)
    named = [key, *(["fold"] if folds is not None else []), *columns]
    if list(table.columns) != named:
        raise ValueError(f"columns {', '.join(map(str, table.columns))}, expected {', '.join(named)}")
    ids = pd.Index(table[key])
    known = wanted.get_indexer(ids) >= 0  # `isin` takes ten times as long
    yield ids[ids.duplicated()], "occurs twice"
    yield wanted[ids.unique().get_indexer(wanted) < 0], "is missing"
    yield ids[~known], "is not expected"
    if folds is not None:
        other = np.not_equal(table["fold"].to_numpy(), folds.reindex(ids).to_numpy())
        yield ids[known & other], "has another fold than in the folds file"
    yield ids[_rows(~np.isfinite(table[columns].to_numpy("float64")))], "has a logit that is not finite"


def as_in(oof: pd.DataFrame, parts: Sequence[pd.DataFrame], classes: Sequence[str], key: str = "image_id") -> Broken:
    """The out-of-fold logits equal those of the folds, to the bit."""
    there, here = _by_id(pd.concat(parts), classes, key), _by_id(oof, classes, key)
    differ = here.to_numpy() != there.reindex(here.index).to_numpy()
    yield here.index[_rows(differ)], "has other logits than the table of its fold"


def mean_of(test: pd.DataFrame, parts: Sequence[pd.DataFrame], classes: Sequence[str], key: str = "image_id") -> Broken:
    """The test logits equal the mean over the folds."""
    here = _by_id(test, classes, key)
    mean = np.mean([_by_id(part, classes, key).reindex(here.index).to_numpy("float64") for part in parts], axis=0)
    differ = ~np.isclose(here.to_numpy("float64"), mean, rtol=1e-9, atol=1e-12)
    yield here.index[_rows(differ)], "has other logits than the mean over the folds"


def embeddings(array: NDArray, image_ids: pd.Series) -> Broken:
    """float16 [n, d], one row per row of the table, all finite; read in chunks."""
    if array.dtype != np.float16 or array.ndim != 2 or len(array) != len(image_ids):
        raise ValueError(f"{array.dtype} {list(array.shape)}, expected float16 [{len(image_ids)}, d]")
    starts = range(0, len(array), CHUNK)
    broken = [_rows(~np.isfinite(array[start : start + CHUNK])) for start in starts]
    yield image_ids[np.concatenate([np.zeros(0, dtype=bool), *broken])], "has an embedding that is not finite"


def thresholds(tuned: Mapping[str, Any], classes: Sequence[str]) -> Broken:
    """One threshold per class, in 0..1 or NEVER; for the test set's prevalence and the mean of the folds too."""
    moved = {name: shift["threshold"] for name, shift in tuned["prevalence"]["classes"].items()}
    for cuts in filter(None, (tuned["thresholds"], moved, tuned.get("transferred"))):
        if list(cuts) != list(classes):
            raise ValueError(f"thresholds of {', '.join(cuts)}, expected {', '.join(classes)}")
        yield (
            [name for name, cut in cuts.items() if not (0 <= cut <= 1 or cut == NEVER)],
            "has a threshold outside 0..1",
        )


def probabilities(table: pd.DataFrame, expected: pd.DataFrame) -> Broken:
    """A submission has the ids of `expected`, in that order, and its probabilities; any value in 0..1 for NaN.

    Both tables hold an id and columns of values.
    """
    ids, values, wanted = _values(table, expected)
    yield ids[_rows(~((values >= 0) & (values <= 1)))], "has a value outside 0..1"
    differ = ~np.isnan(wanted) & ~np.isclose(values, wanted, rtol=1e-9, atol=1e-12)
    yield ids[_rows(differ)], "has another probability than the blend's"


def decisions(table: pd.DataFrame, given: pd.DataFrame, limits: pd.DataFrame) -> Broken:
    """A submission's decisions are 1 where the probability in `given` reaches the threshold in `limits`, else 0."""
    ids, values, cuts = _values(table, limits)
    _, reached, _ = _values(given, limits)
    yield ids[_rows(values != (reached >= cuts))], "has another decision than by its probability and threshold"


def _values(table: pd.DataFrame, like: pd.DataFrame) -> tuple[pd.Series, NDArray, NDArray]:
    """Ids and values of a table, and the values of `like`, which must have the same ids in the same order."""
    key, *columns = like.columns
    if list(table.columns) != list(like.columns) or table[key].astype(str).tolist() != like[key].astype(str).tolist():
        raise ValueError(f"expected the columns {', '.join(map(str, like.columns))}, with each {key} in order")
    return table[key], table[columns].to_numpy("float64"), like[columns].to_numpy("float64")


def _rows(mask: NDArray) -> NDArray[np.bool_]:
    """bool [n]: the rows of a mask [n, c] in which any is True."""
    return np.asarray(mask.any(axis=1))


def _by_id(table: pd.DataFrame, classes: Sequence[str], key: str) -> pd.DataFrame:
    return table.drop_duplicates(key).set_index(key)[logit_columns(classes)]

"""What always holds of a member's tables, the thresholds and the submission; asked of finished files.

Each check yields (names, what is wrong with them), the names none where all is well, and raises ValueError or KeyError
for what is not even laid out as it should be. Nothing here is worked out by the code that wrote the files.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.ensemble.thresholds import NEVER

CHUNK = 1 << 16  # rows of embeddings: 256 MiB at 2048 numbers a row
Broken = Iterator[tuple[Sequence[str] | pd.Series | pd.Index, str]]


def predictions(
    table: pd.DataFrame, wanted: pd.Index, classes: Sequence[str], folds: pd.Series | None = None
) -> Broken:
    """Each wanted image once and no other, finite logits; with `folds`, by image_id, each row names its image's."""
    columns = _logits(classes)
    named = ["image_id", *(["fold"] if folds is not None else []), *columns]
    if list(table.columns) != named:
        raise ValueError(f"columns {', '.join(map(str, table.columns))}, expected {', '.join(named)}")
    ids = pd.Index(table["image_id"])
    known = wanted.get_indexer(ids) >= 0  # `isin` takes ten times as long
    yield ids[ids.duplicated()], "stands in it twice"
    yield wanted[ids.unique().get_indexer(wanted) < 0], "is not in it"
    yield ids[~known], "does not belong in it"
    if folds is not None:
        other = np.not_equal(table["fold"].to_numpy(), folds.reindex(ids).to_numpy())
        yield ids[known & other], "names another fold than its own"
    yield ids[_rows(~np.isfinite(table[columns].to_numpy("float64")))], "has a logit that is no finite number"


def as_in(oof: pd.DataFrame, parts: Sequence[pd.DataFrame], classes: Sequence[str]) -> Broken:
    """The out-of-fold logits are those of the folds, to the bit."""
    there, here = _by_image(pd.concat(parts), classes), _by_image(oof, classes)
    differ = here.to_numpy() != there.reindex(here.index).to_numpy()
    yield here.index[_rows(differ)], "has other logits than its fold's valid.parquet"


def mean_of(test: pd.DataFrame, parts: Sequence[pd.DataFrame], classes: Sequence[str]) -> Broken:
    """The test logits are the mean over the folds."""
    here = _by_image(test, classes)
    mean = np.mean([_by_image(part, classes).reindex(here.index).to_numpy("float64") for part in parts], axis=0)
    differ = ~np.isclose(here.to_numpy("float64"), mean, rtol=1e-9, atol=1e-12)
    yield here.index[_rows(differ)], "has other logits than the mean over the folds"


def embeddings(array: NDArray, image_ids: pd.Series) -> Broken:
    """float16 [n, d], a row a row of the table, all finite; read in chunks."""
    if array.dtype != np.float16 or array.ndim != 2 or len(array) != len(image_ids):
        raise ValueError(
            f"{array.dtype} {list(array.shape)} where float16 [{len(image_ids)}, d] belongs, a row a row of its table"
        )
    starts = range(0, len(array), CHUNK)
    broken = [_rows(~np.isfinite(array[start : start + CHUNK])) for start in starts]
    yield image_ids[np.concatenate([np.zeros(0, dtype=bool), *broken])], "has an embedding that is not finite"


def thresholds(tuned: Mapping[str, Any], classes: Sequence[str]) -> Broken:
    """A threshold a class, in 0..1 or the one that no probability reaches; for the test set's prevalence too."""
    moved = {name: shift["threshold"] for name, shift in tuned["prevalence"]["classes"].items()}
    for cuts in filter(None, (tuned["thresholds"], moved)):
        if list(cuts) != list(classes):
            raise ValueError(f"thresholds of {', '.join(cuts)}, expected {', '.join(classes)}")
        yield (
            [name for name, cut in cuts.items() if not (0 <= cut <= 1 or cut == NEVER)],
            "has a threshold outside 0..1",
        )


def probabilities(table: pd.DataFrame, expected: pd.DataFrame) -> Broken:
    """A submission's probabilities are the ids that are wanted, in their order, in 0..1, and `expected`.

    Both hold an id and columns of values; where `expected` is NaN, any value will do.
    """
    ids, values, wanted = _values(table, expected)
    yield ids[_rows(~((values >= 0) & (values <= 1)))], "has a value outside 0..1"
    differ = ~np.isnan(wanted) & ~np.isclose(values, wanted, rtol=1e-9, atol=1e-12)
    yield ids[_rows(differ)], "has another probability than the blend's"


def decisions(table: pd.DataFrame, given: pd.DataFrame, limits: pd.DataFrame) -> Broken:
    """A submission's decisions are 1 where the probability in `given` reaches the threshold in `limits`, else 0."""
    ids, values, cuts = _values(table, limits)
    _, reached, _ = _values(given, limits)
    yield ids[_rows(values != (reached >= cuts))], "is decided otherwise than by its probability and threshold"


def _values(table: pd.DataFrame, like: pd.DataFrame) -> tuple[pd.Series, NDArray, NDArray]:
    """Ids and values of a table, and the values of another, which must have the same ids in the same order."""
    key, *columns = like.columns
    if list(table.columns) != list(like.columns) or table[key].astype(str).tolist() != like[key].astype(str).tolist():
        raise ValueError(f"{key} and columns are not those that are wanted, in their order")
    return table[key], table[columns].to_numpy("float64"), like[columns].to_numpy("float64")


def _rows(mask: NDArray) -> NDArray[np.bool_]:
    """bool [n]: the rows of a mask [n, c] in which any is True."""
    return np.asarray(mask.any(axis=1))


def _by_image(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    return table.drop_duplicates("image_id").set_index("image_id")[_logits(classes)]


def _logits(classes: Sequence[str]) -> list[str]:
    return [f"logit_{name}" for name in classes]

"""Tables of predictions: out-of-fold and test logits of a model, with the columns image_id and logit_<class>.

Rows are joined by id, never by position. Incomplete tables raise ValueError. Tables of studies have the same form, with
the key study_id.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit


def logit_columns(classes: Sequence[str]) -> list[str]:
    """The names of the logit columns, in class order."""
    return [f"logit_{name}" for name in classes]


def sigmoid(logits: ArrayLike) -> NDArray[np.float64]:
    """Probabilities of logits, without overflow at either end."""
    return expit(np.asarray(logits, dtype=np.float64))


UNITS = {"image_id": "slices", "study_id": "studies"}


def assemble_oof(
    parts: Mapping[int, pd.DataFrame],
    labelled_ids: Mapping[int, Collection[str]],
    classes: Sequence[str],
    key: str = "image_id",
) -> pd.DataFrame:
    """Out-of-fold logits: image_id, fold, logit_<class>..., each labelled slice once, sorted by image_id.

    parts[k] holds the rows of fold k, predicted by the model that never saw fold k (image_id, fold, logit_<class>...);
    labelled_ids[k] are the image ids of fold k. Raises ValueError, naming the first ids, for missing, duplicate and
    foreign rows, a wrong fold and logits that are not finite.
    """
    if set(parts) != set(labelled_ids):
        raise ValueError(f"there are parts for folds {sorted(parts)}, but labelled slices in {sorted(labelled_ids)}.")
    checked, unit = [], UNITS[key]
    for fold in sorted(parts):
        name = f"out-of-fold table of fold {fold}"
        part = _checked(parts[fold], classes, name, key, more=["fold"])
        expected = pd.Index(list(labelled_ids[fold]))
        got = pd.Index(part[key])
        _refuse(_not_in(got, expected), f"{name}: labelled {unit} are missing")
        _refuse(_not_in(expected.unique(), got), f"{name}: {unit} that are not labelled {unit} of this fold")
        _refuse(got[(part["fold"] != fold).to_numpy(dtype=bool)], f"{name}: rows of another fold")
        checked.append(part.astype({"fold": "int64"}))
    table = pd.concat(checked, ignore_index=True)
    _refuse(table[key][table[key].duplicated()], f"out-of-fold table: {unit} in more than one fold")
    return table.sort_values(key, ignore_index=True)


def mean_test(parts: Sequence[pd.DataFrame], classes: Sequence[str], key: str = "image_id") -> pd.DataFrame:
    """Mean over folds of the test logits, joined by image_id: image_id, logit_<class>..., sorted by image_id.

    Raises ValueError, naming the first ids, unless all folds hold the same slices, once each, with finite logits.
    """
    tables = [_checked(part, classes, f"test table {number}", key) for number, part in enumerate(parts)]
    ids = pd.Index(tables[0][key]).sort_values()
    total = np.zeros((len(ids), len(classes)))
    for number, table in enumerate(tables):
        extra = pd.Index(table[key])
        _refuse(_not_in(ids, extra), f"test table {number}: {UNITS[key]} that test table 0 does not have")
        total += aligned(table, ids, classes, key)
    mean = pd.DataFrame(total / len(tables), columns=pd.Index(logit_columns(classes)))
    mean.insert(0, key, ids)
    return mean


def aligned(
    table: pd.DataFrame, ids: Sequence[str] | pd.Index, classes: Sequence[str], key: str = "image_id"
) -> NDArray[np.float64]:
    """Logits [n, c] of a table in the order of ids [n]; other rows are ignored.

    Raises ValueError, naming the first ids, for ids that are missing, in the table twice or asked for twice, and for
    logits that are not finite.
    """
    checked = _checked(table, classes, "table of logits", key)
    wanted, got = pd.Index(ids), pd.Index(checked[key])
    _refuse(wanted[wanted.duplicated()], f"{key.replace('_', ' ')}s asked for twice")
    rows = got.get_indexer(wanted)
    _refuse(wanted[np.asarray(rows < 0)], f"table of logits: {UNITS[key]} are missing")
    return checked[logit_columns(classes)].to_numpy(dtype=np.float64)[rows]


def _checked(
    table: pd.DataFrame, classes: Sequence[str], name: str, key: str, more: Sequence[str] = ()
) -> pd.DataFrame:
    """The table's named columns, in order, its ids unique and its logits finite."""
    logits = logit_columns(classes)
    columns = [key, *more, *logits]
    absent = [column for column in columns if column not in table.columns]
    if absent:
        raise ValueError(f"{name}: the columns {', '.join(absent)} are missing.")
    ids, unit = table[key], UNITS[key]
    _refuse(ids[ids.duplicated()], f"{name}: {unit} that occur more than once")
    unusable = np.flatnonzero(~np.isfinite(table[logits].to_numpy(dtype=np.float64)).all(axis=1))
    _refuse(ids.iloc[unusable], f"{name}: {unit} with a logit that is NaN or infinite")
    return table[columns]


def _not_in(known: pd.Index, ids: pd.Index) -> pd.Index:
    """The ids that are not among the known, which are unique; `Index.isin` takes ten times as long for strings."""
    return ids[np.asarray(known.get_indexer(ids) < 0)]


def _refuse(ids: pd.Index | pd.Series, problem: str, most: int = 5) -> None:
    """Raise ValueError if there is any id: problem, how many, the first of them."""
    if len(ids):
        shown = ", ".join(str(value) for value in ids[:most]) + (", ..." if len(ids) > most else "")
        raise ValueError(f"{problem} ({len(ids)}): {shown}.")

"""The stacker's features and models for a table of RSNA 2019's size, against pandas' groupby and shift.

752,803 slices in studies of 20 to 57, six classes, logits of four members; five neighbours to each side. The features
of all ways are the same 112 columns. Ours begins with the studies' names, too. What people write is a groupby by name
for every new column; pandas at its best has one groupby for all, by number. Then a model a class, 60 rounds of 7
leaves, on one thread: ours as `ich stack` fits them by default, and LightGBM's scikit-learn interface at its defaults
but for rounds, leaves and learning rate.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.race import OURS, Race, race
from ich.ensemble import stacker
from ich.recipe import Stack

SLICES, MEMBERS, CLASSES, NEIGHBOURS, SEED = 752_803, 4, 6, 5, 7
WRITTEN, BEST = "pandas, a groupby a column", "pandas, one groupby"
SETTINGS = Stack()


def table(slices: int = SLICES, seed: int = SEED) -> pd.DataFrame:
    """study_id, number, index, position, a column a member and class, a label a class; sorted by study and index."""
    random = np.random.default_rng(seed)
    lengths = random.integers(20, 58, slices // 20 + 1)
    study = np.repeat(np.arange(len(lengths)), lengths)[:slices]
    index = np.arange(slices) - np.flatnonzero(np.diff(study, prepend=-1))[study]
    labels = random.random((slices, CLASSES)) < 0.05
    logits = random.normal(size=(slices, MEMBERS, CLASSES)).astype(np.float32) + 2 * labels[:, None] - 3
    columns = {
        "study_id": np.char.add("ID_", np.char.zfill(study.astype(str), 9)),
        "number": study,
        "index": index,
        "position": 5.0 * index + random.normal(0, 0.1, slices),
    }
    columns |= {f"member{m}_class{c}": logits[:, m, c].astype(float) for m in range(MEMBERS) for c in range(CLASSES)}
    return pd.DataFrame(columns | {f"label{c}": labels[:, c].astype(float) for c in range(CLASSES)})


def cube(data: pd.DataFrame) -> np.ndarray:
    """Logits [n, members, classes]."""
    names = [f"member{m}_class{c}" for m in range(MEMBERS) for c in range(CLASSES)]
    return data[names].to_numpy().reshape(len(data), MEMBERS, CLASSES)


def ours(data: pd.DataFrame, logits: np.ndarray) -> np.ndarray:
    """Features [n, f]; logits as from `cube`, for the stage has them so."""
    codes, _ = pd.factorize(data["study_id"])
    return stacker.features(logits, codes, data["index"], data["position"], NEIGHBOURS)[0]


def by_pandas(data: pd.DataFrame, grouped: Callable[[pd.DataFrame], Callable[[str], Any]]) -> np.ndarray:
    """The same features. grouped(table) gives a function from a column's name to that column, grouped by study."""
    data = data.drop(columns=[f"label{c}" for c in range(CLASSES)])
    data = data.sort_values(["number", "index"])
    for c in range(CLASSES):
        data[f"mean_class{c}"] = data[[f"member{m}_class{c}" for m in range(MEMBERS)]].mean(axis=1)
    of = grouped(data)
    made: dict[str, pd.Series] = {}
    for offset in (*range(-NEIGHBOURS, 0), *range(1, NEIGHBOURS + 1)):
        for c in range(CLASSES):
            made[f"slice{offset:+d}_class{c}"] = of(f"mean_class{c}").shift(-offset)
    for statistic, more in (("mean", {}), ("max", {}), ("std", {"ddof": 0})):
        for c in range(CLASSES):
            made[f"study_{statistic}_class{c}"] = of(f"mean_class{c}").transform(statistic, **more)
    low, high = of("position").transform("min"), of("position").transform("max")
    made["relative_position"] = ((data["position"] - low) / (high - low)).fillna(0.5)
    made["slices"] = of("index").transform("size")
    made["gap_previous"] = data["position"] - of("position").shift(1)
    made["gap_next"] = of("position").shift(-1) - data["position"]
    data = pd.concat([data.drop(columns=["study_id", "number", "index", "position"]), pd.DataFrame(made)], axis=1)
    return data.sort_index().to_numpy(np.float32)


def as_written(data: pd.DataFrame) -> np.ndarray:
    return by_pandas(data, lambda table: lambda column: table.groupby("study_id")[column])


def at_its_best(data: pd.DataFrame) -> np.ndarray:
    def grouped(table: pd.DataFrame) -> Callable[[str], Any]:
        groups = table.groupby("number", sort=False)
        return lambda column: groups[column]

    return by_pandas(data, grouped)


def our_models(x: np.ndarray, y: np.ndarray, base: np.ndarray) -> list[str]:
    shape = {"num_leaves": SETTINGS.leaves, "min_data_in_leaf": SETTINGS.min_leaf}
    rate = SETTINGS.learning_rate
    seeds = range(y.shape[1])
    return list(stacker.fit(x, y, base, seeds=seeds, threads=1, rounds=SETTINGS.rounds, learning_rate=rate, **shape))


def their_models(x: np.ndarray, y: np.ndarray) -> list[object]:
    from lightgbm import LGBMClassifier

    shape = {"n_estimators": SETTINGS.rounds, "num_leaves": SETTINGS.leaves, "learning_rate": SETTINGS.learning_rate}
    return [LGBMClassifier(n_jobs=1, verbose=-1, **shape).fit(x, y[:, c]) for c in range(y.shape[1])]


def races(*, quick: bool) -> Iterator[Race]:
    """Features alone, then with the models. Notes: how many values differ, and what the models take of the time."""
    data = table(2_000 if quick else SLICES)
    logits, y = cube(data), data[[f"label{c}" for c in range(CLASSES)]].to_numpy()
    base, parts = logits.mean(axis=1), dict[str, float]()
    shape = {"unit": "slices", "count": len(data)}
    found: dict[str, np.ndarray] = {}

    def kept(way: str, make: Callable[[], np.ndarray]) -> Callable[[], None]:
        def run() -> None:
            found[way] = make()

        return run

    features = {OURS: lambda: ours(data, logits), WRITTEN: lambda: as_written(data), BEST: lambda: at_its_best(data)}
    alone = race(
        "stacker's features",
        {way: kept(way, make) for way, make in features.items()},
        rounds=1 if quick else 5,
        warm_up=0 if quick else 1,
        wanted={WRITTEN: 5},
        **shape,
    )
    unlike = {way: int((~np.isclose(found[OURS], x, 1e-5, 1e-6, equal_nan=True)).sum()) for way, x in found.items()}
    yield replace(alone, notes={"columns": found[OURS].shape[1], "values that differ from ours": unlike})
    found.clear()

    def whole(way: str, models: Callable[[np.ndarray], object]) -> Callable[[], None]:
        def run() -> None:
            x = features[way]()
            started = time.perf_counter()
            models(x)
            parts[way] = round(time.perf_counter() - started, 2)

        return run

    ways = {
        OURS: whole(OURS, lambda x: our_models(x, y, base)),
        WRITTEN: whole(WRITTEN, lambda x: their_models(x, y)),
    }
    timed = race(
        "stacker's features and six models",
        ways,
        rounds=1 if quick else 3,
        warm_up=0,
        wanted={WRITTEN: 5},
        **shape,
    )
    yield replace(timed, notes={"of it the models of the last round, s": parts})

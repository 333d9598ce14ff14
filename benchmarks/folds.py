"""Folds of a table of RSNA 2019's size, how even they are and how long they take, against two ways of scikit-learn.

The competition's own table cannot be given away; this one has its counts: 752,803 slices of 17,079 patients in 19,530
studies (1,536 patients have several, up to 15), and each class's positives.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from benchmarks.race import OURS, Race, race

SLICES, PATIENTS, STUDIES, SEVERAL, MOST = 752_803, 17_079, 19_530, 1_536, 15
POSITIVES = {
    "epidural": 3_145,
    "intraparenchymal": 36_118,
    "intraventricular": 26_205,
    "subarachnoid": 35_675,
    "subdural": 47_166,
}
BLEEDING = 0.4  # share of the studies with any bleed
RUN = 9.0  # mean number of neighbouring slices that show the same bleed
N, SEED = 5, 7


def rsna_sized(seed: int = SEED) -> pd.DataFrame:
    """A slice table: image_id, study_id, patient_id, split and a 0/1 column a class, with bleeds in runs of slices."""
    random = np.random.default_rng(seed)
    owner = np.concatenate([np.arange(PATIENTS), np.arange(SEVERAL), np.zeros(MOST - 2, dtype=int)])
    spare = STUDIES - len(owner)
    owner = np.sort(np.concatenate([owner, 1 + random.integers(SEVERAL - 1, size=spare)]))
    length = random.integers(20, 58, size=STUDIES).astype(float)
    length = np.floor(length * SLICES / length.sum()).astype(int)
    length[: SLICES - length.sum()] += 1
    study = np.repeat(np.arange(STUDIES), length)
    first = np.cumsum(length) - length
    bleeding = np.flatnonzero(random.random(STUDIES) < BLEEDING)
    columns = {name: np.zeros(SLICES) for name in POSITIVES}
    for name, count in POSITIVES.items():
        columns[name][_runs(random, count, first, length, random.permutation(bleeding))] = 1
    table = pd.DataFrame(
        {
            "image_id": np.char.add("ID_", np.char.zfill(np.arange(SLICES).astype(str), 9)),
            "study_id": np.char.add("study_", study.astype(str)),
            "patient_id": np.char.add("patient_", owner[study].astype(str)),
            "split": "train",
        }
    )
    table[list(columns)] = pd.DataFrame(columns)
    table["any"] = table[list(columns)].max(axis=1)
    return table


def _runs(
    random: np.random.Generator, count: int, first: np.ndarray, length: np.ndarray, studies: np.ndarray
) -> np.ndarray:
    """`count` row numbers, in a run of neighbouring slices a study; the first of `studies` get them."""
    run = np.minimum(random.geometric(1 / RUN, size=len(studies)), length[studies])
    studies = studies[: np.searchsorted(np.cumsum(run), count) + 1]
    run = run[: len(studies)]
    start = first[studies] + random.integers(length[studies] - run + 1)
    rows = np.repeat(start - (np.cumsum(run) - run), run) + np.arange(run.sum())
    return rows[:count]


def worst_deviation(table: pd.DataFrame, fold: np.ndarray, classes: list[str]) -> dict[str, float]:
    """By class, by how much the number of positive slices of the worst fold differs from an even share."""
    counts = table[classes].groupby(fold).sum()
    even = counts.sum() / len(counts)
    return {str(name): float(share) for name, share in ((counts - even).abs().max() / even).items()}


def compared() -> dict[str, Callable[[pd.DataFrame, list[str]], np.ndarray]]:
    """Ways to assign folds [n] to the rows of a table; ours is greedy, by patient."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    from ich.data.folds import assign

    def ours(table: pd.DataFrame, classes: list[str]) -> np.ndarray:
        return table["study_id"].map(assign(table, classes, N, SEED).set_index("study_id")["fold"]).to_numpy()

    def of_sklearn(splitter: GroupKFold | StratifiedGroupKFold) -> Callable[[pd.DataFrame, list[str]], np.ndarray]:
        def fold(table: pd.DataFrame, classes: list[str]) -> np.ndarray:
            labels = table[classes].to_numpy(int) @ (1 << np.arange(len(classes)))
            found = np.empty(len(table), dtype=int)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The least populated class")  # label sets that occur once
                for k, (_, rows) in enumerate(splitter.split(labels, labels, table["patient_id"])):
                    found[rows] = k
            return found

        return fold

    return {
        OURS: ours,
        "StratifiedGroupKFold on label sets": of_sklearn(StratifiedGroupKFold(N, shuffle=True, random_state=SEED)),
        "GroupKFold": of_sklearn(GroupKFold(N)),
    }


def races(*, quick: bool) -> Iterator[Race]:
    """One race. Notes: by how much the positives of the worst fold differ from an even share, by way and class."""
    table, classes = rsna_sized(), [*POSITIVES, "any"]
    if quick:
        table = table[table["patient_id"].isin(table["patient_id"].unique()[:600])].reset_index(drop=True)
    found: dict[str, np.ndarray] = {}

    def way(name: str, assign: Callable[[pd.DataFrame, list[str]], np.ndarray]) -> Callable[[], None]:
        def run() -> None:
            found[name] = assign(table, classes)

        return run

    ways = {name: way(name, assign) for name, assign in compared().items()}
    shape = {"unit": "slices", "count": len(table), "rounds": 1 if quick else 5, "warm_up": 0 if quick else 1}
    timed = race("folds", ways, **shape)
    worst = {name: worst_deviation(table, fold, classes) for name, fold in found.items()}
    notes = {f"worst fold, {name}": {c: round(share, 4) for c, share in by.items()} for name, by in worst.items()}
    yield replace(timed, notes=notes)

"""Thresholds of a table of RSNA 2019's size: the exact optimum, cross-fitted too, and Optuna's search beside it.

Seconds are those of the process, all its threads; imports and the making of the table are left out. Optuna's way
holds the exact optimum too, for `ich thresholds` says how far below it the search has ended: that is the gap.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from benchmarks.folds import POSITIVES, SLICES
from benchmarks.race import OURS, Race, race
from ich.ensemble.metrics import Average
from ich.ensemble.thresholds import (
    Goal,
    search,  # noqa: F401  Optuna is imported before the clock runs
    tune,
)

ROWS, FOLDS, TRIALS, SEED = 750_000, 5, 200, 7
CLASSES = [*POSITIVES, "any"]
CROSS_FITTED, OPTUNA = "and cross-fitted over 5 folds", f"and {TRIALS} Optuna trials a class"


def table(rows: int = ROWS, seed: int = SEED) -> pd.DataFrame:
    """Columns <class>, prob_<class> (float32, as members leave them) and fold: RSNA 2019's prevalences, AUC 0.96."""
    random = np.random.default_rng(seed)
    share = np.array(list(POSITIVES.values())) / SLICES
    y = random.random((rows, len(share))) < share
    y = np.column_stack([y, y.any(axis=1)])
    logit = random.normal(0, 1, y.shape) + 2.5 * y - 4
    columns = {f"prob_{name}": (1 / (1 + np.exp(-logit[:, c]))).astype("float32") for c, name in enumerate(CLASSES)}
    return pd.DataFrame({name: y[:, c].astype("int8") for c, name in enumerate(CLASSES)} | columns).assign(
        fold=np.arange(rows) % FOLDS
    )


def races(*, quick: bool) -> Iterator[Race]:
    """A race a goal."""
    if quick:
        yield goal_race(table(20_000), Goal(2.0, "macro"), rounds=1, warm_up=0)
        return
    data = table()
    averages: tuple[Average, ...] = ("macro", "micro", "samples")
    for goal in (Goal(beta, average) for average in averages for beta in (1.0, 2.0)):
        yield goal_race(data, goal, rounds=3, warm_up=1)


def goal_race(data: pd.DataFrame, goal: Goal, *, rounds: int, warm_up: int) -> Race:
    """The ways for one goal; notes: by how much Optuna's thresholds score below the exact ones."""
    y, p = data[CLASSES].to_numpy(), data[[f"prob_{name}" for name in CLASSES]].to_numpy()
    gaps: list[float] = []

    def searched() -> None:
        gaps.append(tune(y, p, CLASSES, goal, trials=TRIALS, seed=SEED).gap)

    ways = {
        OURS: lambda: tune(y, p, CLASSES, goal, trials=0, seed=SEED),
        CROSS_FITTED: lambda: tune(y, p, CLASSES, goal, trials=0, seed=SEED, fold=data["fold"]),
        OPTUNA: searched,
    }
    name = f"thresholds, {goal.average} F{goal.beta:g}"
    shape = {"unit": "rows", "count": len(data), "rounds": rounds, "warm_up": warm_up}
    found = race(name, ways, clock=time.process_time, **shape)
    seconds = {way: round(min(times), 2) for way, times in found.seconds.items()}
    return replace(found, notes={"Optuna below the optimum": gaps[-1], "least seconds": seconds})

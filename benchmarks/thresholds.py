"""Thresholds on a table of RSNA 2019's size: the exact optimum, cross-fitted too, and Optuna's search.

Seconds are CPU seconds of the process, without imports and without making the table.
"""

import time
from collections.abc import Iterator

import numpy as np

from benchmarks.harness import RSNA_SLICES, Result, compare
from ich.ensemble.thresholds import Goal, tune
from ich.ensemble.thresholds.search import Search

PREVALENCE = {
    "epidural": 0.0042,
    "intraparenchymal": 0.0480,
    "intraventricular": 0.0348,
    "subarachnoid": 0.0474,
    "subdural": 0.0627,
}  # of RSNA 2019's training slices
CLASSES = [*PREVALENCE, "any"]
FOLDS, TRIALS, SEED = 5, 200, 7


def table(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and float32 probabilities [rows, classes] with an AUC of 0.96."""
    random = np.random.default_rng(SEED)
    y = random.random((rows, len(PREVALENCE))) < list(PREVALENCE.values())
    y = np.column_stack([y, y.any(axis=1)])
    logits = random.normal(0, 1, y.shape) + 2.5 * y - 4
    return y.astype("int8"), (1 / (1 + np.exp(-logits))).astype("float32")


def run(*, quick: bool) -> Iterator[Result]:
    """One comparison per metric."""
    y, p = table(20_000 if quick else RSNA_SLICES)
    goals = [Goal(beta, average) for average in ("macro", "micro", "samples") for beta in (1.0, 2.0)]
    for goal in goals[:1] if quick else goals:
        yield one_goal(y, p, goal, rounds=1 if quick else 3)


def one_goal(y: np.ndarray, p: np.ndarray, goal: Goal, rounds: int) -> Result:
    """Notes: how far below the exact optimum Optuna's thresholds score."""
    fold, gaps = np.arange(len(y)) % FOLDS, list[float]()

    def search() -> None:
        gaps.append(tune(y, p, CLASSES, goal, search=Search(TRIALS, SEED)).gap)

    ways = {
        "exact": lambda: tune(y, p, CLASSES, goal),
        f"and cross-fitted over {FOLDS} folds": lambda: tune(y, p, CLASSES, goal, fold=fold),
        f"and {TRIALS} Optuna trials per class": search,
    }
    name = f"thresholds, {goal.average} F{goal.beta:g}"
    shape = {"unit": "rows", "count": len(y), "rounds": rounds, "warm_up": 0}
    found = compare(name, ways, clock=time.process_time, **shape)
    return found | {"notes": {"Optuna below the optimum": gaps[-1]}}

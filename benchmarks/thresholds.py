"""How long thresholds take for a table of RSNA 2019's size, and how far Optuna ends below the exact optimum.

`python -m benchmarks.thresholds` prints seconds on one core, imports and the making of the table left out.
"""

import time

import numpy as np
import pandas as pd

from benchmarks.folds import POSITIVES
from ich.ensemble.metrics import Average
from ich.ensemble.thresholds import (
    Goal,
    search,  # noqa: F401  Optuna is imported before the clock runs
    tune,
)

ROWS, FOLDS, TRIALS, SEED = 750_000, 5, 200, 7
CLASSES = [*POSITIVES, "any"]


def table(rows: int = ROWS, seed: int = SEED) -> pd.DataFrame:
    """Columns <class>, prob_<class> (float32, as members leave them) and fold: RSNA 2019's prevalences, AUC 0.96."""
    random = np.random.default_rng(seed)
    share = np.array(list(POSITIVES.values())) / 752_803
    y = random.random((rows, len(share))) < share
    y = np.column_stack([y, y.any(axis=1)])
    logit = random.normal(0, 1, y.shape) + 2.5 * y - 4
    columns = {f"prob_{name}": (1 / (1 + np.exp(-logit[:, c]))).astype("float32") for c, name in enumerate(CLASSES)}
    return pd.DataFrame({name: y[:, c].astype("int8") for c, name in enumerate(CLASSES)} | columns).assign(
        fold=np.arange(rows) % FOLDS
    )


def measure(
    data: pd.DataFrame, repeats: int = 3, averages: tuple[Average, ...] = ("macro", "micro", "samples")
) -> dict[str, dict[str, float]]:
    """Least seconds (of the process, all its threads) of several runs, and the gap, by average and beta."""
    y, p = data[CLASSES].to_numpy(), data[[f"prob_{name}" for name in CLASSES]].to_numpy()
    found = {}
    for average in averages:
        for beta in (1.0, 2.0):
            goal, row = Goal(beta, average), {}
            for name, more in (("exact", {}), ("cross_fitted", {"fold": data["fold"]}), ("optuna", {"trials": TRIALS})):
                seconds, gap = [], 0.0
                for _ in range(repeats):
                    started = time.process_time()
                    tuned = tune(y, p, CLASSES, goal, **{"trials": 0, "seed": SEED, **more})
                    seconds.append(time.process_time() - started)
                    gap = tuned.gap
                row[name] = min(seconds)
            found[f"{average} F{beta:g}"] = {**row, "gap": gap}
    return found


def main() -> None:
    figures = pd.DataFrame(measure(table())).T
    print(f"{ROWS:,} rows x {len(CLASSES)} classes; seconds on one core; {TRIALS} trials a class\n")
    print(figures.to_string(float_format=lambda value: f"{value:.2f}" if value > 1e-2 else f"{value:.1e}"))


if __name__ == "__main__":
    main()

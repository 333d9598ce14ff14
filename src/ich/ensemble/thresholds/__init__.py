"""Decision thresholds for F-beta: the exact optima, Optuna's search, and a table that a user brings.

`search` imports Optuna and `user_table` a reader of files, half a second each: who needs them imports them.
"""

from ich.ensemble.thresholds.operating_points import NEVER
from ich.ensemble.thresholds.problem import Goal
from ich.ensemble.thresholds.tuning import Tuned, apply, exact, exact_all, f_interval, tune

__all__ = ["NEVER", "Goal", "Tuned", "apply", "exact", "exact_all", "f_interval", "tune"]

"""Decision thresholds for F-beta: exact optima, cross-fitted scores, and the search by Optuna (`search`).

Importing this package does not import Optuna.
"""

from ich.ensemble.thresholds.operating_points import NEVER
from ich.ensemble.thresholds.problem import Goal
from ich.ensemble.thresholds.tuning import Tuned, apply, exact, exact_all, f_interval, transfer, tune

__all__ = ["NEVER", "Goal", "Tuned", "apply", "exact", "exact_all", "f_interval", "transfer", "tune"]

"""The blend: a weighted mean of logits, with equal weights unless tuned ones prove better on unseen folds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import optuna
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from ich.ensemble.metrics import checked_pair, checked_weights

optuna.logging.set_verbosity(optuna.logging.WARNING)

# Rows that a search of weights looks at. A handful of weights needs no more, and 750,000 rows x 200 trials a
# fold would take minutes; the weights found are always judged on all rows.
SEARCH_ROWS = 100_000

# weighted_log_loss clips probabilities to 1e-7..1 - 1e-7; the same bound as a logit.
_LIMIT = float(np.log((1 - 1e-7) / 1e-7))


@dataclass(frozen=True)
class Blend:
    """Chosen weights (they sum to 1) and the weighted log losses that chose them; lower is better.

    score: the chosen weights on all rows. score_cross_fitted: tuned weights, each fold judged with the
    weights tuned on the other folds. score_equal: equal weights on all rows; it needs no cross-fitting, for
    nothing is tuned.
    """

    weights: dict[str, float]
    method: Literal["equal", "optuna"]
    score: float
    score_cross_fitted: float
    score_equal: float


def blend_logits(
    logits: Mapping[str, NDArray], weights: Mapping[str, float], mean: Literal["logits", "probabilities"] = "logits"
) -> NDArray[np.float64]:
    """Logits [n, c] of the weighted mean of the members' logits, or probabilities; the weights are scaled to sum to 1.

    Raises ValueError unless both mappings name the same members, the tables have one shape and the weights
    are >= 0.
    """
    if set(logits) != set(weights):
        raise ValueError(f"there are logits of {sorted(logits)}, but weights for {sorted(weights)}.")
    names, cube = _stacked(logits)
    share = checked_weights([weights[name] for name in names], len(names))
    if mean == "probabilities":
        limited = _mean(expit(cube), share).clip(expit(-_LIMIT), expit(_LIMIT))
        return logit(limited)
    return _mean(cube, share)


def choose(
    logits: Mapping[str, NDArray],
    y: ArrayLike,
    fold: ArrayLike,
    class_weights: ArrayLike,
    *,
    trials: int,
    seed: int,
) -> Blend:
    """Choose the members' weights by weighted log loss (metrics.weighted_log_loss of the blend).

    logits: name -> out-of-fold logits [n, c]; y [n, c] of 0 and 1; fold [n]; class_weights [c]. Optuna's TPE,
    seeded, tunes one set of weights on all rows, and for each fold one without that fold, which it is then
    judged on. The tuned weights are taken only where they beat equal weights both in the cross-fitted score
    and in more than half of the folds; a smaller advantage is noise more often than not.
    """
    names, cube = _stacked(logits)
    labels, _ = checked_pair(y, cube[0])
    folds = np.asarray(fold)
    if folds.shape != (len(labels),):
        raise ValueError(f"fold {folds.shape} must have one entry for each of the {len(labels)} rows.")
    if trials < 1:
        raise ValueError(f"trials is {trials}; it must be 1 or more.")
    share = checked_weights(class_weights, labels.shape[1])
    equal = np.full(len(names), 1 / len(names))
    equal_rows = _row_losses(cube, labels, share, equal)
    score_equal = float(equal_rows.mean())
    if len(names) == 1:
        return Blend({names[0]: 1.0}, "equal", score_equal, score_equal, score_equal)
    numbers = np.unique(folds)
    if len(numbers) < 2:
        raise ValueError("weights can only be judged with two folds or more.")

    tuned_rows = np.empty_like(equal_rows)
    for number in numbers:
        inside = folds == number
        weights = _search(cube[:, ~inside], labels[~inside], share, trials, seed)
        tuned_rows[inside] = _row_losses(cube[:, inside], labels[inside], share, weights)
    cross_fitted = float(tuned_rows.mean())
    won = sum(bool(tuned_rows[folds == k].mean() < equal_rows[folds == k].mean()) for k in numbers)
    if cross_fitted < score_equal and 2 * won > len(numbers):
        best = _search(cube, labels, share, trials, seed)
        weights = {name: float(w) for name, w in zip(names, best, strict=True)}
        score = float(_row_losses(cube, labels, share, best).mean())
        return Blend(weights, "optuna", score, cross_fitted, score_equal)
    return Blend({name: 1 / len(names) for name in names}, "equal", score_equal, cross_fitted, score_equal)


def raise_any(p: NDArray, classes: Sequence[str]) -> NDArray[np.float64]:
    """Probabilities or logits [n, c] with "any" at least the largest subtype; unchanged without a class "any".

    A bleed of some subtype is a bleed, and log loss pays for a lower "any".
    """
    raised = np.array(p, dtype=np.float64)
    if "any" in classes:
        raised[:, list(classes).index("any")] = raised.max(axis=1)
    return raised


def _search(cube: NDArray, labels: NDArray, share: NDArray, trials: int, seed: int) -> NDArray[np.float64]:
    """Weights [m] that sum to 1, the best of `trials` sets; the first is equal weights."""
    if len(labels) > SEARCH_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(len(labels), SEARCH_ROWS, replace=False))
        cube, labels = cube[:, rows], labels[rows]
    names = [f"member{m}" for m in range(len(cube))]

    def weights_of(params: Mapping[str, float]) -> NDArray[np.float64]:
        # Squared, so that weights near 0 are in easy reach.
        raw = np.array([params[name] for name in names]) ** 2
        return raw / raw.sum() if raw.sum() > 0 else np.full(len(raw), 1 / len(raw))

    def loss(trial: optuna.Trial) -> float:
        weights = weights_of({name: trial.suggest_float(name, 0.0, 1.0) for name in names})
        return float(_row_losses(cube, labels, share, weights).mean())

    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=False)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    study.enqueue_trial(dict.fromkeys(names, 0.5))
    study.optimize(loss, n_trials=trials)
    return weights_of(study.best_params)


def _row_losses(cube: NDArray, labels: NDArray, share: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """Weighted binary cross-entropy of each row [n], straight from blended logits: log(1 + e^z) - y z."""
    z = np.clip(_mean(cube, weights), -_LIMIT, _LIMIT)
    return np.einsum("nc,c->n", np.log1p(np.exp(z)) - labels * z, share)


def _mean(cube: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """Weighted sum over members [n, c]; einsum, not BLAS, whose last bits depend on the number of threads."""
    return np.einsum("m,mnc->nc", weights, cube)


def _stacked(logits: Mapping[str, NDArray]) -> tuple[list[str], NDArray[np.float64]]:
    """Members' names and their logits [m, n, c]."""
    shapes = {name: np.shape(table) for name, table in logits.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 2 for shape in shapes.values()):
        raise ValueError(f"the members' logits must be tables [n, c] of one shape; they are {shapes}.")
    return list(logits), np.stack([np.asarray(table, dtype=np.float64) for table in logits.values()])

"""The models of a bundle applied to slices, fold by fold."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.ensemble.predictions import sigmoid
from ich.models.artifacts import require_finite
from ich.models.base import Fitted
from ich.models.bundle import Bundle
from ich.models.slices import Predictions, Slices


@dataclass(frozen=True)
class FoldScores:
    """Predictions of one fold."""

    logits: NDArray[np.float32]  # [n, c] of the blend, one row per slice
    studies: Mapping[str, pd.DataFrame]  # study logits [m, c] by study id, of each model with attention pooling


@dataclass
class Ensemble:
    """All models of a bundle. Each fitted fold is read once and then kept in main memory."""

    bundle: Bundle
    _fitted: dict[tuple[str, int], Fitted] = field(default_factory=dict)

    def predict(
        self, slices: Slices, on_done: Callable[[float], object] = lambda share: None
    ) -> Iterator[tuple[int, FoldScores]]:
        """Yield the scores of each fold. on_done: called with the finished share after each model."""
        spec = self.bundle.spec
        for number, fold in enumerate(spec.folds):
            found: dict[str, Predictions] = {}
            for done, (name, model) in enumerate(spec.models.items(), start=1):
                part = replace(slices, workers=model.workers)
                found[name] = self._predict(name, fold, part, {other: found[other] for other in model.inputs})
                on_done((number + done / len(spec.models)) / len(spec.folds))
            studies = {name: found[name].studies for name in spec.studies}
            yield fold, FoldScores(found["blend"].logits, {k: v for k, v in studies.items() if v is not None})

    def _predict(self, name: str, fold: int, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        if (name, fold) not in self._fitted:
            self._fitted[name, fold] = self.bundle.fitted(name, fold)
        fitted = self._fitted[name, fold]
        with fitted.using(self.bundle.spec.threads):
            found = fitted.predict(slices, inputs)
        require_finite(fitted.name, slices.ids, found)
        return found


def mean_logits(folds: Sequence[FoldScores]) -> NDArray[np.float64]:
    """Return the mean logits [n, c] of the blend over folds."""
    return np.asarray(np.mean([one.logits for one in folds], axis=0, dtype=np.float64))


def pooled_probabilities(bundle: Bundle, folds: Sequence[FoldScores]) -> pd.DataFrame | None:
    """Return probabilities [m, c] by study id: the mean over the models with attention pooling; None without one.

    The logits of a model are averaged over folds, then calibrated.
    """
    parts: list[pd.DataFrame] = []
    for name in folds[0].studies:
        calibrators, logits = bundle.calibrators(name), _mean([one.studies[name] for one in folds])
        parts.append(logits.apply(lambda column, by=calibrators: sigmoid(by[column.name].apply(column))))
    return _mean(parts) if parts else None


def _mean(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables).astype("float64").groupby(level=0, sort=False).mean()

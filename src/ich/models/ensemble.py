"""All models that a blend reads, with all their folds, as one model: the mean of its folds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.ensemble.calibration import Calibrator
from ich.ensemble.predictions import sigmoid
from ich.models.base import Fitted
from ich.models.network import FittedNetwork
from ich.models.slices import Predictions, Slices


@dataclass
class Ensemble:
    """Independent of the recipe and of the workspace."""

    inputs: Mapping[str, Sequence[str]]
    """The inputs of each model. A model follows its inputs; the blend is last."""
    folds: Sequence[int]
    model: Callable[[str, int], Fitted]
    """Called once per model and fold. The models are kept in main memory."""
    calibrators: Mapping[str, Mapping[str, Calibrator]] = field(default_factory=dict)
    """Of the study logits of models with attention pooling, per class."""
    workers: Mapping[str, Any] = field(default_factory=dict)
    """Loader processes of models that read images."""
    _fitted: dict[tuple[str, int], Fitted] = field(default_factory=dict)

    def predict(
        self, slices: Slices, on_done: Callable[[float], object] = lambda share: None
    ) -> tuple[NDArray[np.float64], pd.DataFrame | None]:
        """Return the mean logits [n, c] of the blend over folds, one row per slice.

        The second value holds probabilities of studies [m, c], by study id: the mean over the models with
        `calibrators`. It is None without such a model. on_done: called with the finished share after each model.
        """
        folds, pooled = list[NDArray](), dict[str, list[pd.DataFrame]]()
        for k in self.folds:
            found: dict[str, Predictions] = {}
            for done, (name, inputs) in enumerate(self.inputs.items(), start=1):
                part = replace(slices, workers=self.workers.get(name, 0))
                found[name] = self._predict(name, k, part, {other: found[other] for other in inputs})
                if (studies := found[name].studies) is not None and name in self.calibrators:
                    pooled.setdefault(name, []).append(studies)
                on_done((len(folds) + done / len(self.inputs)) / len(self.folds))
            folds.append(found["blend"].logits)
        likely = [self._calibrated(name, _mean(parts)) for name, parts in pooled.items()]
        return np.asarray(np.mean(folds, axis=0, dtype=np.float64)), _mean(likely) if likely else None

    def _predict(self, name: str, fold: int, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        if (name, fold) not in self._fitted:
            self._fitted[name, fold] = self.model(name, fold)
        fitted = self._fitted[name, fold]
        predictions = fitted.predict(slices, inputs)
        if isinstance(fitted, FittedNetwork):
            fitted.network.cpu()  # a GPU may not hold all networks
        return predictions

    def _calibrated(self, model: str, logits: pd.DataFrame) -> pd.DataFrame:
        """Return probabilities of the study logits [m, c] of a model."""
        return logits.apply(lambda column: sigmoid(self.calibrators[model][column.name].apply(column)))


def _mean(tables: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables).astype("float64").groupby(level=0, sort=False).mean()

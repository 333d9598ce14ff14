"""smooth: the mean logit of the inputs, smoothed along the series by a Gaussian with one width per class."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ich.ensemble.smoothing import choose_widths, smooth_each
from ich.models.base import Fitted, Model
from ich.models.data import FoldData
from ich.models.slices import Predictions, Slices, positions
from ich.training.run import Run


class Smooth(Model):
    def fit(self, data: FoldData, run: Run) -> "FittedSmooth":
        """Choose the widths with the lowest log loss on the out-of-fold rows of the other folds."""
        fitted = FittedSmooth({"inputs": list(data.input_names), "widths": {}}, run.name)
        base = fitted.mean_logit(data.inputs("train"))
        frame = data.slices("train").frame
        series, position = frame["series"].to_numpy(), positions(frame)
        widths = choose_widths(base, data.labels("train"), series, position, self.settings.widths)
        fitted.spec["widths"] = dict(zip(data.table.classes, widths, strict=True))
        fitted.notes["widths"] = fitted.spec["widths"]
        return fitted


@dataclass
class FittedSmooth(Fitted):
    FILE: ClassVar[str] = "smooth.json"
    KEYS: ClassVar[frozenset[str]] = frozenset({"inputs", "widths"})

    def mean_logit(self, inputs: Mapping[str, Predictions]) -> NDArray[np.float64]:
        return np.mean(self.input_logits(inputs), axis=0)

    def predict(self, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        series, position = slices.frame["series"].to_numpy(), positions(slices.frame)
        widths = [self.spec["widths"][name] for name in slices.classes]
        return Predictions(smooth_each(self.mean_logit(inputs), series, position, widths))

    @classmethod
    def load(cls, folder: Path) -> Self:
        fitted = super().load(folder)
        fitted.spec["widths"] = {name: float(width) for name, width in fitted.spec["widths"].items()}
        return fitted

"""blend: a calibrated combination of all inputs, in which `any` is never below a subtype.

It is fitted per class on the out-of-fold rows of the other folds, so that each fold is scored on rows it did not fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ich.console import progress, warn
from ich.ensemble import blend, calibration
from ich.ensemble.hierarchy import project_any
from ich.ensemble.intervals import Bootstrap
from ich.models.base import Fitted, Model
from ich.models.data import FoldData
from ich.models.slices import Predictions, Slices
from ich.recipe import beta_of
from ich.store.hashes import seed_of
from ich.training.run import Run


class Blend(Model):
    def fit(self, data: FoldData, run: Run) -> "FittedBlend":
        settings, classes, rows = self.settings, data.table.classes, data.rows["train"]
        inputs, labels = data.inputs("train"), data.labels("train")
        folds, seed = data.table.fold_of[rows], (settings.seed, "blend", data.fold)
        patients = Bootstrap(data.table.table["patient_id"].to_numpy()[rows], seed=seed_of(*seed))
        fitted = FittedBlend({"inputs": list(data.input_names), "class_weights": data.table.class_weights}, run.name)
        logits = fitted.input_logits(inputs)
        methods: dict[str, Any] = {}
        fitted.spec["classes"] = {}
        fitted.notes["chosen"] = {}
        with progress(run.name, len(classes), "classes", inner=True) as advance:
            for c, name in enumerate(classes):
                combined = blend.choose_combination(
                    np.column_stack([values[:, c] for values in logits]),
                    labels[:, c],
                    folds,
                    patients,
                    method=settings.method,
                    metric="log_loss" if settings.metric == "log_loss" else beta_of(settings.metric),
                    trials=settings.trials,
                    seed=seed_of(*seed, name),
                )
                # on logits of combinations fitted without the row, like those of new slices
                calibrated = calibration.choose_calibrator(
                    combined.out_of_fold, labels[:, c], folds, patients, method=settings.calibration
                )
                if calibrated.warning:
                    warn(f"{run.name}, {name}: {calibrated.warning}")
                methods[name] = combined.combination.method
                fitted.spec["classes"][name] = {
                    "combination": combined.combination.as_dict(),
                    "calibration": calibrated.calibrator.as_dict(),
                }
                fitted.notes["chosen"][name] = {
                    "combination": combined.as_dict(),
                    "calibration": {
                        "method": calibrated.calibrator.method,
                        "losses": calibrated.losses,
                        "differences": calibrated.differences,
                    },
                }
                advance(1)
        other = [name for name in classes if methods[name] != settings.method]
        if settings.method != "auto" and len(logits) > 1 and other:
            warn(
                f"{run.name}, {', '.join(other)}: {settings.method} needs two other folds, and two slices of each"
                " label; the mean of logits is used"
            )
        return fitted


@dataclass
class FittedBlend(Fitted):
    FILE: ClassVar[str] = "blend.json"
    KEYS: ClassVar[frozenset[str]] = frozenset({"inputs", "class_weights", "classes"})

    def predict(self, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        logits = self.input_logits(inputs)
        blended = np.empty(logits[0].shape)
        for c, name in enumerate(slices.classes):
            fitted = self.spec["classes"][name]
            combination = blend.Combination.from_dict(fitted["combination"])
            calibrator = calibration.Calibrator.from_dict(fitted["calibration"])
            blended[:, c] = calibrator.apply(combination.apply(np.column_stack([values[:, c] for values in logits])))
        return Predictions(project_any(blended, slices.classes, self.spec["class_weights"]))

    @classmethod
    def load(cls, folder: Path) -> Self:
        fitted = super().load(folder)
        for values in fitted.spec["classes"].values():  # reject malformed ones now
            blend.Combination.from_dict(values["combination"])
            calibration.Calibrator.from_dict(values["calibration"])
        return fitted

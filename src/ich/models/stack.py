"""stack: LightGBM on the inputs' logits of a slice, its neighbours and its series; one model per class."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ich.console import progress
from ich.ensemble import stacker
from ich.errors import UserError, parsing
from ich.models.base import Fitted, Model
from ich.models.data import FoldData
from ich.models.slices import Predictions, Slices, positions
from ich.store.atomic import write_text
from ich.store.hashes import seed_of
from ich.training.run import Run


class Stack(Model):
    def fit(self, data: FoldData, run: Run) -> "FittedStack":
        settings, classes = self.settings, data.table.classes
        spec = {"inputs": list(data.input_names), "neighbours": settings.neighbours, "classes": classes}
        fitted = FittedStack(spec, run.name, threads=run.threads)
        try:
            x, names, base = fitted.features(data.slices("train"), data.inputs("train"))
        except ValueError as error:
            raise UserError(f"stack.{data.model}: {error}") from None
        boosters = stacker.fit(
            x,
            data.labels("train"),
            base,
            seeds=[seed_of(settings.seed, data.model, data.fold, name) for name in classes],
            threads=run.threads,
            num_iterations=settings.num_iterations,
            learning_rate=settings.learning_rate,
            num_leaves=settings.num_leaves,
            min_data_in_leaf=settings.min_data_in_leaf,
        )
        with progress(run.name, len(classes), "classes", inner=True) as advance:
            for name, text in zip(classes, boosters, strict=True):
                fitted.boosters[name] = text
                advance(1)
        fitted.notes["features"] = names
        return fitted


@dataclass
class FittedStack(Fitted):
    FILE: ClassVar[str] = "stack.json"
    KEYS: ClassVar[frozenset[str]] = frozenset({"inputs", "neighbours", "classes"})

    boosters: dict[str, str] = field(default_factory=dict)
    """LightGBM's text format, per class"""
    threads: int = 1

    def features(
        self, slices: Slices, inputs: Mapping[str, Predictions]
    ) -> tuple[NDArray[np.float32], list[str], NDArray[np.float64]]:
        """Features [n, f], their names, and the mean logit [n, c] from which boosting starts."""
        logits = np.stack(self.input_logits(inputs), axis=1)
        frame = slices.frame
        x, names = stacker.features(logits, frame["series"], frame["index"], positions(frame), self.spec["neighbours"])
        return x, names, logits.mean(axis=1)

    def predict(self, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        if not len(slices):  # no test set
            return Predictions(np.empty((0, len(slices.classes))))
        x, _, base = self.features(slices, inputs)
        found = np.empty(base.shape)
        for c, name in enumerate(slices.classes):
            try:
                found[:, c] = stacker.predict(self.boosters[name], x, base[:, c], threads=self.threads)
            except ValueError as error:
                raise UserError(f"{self.name}, model_{name}.txt: {error}") from None
        return Predictions(found)

    def save(self, folder: Path) -> list[str]:
        for name, text in self.boosters.items():
            write_text(folder / f"model_{name}.txt", text)
        return [*super().save(folder), *(f"model_{name}.txt" for name in self.boosters)]

    @classmethod
    def load(cls, folder: Path) -> Self:
        spec, boosters = cls.read_spec(folder), {}
        for name in spec["classes"]:
            path = folder / f"model_{name}.txt"
            with parsing(path):
                boosters[name] = path.read_text(encoding="utf-8")
        return cls(spec, boosters=boosters)

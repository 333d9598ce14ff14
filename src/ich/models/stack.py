"""stack: LightGBM on the inputs' logits of a slice, its neighbours and its series; one model per class and seed."""

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
        settings, classes, n = self.settings, data.table.classes, self.settings.seeds
        spec = {"inputs": list(data.input_names), "neighbours": settings.neighbours, "classes": classes, "seeds": n}
        fitted = FittedStack(spec, run.name, threads=run.threads)
        try:
            x, names, base = fitted.features(data.slices("train"), data.inputs("train"))
        except ValueError as error:
            raise UserError(f"stack.{data.model}: {error}") from None
        first = [seed_of(settings.seed, data.model, data.fold, name) for name in classes]
        boosters = stacker.fit(
            x,
            np.tile(data.labels("train"), n),
            np.tile(base, n),
            seeds=[*first, *(seed_of(seed, number) for number in range(1, n) for seed in first)],
            threads=run.threads,
            num_iterations=settings.num_iterations,
            learning_rate=settings.learning_rate,
            num_leaves=settings.num_leaves,
            min_data_in_leaf=settings.min_data_in_leaf,
        )
        files = [file for number in range(n) for file in _files(classes, number)]
        with progress(run.name, len(files), "classes", inner=True) as advance:
            for file, text in zip(files, boosters, strict=True):
                fitted.boosters[file] = text
                advance(1)
        fitted.notes["features"] = names
        return fitted


def _files(classes: list[str], number: int) -> list[str]:
    """The files of a seed: model_<class>.txt, or model1_<class>.txt, model2_<class>.txt, ..."""
    return [f"model{number or ''}_{name}.txt" for name in classes]


@dataclass
class FittedStack(Fitted):
    FILE: ClassVar[str] = "stack.json"
    KEYS: ClassVar[frozenset[str]] = frozenset({"inputs", "neighbours", "classes"})

    boosters: dict[str, str] = field(default_factory=dict)  # LightGBM's text format, by file
    threads: int = 1

    @property
    def seeds(self) -> int:
        return self.spec.get("seeds", 1)

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
        found = np.zeros(base.shape)
        for number in range(self.seeds):
            for c, file in enumerate(_files(slices.classes, number)):
                try:
                    found[:, c] += stacker.predict(self.boosters[file], x, base[:, c], threads=self.threads)
                except ValueError as error:
                    raise UserError(f"{self.name}, {file}: {error}") from None
        return Predictions(found / self.seeds)

    def save(self, folder: Path) -> list[str]:
        for file, text in self.boosters.items():
            write_text(folder / file, text)
        return [*super().save(folder), *self.boosters]

    @classmethod
    def load(cls, folder: Path) -> Self:
        fitted = cls(cls.read_spec(folder))
        for file in (file for number in range(fitted.seeds) for file in _files(fitted.spec["classes"], number)):
            with parsing(folder / file):
                fitted.boosters[file] = (folder / file).read_text(encoding="utf-8")
        return fitted

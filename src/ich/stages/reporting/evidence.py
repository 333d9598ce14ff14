"""What the sections of the report read: the artefacts of a finished recipe, each opened once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ich.pipeline.graph import Task
from ich.pipeline.plan import Plan
from ich.stages.artefacts import as_written, logits_of
from ich.stages.inputs import Slices
from ich.store.atomic import read_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True)
class Evidence:
    """Rows of the slice table that have labels and a fold, and what the members say of them out of fold."""

    plan: Plan

    @cached_property
    def slices(self) -> Slices:
        return Slices(self.plan)

    @property
    def classes(self) -> list[str]:
        return self.slices.classes

    @cached_property
    def scores(self) -> dict[str, Any]:
        """What `ich score` found."""
        return read_json(self.plan.workspace.submissions / "scores.json")

    @cached_property
    def tuned(self) -> dict[str, Any]:
        """What `ich thresholds` found."""
        return read_json(self.plan.workspace.thresholds)

    @cached_property
    def rows(self) -> "np.ndarray":
        """Row numbers [n] of the labelled slices; all arrays below hold these rows, in this order."""
        return self.slices.labelled.nonzero()[0]

    @cached_property
    def labels(self) -> "np.ndarray":
        """float64 [n, c]."""
        return self.slices.labels[self.rows].astype("float64")

    @cached_property
    def folds(self) -> "np.ndarray":
        """int64 [n]."""
        return self.slices.table["fold"].to_numpy()[self.rows].astype("int64")

    @cached_property
    def has_studies(self) -> bool:
        """Whether there are series of several slices; else all are single pictures."""
        return bool((self.slices.table["n_slices"] > 1).any())

    def recorded(self, task: Task) -> dict[str, Any]:
        """What a task's record says."""
        return self.plan.record_of(task.record) or {}

    def explained(self, name: str) -> "pd.DataFrame | None":
        """A table that `ich explain` left; None where this recipe has none of the name."""
        import pandas as pd

        if name not in self.recorded(self.plan.explain)["files"]:
            return None
        path = self.plan.explain.folder / name
        with as_written(path):
            texts = dict.fromkeys(("image_id", "study_id", "class", "fold", "group"), str)
            return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])

    @cached_property
    def probability(self) -> "Callable[[str], np.ndarray]":
        """A member's out-of-fold probabilities float64 [n, c]."""
        from functools import cache

        return cache(lambda member: self._probability(member, "oof", self.rows))

    @cached_property
    def test_probability(self) -> "np.ndarray":
        """The blend's probabilities float64 [m, c] of the test rows, in the order of `slices.test_rows`."""
        return self._probability("blend", "test", self.slices.test_rows)

    def _probability(self, member: str, where: str, rows: "np.ndarray") -> "np.ndarray":
        from ich.ensemble.members import sigmoid

        path = self.plan.workspace.member(member) / f"{where}.parquet"
        return sigmoid(logits_of(path, self.slices.ids(rows), self.classes))

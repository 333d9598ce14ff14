"""What the sections of the report read: the artefacts of a finished recipe, each opened once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ich.stages.artefacts import logits_of
from ich.stages.inputs import Slices
from ich.stages.plan import Plan
from ich.workspace import read_json

if TYPE_CHECKING:
    import numpy as np


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

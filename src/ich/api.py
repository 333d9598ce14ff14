"""Python API: score DICOM files with an exported bundle."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pandas as pd

from ich.models import bundle as bundles
from ich.stages import predict


@dataclass(frozen=True)
class TrainedEnsemble:
    """A trained ensemble. Use `ich.load_bundle` to get one."""

    bundle: bundles.Bundle

    @property
    def classes(self) -> tuple[str, ...]:
        return self.bundle.spec.classes

    def predict(
        self,
        path: str | Path,
        *,
        level: Literal["slice", "series", "study"] = "slice",
        fold: int | None = None,
        time_limit: float | None = None,
    ) -> pd.DataFrame:
        """Score a DICOM file, a .zip archive, or a folder of both at any depth; one row per slice, series or study.

        The columns are those of the tables of `ich predict`. fold: use the models of this fold only. time_limit: in
        seconds; as many folds as fit are used, at least one. `attrs["quarantined"]` of the table lists the files that
        could not be scored, and `attrs["folds"]` the folds that were used. Raises ich.errors.UserError.
        """
        chosen = self.bundle if fold is None else self.bundle.only(fold)
        with TemporaryDirectory(prefix="ich-") as folder:
            found = predict.score(chosen, Path(path), Path(folder), time_limit=time_limit)
        table = {"slice": found.slices, "series": found.series, "study": found.studies}[level]
        table.attrs = {"quarantined": [vars(item) for item in found.quarantined], "folds": list(found.folds)}
        return table


def load_bundle(folder: str | Path) -> TrainedEnsemble:
    """Load a bundle that `ich export` wrote. Raises ich.errors.UserError if it is damaged or of a later format."""
    return TrainedEnsemble(bundles.read(Path(folder)))

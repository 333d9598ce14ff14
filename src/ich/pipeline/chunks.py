"""Scores of scans in chunks of whole studies: bounded memory, made by any engine, kept until the output is written.

Chunks depend on the scans and the image size alone. So the same scans get the same scores on any engine, and after any
number of kills. A chunk is scored like a folder with its studies only. Kernels may add up in another order in batches
of another size: compared with one chunk for all scans, logits may differ in the last digits.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import torch
from numpy.typing import NDArray

from ich.console import progress
from ich.data import cache
from ich.data.slice_table import Quarantined
from ich.ensemble.calibration import Calibrator
from ich.ensemble.predictions import logit_columns
from ich.errors import UserError, parsing
from ich.models.ensemble import Ensemble
from ich.models.slices import Slices
from ich.models.table import series_codes
from ich.pipeline.engines import workspace
from ich.pipeline.graph import STUDIES, VERSIONS
from ich.pipeline.runner import load_fitted
from ich.pipeline.state import Plan
from ich.recipe import Recipe
from ich.store.atomic import read_json
from ich.store.hashes import digest
from ich.store.records import read_hashed, write_hashed

CHUNK = 4096  # slices: the embeddings of six networks, 2,048 float16 values each, are 100 MB
PIXELS = 1 << 29  # bytes of pixels, in memory if /tmp is (tmpfs): 4,096 slices of 256 x 256 or 1,024 of 512 x 512
_ensembles: dict[str, Ensemble] = {}  # of the latest chunk: a process scores several chunks with the same models


def needed(plan: Plan) -> list[str]:
    """Return the blend and all models that it depends on. Each model follows its inputs."""
    wanted = {"blend"}
    for name in reversed(plan.models):
        wanted |= set(plan.recipe.inputs_of(name)) if name in wanted else set()
    return [name for name in plan.models if name in wanted]


def ensemble_of(plan: Plan, fold: int | None = None) -> Ensemble:
    """Return the ensemble of the blend, or the models of one fold, without attention pooling."""
    names, folds = needed(plan), plan.fold_numbers if fold is None else [fold]
    pooling = [name for name in names if plan.settings_of(name).writes_studies and fold is None]
    plan.pull(tuple((plan.fold(name, k), (*plan.settings_of(name).files, "*.txt")) for name in names for k in folds))
    plan.pull(tuple((plan.assembled(name), (STUDIES,)) for name in pooling))
    return Ensemble(
        inputs={name: plan.recipe.inputs_of(name) for name in names},
        folds=folds,
        model=partial(load_fitted, plan),
        calibrators={name: _calibrators(plan, name) for name in pooling},
        workers={name: getattr(plan.settings_of(name), "workers", 0) for name in names},
    )


def _calibrators(plan: Plan, model: str) -> dict[str, Calibrator]:
    task = plan.assembled(model)
    if damage := task.record.damage(plan.record_of(task), STUDIES):
        raise UserError(f"{task.folder / STUDIES} {damage}. Run `ich {task.stage}`, then rerun this command")
    with parsing(task.folder / STUDIES):
        return {name: Calibrator.from_dict(value) for name, value in read_json(task.folder / STUDIES).items()}


def fingerprint(plan: Plan, fold: int | None, scans: Mapping[str, Any]) -> str:
    """Return the hash of all that scores depend on. scans: the identity of each file."""
    numbers = plan.fold_numbers if fold is None else [fold]
    tasks = [plan.fold(name, k) for name in needed(plan) for k in numbers]
    tasks += [plan.assembled(name) for name in needed(plan)] if fold is None else []
    models = {task.name: plan.files_of(task) for task in tasks}
    image = plan.recipe.image.model_dump(mode="json")
    return digest([VERSIONS["predict"], CHUNK, PIXELS, image, list(numbers), models, scans])


def split(studies: pd.Series, size: int) -> list[NDArray[np.intp]]:
    """Split the rows of a slice table into chunks of whole studies, which are adjacent. size: of the images.

    A chunk has at most CHUNK slices, and PIXELS bytes of pixels, unless one study has more.
    """
    most = min(CHUNK, max(1, PIXELS // (2 * size**2)))
    ends = np.append(np.flatnonzero(np.diff(pd.factorize(studies)[0])), len(studies) - 1) + 1
    bounds = [0]
    while bounds[-1] < len(studies):
        next_ends = ends[ends > bounds[-1]]
        bounds.append(int(max(next_ends[0], next_ends[next_ends <= bounds[-1] + most].max(initial=0))))
    return [np.arange(*pair) for pair in pairwise(bounds)]


@dataclass(frozen=True)
class Chunks:
    """Chunks of scans in a folder that all machines share: the slices and, once made, the scores of each chunk."""

    recipe: Recipe
    root: Path
    """Of the workspace."""
    scans: Path
    """Folder that the paths of the slices are relative to."""
    folder: Path
    fold: int | None
    fingerprint: str
    jobs: int
    """Processes that read pixels."""

    def write(self, slices: pd.DataFrame) -> dict[str, int]:
        """Write the slices of each chunk, without pixels and patients; return the number of slices of each chunk."""
        parts = [
            slices.drop(columns="patient_id").iloc[rows] for rows in split(slices["study_id"], self.recipe.image.size)
        ]
        tag = digest([self.fingerprint, str(self.folder)])[:8]  # SLURM may still hold chunks of another call
        named = {f"chunk-{number:05}-{tag}": part for number, part in enumerate(parts)}
        for name, part in named.items():
            self._write(f"{name}.slices", part, [])
        return {name: len(part) for name, part in named.items()}

    def scores(self, name: str) -> tuple[pd.DataFrame, list[Quarantined]] | None:
        """Return the scored slices of a chunk, with logits, and the unreadable ones. None if it must be made."""
        return self._read(f"{name}.scores")

    def make(self, name: str, on_done: Callable[[float], object] = lambda share: None) -> None:
        """Score a chunk. on_done: called with the finished share."""
        found = self._read(f"{name}.slices")
        if found is None:
            raise UserError(f"{self.folder / name}.slices is missing or damaged. Rerun `ich predict`")
        plan, table = Plan(self.recipe, workspace(self.root)), found[0]
        torch.set_num_threads(self.recipe.compute.threads)
        record, image = plan.record_of(plan.prepared), self.recipe.image
        classes, values, pooled = record["classes"], record["values"], None
        with TemporaryDirectory(prefix="ich-predict-") as temporary:
            with progress("predict: pixels", len(table), inner=True) as advance:
                pixels, place = cache.ImageFormat(image.size, image.crop, values), Path(temporary)
                table, unread, _ = cache.write_shards(place, table, self.scans, pixels, self.jobs, advance)
            table["series"] = series_codes(table)
            logits = np.empty((0, len(classes)))
            if len(table):
                hu = cache.HuCache.open(place, table)
                slices = Slices(table, np.arange(len(table)), classes, hu, values)
                logits, pooled = self._ensemble(plan).predict(slices, on_done)
        scores = table[["image_id", "study_id", "series_id", "index", "path"]].copy()
        scores[logit_columns(classes)] = logits
        if pooled is not None:
            scores = scores.join(pooled.add_prefix("pooled_"), on="study_id")
        self._write(f"{name}.scores", scores, unread)

    def _ensemble(self, plan: Plan) -> Ensemble:
        key = f"{self.root} {self.fingerprint}"
        if key not in _ensembles:
            _ensembles.clear()
            _ensembles[key] = ensemble_of(plan, self.fold)
        return _ensembles[key]

    def _write(self, name: str, table: pd.DataFrame, unread: list[Quarantined]) -> None:
        note = {"unread": json.dumps([vars(item) for item in unread])}
        content = pyarrow.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(note)
        pyarrow.parquet.write_table(content, file := io.BytesIO())
        write_hashed(self.folder / name, self.fingerprint, file.getvalue())

    def _read(self, name: str) -> tuple[pd.DataFrame, list[Quarantined]] | None:
        content = read_hashed(self.folder / name, self.fingerprint)
        if content is None:
            return None
        table = pyarrow.parquet.read_table(io.BytesIO(content))
        unread = json.loads((table.schema.metadata or {})[b"unread"])
        return table.to_pandas(ignore_metadata=True), [Quarantined(**item) for item in unread]

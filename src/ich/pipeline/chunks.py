"""Scores of scans in chunks of whole studies: bounded memory, made by any engine, kept until the output is written.

Chunks depend on the scans and the image size alone. So the same scans get the same scores on any engine, and after any
number of kills. A chunk is scored like a folder with its studies only. Kernels may add up in another order in batches
of another size: compared with one chunk for all scans, logits may differ in the last digits.
"""

import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from numpy.typing import NDArray

from ich.console import Work, progress, say
from ich.data import cache
from ich.data.slice_table import Quarantined
from ich.errors import UserError
from ich.models.bundle import Bundle
from ich.models.ensemble import Ensemble, FoldScores
from ich.models.slices import Slices
from ich.models.table import series_codes
from ich.pipeline import engines
from ich.pipeline.tasks import VERSIONS
from ich.store.hashes import digest
from ich.store.records import read_hashed, write_hashed

CHUNK = 4096  # slices: the embeddings of six networks, 2,048 float16 values each, are 100 MB
PIXELS = 1 << 29  # bytes of pixels, in memory if /tmp is (tmpfs): 4,096 slices of 256 x 256 or 1,024 of 512 x 512
KEPT = ["image_id", "study_id", "series_id", "index", "path"]
MARGIN = 1.1  # of the time that the next fold is expected to take
RunSteps = Callable[[Sequence[engines.Step], engines.Make], Iterator[engines.Result]]
_ensembles: dict[str, Ensemble] = {}  # of the latest chunk: a process scores several chunks with the same models


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
class ChunkScores:
    """Scores of the readable slices of a chunk, and its unreadable slices."""

    slices: pd.DataFrame  # image_id, study_id, series_id, index and path
    folds: Mapping[int, FoldScores]
    unread: list[Quarantined]


@dataclass(frozen=True)
class Chunks:
    """Chunks of scans in a folder that all machines share: the slices and, once made, the scores of each chunk."""

    bundle: Bundle
    scans: Path  # folder that the paths of the slices are relative to
    identities: Mapping[str, Any]  # of the files of the scans, which change with their content
    folder: Path
    jobs: int  # processes that read pixels

    @property
    def fingerprint(self) -> str:
        """Hash of all that the scores depend on."""
        return digest([VERSIONS["predict"], CHUNK, PIXELS, self.bundle.identity, self.identities])

    def write(self, slices: pd.DataFrame) -> dict[str, int]:
        """Write the slices of each chunk, without pixels and patients; return the number of slices of each chunk."""
        size, fingerprint = self.bundle.spec.image.size, self.fingerprint
        parts = [slices.drop(columns="patient_id").iloc[rows] for rows in split(slices["study_id"], size)]
        tag = digest([fingerprint, str(self.folder)])[:8]  # SLURM may still hold chunks of another call
        named = {f"chunk-{number:05}-{tag}": part for number, part in enumerate(parts)}
        for name, part in named.items():
            write_hashed(self.folder / f"{name}.slices", fingerprint, _to_parquet(part, []))
        return {name: len(part) for name, part in named.items()}

    def scores(self, name: str) -> ChunkScores | None:
        """Return the scores of a chunk. None if it must be made."""
        content = read_hashed(self.folder / f"{name}.scores", self.fingerprint)
        if content is None:
            return None
        table, unread = _from_parquet(content)
        return ChunkScores(table[KEPT], _folds(table, self.bundle.spec.classes), unread)

    def make(
        self,
        name: str,
        on_done: Callable[[float], object] = lambda share: None,
        enough: Callable[[int], bool] = lambda folds: False,
    ) -> None:
        """Score a chunk. on_done: called with the finished share. enough: called with the number of finished folds."""
        content = read_hashed(self.folder / f"{name}.slices", self.fingerprint)
        if content is None:
            raise UserError(f"{self.folder / name}.slices is missing or damaged. Rerun `ich predict`")
        table, spec = _from_parquet(content)[0], self.bundle.spec
        columns: dict[str, NDArray] = {}
        with TemporaryDirectory(prefix="ich-predict-") as temporary:
            with progress("predict: pixels", len(table), inner=True) as advance:
                pixels, place = cache.ImageFormat(spec.image.size, spec.image.crop, spec.values), Path(temporary)
                table, unread, _ = cache.write_shards(place, table, self.scans, pixels, self.jobs, advance)
            table["series"] = series_codes(table)
            if len(table):
                hu = cache.HuCache.open(place, table)
                slices = Slices(table, np.arange(len(table)), list(spec.classes), hu, spec.values)
                for number, (fold, scores) in enumerate(self._ensemble().predict(slices, on_done), start=1):
                    columns |= _columns(fold, scores, table["study_id"])
                    if enough(number):
                        break
        scored = pd.concat([table[KEPT], pd.DataFrame(columns, table.index)], axis=1)
        write_hashed(self.folder / f"{name}.scores", self.fingerprint, _to_parquet(scored, unread))

    def _ensemble(self) -> Ensemble:
        if (key := self.bundle.identity) not in _ensembles:
            _ensembles.clear()
            _ensembles[key] = Ensemble(self.bundle)
        return _ensembles[key]


@dataclass
class _Clock:
    """Decides how many folds fit into a time limit, by the time per slice and fold so far."""

    end: float  # on the monotonic clock
    most: int  # folds of each earlier chunk; more of a later one would not be used
    begun: float
    done: int = 0  # slices times folds

    def enough(self, size: int, later: int, folds: int) -> bool:
        """Return whether `folds` are enough for a chunk of `size` slices. later: slices of the chunks after it."""
        now = time.monotonic()
        self.done += size
        pace = MARGIN * (now - self.begun) / self.done
        if now + pace * (size + later * (folds + 1)) > self.end:
            self.most = min(self.most, folds)
        return folds >= self.most


def score_chunks(
    chunks: Chunks, slices: pd.DataFrame, run_steps: RunSteps | None, end: float | None
) -> list[ChunkScores]:
    """Make the missing chunks and return the scores of all.

    run_steps: makes them; this process without it. end: of the time limit, on the monotonic clock. Raises
    UserError if a chunk could not be made. The others are kept.
    """
    sizes, folds = chunks.write(slices), len(chunks.bundle.spec.folds)
    kept = {name: len(scores.folds) for name in sizes if (scores := chunks.scores(name)) is not None}
    missing = [name for name in sizes if name not in kept or (end is None and 0 < kept[name] < folds)]
    left = sum(sizes[name] for name in missing)
    if left < len(slices):
        say(f"predict: {len(sizes) - len(missing)} of {len(sizes)} chunks are kept from an earlier run")
    failed: dict[str, list[str]] = {}
    with progress("predict: ensemble", len(slices)) as work:
        work.begin(len(slices) - left)
        if run_steps is not None:
            steps = [engines.Step(name, cores=chunks.bundle.spec.threads, on_gpu=True) for name in missing]
            for result in run_steps(steps, chunks.make) if steps else ():
                if result.error:
                    failed.setdefault(result.error, []).append(result.name)
                    continue
                left -= sizes[result.name]
                work.at(len(slices) - left)
        else:  # here, an error ends the command
            clock = _Clock(end or math.inf, min([folds, *filter(None, kept.values())]), time.monotonic())
            for name in missing:
                share = partial(show_share, work, len(slices) - left, sizes[name])
                left -= sizes[name]
                chunks.make(name, share, partial(clock.enough, sizes[name], left))
    found = {name: chunks.scores(name) for name in sizes}
    if missing := [name for name, scores in found.items() if scores is None]:
        reasons = [
            f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {why}" for why, names in failed.items()
        ]
        last = f"{len(missing)} of {len(sizes)} chunks are missing. Rerun the same command to make only these"
        raise UserError("\n".join([*reasons, last]))
    return [scores for scores in found.values() if scores is not None]


def show_share(work: Work, first: int, count: int, share: float) -> None:
    """Show the progress of a chunk of `count` slices after `first` finished ones."""
    work.at(first + round(share * count))


def _columns(fold: int, scores: FoldScores, studies: pd.Series) -> dict[str, NDArray]:
    """Columns `fold/class` of the slices, and `fold/class/model` of their studies; classes by number."""
    found = {f"{fold}/{c}": column for c, column in enumerate(scores.logits.T)}
    for model, logits in scores.studies.items():
        found |= {f"{fold}/{c}/{model}": column for c, column in enumerate(logits.loc[studies].to_numpy().T)}
    return found


def _folds(table: pd.DataFrame, classes: Sequence[str]) -> dict[int, FoldScores]:
    """The inverse of `_columns`."""
    found: dict[int, FoldScores] = {}
    parts = [name.split("/") for name in table.columns.drop(KEPT)]
    numbers, of_study = range(len(classes)), table.groupby("study_id", sort=False).first()
    for fold in dict.fromkeys(part[0] for part in parts):
        logits = table[[f"{fold}/{c}" for c in numbers]].to_numpy(np.float32)
        models = dict.fromkeys(part[2] for part in parts if part[0] == fold and len(part) == 3)
        studies = {name: of_study[[f"{fold}/{c}/{name}" for c in numbers]] for name in models}
        found[int(fold)] = FoldScores(
            logits, {name: one.set_axis(list(classes), axis=1) for name, one in studies.items()}
        )
    return found


def _to_parquet(table: pd.DataFrame, unread: list[Quarantined]) -> bytes:
    note = {"unread": json.dumps([vars(item) for item in unread])}
    content = pyarrow.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(note)
    pyarrow.parquet.write_table(content, file := io.BytesIO())
    return file.getvalue()


def _from_parquet(content: bytes) -> tuple[pd.DataFrame, list[Quarantined]]:
    table = pyarrow.parquet.read_table(io.BytesIO(content))
    unread = json.loads((table.schema.metadata or {})[b"unread"])
    return table.to_pandas(ignore_metadata=True), [Quarantined(**item) for item in unread]

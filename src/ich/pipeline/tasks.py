"""Tasks: an artifact with its inputs and files. Their versions and the names of files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ich.recipe import SECTIONS
from ich.store.records import Record

# Increased by hand when the results of a stage change, so that old artifacts become stale.
VERSIONS = {
    "demo": 2,
    "prepare": 2,
    "folds": 2,
    "pretrain": 3,
    "cnn": 2,
    "end_to_end": 3,
    "sequence": 3,
    "external": 1,
    "smooth": 2,
    "stack": 3,
    "blend": 3,
    "thresholds": 4,
    "submit": 2,
    "score": 6,
    "explain": 4,
    "report": 9,
    "predict": 2,
}
# files in the raw folder that `ich prepare` does not read
NOT_RAW = ("run.json", "solution.csv", "mislabelled.csv", "masks.npz")
PREDICTED = ("valid.parquet", "test.parquet")
PREDICTED_STUDIES = ("valid_studies.parquet", "test_studies.parquet")
ASSEMBLED = ("oof.parquet", "test.parquet")
STUDIES = "studies.json"  # calibration of the study logits
ASSEMBLED_STUDIES = ("oof_studies.parquet", "test_studies.parquet", STUDIES)
SHARDS = "hu-*.npy"  # pixels of the Hounsfield cache
SLICES = "slices.parquet"  # its slice table
HEADERS = "headers.bin"  # what was read from the headers, of an unfinished cache
WEIGHTS, SPEC = "model.safetensors", "model.json"
CHECKPOINT = "checkpoint.bin"  # training state after the last finished epoch
IN_SAMPLE = ("train.parquet", "train_embeddings.npy")

MODEL_STAGES = (*SECTIONS, "blend")  # stages that fit models, in order
Upstream = tuple[tuple["Task", tuple[str, ...]], ...]


@dataclass(frozen=True)
class Task:
    """An artifact with its record and its inputs: files of other tasks (`upstream`) and other files (`sources`)."""

    name: str
    stage: str
    record: Record
    settings: Mapping[str, Any]
    upstream: Upstream = ()
    sources: Mapping[str, Path] = field(default_factory=dict)
    model: str = ""
    fold: int | None = None
    files: tuple[str, ...] = ()  # minimum content of its record
    recipe: str | None = None  # the file of another recipe that makes it

    @property
    def folder(self) -> Path:
        """Folder of the finished files; they are written in `record.work`."""
        return self.record.path.parent

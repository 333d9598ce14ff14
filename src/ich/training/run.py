"""Context of the fit of a model. Imports no torch, so that models without a network can use it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ich.store.hashes import seed_of


@dataclass(frozen=True)
class Trackers:
    """Trackers that receive the training curves, in addition to history.csv."""

    names: tuple[str, ...]  # trackers by accelerate's names: tensorboard, wandb, ...
    folder: Path  # their local files are written below this folder
    project: str
    run: str
    settings: Mapping[str, Any]  # hyperparameters to show with the curves; may be nested


@dataclass(frozen=True)
class Run:
    """Seed, threads, checkpoint and trackers of the fit of one model on one fold."""

    name: str  # for messages and progress, such as "resnet fold 0"
    seed: int = 7
    threads: int = 1  # CPU threads
    folder: Path | None = None  # folder of checkpoint.bin while training; None: no checkpoint
    fingerprint: str = ""  # a checkpoint with another fingerprint is ignored
    trackers: Trackers | None = None

    def seeds(self, n: int) -> list["Run"]:
        """The runs of `n` trainings with different seeds on the same fold. The first has the seed of this run."""
        return [self, *(self._of_seed(number) for number in range(1, n))]

    def _of_seed(self, number: int) -> "Run":
        """Another seed, with a checkpoint and training curves of its own."""
        trackers = self.trackers and replace(self.trackers, run=f"{self.trackers.run}/seed{number}")
        folder = self.folder and self.folder / f"seed{number}"
        name = f"{self.name}, seed {number}"
        return replace(self, name=name, seed=seed_of(self.seed, number), folder=folder, trackers=trackers)

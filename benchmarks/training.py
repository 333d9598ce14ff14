"""One epoch of `fit`, against the same network on one batch that is in memory already.

The bare step is plain PyTorch: forward, backward and AdamW in the same precision. Ours also reads every slice from a
memory map, windows and augments it as a recipe does by default, clips the gradient and checks that all is finite.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

from benchmarks.harness import Result, compare
from ich.data.augment import Augment, Augmentation
from ich.data.batches import epoch_loader
from ich.data.datasets import SliceBatch, SliceDataset, Transform
from ich.data.windowing import Window, Windowing, neighbour_rows
from ich.networks.cnn import Cnn, CnnSpec
from ich.training.fit import FitSettings, fit
from ich.training.run import Run

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WINDOWING = Windowing("windows", (Window(40, 80), Window(80, 200), Window(600, 2800)))  # a recipe's default
CLASSES, SEED = 6, 7
DISTINCT = 2048  # different slices at most; longer epochs repeat them, augmented differently


@dataclass(frozen=True)
class Case:
    backbone: str
    size: int  # pixels
    batch: int  # slices
    steps: int  # per epoch
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.backbone} at {self.size} px"

    @property
    def slices(self) -> int:
        return self.batch * self.steps

    def network(self) -> Cnn:
        torch.manual_seed(SEED)
        return Cnn(CnnSpec(self.backbone, len(WINDOWING.windows), CLASSES, self.kwargs)).to(DEVICE)

    def dataset(self, folder: Path, *, augment: bool) -> SliceDataset:
        """Slices of noise in a memory map, with random labels."""
        random, distinct = np.random.default_rng(SEED), min(self.slices, DISTINCT)
        shape = (distinct, self.size, self.size)
        hu = np.lib.format.open_memmap(folder / "hu.npy", mode="w+", dtype=np.int16, shape=shape)
        for image in hu:
            image[:] = random.integers(-200, 300, image.shape)
        return SliceDataset(
            hu,
            np.arange(self.slices) % distinct,
            neighbour_rows(np.arange(distinct), np.zeros(distinct, np.int64)),
            [f"ID_{k}" for k in range(self.slices)],
            (random.random((self.slices, CLASSES)) < 0.1).astype(np.float32),
            Transform(WINDOWING, Augment(Augmentation()) if augment else None, seed=SEED),
        )


QUICK = Case("resnet10t", 32, 8, 2, kwargs={"channels": [8, 8, 8, 8], "stem_width": 8})
ON_CPU = Case("resnet18", 128, 32, 40)
ON_GPU = Case("resnext50_32x4d", 256, 128, 120)


def chosen(*, quick: bool) -> Case:
    return QUICK if quick else ON_GPU if DEVICE.type == "cuda" else ON_CPU


@dataclass(frozen=True)
class Loader:
    """Batches of each epoch for `fit`."""

    dataset: SliceDataset
    batch: int
    unit: str = "slices"

    @property
    def batches(self) -> int:
        return self.samples // self.batch

    @property
    def samples(self) -> int:
        return len(self.dataset)

    def epoch(self, number: int) -> DataLoader[SliceBatch]:
        return epoch_loader(self.dataset, number, self.batch, shuffle=True, workers=loader_processes())


def loader_processes() -> int:
    """None on a CPU, where they would compete with the training."""
    return 8 if DEVICE.type == "cuda" else 0


def run(*, quick: bool) -> Iterator[Result]:
    case = chosen(quick=quick)
    with tempfile.TemporaryDirectory(prefix="ich-benchmark-") as folder:
        loader = Loader(case.dataset(Path(folder), augment=True), case.batch)
        network, settings = case.network(), FitSettings(epochs=1, learning_rate=1e-4, precision="bf16")
        run_of_fit = Run("benchmark", SEED, threads=torch.get_num_threads())

        def ours() -> None:
            fit(network, loader, loss_of, settings, run_of_fit)
            synchronize()

        yield compare(
            f"fit, {case.name}",
            {"ours": ours, "one batch in memory": bare_steps(case, next(iter(loader.epoch(0))))},
            unit="slices",
            count=case.slices,
            rounds=1 if quick else 5,
        )


def loss_of(network: nn.Module, batch: SliceBatch) -> Tensor:
    return binary_cross_entropy_with_logits(network(batch.images), batch.targets)


def bare_steps(case: Case, batch: SliceBatch) -> Callable[[], None]:
    network, images, targets = case.network().train(), batch.images.to(DEVICE), batch.targets.to(DEVICE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def train() -> None:
        for _ in range(case.steps):
            optimizer.zero_grad()
            with torch.autocast(DEVICE.type, torch.bfloat16):
                loss = binary_cross_entropy_with_logits(network(images), targets)
            loss.backward()
            optimizer.step()
        synchronize()

    return train


def synchronize() -> None:
    """Wait until a GPU has finished."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()

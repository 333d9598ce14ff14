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

from benchmarks.harness import Result, compare
from ich.data.augment import Augment, Augmentation
from ich.data.batches import epoch_loader
from ich.data.datasets import SliceDataset, Transform
from ich.data.windowing import Window, Windowing, neighbour_rows
from ich.networks.cnn import Cnn, CnnSpec
from ich.training.device import autocast, default_device, loader_workers, to_device
from ich.training.fit import FitSettings, Loader, fit
from ich.training.run import Run

DEVICE = default_device()
WINDOWING = Windowing("windows", (Window(40, 80), Window(80, 200), Window(600, 2800)))  # a recipe's default
CLASSES, SEED = 6, 7
DISTINCT = 2048  # different slices at most; longer epochs repeat them, augmented differently


@dataclass(frozen=True)
class Case:
    backbone: str
    size: int  # pixels
    batch: int  # slices
    steps: int = 1  # per epoch
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

    def loader(self, folder: Path, *, training: bool) -> Loader:
        """Slices of noise in a memory map, with random labels; shuffled and augmented for training."""
        random, distinct = np.random.default_rng(SEED), min(self.slices, DISTINCT)
        path, shape = folder / f"{self.size}-{distinct}.npy", (distinct, self.size, self.size)
        if not path.exists():
            hu = np.lib.format.open_memmap(path, mode="w+", dtype=np.int16, shape=shape)
            for image in hu:
                image[:] = random.integers(-200, 300, image.shape, dtype=np.int16)
        dataset = SliceDataset(
            np.load(path, mmap_mode="r"),
            np.arange(self.slices) % distinct,
            neighbour_rows(np.arange(distinct), np.zeros(distinct, np.int64)),
            [f"ID_{k}" for k in range(self.slices)],
            (random.random((self.slices, CLASSES)) < 0.1).astype(np.float32),
            Transform(WINDOWING, Augment(Augmentation()) if training else None, seed=SEED),
        )
        workers = loader_workers("auto")
        return Loader(
            lambda epoch: epoch_loader(dataset, epoch, self.batch, shuffle=training, workers=workers),
            self.steps,
            self.slices,
            "slices",
        )


QUICK = Case("resnet10t", 32, 8, 2, kwargs={"channels": [8, 8, 8, 8], "stem_width": 8})
ON_CPU = Case("resnet18", 128, 32, 40)


def run(*, quick: bool) -> Iterator[Result]:
    case = QUICK if quick else ON_CPU
    with tempfile.TemporaryDirectory(prefix="ich-benchmark-") as folder:
        loader, network = case.loader(Path(folder), training=True), case.network()
        step = bare_step(case.network(), next(iter(loader.epoch(0))))

        def bare() -> None:
            for _ in range(case.steps):
                step()

        yield compare(
            f"fit, {case.name}",
            {"ours": lambda: fit_epoch(network, loader), "one batch in memory": bare},
            unit="slices",
            count=case.slices,
            rounds=1 if quick else 5,
        )


def fit_epoch(network: nn.Module, loader: Loader) -> None:
    settings = FitSettings(epochs=1, learning_rate=1e-4, precision="bf16")
    fit(network, loader, loss_of, settings, Run("benchmark", SEED, threads=torch.get_num_threads()))


def loss_of(network: nn.Module, batch: Any) -> Tensor:
    return binary_cross_entropy_with_logits(batch.real(network(*batch.inputs)), batch.targets)


def bare_step(network: nn.Module, batch: Any) -> Callable[[], None]:
    """A function that takes a training step on the batch, which lies on the device."""
    network.to(DEVICE).train()
    batch = to_device(batch, DEVICE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=DEVICE.type == "cuda" or None)

    def step() -> None:
        optimizer.zero_grad()
        with autocast("bf16", DEVICE):
            loss = loss_of(network, batch)
        loss.backward()
        optimizer.step()

    return step

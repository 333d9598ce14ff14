"""One epoch of a stage-2 network, against a loader of one padded study per sample.

The studies are as many and as long as RSNA 2019's: 19,530 studies of 20 to 57 slices, 512 features in float16. Ours is
`fit` on batches cut out of the packed arrays. The other way is that of most solution repositories: a DataLoader that
pads each study to 60 slices, the same layers in plain PyTorch on all 60, and a mask in the loss. On a CPU, with one
thread as a recipe's default, 1,600 of the studies are timed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import Result, compare
from benchmarks.training import DEVICE, synchronize
from ich.data.series import SeriesArrays, SeriesBatch, series_loader
from ich.networks.layers import HeadSpec
from ich.networks.sequence import build_head
from ich.training.fit import FitSettings, fit
from ich.training.run import Run

STUDIES, SHORTEST, LONGEST, PADDED = 19_530, 20, 57, 60
ON_CPU = 1_600  # studies
WIDTH, CLASSES, SEED = 512, 6, 7
BATCH, HIDDEN, RATE = 8, 64, 2e-3  # a recipe's defaults


@dataclass(frozen=True)
class Loader:
    """Batches of packed series for `fit`."""

    studies: SeriesArrays
    unit: str = "studies"

    @property
    def samples(self) -> int:
        return len(self.studies)

    @property
    def batches(self) -> int:
        return math.ceil(self.samples / BATCH)

    def epoch(self, number: int) -> Iterator[SeriesBatch]:
        return series_loader(self.studies, BATCH, shuffle=True, seed=SEED, epoch=number)


class PaddedStudies(Dataset[tuple[Tensor, ...]]):
    """One study per sample: features, base logits, geometry and targets [60, ...], and a mask [60]."""

    def __init__(self, studies: SeriesArrays) -> None:
        arrays = (*studies.features, studies.base, studies.geometry, studies.targets)
        ends = studies.offsets[1:-1]
        self.samples = list(zip(*(np.split(array.astype(np.float32), ends) for array in arrays), strict=True))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        study = self.samples[number]
        beyond = (0, 0, 0, PADDED - len(study[0]))
        padded = [nn.functional.pad(torch.from_numpy(array), beyond) for array in study]
        return (*padded, (torch.arange(PADDED) < len(study[0])).float())


class PlainNetwork(nn.Module):
    """base + linear(bidirectional RNN of [LayerNorm(features), base, geometry]), padding included."""

    def __init__(self, cell: str, width: int) -> None:
        super().__init__()
        kind = nn.GRU if cell == "gru" else nn.LSTM
        self.norm = nn.LayerNorm(width)
        self.rnn = kind(width + CLASSES + 2, HIDDEN, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * HIDDEN, CLASSES)

    def forward(self, features: Tensor, base: Tensor, geometry: Tensor) -> Tensor:
        states, _ = self.rnn(torch.cat([self.norm(features), base, geometry], dim=-1))
        return base + self.linear(states)


def random_studies(studies: int, width: int = WIDTH) -> SeriesArrays:
    """Packed studies of random lengths, mean 35 slices, with random features, logits and labels."""
    random = np.random.default_rng(SEED)
    lengths = SHORTEST + np.floor((LONGEST + 1 - SHORTEST) * random.random(studies) ** 1.6).astype(int)
    slices = lengths.sum()
    return SeriesArrays(
        features=[np.resize(random.standard_normal((min(slices, 1 << 14), width)).astype(np.float16), (slices, width))],
        base=random.standard_normal((slices, CLASSES), dtype=np.float32),
        geometry=random.uniform(-1, 1, (slices, 2)).astype(np.float32),
        targets=(random.random((slices, CLASSES)) < 0.05).astype(np.float32),
        offsets=np.append(0, lengths.cumsum()).astype(np.int64),
    )


def head(cell: str, width: int) -> nn.Module:
    return build_head(HeadSpec("residual", width, CLASSES, cell, hidden=HIDDEN, dropout=0.2))


def our_epoch(loader: Loader, cell: str) -> None:
    def loss_of(network: nn.Module, batch: SeriesBatch) -> Tensor:
        return binary_cross_entropy_with_logits(batch.real(network(*batch.inputs)), batch.targets)

    network = head(cell, loader.studies.features[0].shape[1])
    settings = FitSettings(epochs=1, learning_rate=RATE, precision="fp32")
    fit(network, loader, loss_of, settings, Run("benchmark", SEED, threads=1))
    synchronize()


def padded_epoch(dataset: PaddedStudies, cell: str) -> None:
    network = PlainNetwork(cell, dataset.samples[0][0].shape[1]).to(DEVICE).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    for batch in DataLoader(dataset, BATCH, shuffle=True, pin_memory=DEVICE.type == "cuda"):
        *inputs, targets, mask = (part.to(DEVICE, non_blocking=True) for part in batch)
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(network(*inputs), targets, reduction="none") * mask[..., None]
        (loss.sum() / mask.sum() / CLASSES).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    synchronize()


def run(*, quick: bool) -> Iterator[Result]:
    """One comparison per cell."""
    studies = random_studies(16, 32) if quick else random_studies(STUDIES if DEVICE.type == "cuda" else ON_CPU)
    loader, dataset, threads = Loader(studies), PaddedStudies(studies), torch.get_num_threads()
    torch.set_num_threads(1)
    for cell in ("gru", "lstm"):
        yield compare(
            f"stage 2, Bi{cell.upper()}",
            {
                "ours": lambda cell=cell: our_epoch(loader, cell),
                "padded studies": lambda cell=cell: padded_epoch(dataset, cell),
            },
            unit="studies",
            count=len(dataset),
            rounds=1 if quick else 5,
        )
    torch.set_num_threads(threads)

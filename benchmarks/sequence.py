"""One epoch of a stage-2 network, against a loader of one padded study per sample.

The studies are as long as RSNA 2019's: 20 to 57 slices, with 512 features in float16. Ours is `fit` on batches cut out
of the packed arrays. The other way is that of most solution repositories: a DataLoader that pads each study to 60
slices, the same layers in plain PyTorch on all 60, and a mask in the loss. Both use one thread, a recipe's default.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import Result, compare
from benchmarks.training import SEED, fit_epoch
from ich.data.series import SeriesArrays, SeriesBatch, series_loader
from ich.networks.layers import HeadSpec
from ich.networks.sequence import build_head
from ich.training.fit import Loader

STUDIES, SHORTEST, LONGEST, PADDED = 1_600, 20, 57, 60
WIDTH, CLASSES = 512, 6
BATCH, HIDDEN, RATE = 8, 64, 1e-4


def loader_of(studies: SeriesArrays, batch: int) -> Loader:
    """Batches of packed series for `fit`."""

    def epoch(number: int) -> Iterator[SeriesBatch]:
        return series_loader(studies, batch, shuffle=True, seed=SEED, epoch=number)

    return Loader(epoch, math.ceil(len(studies) / batch), len(studies), "studies")


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
    """Packed studies of random lengths, mean 36 slices, with random features, logits and labels."""
    random = np.random.default_rng(SEED)
    lengths = SHORTEST + np.floor((LONGEST + 1 - SHORTEST) * random.random(studies) ** 1.3).astype(int)
    slices = lengths.sum()
    return SeriesArrays(
        features=[np.resize(random.standard_normal((min(slices, 1 << 14), width)).astype(np.float16), (slices, width))],
        base=random.standard_normal((slices, CLASSES), dtype=np.float32),
        geometry=random.uniform(-1, 1, (slices, 2)).astype(np.float32),
        targets=(random.random((slices, CLASSES)) < 0.05).astype(np.float32),
        offsets=np.append(0, lengths.cumsum()).astype(np.int64),
    )


def head(cell: str, width: int, hidden: int = HIDDEN, layers: int = 1) -> nn.Module:
    return build_head(HeadSpec("residual", width, CLASSES, cell, hidden=hidden, layers=layers, dropout=0.2))


def padded_epoch(dataset: PaddedStudies, cell: str) -> None:
    network = PlainNetwork(cell, dataset.samples[0][0].shape[1]).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    for *inputs, targets, mask in DataLoader(dataset, BATCH, shuffle=True):
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(network(*inputs), targets, reduction="none") * mask[..., None]
        (loss.sum() / mask.sum() / CLASSES).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()


def run(*, quick: bool) -> Iterator[Result]:
    """One comparison per cell."""
    studies = random_studies(16, 32) if quick else random_studies(STUDIES)
    loader, dataset, threads = loader_of(studies, BATCH), PaddedStudies(studies), torch.get_num_threads()
    torch.set_num_threads(1)
    for cell in ("gru", "lstm"):
        yield compare(
            f"stage 2, Bi{cell.upper()}",
            {
                "ours": lambda cell=cell: fit_epoch(head(cell, studies.features[0].shape[1]), loader),
                "padded studies": lambda cell=cell: padded_epoch(dataset, cell),
            },
            unit="studies",
            count=len(dataset),
            rounds=1 if quick else 5,
        )
    torch.set_num_threads(threads)

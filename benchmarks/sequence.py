"""Stage 2 on tables of RSNA 2019's size, against a loader of one study a sample, padded to a fixed length.

The tables are synthesised: 19,530 studies of 20 to 57 slices, 674,258 slices, 512 features in float16. Ours is `fit` on
batches out of the packed tables. The other way is that of solution repositories: a list of float32 arrays, a torch
DataLoader that asks for one study after the other and pads each to 60 slices, the same network on all 60, and a mask
in the loss. Network, number of studies a step, optimizer and clipping are the same. On a CPU, with one thread as
recipes have it by default, a share of the studies is timed; on a GPU an epoch of them all.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.race import OURS, Race, race
from ich.data.studies import Studies, study_loader
from ich.networks import losses
from ich.networks.sequence import SequenceHead, StackedHead, build_head
from ich.recipe import Sequence
from ich.stages.networks import head_shape
from ich.training.device import default_device
from ich.training.loop import FitSettings, fit

STUDIES, SLICES, SHORTEST, LONGEST, PADDED = 19_530, 674_258, 20, 57, 60
WIDTH, CLASSES, SEED = 512, 6, 7
SHARE = 1_600  # studies that are timed on a CPU
GPU_SECONDS = 20.0  # that an epoch may take
OTHER = "padded studies from a loader"
SETTINGS = {
    "BiGRU, a recipe's default": Sequence(on=("cnn",)),
    "two LSTM layers, configs/seeds/hohoho.yaml": Sequence(
        on=("cnn",), head="shortcut", cell="lstm", hidden=64, layers=2, batch_size=32, learning_rate=1e-3
    ),
}


def tables(studies: int = STUDIES, slices: int = SLICES, width: int = WIDTH, seed: int = SEED) -> Studies:
    """Packed studies of random lengths that add up to `slices`, with random features, logits and labels."""
    random = np.random.default_rng(seed)
    lengths = SHORTEST + np.floor((LONGEST + 1 - SHORTEST) * random.random(studies) ** 1.6).astype(int)
    while more := slices - lengths.sum():
        free = np.flatnonzero(lengths < LONGEST if more > 0 else lengths > SHORTEST)
        lengths[random.permutation(free)[: abs(more)]] += np.sign(more)
    drawn = random.standard_normal((min(slices, 1 << 14), width), dtype=np.float32).astype(np.float16)
    return Studies(
        features=np.resize(drawn, (slices, width)),
        base=random.standard_normal((slices, CLASSES), dtype=np.float32),
        geometry=random.uniform(-1, 1, (slices, 2)).astype(np.float32),
        targets=(random.random((slices, CLASSES)) < 0.05).astype(np.float32),
        offsets=np.append(0, lengths.cumsum()).astype(np.int64),
    )


class PaddedStudies(Dataset[tuple[Tensor, ...]]):
    """A study a sample: features, logits, geometry and labels [60, ...], and a mask [60]."""

    def __init__(self, studies: Studies) -> None:
        self.parts = []
        assert studies.targets is not None
        for begin, end in zip(studies.offsets, studies.offsets[1:], strict=False):
            arrays = (studies.features, studies.base, studies.geometry, studies.targets)
            self.parts.append([array[begin:end].astype(np.float32) for array in arrays])

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        study = self.parts[number]
        padded = [np.zeros((PADDED, array.shape[1]), np.float32) for array in study]
        mask = np.zeros(PADDED, np.float32)
        for whole, array in zip(padded, study, strict=True):
            whole[: len(array)] = array
        mask[: len(study[0])] = 1
        return (*map(torch.from_numpy, padded), torch.from_numpy(mask))


class PaddedNetwork(nn.Module):
    """The layers of a head on padded studies, as torch has them: padding is read like any slice."""

    def __init__(self, head: SequenceHead | StackedHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, base: Tensor, geometry: Tensor) -> Tensor:
        head = self.head
        if isinstance(head, SequenceHead):
            states, _ = head.rnn(torch.cat([head.norm(features), base, geometry], dim=-1))
            return base + head.residual(head.dropout(states))
        outputs = [features]
        for layer in head.layers:
            outputs.append(layer(head.dropout(outputs[-1]) if len(outputs) > 1 else features)[0])
        return head.classifier(head.dropout(sum(outputs[1:])))


def network(settings: Sequence, width: int) -> nn.Module:
    torch.manual_seed(SEED)
    return build_head(settings.head, **head_shape(settings, width, CLASSES))


def our_epoch(studies: Studies, chosen: np.ndarray, settings: Sequence) -> None:
    bce, size = losses.build("bce"), settings.batch_size

    def loss_of(model: nn.Module, batch: object) -> Tensor:
        logits = model(batch.features, batch.base, batch.geometry, batch.lengths)  # pyright: ignore
        return bce(batch.slices(logits), batch.slices(batch.targets))  # pyright: ignore

    fit(
        network(settings, studies.features.shape[1]),
        lambda epoch: study_loader(studies, chosen, size, shuffle=True, seed=SEED, epoch=epoch),
        loss_of,
        FitSettings(epochs=1, learning_rate=settings.learning_rate),
        steps_per_epoch=-(-len(chosen) // size),
    )


def other_epoch(dataset: PaddedStudies, chosen: np.ndarray, settings: Sequence) -> None:
    device, width = default_device(), dataset.parts[0][0].shape[1]
    head = network(settings, width)
    assert isinstance(head, SequenceHead | StackedHead)
    model = PaddedNetwork(head).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    criterion = nn.BCEWithLogitsLoss(reduction="none")
    subset = torch.utils.data.Subset(dataset, chosen.tolist())
    loader = DataLoader(subset, settings.batch_size, shuffle=True, pin_memory=device.type == "cuda")
    for batch in loader:
        features, base, geometry, targets, mask = (part.to(device, non_blocking=True) for part in batch)
        optimizer.zero_grad()
        loss = criterion(model(features, base, geometry), targets) * mask[..., None]
        loss = loss.sum() / mask.sum() / CLASSES
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()


def races(*, quick: bool) -> Iterator[Race]:
    """A race a network. Notes: the whole epoch worked out, and what each way prepares before the first, in seconds."""
    device, threads = default_device(), torch.get_num_threads()
    whole = device.type == "cuda"
    studies = tables(16, 560, 32) if quick else tables()
    total = len(studies.offsets) - 1
    random = np.random.default_rng(SEED)
    chosen = np.arange(total) if quick or whole else random.choice(total, SHARE, replace=False)

    def seconds(prepare: Callable[[], object]) -> tuple[float, object]:
        started = time.perf_counter()
        found = prepare()
        return round(time.perf_counter() - started, 3), found

    def ready() -> Studies:
        studies_there = studies.near(device)
        _ = studies_there.tables
        return studies_there

    ours, near = seconds(ready)
    theirs, dataset = seconds(lambda: PaddedStudies(studies))
    assert isinstance(near, Studies)
    assert isinstance(dataset, PaddedStudies)
    torch.set_num_threads(1)
    try:
        for name, settings in SETTINGS.items():
            found = race(
                f"stage 2, {name}",
                {
                    OURS: lambda settings=settings: our_epoch(near, chosen, settings),
                    OTHER: lambda settings=settings: other_epoch(dataset, chosen, settings),
                },
                unit="studies",
                count=len(chosen),
                rounds=1 if quick else 3 if whole else 5,
                warm_up=0 if quick else 1,
                wanted={OTHER: 5},
                limit=GPU_SECONDS if whole else None,
            )
            epoch = {
                way: f"{total} / {rate:.1f} = {total / rate:.1f} s" for way, rate in found.as_dict()["rate"].items()
            }
            slices = int((studies.offsets[chosen + 1] - studies.offsets[chosen]).sum())
            notes = {
                "studies a step": settings.batch_size,
                "an epoch of all studies": epoch,
                "slices that are read, padding with them": {OURS: slices, OTHER: len(chosen) * PADDED},
                "prepared before the first epoch, s": {OURS: ours, OTHER: theirs},
            }
            yield replace(found, notes=notes)
    finally:
        torch.set_num_threads(threads)

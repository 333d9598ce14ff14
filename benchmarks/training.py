"""A whole fit, against the same network on one batch that is in memory already; and what each way to train gains.

The limit is plain torch at its defaults: forward, backward and a step of AdamW, always on the same batch, in the same
precision and memory format. Ours reads every slice from a memory map, changes it as a recipe does by default (on a GPU
there: augment.on), clips the gradient, and looks whether losses, weights and optimizer stay finite; on a GPU it follows
the weights by a moving average, as configs/rsna2019.yaml does. Neither evaluates or saves: `prediction` times the
former, and a note tells what a checkpoint costs at the end of an epoch.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.race import Race, race
from ich.data.augment import Augmentation, build
from ich.data.batches import epoch_loader
from ich.data.datasets import SliceBatch, SliceDataset
from ich.data.on_device import OnDevice
from ich.data.views import View, Window, neighbour_rows
from ich.networks.cnn import Cnn, CnnSpec
from ich.networks.losses import build as loss
from ich.training import checkpoint, pace
from ich.training.device import Mover, default_device, resolve
from ich.training.loop import FitSettings, fit

VIEW = View("windows", (Window(40, 80), Window(80, 200), Window(600, 2800)))  # a recipe's default
DISTINCT = 2048  # slices in the memory map at most; an epoch of more meets them again, changed in other ways
CLASSES = 6
SEED = 7
BCE = loss("bce")


@dataclass(frozen=True)
class Case:
    backbone: str
    size: int  # pixels
    batch: int  # slices
    steps: int  # an epoch
    wanted: float | None = None  # share of the limit
    ema: float | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.backbone} at {self.size} px"


QUICK = Case("resnet10t", 32, 8, 2, kwargs={"channels": [8, 8, 8, 8], "stem_width": 8})
ON_CPU = (Case("resnet18", 128, 32, 40, wanted=0.95),)
ON_GPU = tuple(
    Case(backbone, size, batch, steps, wanted=0.9, ema=0.999)
    for backbone, size, batch, steps in (
        ("resnet18", 256, 256, 160),
        ("resnet18", 512, 96, 120),
        ("resnext50_32x4d", 256, 128, 120),
        ("resnext50_32x4d", 512, 48, 100),
    )
)


def cases(*, quick: bool) -> tuple[Case, ...]:
    return (QUICK,) if quick else ON_GPU if default_device().type == "cuda" else ON_CPU


class Material:
    """What a case needs: slices in a memory map, a batch of them in the device's memory, networks."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.device = case, default_device()
        n, rng = case.batch * case.steps, np.random.default_rng(SEED)
        path, distinct = folder / "hu.npy", min(n, DISTINCT)
        hu = np.lib.format.open_memmap(path, mode="w+", dtype=np.int16, shape=(distinct, case.size, case.size))
        for picture in hu:
            picture[:] = rng.integers(-200, 300, picture.shape)
        hu.flush()
        self.hu, self.rows = np.load(path, mmap_mode="r"), np.arange(n) % distinct
        self.ids = [f"ID_{k}" for k in range(n)]
        self.targets = (rng.random((n, CLASSES)) < 0.1).astype(np.float32)
        cuda = self.device.type == "cuda"
        augment = build(Augmentation(on="device" if cuda else "loader"))
        self.training, self.seen = self.dataset(augment), OnDevice(VIEW, augment.settings)
        self.workers = 0

    def dataset(self, augment: Any = None) -> SliceDataset:
        alone = neighbour_rows(np.arange(len(self.hu)), np.zeros(len(self.hu), np.int64))
        return SliceDataset(self.hu, self.rows, alone, self.ids, self.targets, VIEW, augment, SEED)

    def network(self) -> Cnn:
        torch.manual_seed(SEED)
        return Cnn(CnnSpec(self.case.backbone, len(VIEW.windows), CLASSES, self.case.kwargs)).to(self.device)

    def batch(self) -> SliceBatch:
        """The first batch, finished and on the device."""
        first = Mover(self.device)(next(iter(self.batches(0))))
        return SliceBatch(self.seen.pictures(first), first.targets, first.rows)

    def batches(self, epoch: int, workers: int | None = None) -> Any:
        workers = self.workers if workers is None else workers
        return epoch_loader(self.training, epoch, self.case.batch, shuffle=True, workers=workers)

    def loss_of(self, model: nn.Module, batch: SliceBatch) -> Tensor:
        assert batch.targets is not None
        return BCE(model(self.seen.pictures(batch)), batch.targets)

    def probe(self) -> dict[str, Any]:
        """Let as many processes load as a stage would; what it goes by."""
        if self.device.type == "cpu":
            return {}
        most = max(1, len(os.sched_getaffinity(0)) - 1)
        seconds = pace.measure(self.network(), self.batches(0, 1), self.loss_of, "auto")
        self.workers = most if seconds is None else pace.loaders(*seconds, most)
        return {"loader processes": self.workers, "seconds to load and to train a batch": seconds}


def races(*, quick: bool) -> Iterator[Race]:
    rounds = 1 if quick else 5
    for case in cases(quick=quick):
        with tempfile.TemporaryDirectory() as folder:
            yield whole_fit(Material(case, Path(folder)), rounds)
    case = cases(quick=quick)[-1]  # the ways, on the largest network
    case = replace(case, steps=2 if quick else 4 if default_device().type == "cpu" else 50)
    with tempfile.TemporaryDirectory() as folder:
        material = Material(case, Path(folder))
        yield half_precision(material, rounds)
        yield channels_last(material, rounds)
        yield checkpointing(material, rounds)
        yield adamw(material, 1 if quick else 20)
        if not quick:  # it compiles for minutes
            yield compiled(material, rounds)


def whole_fit(material: Material, rounds: int) -> Race:
    case, settings = material.case, FitSettings(epochs=1, learning_rate=1e-4, ema=material.case.ema, seed=SEED)
    network, saved, probed = material.network(), list[float](), material.probe()

    def save(state: dict[str, Any]) -> None:
        started = time.perf_counter()
        checkpoint.to_bytes(state)
        saved.append(time.perf_counter() - started)

    def ours(**options: Any) -> None:
        fit(network, material.batches, material.loss_of, settings, steps_per_epoch=case.steps, **options)
        waited()

    ways = {"ours": ours, "one batch in memory": limit(material)}
    found = race(
        f"fit, {case.name}",
        ways,
        unit="slices",
        count=case.batch * case.steps,
        rounds=rounds,
        wanted={} if case.wanted is None else {"one batch in memory": case.wanted},
        notes={**conditions(material), "moving average": case.ema, **probed},
    )
    ours(save=save)
    return replace(found, notes={**found.notes, "a checkpoint, s": round(saved[0], 2)})


def limit(material: Material) -> Callable[[], None]:
    network, batch, steps = material.network(), material.batch(), material.case.steps
    images, targets = batch.images, batch.targets
    assert targets is not None
    optimizer, kind = torch.optim.AdamW(network.parameters(), lr=1e-4), material.device.type
    half = half_of(material)

    def train() -> None:
        network.train()
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(kind, half, enabled=half is not None):
                value = BCE(network(images), targets)
            value.backward()
            optimizer.step()
        waited()

    return train


# ---- what each way to train gains: fit on a batch that is in memory already


def on_one_batch(material: Material, network: Cnn, batch: SliceBatch, **chosen: Any) -> Callable[[], None]:
    settings = FitSettings(epochs=1, learning_rate=1e-4, seed=SEED, **chosen)
    steps = material.case.steps

    def train() -> None:
        fit(network, lambda _: [batch] * steps, material.loss_of, settings, steps_per_epoch=steps)
        waited()

    return train


def against(
    material: Material, what: str, ways: dict[str, Callable[[], None]], rounds: int, notes: dict[str, Any] | None = None
) -> Race:
    case = material.case
    count, notes = case.batch * case.steps, conditions(material) | (notes or {})
    return race(f"{what}, {case.name}", ways, unit="slices", count=count, rounds=rounds, notes=notes)


def half_precision(material: Material, rounds: int) -> Race:
    batch = material.batch()
    auto, full = (on_one_batch(material, material.network(), batch, precision=kind) for kind in ("auto", "fp32"))
    return against(material, "precision: auto", {"ours": auto, "fp32": full}, rounds)


def channels_last(material: Material, rounds: int) -> Race:
    batch, plain = material.batch(), material.network()
    plain.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    rows = on_one_batch(material, plain, batch._replace(images=batch.images.contiguous()))
    ours = on_one_batch(material, material.network(), batch)
    return against(material, "channels last", {"ours": ours, "channels first": rows}, rounds)


def checkpointing(material: Material, rounds: int) -> Race:
    batch, plain, saving = material.batch(), material.network(), material.network()
    saving.checkpoint()
    names = {"ours": saving, "checkpointing: false": plain}
    notes = {f"MiB for the gradient, {name}": kept(material, network, batch) for name, network in names.items()}
    ways = {name: on_one_batch(material, network, batch) for name, network in names.items()}
    if material.device.type == "cuda":
        notes |= {f"MiB at the peak, {name}": _peak(train) for name, train in ways.items()}
    return against(material, "checkpointing: true", ways, rounds, notes)


def kept(material: Material, network: Cnn, batch: SliceBatch) -> float:
    """MiB of what the forward pass keeps for the gradient, weights and their half-precision copies among it."""
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # else another's memory may come to lie where one was

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        alive.append(value)
        return value

    half = half_of(material)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
        torch.autocast(material.device.type, half, enabled=half is not None),
    ):
        material.loss_of(network.train(), batch)
    return round(sum(sizes.values()) / 2**20, 2)


def _peak(train: Callable[[], None]) -> float:
    torch.cuda.reset_peak_memory_stats()
    train()
    return round(torch.cuda.max_memory_allocated() / 2**20, 1)


def compiled(material: Material, rounds: int) -> Race:
    batch, network = material.batch(), material.network()
    started = time.perf_counter()
    network.compile_training()
    ours = on_one_batch(material, network, batch)
    ours()
    seconds = round(time.perf_counter() - started, 1)
    ways = {"ours": ours, "compile: false": on_one_batch(material, material.network(), batch)}
    return against(material, "compile: true", ways, rounds, {"first fit, s": seconds})


def adamw(material: Material, rounds: int) -> Race:
    """A step of AdamW in torch's ways; ours is `fused` on a GPU; that would round otherwise on a CPU."""
    ways: dict[str, Callable[[], object]] = {}
    ours = "fused" if material.device.type == "cuda" else "loop"
    for name in ("loop", "foreach", "fused"):
        network = material.network()
        for value in network.parameters():
            value.grad = torch.full_like(value, 1e-3)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=1e-4, foreach=name == "foreach", fused=name == "fused" or None
        )
        ways["ours" if name == ours else name] = _stepping(optimizer)
    return race(f"a step of AdamW, {material.case.backbone}", ways, unit="steps", count=1, rounds=rounds)


def _stepping(optimizer: torch.optim.AdamW) -> Callable[[], None]:
    def step() -> None:
        optimizer.step()
        waited()

    return step


def waited() -> None:
    """A clock that is read after this has seen all that a GPU was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def half_of(material: Material) -> torch.dtype | None:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(resolve("auto", material.device))


def conditions(material: Material) -> dict[str, Any]:
    return {
        "precision": resolve("auto", material.device),
        "batch": material.case.batch,
        "steps": material.case.steps,
        "threads": torch.get_num_threads(),
    }

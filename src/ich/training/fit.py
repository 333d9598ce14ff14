"""The training loop of every network."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad_norm_, get_total_norm

from ich.console import Work, detail, progress, say
from ich.errors import UserError
from ich.training.checkpoint import TrainingState
from ich.training.device import Precision, autocast, default_device, deterministic, fetch, resolve, to_device
from ich.training.memory import memory_errors
from ich.training.run import Run
from ich.training.trackers import Curves

Row = dict[str, float]
SMALLEST_SCALE = 1e-4  # of the fp16 loss: gradients that overflow below it are not finite at any scale
MAX_EPOCH_LINES = 8


@dataclass(frozen=True)
class FitSettings:
    """Settings of a training; the recipe's `Training` section documents them."""

    epochs: int
    learning_rate: float
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_ratio: float = 0.1
    min_lr_ratio: float = 0.0
    decay_epochs: int | None = None
    decay_rate: float = 0.1
    ema_decay: float | None = None
    max_grad_norm: float | None = 1.0
    precision: Precision = "auto"
    accumulate: int = 1
    keep_best: str | None = None  # metric of `evaluate`: the result is its best epoch; None: the last epoch
    larger_is_better: bool = True
    patience: int | None = None
    """With keep_best: stop after this many epochs without improvement; None: train all epochs."""
    lr_scales: Mapping[str, float] = field(default_factory=dict)
    """Factors of the learning rate by parameter name; 1 for the others."""


@dataclass(frozen=True)
class Loader:
    """A training set. The batches of an epoch are named tuples of tensors; `rows` has one number per slice."""

    epoch: Callable[[int], Iterable[Any]]
    batches: int  # number of batches per epoch
    samples: int  # slices or studies per epoch
    unit: str  # slices or series


@deterministic()
def fit(
    network: nn.Module,
    loader: Loader,
    loss_of: Callable[[nn.Module, Any], Tensor],
    settings: FitSettings,
    run: Run,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> list[Row]:
    """Train the network in place and return its history: learning rate, loss and metrics of each epoch.

    loss_of(network, batch) is the mean loss over the slices of a batch. With `accumulate`, batches are weighted by
    their number of slices, which equals one larger batch up to rounding, dropout and batch norm. evaluate(network)
    returns the metrics of an epoch. The network ends with the weights of the moving average or of the best epoch, as
    set.

    A checkpoint is written after each epoch, and a killed training resumes from it. The result has the same bytes on a
    CPU; on a GPU its weights are within 1e-6.

    Raises UserError if the loss, the weights or the optimizer state are not finite, before a checkpoint is written; if
    memory runs out; and if the checkpoint does not fit.
    """
    device, steps = default_device(), -(-loader.batches // settings.accumulate)
    with (
        memory_errors(run.name),
        progress(run.name, settings.epochs * loader.samples, loader.unit, inner=True) as work,
        Curves(run.trackers) as curves,
    ):
        torch.set_num_threads(run.threads)
        torch.manual_seed(run.seed)
        network.to(device)
        average = None if settings.ema_decay is None else copy.deepcopy(network).requires_grad_(False)
        precision = resolve(settings.precision, device)
        scaler = GradScaler(device.type, enabled=precision == "fp16")
        state = TrainingState(network, average, optimizer_of(network, settings), scaler)
        path = None if run.folder is None else run.folder / "checkpoint.bin"
        if path is not None:
            state.load(path, run.fingerprint)
        history = state.history
        trained = sum(value.numel() for value in network.parameters() if value.requires_grad)
        detail(
            f"  {run.name}: {trained:,} trainable parameters on {device} in {precision}; {loader.samples:,}"
            f" {loader.unit} in {steps:,} optimizer steps per epoch; first epoch {len(history) + 1}"
        )
        work.begin(len(history) * loader.samples)
        curves.log(history)
        while not finished(settings, history):
            epoch, started = len(history), time.monotonic()
            row: Row = {"epoch": epoch, **train_epoch(state, loader, loss_of, settings, run, work)}
            detail(f"  {run.name}: {(time.monotonic() - started) / steps:.3g} s per step in epoch {epoch + 1}")
            result = network if average is None else average
            if evaluate is not None:
                row |= {name: float(value) for name, value in evaluate(result).items()}
            history.append(row)
            if best_epoch(settings, history) == epoch:
                state.best = {name: value.to("cpu", copy=True) for name, value in result.state_dict().items()}
            if path is not None:
                state.save(path, run.fingerprint)
            curves.log(history)
            if (epoch + 1) % -(-settings.epochs // MAX_EPOCH_LINES) == 0 or epoch + 1 == settings.epochs:
                shown = ", ".join(f"{name} {value:.4f}" for name, value in row.items() if "loss" in name)
                say(f"  {run.name}: epoch {epoch + 1} of {settings.epochs}, {shown}{work.pace()}")

    if len(history) < settings.epochs:
        say(f"  {run.name}: early stopping after epoch {len(history)}: no improvement for {settings.patience} epochs")
    if settings.keep_best is not None:
        if state.best is None:
            raise UserError(f"{run.name}: {settings.keep_best} is NaN in every epoch")
        network.load_state_dict(state.best)
    elif average is not None:
        network.load_state_dict(average.state_dict())
    return history


def train_epoch(
    state: TrainingState,
    loader: Loader,
    loss_of: Callable[[nn.Module, Any], Tensor],
    settings: FitSettings,
    run: Run,
    work: Work,
) -> Row:
    """Train for one epoch; return its mean loss and its last learning rate."""
    network, optimizer, scaler, epoch = state.network, state.optimizer, state.scaler, len(state.history)
    device, steps = default_device(), -(-loader.batches // settings.accumulate)
    losses, arriving, batches, rate = list[float](), None, 0, 0.0

    def require(good: bool, what: str, step: int) -> None:
        if not good:
            raise UserError(
                f"{run.name}: {what} in epoch {epoch + 1}, step {step + 1}. Lower learning_rate (now"
                f" {settings.learning_rate:g}), raise warmup_ratio (now {settings.warmup_ratio:g}), set max_grad_norm"
                f" (now {settings.max_grad_norm}) or use precision fp32. At the first step, look for NaN in the inputs"
            )

    def read_loss(step: int) -> None:
        if arriving is not None:
            losses.append(float(arriving()))
            require(math.isfinite(losses[-1]), f"the loss is {losses[-1]}", step)

    network.train()
    for step, group in enumerate(grouped(loader.epoch(epoch), settings.accumulate)):
        done = epoch * steps + step
        rate = learning_rate(settings, done, settings.epochs * steps)
        for parameters in optimizer.param_groups:
            parameters["lr"] = rate * parameters["lr_scale"]
        optimizer.zero_grad()
        loss, slices = torch.zeros((), device=device), sum(len(batch.rows) for batch in group)
        for batch in group:
            with autocast(settings.precision, device):
                part = loss_of(network, to_device(batch, device)) * (len(batch.rows) / slices)
            scaler.scale(part).backward()
            loss += part.detach()
        if settings.max_grad_norm is not None:
            scaler.unscale_(optimizer)
            clip_grad_norm_(network.parameters(), settings.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        if state.average is not None:
            # a smaller decay in the first steps, or the average would keep the initial weights for long
            update_average(state.average, network, min(settings.ema_decay or 0.0, (1 + done) / (10 + done)))
        read_loss(step - 1)  # one step late, so that the GPU does not wait
        arriving = fetch(loss)
        batches += len(group)
        samples = epoch * loader.samples + (step + 1) * loader.samples // steps
        work.at(samples, f"epoch {epoch + 1} of {settings.epochs}")
    if arriving is None or batches != loader.batches:
        raise ValueError(f"epoch {epoch} had {batches} batches, not {loader.batches}")
    read_loss(steps - 1)
    overflow = scaler.is_enabled() and scaler.get_scale() < SMALLEST_SCALE
    moments = [value for moment in optimizer.state.values() for value in moment.values()]
    require(not overflow, "fp16 gradients overflow", steps - 1)
    require(all_finite(network.state_dict().values()), "the weights are not finite", steps - 1)
    require(all_finite(moments), "the optimizer state is not finite", steps - 1)
    return {"learning_rate": rate, "loss": sum(losses) / len(losses)}


def grouped(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` batches; the last one may be shorter."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


def learning_rate(settings: FitSettings, step: int, total: int) -> float:
    """Learning rate of a step: linear warm-up, then half a cosine, a constant, or a decay every `decay_epochs`."""
    warmup = round(settings.warmup_ratio * total)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.decay_epochs is not None:
        epoch = step * settings.epochs // total
        return settings.learning_rate * settings.decay_rate ** (epoch // settings.decay_epochs)
    if settings.schedule == "constant":
        return settings.learning_rate
    cosine = (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1))) / 2
    return settings.learning_rate * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * cosine)


def optimizer_of(network: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    """The optimizer, without weight decay of biases and norms; each group has its `lr_scale`."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, value in network.named_parameters():
        if value.requires_grad:
            groups.setdefault((value.ndim > 1, settings.lr_scales.get(name, 1.0)), []).append(value)
    parameters = [
        {"params": groups[key], "lr_scale": key[1], "weight_decay": settings.weight_decay if key[0] else 0.0}
        for key in sorted(groups, reverse=True)
    ]
    rate = settings.learning_rate
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, settings.momentum, nesterov=settings.nesterov)
    # fused only on a GPU, as it rounds differently on a CPU
    return torch.optim.AdamW(parameters, rate, fused=next(network.parameters()).is_cuda or None)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average towards the network; counters are copied."""
    pairs = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    kept, new = (list(values) for values in zip(*floats, strict=True))
    torch._foreach_lerp_(kept, new, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
    for count, now in pairs:
        if not count.is_floating_point():
            count.copy_(now)


def all_finite(values: Iterable[Tensor]) -> bool:
    """Return True if all values are finite; computed from their maximum norm, so that a GPU returns a single number."""
    floats = [value for value in values if value.is_floating_point() and value.numel()]
    return bool(get_total_norm(floats, math.inf).isfinite())


def best_epoch(settings: FitSettings, history: Sequence[Row]) -> int | None:
    """First epoch with the best `keep_best`; None if it is off or NaN in every epoch."""
    name = settings.keep_best
    if name is None:
        return None
    for row in history:
        if name not in row:
            raise ValueError(f"keep_best is {name!r}, but the metrics are {', '.join(row)}")
    epochs = [epoch for epoch, row in enumerate(history) if not math.isnan(row[name])]
    choose = max if settings.larger_is_better else min
    return choose(epochs, key=lambda epoch: history[epoch][name], default=None)


def finished(settings: FitSettings, history: Sequence[Row]) -> bool:
    """Return True if training is over. Only the history decides, so that a resumed training ends at the same epoch."""
    if len(history) >= settings.epochs:
        return True
    if settings.keep_best is None or settings.patience is None:
        return False
    best = best_epoch(settings, history)
    return len(history) - (0 if best is None else best + 1) >= settings.patience

"""The training loop of every network."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from ich.training.device import Precision, accelerator_for, deterministic
from ich.training.predict import predict, predict_studies

__all__ = [
    "Diverged",
    "FitSettings",
    "OtherState",
    "best_epoch",
    "fit",
    "learning_rate",
    "predict",
    "predict_studies",
    "weights",
]

Row = dict[str, float]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class FitSettings:
    epochs: int
    learning_rate: float
    """The peak, reached after the warm-up."""
    weight_decay: float = 0.01
    warmup: float = 0.1
    """Share of all steps in which the learning rate rises; it then falls along a cosine."""
    floor: float = 0.0
    """Where the cosine ends, as a share of the peak."""
    step_every: int | None = None
    """Instead of the cosine: the learning rate falls each time this many epochs have passed, warm-up included."""
    step_factor: float = 0.1
    """By which each of these steps multiplies the learning rate."""
    ema: float | None = None
    """Decay a step of an exponential moving average of the weights, which then is the result; None: off."""
    precision: Precision = "auto"
    gradient_clip: float | None = 1.0
    """Largest norm of a step's gradient; None: no limit."""
    seed: int = 0
    keep_best: str | None = None
    """Name of a figure of `evaluate`: the result is the epoch where it was best; None: the last epoch."""
    larger_is_better: bool = True
    """Of the figure in keep_best."""
    patience: int | None = None
    """With keep_best: epochs without a better figure after which training stops; None: all epochs are trained."""


SMALLEST_SCALE = 1e-4
"""Of fp16: gradients that are not finite although the loss was multiplied by so little will never be."""


class Diverged(ValueError):
    """The loss, the weights or the optimizer's state are no longer finite numbers."""


class OtherState(ValueError):
    """The state to go on from does not fit the settings: it may come from a machine with another precision."""


@deterministic()
def fit(
    model: nn.Module,
    batches: Callable[[int], Iterable[Any]],
    loss_of: Callable[[nn.Module, Any], Tensor],
    settings: FitSettings,
    *,
    steps_per_epoch: int,
    parts: int = 1,
    evaluate: Callable[[nn.Module], Row] | None = None,
    resume: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> list[Row]:
    """Train `model` in place and return its history, one row an epoch: epoch, learning_rate, loss, ...

    batches(epoch) gives the epoch's batches (named tuples of tensors), loss_of(model, batch) a scalar.
    evaluate(model) adds its figures to the epoch's row. on_step(epoch, step, loss) follows the progress.

    parts: into how many pieces each batch is cut, by its own `pieces`, where memory is short. Their gradients are
    added up, each by its share of the batch, to one step: that of the whole batch, but for rounding, for dropout's
    draws and for batch norm, whose statistics are a piece's. The loss has to be a mean over the batch.

    save(state) is called after each epoch with all that is needed to go on from there; the state refers to
    the live tensors, so it must be written or copied at once, and `torch.load(weights_only=True)` reads it.
    Going on from a state with `resume` ends in the same bytes as never having stopped; that is promised of a CPU, and
    of a GPU that the weights are within 1e-6 (its kernels are deterministic where torch has such). With `ema` the model
    holds the averaged weights at the end, and with `keep_best` those of the best epoch. Raises Diverged as soon
    as the loss is not finite or fp16 cannot hold any gradient, and at the end of an epoch that left weights or a state
    of the optimizer that are not finite; ValueError where the
    figure of `keep_best` was missing, or was not a number in any epoch; OtherState.
    """
    accelerator = accelerator_for(settings.precision)
    model.to(accelerator.device)
    optimizer = accelerator.prepare_optimizer(_adamw(model, settings))
    average = None if settings.ema is None else copy.deepcopy(model).requires_grad_(False)
    torch.manual_seed(settings.seed)
    history: list[Row] = []
    best: Weights | None = None
    if resume is not None:
        history, best = _restore(resume, settings, model, average, optimizer, accelerator.scaler)

    total = settings.epochs * steps_per_epoch
    while not _over(settings, history):
        epoch = len(history)
        model.train()
        losses: list[float] = []
        for step, batch in enumerate(batches(epoch)):
            done = epoch * steps_per_epoch + step
            _set_rate(optimizer, learning_rate(settings, done, total))
            optimizer.zero_grad()
            losses.append(0.0)
            for piece, share in [(batch, 1.0)] if parts == 1 else batch.pieces(parts):
                with accelerator.autocast():
                    loss = share * loss_of(model, send_to_device(piece, accelerator.device, non_blocking=True))
                losses[-1] += loss.item()
                _check(math.isfinite(losses[-1]), f"the loss is {losses[-1]}", epoch, step, settings)
                accelerator.backward(loss)
                del loss  # with all that its gradient needed, before the next piece takes its place
            if settings.gradient_clip is not None:
                accelerator.clip_grad_norm_(model.parameters(), settings.gradient_clip)
            optimizer.step()
            if accelerator.scaler is not None:
                scale = accelerator.scaler.get_scale()
                _check(scale >= SMALLEST_SCALE, "the gradients are too large for fp16", epoch, step, settings)
            if average is not None:
                _average(average, model, settings.ema or 0.0, done)
            if on_step is not None:
                on_step(epoch, step, losses[-1])
        if len(losses) != steps_per_epoch:
            raise ValueError(f"epoch {epoch} had {len(losses)} batches, not the {steps_per_epoch} announced")
        _check(_finite(model.state_dict()), "the weights are not finite", epoch, steps_per_epoch - 1, settings)
        known = optimizer.state_dict()["state"].values()  # an infinite one would hold its weight where it is
        _check(all(map(_finite, known)), "the optimizer's state is not finite", epoch, steps_per_epoch - 1, settings)

        row: Row = {
            "epoch": epoch,
            "learning_rate": float(optimizer.param_groups[0]["lr"]),
            "loss": sum(losses) / len(losses),
        }
        result = model if average is None else average
        if evaluate is not None:
            row |= {name: float(value) for name, value in evaluate(result).items()}
        history.append(row)
        if best_epoch(settings, history) == epoch:
            best = _copied(result)
        if save is not None:
            save(_state(settings, model, average, optimizer, accelerator.scaler, history, best))

    _keep(settings, model, average, best)
    return history


def best_epoch(settings: FitSettings, history: Sequence[Row]) -> int | None:
    """The epoch with the best figure `keep_best`, of equals the first; None where it was never a number.

    Raises ValueError for a history without that figure.
    """
    name = settings.keep_best
    if name is None:
        return None
    for row in history:
        if name not in row:
            raise ValueError(f"keep_best is {name!r}, but an epoch's figures are {', '.join(row)}")
    epochs = [epoch for epoch, row in enumerate(history) if not math.isnan(row[name])]
    choose = max if settings.larger_is_better else min
    return choose(epochs, key=lambda epoch: history[epoch][name], default=None)


def learning_rate(settings: FitSettings, step: int, total: int) -> float:
    """The learning rate of step `step` of `total`: linear warm-up, then half a cosine or steps down."""
    warm = round(settings.warmup * total)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    if settings.step_every is not None:
        epoch = step * settings.epochs // total
        return settings.learning_rate * settings.step_factor ** (epoch // settings.step_every)
    cosine = (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1))) / 2
    return settings.learning_rate * (settings.floor + (1 - settings.floor) * cosine)


def weights(model: nn.Module) -> Weights:
    """The model's weights as contiguous tensors in main memory, as safetensors wants them."""
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}


def _adamw(model: nn.Module, settings: FitSettings) -> torch.optim.AdamW:
    """AdamW that decays matrices and filters but not biases and norms, which have one dimension."""
    trained = [value for value in model.parameters() if value.requires_grad]
    groups = [
        {"params": [value for value in trained if value.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [value for value in trained if value.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the model; faster in the first steps, which it would else never forget."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for slow, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if slow.is_floating_point():
            slow.lerp_(now, weight)
        else:
            slow.copy_(now)


def _over(settings: FitSettings, history: Sequence[Row]) -> bool:
    """Whether there is nothing left to train; it depends on the history alone, so that resuming decides the same."""
    best = best_epoch(settings, history)
    waited = len(history) - (0 if best is None else best + 1)
    tired = settings.keep_best is not None and settings.patience is not None and waited >= settings.patience
    return tired or len(history) >= settings.epochs


def _set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _copied(model: nn.Module) -> Weights:
    """The weights as they are now, in main memory, where another model's worth of them is cheap."""
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}


def _keep(settings: FitSettings, model: nn.Module, average: nn.Module | None, best: Weights | None) -> None:
    """Leave the result of the training in the model."""
    if settings.keep_best is not None:
        if best is None:
            raise ValueError(f"{settings.keep_best} was not a number in any epoch, so none of them is the best")
        model.load_state_dict(best)
    elif average is not None:
        model.load_state_dict(average.state_dict())


def _finite(state: dict[str, Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in state.values())


def _check(good: bool, what: str, epoch: int, step: int, settings: FitSettings) -> None:
    if not good:
        raise Diverged(
            f"{what} at epoch {epoch}, step {step}: lower learning_rate (now {settings.learning_rate:g}), "
            f"lengthen warmup (now {settings.warmup:g}), set gradient_clip (now {settings.gradient_clip}) "
            "or train with precision fp32; if it happens at once, look for NaN in the inputs"
        )


def _state(
    settings: FitSettings,
    model: nn.Module,
    average: nn.Module | None,
    optimizer: Any,
    scaler: Any,
    history: list[Row],
    best: Weights | None,
) -> dict[str, Any]:
    state = {
        "model": model.state_dict(),
        "ema": None if average is None else average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all(),
        "history": history,
    }
    return state if settings.keep_best is None else state | {"best": best}


def _restore(
    state: dict[str, Any],
    settings: FitSettings,
    model: nn.Module,
    average: nn.Module | None,
    optimizer: Any,
    scaler: Any,
) -> tuple[list[Row], Weights | None]:
    before = (state["ema"] is None, state["scaler"] is None, "best" in state)
    if before != (average is None, scaler is None, settings.keep_best is not None):
        raise OtherState("the state was saved with another precision, or another setting of ema or keep_best")
    model.load_state_dict(state["model"])
    if average is not None:
        average.load_state_dict(state["ema"])
    optimizer.load_state_dict(state["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["rng"].cpu())
    torch.cuda.set_rng_state_all([value.cpu() for value in state["cuda_rng"]][: torch.cuda.device_count()])
    return [dict(row) for row in state["history"]], state.get("best")

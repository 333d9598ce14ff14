"""The training loop of every network."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from ich.training.device import Precision, accelerator_for, deterministic
from ich.training.predict import predict, predict_studies

__all__ = ["Diverged", "FitSettings", "fit", "learning_rate", "predict", "predict_studies", "weights"]

Row = dict[str, float]


@dataclass(frozen=True)
class FitSettings:
    epochs: int
    learning_rate: float
    """The peak, reached after the warm-up."""
    weight_decay: float = 0.01
    warmup: float = 0.1
    """Share of all steps in which the learning rate rises; it then falls to 0 along a cosine."""
    ema: float | None = None
    """Decay a step of an exponential moving average of the weights, which then is the result; None: off."""
    precision: Precision = "auto"
    gradient_clip: float | None = 1.0
    """Largest norm of a step's gradient; None: no limit."""
    seed: int = 0


class Diverged(ValueError):
    """The loss or the weights are no longer finite numbers."""


@deterministic()
def fit(
    model: nn.Module,
    batches: Callable[[int], Iterable[Any]],
    loss_of: Callable[[nn.Module, Any], Tensor],
    settings: FitSettings,
    *,
    steps_per_epoch: int,
    evaluate: Callable[[nn.Module], Row] | None = None,
    resume: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> list[Row]:
    """Train `model` in place and return its history, one row an epoch: epoch, learning_rate, loss, ...

    batches(epoch) gives the epoch's batches (named tuples of tensors), loss_of(model, batch) a scalar.
    evaluate(model) adds its figures to the epoch's row. on_step(epoch, step, loss) follows the progress.

    save(state) is called after each epoch with all that is needed to go on from there; the state refers to
    the live tensors, so it must be written or copied at once, and `torch.load(weights_only=True)` reads it.
    Going on from a state with `resume` ends in the same bytes as never having stopped. With `ema` the model
    holds the averaged weights at the end. Raises Diverged as soon as the loss is not finite,
    and at the end of an epoch that left weights that are not.
    """
    accelerator = accelerator_for(settings.precision)
    model.to(accelerator.device)
    optimizer = accelerator.prepare_optimizer(_adamw(model, settings))
    average = None if settings.ema is None else copy.deepcopy(model).requires_grad_(False)
    torch.manual_seed(settings.seed)
    history: list[Row] = []
    if resume is not None:
        history = _restore(resume, model, average, optimizer, accelerator.scaler)

    total = settings.epochs * steps_per_epoch
    for epoch in range(len(history), settings.epochs):
        model.train()
        losses: list[float] = []
        for step, batch in enumerate(batches(epoch)):
            done = epoch * steps_per_epoch + step
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, done, total)
            with accelerator.autocast():
                loss = loss_of(model, send_to_device(batch, accelerator.device, non_blocking=True))
            losses.append(loss.item())
            _check(math.isfinite(losses[-1]), f"the loss is {losses[-1]}", epoch, step, settings)
            optimizer.zero_grad()
            accelerator.backward(loss)
            if settings.gradient_clip is not None:
                accelerator.clip_grad_norm_(model.parameters(), settings.gradient_clip)
            optimizer.step()
            if average is not None:
                _average(average, model, settings.ema or 0.0, done)
            if on_step is not None:
                on_step(epoch, step, losses[-1])
        if len(losses) != steps_per_epoch:
            raise ValueError(f"epoch {epoch} had {len(losses)} batches, not the {steps_per_epoch} announced")
        finite = all(bool(value.isfinite().all()) for value in model.state_dict().values())
        _check(finite, "the weights are not finite", epoch, steps_per_epoch - 1, settings)

        row: Row = {
            "epoch": epoch,
            "learning_rate": float(optimizer.param_groups[0]["lr"]),
            "loss": sum(losses) / len(losses),
        }
        if evaluate is not None:
            best = model if average is None else average
            row |= {name: float(value) for name, value in evaluate(best).items()}
        history.append(row)
        if save is not None:
            save(_state(model, average, optimizer, accelerator.scaler, history))

    if average is not None:
        model.load_state_dict(average.state_dict())
    return history


def learning_rate(settings: FitSettings, step: int, total: int) -> float:
    """The learning rate of step `step` of `total`: linear warm-up, then half a cosine down to 0."""
    warm = round(settings.warmup * total)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    return settings.learning_rate * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1))) / 2


def weights(model: nn.Module) -> dict[str, Tensor]:
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


def _check(good: bool, what: str, epoch: int, step: int, settings: FitSettings) -> None:
    if not good:
        raise Diverged(
            f"{what} at epoch {epoch}, step {step}: lower learning_rate (now {settings.learning_rate:g}), "
            f"lengthen warmup (now {settings.warmup:g}), set gradient_clip (now {settings.gradient_clip}) "
            "or train with precision fp32; if it happens at once, look for NaN in the inputs"
        )


def _state(
    model: nn.Module, average: nn.Module | None, optimizer: Any, scaler: Any, history: list[Row]
) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "ema": None if average is None else average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all(),
        "history": history,
    }


def _restore(
    state: dict[str, Any], model: nn.Module, average: nn.Module | None, optimizer: Any, scaler: Any
) -> list[Row]:
    if (state["ema"] is None) != (average is None) or (state["scaler"] is None) != (scaler is None):
        raise ValueError("this state was saved with other settings of ema or precision; train from the start")
    model.load_state_dict(state["model"])
    if average is not None:
        average.load_state_dict(state["ema"])
    optimizer.load_state_dict(state["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["rng"].cpu())
    torch.cuda.set_rng_state_all([value.cpu() for value in state["cuda_rng"]])
    return [dict(row) for row in state["history"]]

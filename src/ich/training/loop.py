"""The training loop of every network."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ich import ranks
from ich.training import averaging
from ich.training.device import Mover, Precision, accelerator_for, deterministic
from ich.training.divergence import Diverged, Losses, check, finite
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
    evaluate(model) adds its figures to the epoch's row. on_step(epoch, step, loss) follows the progress, and waits
    for each step; else losses are read one step late, so that a GPU always has its next step at hand.

    parts: into how many pieces each batch is cut, by its own `pieces`, where memory is short. Their gradients are
    added up, each by its share of the batch, to one step: that of the whole batch, but for rounding, for dropout's
    draws and for batch norm, whose statistics are a piece's. The loss has to be a mean over the batch.

    Several processes do this together (`ich.ranks`) as one would with the same batches, but for rounding, for dropout's
    draws and for batch norm, which normalises each process's part by itself; its statistics are averaged each epoch.

    save(state) is called after each epoch with all that is needed to go on from there; the state refers to
    the live tensors, so it must be written or copied at once, and `torch.load(weights_only=True)` reads it.
    Going on from a state with `resume` ends in the same bytes as never having stopped; that is promised of a CPU, and
    of a GPU that the weights are within 1e-6 (its kernels are deterministic where torch has such). With `ema` the model
    holds the averaged weights at the end, and with `keep_best` those of the best epoch. Raises Diverged at the
    first step whose loss is not finite or where fp16 cannot hold any gradient, and at the end of an epoch that left
    weights or a state of the optimizer that are not finite, in any case before `save`; ValueError where the figure of
    `keep_best` was missing, or was not a number in any epoch; OtherState.
    """
    accelerator = accelerator_for(settings.precision)
    model.to(accelerator.device)
    optimizer = accelerator.prepare_optimizer(_adamw(model, settings))
    average = None if settings.ema is None else copy.deepcopy(model).requires_grad_(False)
    follow = None if average is None else _average(average, model)
    move, parameters = Mover(accelerator.device), list(model.parameters())
    torch.manual_seed(settings.seed)
    history: list[Row] = []
    best: Weights | None = None
    if resume is not None:
        history, best = _restore(resume, settings, model, average, optimizer, accelerator.scaler)

    averaging.alike(model, average)
    total = settings.epochs * steps_per_epoch
    while not _over(settings, history):
        epoch = len(history)
        model.train()
        averaging.draw_apart(settings.seed, epoch)
        losses = Losses(settings, epoch)
        for step, batch in enumerate(averaging.steps(batches(epoch), steps_per_epoch)):
            done = epoch * steps_per_epoch + step
            _set_rate(optimizer, learning_rate(settings, done, total))
            optimizer.zero_grad()
            pieces = [] if batch is None else [(batch, 1.0)] if parts == 1 else batch.pieces(parts)
            figures = averaging.mean_gradient(
                model, batch, [_gradient(accelerator, share, loss_of, model, move(piece)) for piece, share in pieces]
            )
            if settings.gradient_clip is not None:
                accelerator.clip_grad_norm_(parameters, settings.gradient_clip)
            optimizer.step()
            losses.add(figures, accelerator.scaler)
            if follow is not None:
                follow(settings.ema or 0.0, done)
            if on_step is not None:
                on_step(epoch, step, losses.read()[-1])
        averaging.mean_statistics(model, average)
        values = losses.read()
        if len(values) != steps_per_epoch:
            raise ValueError(f"epoch {epoch} had {len(values)} batches, not the {steps_per_epoch} announced")
        last = steps_per_epoch - 1
        check(finite(model.state_dict().values()), "the weights are not finite", epoch, last, settings)
        known = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
        check(finite(known), "the optimizer's state is not finite", epoch, last, settings)  # it would hold its weight

        row: Row = {
            "epoch": epoch,
            "learning_rate": float(optimizer.param_groups[0]["lr"]),
            "loss": sum(values) / len(values),
        }
        result = model if average is None else average
        if evaluate is not None:
            row |= {name: float(value) for name, value in ranks.agreed(evaluate(result)).items()}
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
    """AdamW that decays matrices and filters but not biases and norms, which have one dimension.

    On a GPU in one kernel; on a CPU that would round in another way.
    """
    trained = [value for value in model.parameters() if value.requires_grad]
    groups = [
        {"params": [value for value in trained if value.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [value for value in trained if value.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=trained[0].is_cuda or None)


def _gradient(accelerator: Any, share: float, loss_of: Callable[..., Tensor], model: nn.Module, piece: Any) -> Tensor:
    """Add a piece's gradient to the model's; return its share of the batch's loss, without what the gradient needed."""
    with accelerator.autocast():
        loss = share * loss_of(model, piece)
    accelerator.backward(loss)
    return loss.detach()


def _average(average: nn.Module, model: nn.Module) -> Callable[[float, int], None]:
    """A function of (decay, step) that moves the average towards the model.

    It does so faster in the first steps, which the average would else never forget.
    """
    pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
    slow, now = ([pair[side] for pair in pairs if pair[0].is_floating_point()] for side in (0, 1))
    counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def follow(decay: float, step: int) -> None:
        weight = 1 - min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(slow, now, weight)  # pyright: ignore[reportPrivateImportUsage]
        for kept, count in counts:
            kept.copy_(count)

    return follow


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

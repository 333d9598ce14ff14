"""Whether a training still goes well: its losses, weights and optimizer's state are finite numbers."""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from ich.training.device import fetch

if TYPE_CHECKING:
    from ich.training.loop import FitSettings

SMALLEST_SCALE = 1e-4
"""Of fp16: gradients that are not finite although the loss was multiplied by so little will never be."""


class Diverged(ValueError):
    """The loss, the weights or the optimizer's state are no longer finite numbers."""


class Losses:
    """The losses of an epoch's steps, each read when the next step is under way.

    Whoever waits for the loss of the step that was just begun leaves a GPU without work until the next one is.
    """

    def __init__(self, settings: "FitSettings", epoch: int) -> None:
        self.settings, self.epoch = settings, epoch
        self.values: list[float] = []
        self.under_way: list[Callable[[], Tensor]] = []

    def add(self, pieces: list[Tensor], scaler: Any) -> None:
        """A step: its pieces' losses, each times its share, and the scaler of fp16 as it is after the step.

        Raises Diverged for the step before.
        """
        scale = [] if scaler is None else [scaler.scale(torch.ones_like(pieces[0]))]  # its get_scale would wait
        self._next([fetch(torch.stack(pieces)), *map(fetch, scale)])

    def read(self) -> list[float]:
        """Those of all steps, the last one too, for which this waits. Raises Diverged."""
        self._next([])
        return self.values

    def _next(self, figures: list[Callable[[], Tensor]]) -> None:
        before, self.under_way = self.under_way, figures
        if not before:
            return
        pieces, *scale = [figure() for figure in before]
        step, loss = len(self.values), 0.0
        for piece in pieces.tolist():
            loss += piece
            check(math.isfinite(loss), f"the loss is {loss}", self.epoch, step, self.settings)
        if scale:
            enough = float(scale[0]) >= SMALLEST_SCALE
            check(enough, "the gradients are too large for fp16", self.epoch, step, self.settings)
        self.values.append(loss)


def finite(values: Iterable[Tensor]) -> bool:
    """Whether all are, by their largest: one pass over them, and one number to wait for."""
    floats = [value for value in values if value.is_floating_point() and value.numel()]
    return bool(get_total_norm(floats, math.inf).isfinite())


def check(good: bool, what: str, epoch: int, step: int, settings: "FitSettings") -> None:
    if not good:
        raise Diverged(
            f"{what} at epoch {epoch}, step {step}: lower learning_rate (now {settings.learning_rate:g}), "
            f"lengthen warmup (now {settings.warmup:g}), set gradient_clip (now {settings.gradient_clip}) "
            "or train with precision fp32; if it happens at once, look for NaN in the inputs"
        )

"""A small training set with the interface of the real ones."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ich.training.fit import FitSettings, Loader

STEPS = 4
SETTINGS = FitSettings(epochs=3, learning_rate=0.01, precision="fp32")


class Batch(NamedTuple):
    features: Tensor
    targets: Tensor | None
    rows: Tensor

    @property
    def inputs(self) -> tuple[Tensor]:
        return (self.features,)

    def real(self, logits: Tensor) -> Tensor:
        return logits


def batch_of(n: int, seed: int = 0, first: int = 0) -> Batch:
    features = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return Batch(features, (features[:, :2] > 0.5).float(), torch.arange(first, first + n))


def batches(epoch: int) -> Iterator[Batch]:
    for step in range(STEPS):
        yield batch_of(8, 100 * epoch + step, 8 * step)


LOADER = Loader(batches, STEPS, 8 * STEPS, "slices")


class Killed(BaseException):
    """Not caught by any handler of exceptions."""


def killed_in(epoch: int, batches: Callable[[int], Iterable[Batch]] = batches) -> Loader:
    """A loader that is killed at the third batch of an epoch."""

    def until(now: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches(now)):
            if (now, step) == (epoch, 2):
                raise Killed
            yield batch

    return replace(LOADER, epoch=until)


def loss_of(network: nn.Module, batch: Batch) -> Tensor:
    assert batch.targets is not None
    return binary_cross_entropy_with_logits(batch.real(network(*batch.inputs)).float(), batch.targets)


def infinite_gradient(network: nn.Module, batch: Batch) -> Tensor:
    """A loss of 0 with an infinite gradient."""
    return (network(*batch.inputs) * 0).sum().sqrt()

"""One step of several processes (`ich.ranks`): each has its part of a batch, and all have the whole batch's gradient.

In one process all of this does nothing.
"""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ich import ranks

T = TypeVar("T")


def steps(batches: Iterable[T], n: int) -> Iterable[T | None]:
    """An epoch's n batches; None where this process has nothing of a batch: there are fewer samples than processes."""
    return batches if ranks.count() == 1 else _steps(batches, n)


def _steps(batches: Iterable[T], n: int) -> Iterator[T | None]:
    done = 0
    for batch in batches:
        done += 1
        yield batch
    for _ in range(n - done):
        yield None


def draw_apart(seed: int, epoch: int) -> None:
    """Let this process draw other random numbers than the first, for dropout; those of an epoch are always the same."""
    if ranks.count() > 1 and not ranks.first():
        torch.manual_seed(int(np.random.SeedSequence((seed, epoch, ranks.number())).generate_state(1)[0]))


def alike(*models: nn.Module | None) -> None:
    """Give all processes the first one's weights."""
    if ranks.count() > 1:
        ranks.meet()
        for value in [value for model in models if model is not None for value in model.state_dict().values()]:
            whole = value.contiguous()
            with ranks.others():
                dist.broadcast(whole, 0)
            value.copy_(whole)


def mean_statistics(*models: nn.Module | None) -> None:
    """Give all processes the mean of their norm layers' statistics, each of which has seen its part of the batches."""
    if ranks.count() > 1:
        ranks.meet()
        buffers = [buffer for model in models if model is not None for buffer in model.buffers()]
        for buffer in filter(torch.is_floating_point, buffers):
            with ranks.others():
                dist.all_reduce(buffer)
            buffer.div_(ranks.count())


def mean_gradient(model: nn.Module, batch: Any, losses: list[Tensor]) -> list[Tensor]:
    """Give all processes the gradient of the whole batch, of which each has its own part's; and the loss.

    batch: this process's part; None: it has none. The parts count by their slices, `rows` that are not negative. losses
    are those of the pieces of this part, which add up to its own; they are returned as one of the whole batch.
    """
    if ranks.count() == 1:
        return losses
    trained = [value for value in model.parameters() if value.requires_grad]
    with torch.no_grad():
        grads = [torch.zeros_like(value) if value.grad is None else value.grad for value in trained]
        loss = sum(losses, grads[0].new_zeros(())).reshape(1)
        flat = torch.cat([*(grad.reshape(-1) for grad in grads), loss])
        samples = 0 if batch is None else int((batch.rows >= 0).sum())
        total, idle = ranks.meet(samples, batch is None)
        flat *= samples / total
        with ranks.others():
            dist.all_reduce(flat)
        *whole, loss = flat.split([*(grad.numel() for grad in grads), 1])
        if idle:  # the optimizer leaves alone what has no gradient, as what the network does not use
            used = torch.tensor([float(value.grad is not None) for value in trained])
            with ranks.others():
                dist.all_reduce(used)
            for value, grad, use in zip(trained, grads, used.tolist(), strict=True):
                value.grad = grad if use else None
        means = [mean.view_as(grad) for grad, mean in zip(grads, whole, strict=True)]
        torch._foreach_copy_(grads, means)  # pyright: ignore[reportPrivateImportUsage]
    return [loss[0]]

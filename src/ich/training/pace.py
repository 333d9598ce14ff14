"""How many processes should load batches: one's rate against the network's, measured before a GPU trains it."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ich.training.device import Mover, Precision, default_device, deterministic, resolve
from ich.training.memory import free, out_of_memory

BATCHES = 8  # that are loaded and trained on; the first half does not count
MARGIN = 1.5  # for slices that come from the disk, and for steps that a compiled network makes faster


def loaders(loading: float, training: float, most: int) -> int:
    """How many processes keep up with the network: seconds that one of them, and the network, take for a batch."""
    return max(1, min(most, math.ceil(MARGIN * loading / training)))


def measure(
    network: nn.Module,
    batches: Iterable[Any],
    loss_of: Callable[[nn.Module, Any], Tensor],
    precision: Precision,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float] | None:
    """Median seconds that this process takes to load a batch, and a copy of the network to train on it.

    None where there is no batch, or memory is too short for whole ones: their steps then say nothing.
    """
    loading: list[float] = []
    loaded = list(islice(_timed(batches, loading, clock), BATCHES))
    if not loaded:  # a rank without a share of the batch
        return None
    device, training = default_device(), list[float]()
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(resolve(precision, device))
    try:
        trained, move = copy.deepcopy(network).to(device).train(), Mover(device)
        with deterministic():
            for batch in loaded:
                started = clock()
                with torch.autocast(device.type, half, enabled=half is not None):
                    loss = loss_of(trained, move(batch))
                loss.backward()
                loss.item()  # waits for a GPU
                trained.zero_grad()
                training.append(clock() - started)
    except Exception as error:
        if not out_of_memory(error):
            raise
        free(error)
        return None
    return _median(loading), _median(training)


def _timed(batches: Iterable[Any], seconds: list[float], clock: Callable[[], float]) -> Iterator[Any]:
    waiting = clock()
    for batch in batches:
        seconds.append(clock() - waiting)
        yield batch
        waiting = clock()


def _median(seconds: list[float]) -> float:
    counted = sorted(seconds[len(seconds) // 2 :])
    return counted[len(counted) // 2]

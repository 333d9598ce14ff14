"""Batches of any data set: which samples, in which order, made by this process or by worker processes.

What a batch holds depends on (seed, epoch) alone: neither on the number of workers nor on the batches drawn before.

Every batch is a named tuple with the same interface, so that one loop trains and one function predicts:
`network(*batch.inputs)` gives outputs, `batch.real(outputs)` those of real slices (without padding) [n, c],
`batch.targets` belongs to these, float32 [n, c] or None, and `batch.real_rows` int64 [n] names their rows.
"""

import os
from collections.abc import Iterator
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ich.processes import end_with_parent


def real_slices(values: Tensor, lengths: NDArray[np.int64]) -> Tensor:
    """[n, ...] of padded [B, T, ...]: the first lengths[b] of each b, one after the other."""
    inside = np.arange(values.shape[1]) < lengths[:, None]
    # by numbers, not by a mask, whose true places a GPU would have to count first
    numbers = torch.from_numpy(np.flatnonzero(inside)).to(values.device, non_blocking=True)
    return values.flatten(0, 1).index_select(0, numbers)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, i), i below `n`; the order depends on (seed, epoch) alone.

    With `drop_last` an incomplete last batch is left out, unless it is the only one.
    """

    def __init__(self, n: int, batch_size: int, seed: int, epoch: int, *, shuffle: bool, drop_last: bool) -> None:
        if n < 1 or batch_size < 1:
            raise ValueError(f"need at least one sample and a batch size of 1, got {n} and {batch_size}")
        self.n, self.batch_size, self.seed, self.epoch, self.shuffle = n, batch_size, seed, epoch, shuffle
        end = min(n, max(n // batch_size, 1) * batch_size) if drop_last else n
        self.starts = range(0, end, batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.n)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.n)
        for start in self.starts:
            yield [(self.epoch, int(i)) for i in order[start : start + self.batch_size]]


Batch = TypeVar("Batch")


class Batches(Dataset[Batch]):
    """A data set that is asked for whole batches at a time, by (epoch, i)."""

    seed: int
    drops_last = False
    """Whether a shuffled epoch leaves out an incomplete last batch, which would unsettle the batch statistics."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: list[tuple[int, int]]) -> Batch:
        raise NotImplementedError


def epoch_loader(
    dataset: Batches[Batch], epoch: int, batch_size: int, shuffle: bool, workers: int = 0
) -> DataLoader[Batch]:
    """Iterate over one epoch of a dataset; the same batches whatever `workers`, processes beside this one."""
    drop_last = shuffle and dataset.drops_last
    return DataLoader(
        dataset,
        batch_sampler=EpochBatches(len(dataset), batch_size, dataset.seed, epoch, shuffle=shuffle, drop_last=drop_last),
        collate_fn=_shared,
        num_workers=workers,
        worker_init_fn=_begin_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # of its own: else it takes from the network's random numbers
    )


def _shared(batch: Any) -> Any:
    """The batch as it is; of a worker, in shared memory.

    It would get there anyway, but in a thread of torch's whose failure, where that memory is full, is never reported:
    the loader would wait for the batch forever.
    """
    if get_worker_info() is not None:
        for part in batch:
            if isinstance(part, Tensor):
                part.share_memory_()
    return batch


def _begin_worker(_worker: int) -> None:
    cv2.setNumThreads(0)
    end_with_parent(os.getppid())

"""Batches of any dataset: their order, and the loader with or without worker processes.

A batch depends on (seed, epoch) alone: neither on the number of workers nor on the batches drawn before.

Every batch is a named tuple with the same interface, so that one loop trains and one function predicts:
`inputs` are the arguments of the network, `real(outputs)` drops the padding from its outputs and gives [n, c],
`targets` float32 [n, c] or None are the labels, and `rows` int64 [n] the row numbers of the n slices.
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

from ich.processes import can_share_locks, end_with_parent


def real_slices(values: Tensor, lengths: NDArray[np.int64]) -> Tensor:
    """Pack padded values [B, T, ...] to [n, ...]: the first lengths[b] of each b, one after the other."""
    inside = np.arange(values.shape[1]) < lengths[:, None]
    # by numbers, not by a mask, whose true places a GPU would have to count first
    numbers = torch.from_numpy(np.flatnonzero(inside)).to(values.device, non_blocking=True)
    return values.flatten(0, 1).index_select(0, numbers)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, i) with i below `n`; `drop_last` drops an incomplete last batch unless it is the only one."""

    def __init__(self, n: int, batch_size: int, seed: int, epoch: int, *, shuffle: bool, drop_last: bool) -> None:
        if n < 1 or batch_size < 1:
            raise ValueError(f"need at least one sample and a batch size of at least 1, got {n} and {batch_size}")
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
    """A dataset that makes whole batches of (epoch, i)."""

    seed: int
    drops_last = False  # a shuffled epoch leaves out an incomplete last batch, whose batch statistics would be noisy

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: list[tuple[int, int]]) -> Batch:
        raise NotImplementedError


def epoch_loader(
    dataset: Batches[Batch], epoch: int, batch_size: int, shuffle: bool, workers: int = 0
) -> DataLoader[Batch]:
    """Iterate over one epoch of a dataset; the batches are the same with any number of `workers` (processes)."""
    drop_last = shuffle and dataset.drops_last
    workers = workers if workers and can_share_locks() else 0
    return DataLoader(
        dataset,
        batch_sampler=EpochBatches(len(dataset), batch_size, dataset.seed, epoch, shuffle=shuffle, drop_last=drop_last),
        collate_fn=_shared,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # the default of joblib's workers starts none
        worker_init_fn=_begin_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else the loader draws from the network's generator
    )


def _shared(batch: Any) -> Any:
    """Put a worker's batch into shared memory.

    DataLoader would do so in a thread whose errors are lost: if that memory is full, the loader would wait forever.
    """
    if get_worker_info() is not None:
        for part in batch:
            if isinstance(part, Tensor):
                part.share_memory_()
    return batch


def _begin_worker(_worker: int) -> None:
    cv2.setNumThreads(0)
    end_with_parent(os.getppid())

"""Batches of any data set: which samples, in which order, cut into pieces, made by this process or by others.

What a batch holds depends on (seed, epoch) alone: neither on the number of worker processes nor on the
batches drawn before.
"""

import os
from collections.abc import Iterator
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ich import ranks
from ich.processes import end_with_parent

Ints = NDArray[np.int64]


def cuts(n: int, parts: int) -> list[slice]:
    """Places 0..n-1 cut into `parts` of nearly one size, none of them empty."""
    parts = min(parts, n)
    return [slice(n * k // parts, n * (k + 1) // parts) for k in range(parts)]


def shortened(values: Ints | torch.Tensor | None, k: slice, lengths: Ints | torch.Tensor) -> Any:
    """Those of the studies `k`, as long as the longest of them: values [B] or, padded, [B, T, ...]; lengths [B]."""
    if values is None or values.ndim == 1:
        return values if values is None else values[k]
    return values[k, : int(lengths[k].max())]


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, i), i below `n`; the order depends on (seed, epoch) alone.

    With `drop_last` an incomplete last batch is left out, unless it is the only one. Of several processes that do the
    same together, each has its part: of every batch where they are shuffled, those left out of which it has nothing;
    else a stretch of the samples, so that what is found for one process's after the other's is in their order.
    """

    def __init__(self, n: int, batch_size: int, seed: int, epoch: int, *, shuffle: bool, drop_last: bool) -> None:
        if n < 1 or batch_size < 1:
            raise ValueError(f"need at least one sample and a batch size of 1, got {n} and {batch_size}")
        self.n, self.batch_size, self.seed, self.epoch = n, batch_size, seed, epoch
        self.shuffle, self.drop_last = shuffle, drop_last

    def __len__(self) -> int:
        return len(self._places())

    def _places(self) -> list[slice]:
        """The places in the order that each batch takes."""
        end = min(self.n, max(self.n // self.batch_size, 1) * self.batch_size) if self.drop_last else self.n
        mine = slice(0, end) if self.shuffle else ranks.part(end)
        starts = range(mine.start, mine.stop, self.batch_size)
        batches = [slice(start, min(start + self.batch_size, mine.stop)) for start in starts]
        if self.shuffle:
            within = [(batch.start, ranks.part(batch.stop - batch.start)) for batch in batches]
            batches = [slice(start + part.start, start + part.stop) for start, part in within if part.stop > part.start]
        return batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.n)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.n)
        for batch in self._places():
            yield [(self.epoch, int(i)) for i in order[batch]]


Batch = TypeVar("Batch")


class Batches(Dataset[Batch]):
    """A data set that is asked for whole batches at a time, by (epoch, i)."""

    seed: int

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: list[tuple[int, int]]) -> Batch:
        raise NotImplementedError


def epoch_loader(
    dataset: Batches[Batch], epoch: int, batch_size: int, shuffle: bool, workers: int = 0
) -> DataLoader[Batch]:
    """Iterate over one epoch of a dataset; the same batches whatever `workers`.

    A shuffled epoch is for training and drops an incomplete last batch, which would unsettle the batch
    statistics. Without a spare core, `workers=0` is the fastest.
    """
    order = EpochBatches(len(dataset), batch_size, dataset.seed, epoch, shuffle=shuffle, drop_last=shuffle)
    return loader(dataset, order, workers)


def loader(dataset: Batches[Batch], order: EpochBatches, workers: int) -> DataLoader[Batch]:
    """The batches of a data set in the given order, made by `workers` processes beside this one."""
    return DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=_shared,
        num_workers=workers,
        worker_init_fn=_begin_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # of its own: else it takes from the model's random numbers
    )


def _shared(batch: Any) -> Any:
    """The batch as it is; a worker's, in shared memory.

    It would get there anyway, but in a thread of torch's whose failure, where that memory is full, nobody hears of:
    everybody would wait for the batch for ever.
    """
    if get_worker_info() is not None:
        for part in batch:
            if part is not None:
                part.share_memory_()
    return batch


def _begin_worker(_worker: int) -> None:
    cv2.setNumThreads(0)
    end_with_parent(os.getppid())

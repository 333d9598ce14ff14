"""Series of packed arrays in padded batches: the dataset of networks that read whole series."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ich.data.batches import EpochBatches, real_slices


class SeriesBatch(NamedTuple):
    """B series with n slices in total, padded to the T slices of the longest."""

    features: torch.Tensor  # float32 [B, T, D], zero-padded
    base: torch.Tensor  # float32 [B, T, c]: the logits that are refined
    geometry: torch.Tensor
    """float32 [B, T, 2]: the gap to the next slice, 0 at the last; the position in the series, -1..1"""
    lengths: NDArray[np.int64]
    """[B]: slices per series; not a tensor, since the network needs them without waiting for a GPU"""
    targets: torch.Tensor | None  # float32 [n, c]: of the real slices, one series after the other
    rows: torch.Tensor  # int64 [n]: row numbers in the packed arrays

    @property
    def inputs(self) -> tuple[torch.Tensor | NDArray[np.int64], ...]:
        return (self.features, self.base, self.geometry, self.lengths)

    def real(self, values: torch.Tensor) -> torch.Tensor:
        return real_slices(values, self.lengths)


@dataclass(frozen=True)
class SeriesArrays:
    """Slices of whole series, packed one series after the other, each in order of position.

    features: float16 or float32 [N, D_i], one array per input model; a batch has them side by side. base: float32
    [N, c]. geometry: float32 [N, 2], as in `SeriesBatch`. targets: float32 [N, c] or None. offsets: int64 [series + 1];
    series k is rows offsets[k]:offsets[k + 1].
    device: where batches are made, of tables that lie there.
    """

    features: Sequence[NDArray[np.floating]]
    base: NDArray[np.float32]
    geometry: NDArray[np.float32]
    targets: NDArray[np.float32] | None
    offsets: NDArray[np.int64]
    device: torch.device = field(default=torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def tables(self) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """features, base, geometry and targets on the device; on a CPU in the arrays' own memory."""
        arrays = (*self.features, self.base, self.geometry, *(() if self.targets is None else (self.targets,)))
        tensors = [torch.from_numpy(one).to(self.device) for one in arrays]
        targets = None if self.targets is None else tensors.pop()
        *features, base, geometry = tensors
        return features, base, geometry, targets

    def on_device(self, device: torch.device) -> "SeriesArrays":
        """Move the tables to a GPU if twice their size is free there."""
        if device.type != "cuda":
            return self
        arrays = (*self.features, self.base, self.geometry, self.targets)
        size = sum(one.nbytes for one in arrays if one is not None)
        return replace(self, device=device) if 2 * size <= torch.cuda.mem_get_info(device)[0] else self


def series_loader(
    series: SeriesArrays, batch_size: int, *, shuffle: bool, seed: int = 0, epoch: int = 0, reverse: bool = False
) -> Iterator[SeriesBatch]:
    """Yield batches of all series."""
    for batch in EpochBatches(len(series), batch_size, seed, epoch, shuffle=shuffle, drop_last=False):
        yield series_batch(series, np.array([i for _, i in batch]), reverse)


def series_batch(series: SeriesArrays, chosen: NDArray[np.integer], reverse: bool = False) -> SeriesBatch:
    """Pad the series `chosen` to the longest of them; with `reverse`, the slices of each are in the opposite order."""
    starts, ends = series.offsets[chosen], series.offsets[chosen + 1]
    lengths = ends - starts
    place = np.arange(lengths.max())
    inside = place < lengths[:, None]
    numbers = ends[:, None] - 1 - place if reverse else starts[:, None] + place
    within = torch.from_numpy(np.where(inside, numbers, 0).ravel()).to(series.device, non_blocking=True)
    beyond = torch.from_numpy(~inside)[..., None].to(series.device, non_blocking=True)
    rows = torch.from_numpy(numbers[inside]).to(series.device, non_blocking=True)

    def pad(table: torch.Tensor) -> torch.Tensor:
        found = table.index_select(0, within).float().unflatten(0, inside.shape)
        return found.masked_fill_(beyond, 0)

    features, base, geometry, targets = series.tables
    geometry = pad(geometry)
    if reverse:  # the gap to the next slice was stored with that slice
        gap = torch.nn.functional.pad(geometry[:, 1:, :1], (0, 0, 0, 1))
        geometry = torch.cat([gap, -geometry[..., 1:]], dim=-1)
    return SeriesBatch(
        features=torch.cat([pad(one) for one in features], dim=-1),
        base=pad(base),
        geometry=geometry,
        lengths=lengths,
        targets=None if targets is None else targets.index_select(0, rows),
        rows=rows,
    )

"""Studies out of packed arrays, padded to batches: what the networks over a study's slices read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ich.data.batches import EpochBatches, real_slices


class StudyBatch(NamedTuple):
    """B studies of n slices in all, padded to the longest, of T slices."""

    features: torch.Tensor
    """float32 [B, T, D], 0 beyond a study's end"""
    base: torch.Tensor
    """float32 [B, T, c]: logits to start from"""
    geometry: torch.Tensor
    """float32 [B, T, 2]: the gap to the next slice, 0 at the last; the place in the study, -1..1"""
    lengths: NDArray[np.int64]
    """[B]: slices of each study; not a tensor, for the network has to know them before a GPU has got that far"""
    targets: torch.Tensor | None
    """float32 [n, c]: of the real slices, one study after the other"""
    rows: torch.Tensor
    """int64 [n]: row numbers in the packed arrays"""

    @property
    def inputs(self) -> tuple[torch.Tensor | NDArray[np.int64], ...]:
        return (self.features, self.base, self.geometry, self.lengths)

    @property
    def real_rows(self) -> torch.Tensor:
        return self.rows

    def real(self, values: torch.Tensor) -> torch.Tensor:
        """[n, ...] of [B, T, ...]."""
        return real_slices(values, self.lengths)


@dataclass(frozen=True)
class Studies:
    """Slices of whole studies, packed one study after the other, each in order of position.

    features: float16 or float32 [N, D_i], one array per input model; a batch has them side by side. base: float32
    [N, c]. geometry: float32 [N, 2], as in `StudyBatch`. targets: float32 [N, c] or None. offsets: int64 [studies + 1];
    study k is rows offsets[k]:offsets[k + 1].
    device: where batches are made, of tables that lie there.
    """

    features: Sequence[NDArray[np.floating]]
    base: NDArray[np.float32]
    geometry: NDArray[np.float32]
    targets: NDArray[np.float32] | None
    offsets: NDArray[np.int64]
    device: torch.device = field(default=torch.device("cpu"))

    def __post_init__(self) -> None:
        n = len(self.base)
        lengths = {len(one) for one in (*self.features, self.geometry, self.targets) if one is not None}
        if lengths != {n}:
            raise ValueError(f"features, base, geometry and targets differ in length: {n} and {sorted(lengths)}")
        if self.offsets[0] != 0 or self.offsets[-1] != n or (np.diff(self.offsets) < 1).any():
            raise ValueError(f"offsets must rise from 0 to {n} and leave no study empty")

    @cached_property
    def tables(self) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """features, base, geometry and targets on the device; on a CPU in the arrays' own memory."""
        arrays = (*self.features, self.base, self.geometry, *(() if self.targets is None else (self.targets,)))
        tensors = [torch.from_numpy(one).to(self.device) for one in arrays]
        targets = None if self.targets is None else tensors.pop()
        *features, base, geometry = tensors
        return features, base, geometry, targets

    def near(self, device: torch.device) -> "Studies":
        """The studies with their tables on a GPU that has twice the room for them; else as they are."""
        if device.type != "cuda":
            return self
        arrays = (*self.features, self.base, self.geometry, self.targets)
        size = sum(one.nbytes for one in arrays if one is not None)
        return replace(self, device=device) if 2 * size <= torch.cuda.mem_get_info(device)[0] else self


def study_loader(
    studies: Studies,
    chosen: NDArray[np.integer],
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    epoch: int = 0,
) -> Iterator[StudyBatch]:
    """Yield the `chosen` studies (numbers, [m]) in batches padded to their longest study."""
    for batch in EpochBatches(len(chosen), batch_size, seed, epoch, shuffle=shuffle, drop_last=False):
        yield study_batch(studies, np.asarray(chosen)[[i for _, i in batch]])


def study_batch(studies: Studies, chosen: NDArray[np.integer]) -> StudyBatch:
    """Pad the `chosen` studies to the longest of them."""
    starts = studies.offsets[chosen]
    lengths = studies.offsets[chosen + 1] - starts
    place = np.arange(lengths.max())
    inside = place < lengths[:, None]
    numbers = starts[:, None] + place
    within = torch.from_numpy(np.where(inside, numbers, 0).ravel()).to(studies.device, non_blocking=True)
    beyond = torch.from_numpy(~inside)[..., None].to(studies.device, non_blocking=True)
    rows = torch.from_numpy(numbers[inside]).to(studies.device, non_blocking=True)

    def pad(table: torch.Tensor) -> torch.Tensor:
        found = table.index_select(0, within).float().unflatten(0, inside.shape)
        return found.masked_fill_(beyond, 0)

    features, base, geometry, targets = studies.tables
    return StudyBatch(
        features=torch.cat([pad(one) for one in features], dim=-1),
        base=pad(base),
        geometry=pad(geometry),
        lengths=lengths,
        targets=None if targets is None else targets.index_select(0, rows),
        rows=rows,
    )


def from_the_other_end(batch: StudyBatch) -> StudyBatch:
    """The same studies with their slices numbered from the other end, as the scanner might have numbered them."""
    device, lengths = batch.rows.device, torch.from_numpy(batch.lengths)[:, None]
    place = torch.arange(batch.features.shape[1])
    turned = torch.where(place < lengths, lengths - 1 - place, place).to(device, non_blocking=True)[..., None]
    ends = batch.lengths.cumsum()
    last = np.repeat(2 * ends - batch.lengths - 1, batch.lengths)  # first and last slice of each study, added up
    flat = torch.from_numpy(last - np.arange(ends[-1])).to(device, non_blocking=True)
    # a gap lies between two slices, and the one after which it stands is now the other
    before = torch.nn.functional.pad(batch.geometry[:, :-1, :1], (0, 0, 1, 0))
    return StudyBatch(
        features=batch.features.take_along_dim(turned, dim=1),
        base=batch.base.take_along_dim(turned, dim=1),
        geometry=torch.cat([before, -batch.geometry[..., 1:]], dim=-1).take_along_dim(turned, dim=1),
        lengths=batch.lengths,
        targets=None if batch.targets is None else batch.targets[flat],
        rows=batch.rows[flat],
    )

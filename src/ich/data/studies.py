"""Studies out of packed arrays, padded to batches: what the networks over a study's slices read."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ich.data.batches import EpochBatches, cuts, shortened


class StudyBatch(NamedTuple):
    features: torch.Tensor
    """float32 [B, T, D], 0 beyond a study's end"""
    base: torch.Tensor
    """float32 [B, T, c]: logits to start from"""
    geometry: torch.Tensor
    """float32 [B, T, 2]: the gap to the next slice, 0 at the last; the place in the study, -1..1"""
    lengths: NDArray[np.int64]
    """[B]: slices of each study; not a tensor, for the network has to know them before a GPU has got that far"""
    targets: torch.Tensor | None
    """float32 [B, T, c]"""
    rows: torch.Tensor
    """int64 [B, T]: row numbers in the packed arrays, -1 beyond a study's end"""

    def slices(self, values: torch.Tensor) -> torch.Tensor:
        """[N, ...] of [B, T, ...]: the slices without the padding, study after study."""
        inside = np.arange(values.shape[1]) < self.lengths[:, None]
        numbers = torch.from_numpy(np.flatnonzero(inside)).to(values.device, non_blocking=True)
        return values.flatten(0, 1).index_select(0, numbers)

    def pieces(self, parts: int) -> list[tuple["StudyBatch", float]]:
        """The batch cut into `parts`, or single studies if these are fewer; with each piece its share of the slices."""
        cut = [StudyBatch(*(shortened(part, k, self.lengths) for part in self)) for k in cuts(len(self.rows), parts)]
        return [(piece, int(piece.lengths.sum()) / int(self.lengths.sum())) for piece in cut]


@dataclass(frozen=True)
class Studies:
    """Slices of whole studies, packed one study after the other, each in order of position.

    features: float16 or float32 [N, D]. base: float32 [N, c]. geometry: float32 [N, 2], as in `StudyBatch`.
    targets: float32 [N, c] or None. offsets: int64 [studies + 1]; study k is rows offsets[k]:offsets[k + 1].
    device: where batches are made, of tables that lie there.
    """

    features: NDArray[np.floating]
    base: NDArray[np.float32]
    geometry: NDArray[np.float32]
    targets: NDArray[np.float32] | None
    offsets: NDArray[np.int64]
    device: torch.device = field(default=torch.device("cpu"))

    def __post_init__(self) -> None:
        n = len(self.features)
        lengths = {len(self.base), len(self.geometry), n if self.targets is None else len(self.targets)}
        if lengths != {n}:
            raise ValueError(f"features, base, geometry and targets differ in length: {n} and {sorted(lengths)}")
        if self.offsets[0] != 0 or self.offsets[-1] != n or (np.diff(self.offsets) < 1).any():
            raise ValueError(f"offsets must rise from 0 to {n} and leave no study empty")

    @cached_property
    def tables(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """features, base, geometry and targets on the device; on a CPU in the arrays' own memory."""
        arrays = (self.features, self.base, self.geometry, self.targets)
        return tuple(None if one is None else torch.from_numpy(one).to(self.device) for one in arrays)  # pyright: ignore[reportReturnType]

    def near(self, device: torch.device) -> "Studies":
        """The studies with their tables on a GPU that has twice the room for them; else as they are."""
        if device.type != "cuda":
            return self
        size = sum(one.nbytes for one in (self.features, self.base, self.geometry, self.targets) if one is not None)
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
    rows = np.where(place < lengths[:, None], starts[:, None] + place, -1)
    numbers = torch.from_numpy(rows.astype(np.int64)).to(studies.device, non_blocking=True)
    within, beyond = numbers.clamp(min=0).flatten(), (numbers < 0)[..., None]

    def pad(table: torch.Tensor) -> torch.Tensor:
        found = table.index_select(0, within).float().unflatten(0, numbers.shape)
        return found.masked_fill_(beyond, 0)

    features, base, geometry, targets = studies.tables
    return StudyBatch(
        features=pad(features),
        base=pad(base),
        geometry=pad(geometry),
        lengths=lengths.astype(np.int64),
        targets=None if targets is None else pad(targets),
        rows=numbers,
    )


def from_the_other_end(batch: StudyBatch) -> StudyBatch:
    """The same studies with their slices numbered from the other end, as the scanner might have numbered them."""
    lengths = torch.from_numpy(batch.lengths).to(batch.rows.device, non_blocking=True)[:, None]
    place = torch.arange(batch.rows.shape[1], device=batch.rows.device)
    turned = torch.where(place < lengths, lengths - 1 - place, place)

    def turn(values: torch.Tensor) -> torch.Tensor:
        return values.take_along_dim(turned.reshape(*turned.shape, *[1] * (values.ndim - 2)), dim=1)

    # a gap lies between two slices, and the one after which it stands is now the other
    before = torch.nn.functional.pad(batch.geometry[:, :-1, 0], (1, 0))
    return StudyBatch(
        features=turn(batch.features),
        base=turn(batch.base),
        geometry=torch.stack([turn(before), -turn(batch.geometry[..., 1])], dim=-1),
        lengths=batch.lengths,
        targets=None if batch.targets is None else turn(batch.targets),
        rows=turn(batch.rows),
    )

"""Studies out of packed arrays, padded to batches: what the networks over a study's slices read."""

from collections.abc import Iterator
from dataclasses import dataclass
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
    lengths: torch.Tensor
    """int64 [B]: slices of each study"""
    targets: torch.Tensor | None
    """float32 [B, T, c]"""
    rows: torch.Tensor
    """int64 [B, T]: row numbers in the packed arrays, -1 beyond a study's end"""

    def pieces(self, parts: int) -> list[tuple["StudyBatch", float]]:
        """The batch cut into `parts`, or single studies if these are fewer; with each piece its share of the slices."""
        cut = [StudyBatch(*(shortened(part, k, self.lengths) for part in self)) for k in cuts(len(self.rows), parts)]
        return [(piece, int(piece.lengths.sum()) / int(self.lengths.sum())) for piece in cut]


@dataclass(frozen=True)
class Studies:
    """Slices of whole studies, packed one study after the other, each in order of position.

    features: float16 or float32 [N, D]. base: float32 [N, c]. geometry: float32 [N, 2], as in `StudyBatch`.
    targets: float32 [N, c] or None. offsets: int64 [studies + 1]; study k is rows offsets[k]:offsets[k + 1].
    """

    features: NDArray[np.floating]
    base: NDArray[np.float32]
    geometry: NDArray[np.float32]
    targets: NDArray[np.float32] | None
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.features)
        lengths = {len(self.base), len(self.geometry), n if self.targets is None else len(self.targets)}
        if lengths != {n}:
            raise ValueError(f"features, base, geometry and targets differ in length: {n} and {sorted(lengths)}")
        if self.offsets[0] != 0 or self.offsets[-1] != n or (np.diff(self.offsets) < 1).any():
            raise ValueError(f"offsets must rise from 0 to {n} and leave no study empty")


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
    starts, lengths = studies.offsets[chosen], np.diff(studies.offsets)[chosen]
    place = np.arange(lengths.max())
    inside = place < lengths[:, None]
    rows = np.where(inside, starts[:, None] + place, -1)

    def pad(packed: NDArray[np.floating]) -> torch.Tensor:
        return torch.from_numpy(np.where(inside[..., None], packed[rows], 0).astype(np.float32, copy=False))

    return StudyBatch(
        features=pad(studies.features),
        base=pad(studies.base),
        geometry=pad(studies.geometry),
        lengths=torch.from_numpy(lengths.astype(np.int64)),
        targets=None if studies.targets is None else pad(studies.targets),
        rows=torch.from_numpy(rows.astype(np.int64)),
    )


def from_the_other_end(batch: StudyBatch) -> StudyBatch:
    """The same studies with their slices numbered from the other end, as the scanner might have numbered them."""
    place = torch.arange(batch.rows.shape[1])
    turned = torch.where(place < batch.lengths[:, None], batch.lengths[:, None] - 1 - place, place)

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

"""Prediction: a network's logits and embeddings as arrays, each row with its number.

A batch that takes more memory than there is passes in halves, and so do those after it; the figures are the same up to
rounding. What a GPU says of a batch is taken from it while the next batch passes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ich import ranks
from ich.training.device import Mover, Precision, default_device, deterministic, fetch, resolve
from ich.training.memory import free, out_of_memory


def predict(model: nn.Module, batches: Iterable[Any], n: int, precision: Precision = "auto") -> dict[str, np.ndarray]:
    """Predict `n` slices: rows int64 [n], logits float32 [n, c] and embeddings float16 [n, d].

    batches yield (images, targets, rows). Embeddings are there if the model can `embed`.
    """
    embed = getattr(model, "embed", None)

    def columns(batch: Any, move: Mover) -> dict[str, Tensor]:
        (images,) = move((batch.images,))
        if embed is None:
            return {"rows": batch.rows, "logits": model(images).float()}
        embeddings, logits = embed(images)
        return {"rows": batch.rows, "logits": logits.float(), "embeddings": embeddings.half()}

    return _predict(model, batches, n, precision, columns)


def predict_studies(
    model: nn.Module, batches: Iterable[Any], n: int, precision: Precision = "auto"
) -> dict[str, np.ndarray]:
    """Predict the `n` slices of padded studies: rows int64 [n] and logits float32 [n, c].

    batches are `ich.data.studies.StudyBatch`; padding is left out.
    """
    return _predict_padded(model, batches, n, precision, ("features", "base", "geometry"))


def predict_study_pictures(
    model: nn.Module, batches: Iterable[Any], n: int, precision: Precision = "auto"
) -> dict[str, np.ndarray]:
    """Predict the `n` slices of studies from their pictures: rows int64 [n] and logits float32 [n, c].

    batches are `ich.data.study_pictures.StudyPicturesBatch`, whose images have no padding; that of the rest is
    left out.
    """
    return _predict_padded(model, batches, n, precision, ("images", "geometry"))


def _predict_padded(
    model: nn.Module, batches: Iterable[Any], n: int, precision: Precision, inputs: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Logits of the real slices from model(*inputs, lengths) -> [B, T, c]."""

    def columns(batch: Any, move: Mover) -> dict[str, Tensor]:
        rows = batch.rows.flatten()
        (real,) = torch.nonzero(rows >= 0, as_tuple=True)  # numbers: by a mask the device would have to count first
        *tensors, places = move((*(getattr(batch, name) for name in inputs), real))
        logits = model(*tensors, batch.lengths).flatten(0, 1)
        return {"rows": rows[real], "logits": logits[places].float()}

    return _predict(model, batches, n, precision, columns)


def _predict(
    model: nn.Module,
    batches: Iterable[Any],
    n: int,
    precision: Precision,
    columns: Callable[[Any, Mover], dict[str, Tensor]],
) -> dict[str, np.ndarray]:
    found, parts = _Columns(n), 1
    with _predicting(model, precision) as device:
        move = Mover(device)
        for batch in batches:
            waiting = [batch] if parts == 1 else [piece for piece, _ in batch.pieces(parts)]
            while waiting:
                try:
                    under_way = {name: fetch(column) for name, column in columns(waiting[0], move).items()}
                except Exception as error:
                    if len(waiting[0].rows) == 1 or not out_of_memory(error):
                        raise
                    free(error)
                    parts *= 2
                    waiting[:1] = [piece for piece, _ in waiting[0].pieces(2)]
                    continue
                found.add(under_way)
                del waiting[0]
    return found.complete()


class _Columns:
    """Arrays of `n` rows, made at the first batch and filled from the front, each batch when the next one is begun."""

    def __init__(self, n: int) -> None:
        self.n, self.filled = n, 0
        self.arrays: dict[str, np.ndarray] = {}
        self.under_way: dict[str, Callable[[], Tensor]] = {}

    def add(self, columns: dict[str, Callable[[], Tensor]]) -> None:
        """What `fetch` returned for each column of a batch."""
        before, self.under_way = self.under_way, columns
        end = self.filled
        for name, column in before.items():
            part = column().numpy()
            end = self.filled + len(part)
            if end > self.n:
                raise ValueError(f"the batches hold more than the {self.n} slices announced")
            if name not in self.arrays:
                self.arrays[name] = np.empty((self.n, *part.shape[1:]), part.dtype)
            self.arrays[name][self.filled : end] = part
        self.filled = end

    def complete(self) -> dict[str, np.ndarray]:
        """The arrays; of several processes that predict together, with the rows of all."""
        self.add({})
        arrays, filled = ranks.gathered(self.arrays, self.filled)
        if filled != self.n:
            raise ValueError(f"the batches hold {filled} slices, not the {self.n} announced")
        return arrays


@contextmanager
def _predicting(model: nn.Module, precision: Precision) -> Iterator[torch.device]:
    device = default_device()
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(resolve(precision, device))
    model.to(device).eval()
    with (
        deterministic(),
        torch.inference_mode(),
        torch.autocast(device.type, half, enabled=half is not None),
    ):
        yield device

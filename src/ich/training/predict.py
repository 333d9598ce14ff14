"""Prediction: a network's logits and embeddings as arrays, each row with its number.

A batch that takes more memory than there is passes in halves, and so do those after it; the figures are the same up to
rounding.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ich.training.device import Precision, default_device, deterministic, resolve
from ich.training.memory import free, out_of_memory


def predict(model: nn.Module, batches: Iterable[Any], n: int, precision: Precision = "auto") -> dict[str, np.ndarray]:
    """Predict `n` slices: rows int64 [n], logits float32 [n, c] and embeddings float16 [n, d].

    batches yield (images, targets, rows). Embeddings are there if the model can `embed`.
    """
    embed = getattr(model, "embed", None)

    def columns(batch: Any, device: torch.device) -> dict[str, Tensor]:
        images = batch.images.to(device)
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

    def columns(batch: Any, device: torch.device) -> dict[str, Tensor]:
        inside = batch.rows >= 0
        logits = model(*(getattr(batch, name).to(device) for name in inputs), batch.lengths)
        return {"rows": batch.rows[inside], "logits": logits[inside.to(device)].float()}

    return _predict(model, batches, n, precision, columns)


def _predict(
    model: nn.Module,
    batches: Iterable[Any],
    n: int,
    precision: Precision,
    columns: Callable[[Any, torch.device], dict[str, Tensor]],
) -> dict[str, np.ndarray]:
    found, parts = _Columns(n), 1
    with _predicting(model, precision) as device:
        for batch in batches:
            waiting = [batch] if parts == 1 else [piece for piece, _ in batch.pieces(parts)]
            while waiting:
                try:
                    found.add(**columns(waiting[0], device))
                    del waiting[0]
                except Exception as error:
                    if len(waiting[0].rows) == 1 or not out_of_memory(error):
                        raise
                    free(error)
                    parts *= 2
                    waiting[:1] = [piece for piece, _ in waiting[0].pieces(2)]
    return found.complete()


class _Columns:
    """Arrays of `n` rows, made at the first batch and filled from the front."""

    def __init__(self, n: int) -> None:
        self.n, self.filled = n, 0
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, **columns: Tensor) -> None:
        end = self.filled + len(columns["rows"])
        if end > self.n:
            raise ValueError(f"the batches hold more than the {self.n} slices announced")
        for name, column in columns.items():
            part = column.cpu().numpy()
            whole = self.arrays.setdefault(name, np.empty((self.n, *part.shape[1:]), part.dtype))
            whole[self.filled : end] = part
        self.filled = end

    def complete(self) -> dict[str, np.ndarray]:
        if self.filled != self.n:
            raise ValueError(f"the batches hold {self.filled} slices, not the {self.n} announced")
        return self.arrays


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

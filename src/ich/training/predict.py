"""Logits and embeddings of a network as arrays."""

from collections.abc import Callable, Iterable
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ich.training.device import Precision, autocast, default_device, deterministic, fetch, to_device
from ich.training.memory import memory_errors


@deterministic()
def predict(
    network: nn.Module,
    batches: Iterable[Any],
    n: int,
    precision: Precision = "auto",
    advance: Callable[[int], object] | None = None,
    views: Callable[[Any], Iterable[Any]] = lambda batch: [batch],
) -> dict[str, np.ndarray]:
    """Predict n slices: logits float32 [n, c], and embeddings float16 [n, d] if the network has `embed`.

    Batches are named tuples as in `ich.data.batches`; the arrays are in the order of their `rows`. advance(k) is
    called after each batch of k slices. views: changed copies of a batch, with the same slices in the same order, over
    which the outputs are averaged (test-time augmentation). Raises ValueError if the batches do not hold n slices.
    """
    device = default_device()
    network.to(device).eval()  # before inference mode, in which cuDNN's RNNs get weights that cannot be trained further
    embed: Any = getattr(network, "embed", None)
    arrays: dict[str, np.ndarray] = {}
    filled, arriving = 0, dict[str, Callable[[], Tensor]]()

    def outputs(batch: Any) -> list[Tensor]:
        """Logits, and embeddings if the network has them."""
        found = [network(*batch.inputs)] if embed is None else reversed(embed(*batch.inputs))
        return [batch.real(values).float() for values in found]

    def store() -> None:
        """Copy a batch into the arrays while the GPU computes the next one."""
        nonlocal filled
        columns = {name: wait().numpy() for name, wait in arriving.items()}
        start, filled = filled, filled + len(columns.get("rows", ()))
        if filled > n:
            raise ValueError(f"the batches hold more than {n} slices")
        for name, column in columns.items():
            array = arrays.setdefault(name, np.empty((n, *column.shape[1:]), column.dtype))
            array[start:filled] = column

    with memory_errors("prediction"), torch.inference_mode(), autocast(precision, device):
        for batch in batches:
            several = zip(*map(outputs, views(to_device(batch, device))), strict=True)
            logits, *embeddings = (reduce(add, values) / len(values) for values in several)
            columns = {"rows": batch.rows, "logits": logits}
            if embeddings:
                columns["embeddings"] = embeddings[0].half()
            under_way = {name: fetch(column) for name, column in columns.items()}
            store()
            arriving = under_way
            if advance is not None:
                advance(len(batch.rows))
        store()
    if filled != n:
        raise ValueError(f"the batches hold {filled} slices, not {n}")
    rows = arrays.pop("rows", np.empty(0))
    if (np.diff(rows) > 0).all():
        return arrays
    order = rows.argsort()
    return {name: array[order] for name, array in arrays.items()}

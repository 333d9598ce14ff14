"""Recurrent layers over the slices of padded studies."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Lengths = Tensor | NDArray[np.int64]
CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


def bidirectional(cell: str, features: int, hidden: int, *, layers: int = 1, dropout: float = 0.0) -> nn.LSTM | nn.GRU:
    """A bidirectional network with `hidden` units per direction and dropout between its layers."""
    if cell not in CELLS:
        raise ValueError(f"unknown cell {cell!r}; use {' or '.join(CELLS)}")
    between = dropout if layers > 1 else 0.0
    return CELLS[cell](features, hidden, num_layers=layers, batch_first=True, bidirectional=True, dropout=between)


def over_slices(rnn: nn.LSTM | nn.GRU, inputs: Tensor, lengths: Lengths) -> Tensor:
    """States [B, T, 2 hidden] of inputs [B, T, d]; zeros beyond a study's length. lengths: int64 [B]."""
    on_cpu = torch.as_tensor(lengths).cpu()
    packed = pack_padded_sequence(inputs, on_cpu, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(rnn(packed)[0], batch_first=True, total_length=inputs.shape[1])[0]

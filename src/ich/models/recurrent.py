"""Recurrent layers over the slices of padded studies."""

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


def bidirectional(cell: str, features: int, hidden: int, *, layers: int = 1, dropout: float = 0.0) -> nn.LSTM | nn.GRU:
    """A network of `layers` layers, `hidden` units each way, with dropout between its layers."""
    if cell not in CELLS:
        raise ValueError(f"unknown cell {cell!r}; use {' or '.join(CELLS)}")
    between = dropout if layers > 1 else 0.0
    return CELLS[cell](features, hidden, num_layers=layers, batch_first=True, bidirectional=True, dropout=between)


def over_slices(rnn: nn.LSTM | nn.GRU, inputs: Tensor, lengths: Tensor) -> Tensor:
    """States [B, T, 2 hidden] of inputs [B, T, d]; what stands beyond a study's length int64 [B] is not looked at."""
    packed = pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(rnn(packed)[0], batch_first=True, total_length=inputs.shape[1])[0]

"""A recurrent network over the slices of a study, as a correction of the slice network's logits."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class SequenceHead(nn.Module):
    """base + linear(bidirectional RNN of [LayerNorm(features), base, geometry]).

    The linear layer starts at zero, so that an untrained head repeats the base logits exactly: what it
    learns is what a slice's neighbours add.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        cell: Literal["lstm", "gru"],
        *,
        hidden: int = 64,
        layers: int = 1,
        dropout: float = 0.0,
        geometry: int = 2,
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f"unknown cell {cell!r}; use {' or '.join(CELLS)}")
        self.norm = nn.LayerNorm(features)
        self.rnn = CELLS[cell](
            features + classes + geometry,
            hidden,
            num_layers=layers,
            batch_first=True,
            bidirectional=True,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(dropout)
        self.residual = nn.Linear(2 * hidden, classes)
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)

    def forward(self, features: Tensor, base: Tensor, geometry: Tensor, lengths: Tensor) -> Tensor:
        """Logits float32 [B, T, c] of padded studies.

        features [B, T, D], base logits [B, T, c], geometry [B, T, 2], lengths int64 [B]. What stands beyond
        a study's length changes nothing before it.
        """
        # the network is small: half precision would save nothing and cost digits of the logits
        with torch.autocast(features.device.type, enabled=False):
            base = base.float()
            inputs = torch.cat([self.norm(features.float()), base, geometry.float()], dim=-1)
            packed = pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)
            states, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=base.shape[1])
            return base + self.residual(self.dropout(states))

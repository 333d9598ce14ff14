"""A transformer encoder over the slices of a study."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SliceTransformer(nn.Module):
    """Pre-norm encoder layers (Xiong et al., arXiv:2002.04745) whose attention decreases with the distance of slices.

    The decrease per usual gap is learned, for slices before and after one separately. It starts at 1, 1/4, 1/16 and
    1/64 in the four heads, or 1 and 1/4 in two, as in ALiBi (Press et al., arXiv:2108.12409). `width` is even.
    """

    def __init__(self, features: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        heads = math.gcd(width, 4)
        self.start = nn.Linear(features, width)
        self.layers = nn.ModuleList([EncoderLayer(width, heads, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        slopes = 0.25 ** torch.arange(heads)
        self.before, self.after = nn.Parameter(slopes), nn.Parameter(slopes.clone())

    def forward(self, inputs: Tensor, gaps: Tensor, padding: Tensor) -> Tensor:
        """States [B, T, width] of inputs [B, T, features].

        gaps [B, T]: from a slice to the next, in usual gaps; all inputs are zero where padding [B, T] is true.
        """
        place = F.pad(gaps[:, :-1], (1, 0)).cumsum(dim=1)
        distance = (place[:, None, :] - place[:, :, None])[:, None]  # [B, 1, T, T], of the keys from the queries
        bias = -self.after[:, None, None] * distance.relu() - self.before[:, None, None] * (-distance).relu()
        bias = bias.masked_fill(padding[:, None, None], -math.inf)
        states = self.start(inputs)
        for layer in self.layers:
            states = layer(states, bias)
        return self.norm(states)


class EncoderLayer(nn.Module):
    """Self-attention and two linear layers, each added to its input. `bias` [B, heads, T, T] is added to the scores."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        parts = self.attention(self.norms[0](states)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each [B, heads, T, width / heads]
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias
        mixed = (self.dropout(scores.softmax(dim=-1)) @ value).transpose(1, 2).flatten(2)
        states = states + self.dropout(self.project(mixed))
        return states + self.dropout(self.narrow(F.gelu(self.wide(self.norms[1](states)))))

"""Recurrent layers over the slices of padded studies."""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from ich.networks.cells import Gru, Lstm

Lengths = Tensor | NDArray[np.int64]
CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


def bidirectional(cell: str, features: int, hidden: int, *, layers: int = 1, dropout: float = 0.0) -> nn.LSTM | nn.GRU:
    """A network of `layers` layers, `hidden` units each way, with dropout between its layers."""
    if cell not in CELLS:
        raise ValueError(f"unknown cell {cell!r}; use {' or '.join(CELLS)}")
    between = dropout if layers > 1 else 0.0
    return CELLS[cell](features, hidden, num_layers=layers, batch_first=True, bidirectional=True, dropout=between)


class Places:
    """Where the N slices of padded studies [B, T] stand, and in which order a recurrent layer reads them.

    sizes: how many studies have a slice for each step; the longest come first, so that those which have ended are last.
    """

    def __init__(self, lengths: Lengths, longest: int, device: torch.device) -> None:
        """lengths: int64 [B], none above `longest`, which is T."""
        self._lengths, self._longest, self._device = np.array(lengths.tolist()), longest, device
        order, step = np.argsort(-self._lengths, kind="stable"), np.arange(self._lengths.max())[:, None]
        self._there = step < self._lengths[order]  # [steps, B]
        self._ends = self._lengths.cumsum()
        self._forwards = ((self._ends - self._lengths)[order] + step)[self._there]
        self._backwards = (self._ends[order] - 1 - step)[self._there]
        self.sizes: list[int] = self._there.sum(axis=1).tolist()

    def pack(self, values: Tensor) -> Tensor:
        """The slices alone, study after study: [N, ...] of [B, T, ...]."""
        return values.flatten(0, 1).index_select(0, self._real)

    def pad(self, values: Tensor) -> Tensor:
        """[B, T, ...] of [N, ...], zeros beyond a study's length."""
        whole = values.new_zeros(len(self._lengths) * self._longest, *values.shape[1:])
        return whole.index_copy(0, self._real, values).unflatten(0, (-1, self._longest))

    @cached_property
    def _real(self) -> Tensor:
        inside = np.arange(self._longest) < self._lengths[:, None]
        return self._tensor(np.flatnonzero(inside))

    @cached_property
    def forwards(self) -> tuple[Tensor, Tensor]:
        """int64 [N]: the slices step by step, and the way back from there."""
        return self._tensor(self._forwards), self._tensor(_inverse(self._forwards))

    @cached_property
    def into(self) -> Tensor:
        """int64 [2 N]: rows of [N, 2, ...], step by step, first those that a step reads forwards, then backwards."""
        return self._tensor(self._both)

    @cached_property
    def back(self) -> Tensor:
        """int64 [2 N]: the way back from there."""
        return self._tensor(_inverse(self._both))

    @cached_property
    def _both(self) -> NDArray[np.int64]:
        step = np.repeat(np.arange(len(self.sizes)), self.sizes)
        rows = np.concatenate([2 * self._forwards, 2 * self._backwards + 1])
        return rows[np.concatenate([2 * step, 2 * step + 1]).argsort(kind="stable")]

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """int64 [B]: the first and the last slice of each study."""
        return self._tensor(self._ends - self._lengths), self._tensor(self._ends - 1)

    def _tensor(self, numbers: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(numbers).to(self._device, non_blocking=True)


def over_slices(
    rnn: nn.LSTM | nn.GRU, inputs: Tensor, places: Places, affine: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """States [N, 2 hidden] of packed inputs [N, d].

    affine: what the inputs are multiplied by and what is added to them, [d] each. Where the inputs need no gradient,
    this is for nothing: it is done to the first layer's weights.
    """
    if inputs.device.type != "cpu":
        return by_torch(rnn, inputs if affine is None else inputs * affine[0] + affine[1], places)
    for layer in range(rnn.num_layers):
        inputs = functional.dropout(inputs, rnn.dropout, rnn.training) if layer else inputs
        inputs = _layer(rnn, layer, inputs, places, None if layer else affine)
    return inputs


def by_torch(rnn: nn.LSTM | nn.GRU, inputs: Tensor, places: Places) -> Tensor:
    """As `over_slices`, by the layer itself, which is the fastest on a GPU."""
    there, back = places.forwards
    packed = PackedSequence(inputs.index_select(0, there), torch.tensor(places.sizes))
    return rnn(packed)[0].data.index_select(0, back)


def _layer(
    rnn: nn.LSTM | nn.GRU, layer: int, inputs: Tensor, places: Places, affine: tuple[Tensor, Tensor] | None
) -> Tensor:
    hidden, gates = rnn.hidden_size, []
    of_hidden, inner = [], []
    for direction in ("", "_reverse"):
        names = (f"{name}_l{layer}{direction}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        weight, of_state, bias, of_state_bias = map(rnn.get_parameter, names)
        if isinstance(rnn, nn.GRU):  # of its new gate, the state's bias is multiplied by the reset gate
            inner.append(of_state_bias[2 * hidden :])
            of_state_bias = functional.pad(of_state_bias[: 2 * hidden], (0, hidden))
        bias = bias + of_state_bias
        if affine is not None:
            weight, bias = weight * affine[0], bias + weight @ affine[1]
        gates.append(functional.linear(inputs, weight, bias))
        of_hidden.append(of_state)
    gates, of_hidden = torch.stack(gates, dim=1), torch.stack(of_hidden)
    if isinstance(rnn, nn.GRU):
        return Gru.apply(gates, of_hidden, torch.stack(inner), places).flatten(1)
    return Lstm.apply(gates, of_hidden, places).flatten(1)


def _inverse(order: NDArray[np.int64]) -> NDArray[np.int64]:
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse

"""Layers that the networks share."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Lengths = Tensor | NDArray[np.int64]
CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class ZeroLinear(nn.Linear):
    """A linear layer whose weights and biases start at zero."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class Classifier(ZeroLinear):
    """Output layer: its bias alone decides the first predictions, see `start_from_prevalence`."""


@torch.no_grad()
def start_from_prevalence(network: nn.Module, prevalence: np.ndarray) -> None:
    """Let the first predictions of a network be the class frequencies [c].

    The first loss is then the entropy of the prevalence (Karpathy, "A recipe for training neural networks", 2019).
    """
    share = torch.as_tensor(prevalence, dtype=torch.float64).clamp(1e-4, 1 - 1e-4)
    for layer in network.modules():
        if isinstance(layer, Classifier):
            layer.bias.copy_(torch.logit(share))


@dataclass(frozen=True)
class HeadSpec:
    """Everything needed to rebuild a head over the slices of a study, except its weights."""

    name: str
    """residual, plain, shortcut, linear, sdl, lrnn, sdl_lrnn or lrnn_sdl; see `ich.networks.sequence.build_head`."""
    features: int
    """Size of the embedding of a slice."""
    classes: int
    cell: str = "gru"
    """gru or lstm; for sdl also conv; for residual also conv_gru and transformer."""
    hidden: int = 64
    """Units per direction."""
    layers: int = 1
    dropout: float = 0.0
    differences: bool = False
    """residual: the network also reads the differences to the two neighbouring slices."""

    @property
    def takes_classifier(self) -> bool:
        """True if the head can start from the classifier of a Cnn: each class reads a state as wide as the features."""
        return self.name in ("linear", "sdl") or ("lrnn" in self.name and self.hidden == self.features)


class Head(nn.Module):
    """Base class of the heads over the slices of a study: states of the slices, and logits from them.

    Features [B, T, D], base logits [B, T, c], geometry [B, T, 2] and lengths int64 [B] are as in `build_head`.
    """

    width: int
    """Values in the state of a slice."""

    def states(self, features: Tensor, base: Tensor, geometry: Tensor, lengths: Lengths) -> Tensor:
        """States [B, T, width], or [B, T, c, width / c] if each class has its own."""
        raise NotImplementedError

    def classify(self, states: Tensor, base: Tensor) -> Tensor:
        """Logits float32 [B, T, c] of states and base logits."""
        raise NotImplementedError

    def forward(self, features: Tensor, base: Tensor, geometry: Tensor, lengths: Lengths) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):  # half precision would round the logits
            return self.classify(self.states(features, base, geometry, lengths), base)


def bidirectional(cell: str, features: int, hidden: int, layers: int = 1, dropout: float = 0.0) -> nn.LSTM | nn.GRU:
    """Bidirectional network with `hidden` units per direction and dropout between its layers."""
    between = dropout if layers > 1 else 0.0
    return CELLS[cell](features, hidden, num_layers=layers, batch_first=True, bidirectional=True, dropout=between)


def padding_of(values: Tensor, lengths: Lengths) -> Tensor:
    """Mask [B, T], true beyond the length of a study, of values [B, T, ...]."""
    mask = torch.arange(values.shape[1])[None] >= torch.as_tensor(lengths).cpu()[:, None]
    return mask.to(values.device)


def over_slices(rnn: nn.LSTM | nn.GRU, inputs: Tensor, lengths: Lengths) -> Tensor:
    """States [B, T, 2 hidden] of inputs [B, T, d], zero beyond the length of a study. lengths: int64 [B]."""
    on_cpu = torch.as_tensor(lengths).cpu()
    packed = pack_padded_sequence(inputs, on_cpu, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(rnn(packed)[0], batch_first=True, total_length=inputs.shape[1])[0]

"""Layers that the networks share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Lengths = Tensor | NDArray[np.int64]
CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class PerClass(nn.Linear):
    """A linear layer with one output per class."""


class ZeroLinear(PerClass):
    """A linear layer per class whose weights and biases start at zero."""

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
    features: int  # size of the embedding of a slice
    classes: int
    cell: str = "gru"  # gru or lstm; for sdl also conv; for residual also conv_gru and transformer
    hidden: int = 64  # units per direction
    layers: int = 1
    dropout: float = 0.0
    differences: bool = False  # residual: the network also reads the differences to the two neighbouring slices

    @property
    def takes_classifier(self) -> bool:
        """True if the head can start from the classifier of a Cnn: each class reads a state as wide as the features."""
        return self.name in ("linear", "sdl") or ("lrnn" in self.name and self.hidden == self.features)


class Head(nn.Module):
    """Base class of the heads over the slices of a study: states of the slices, and logits from them.

    Features [B, T, D], base logits [B, T, c], geometry [B, T, 2] and lengths int64 [B] are as in `build_head`.
    """

    width: int  # values in the state of a slice
    base_weights: tuple[str, ...] = ()
    """Weights that read the base logits, one column per class, and the first of these columns."""
    base_column: int = 0
    ordered: bool = False  # True if other weights depend on the order of the classes

    def states(self, features: Tensor, base: Tensor, geometry: Tensor, lengths: Lengths) -> Tensor:
        """States [B, T, width], or [B, T, c, width / c] if each class has its own."""
        raise NotImplementedError

    def classify(self, states: Tensor, base: Tensor) -> Tensor:
        """Logits float32 [B, T, c] of states and base logits."""
        raise NotImplementedError

    def forward(self, features: Tensor, base: Tensor, geometry: Tensor, lengths: Lengths) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):  # half precision would round the logits
            return self.classify(self.states(features, base, geometry, lengths), base)

    def start_from(self, state: Mapping[str, Tensor], classes: "SavedClasses | None" = None) -> None:
        """Load the state_dict of a head, see `copy_state`."""
        copy_state(self, state, classes)


@dataclass(frozen=True)
class SavedClasses:
    """The classes of saved weights, for a network that starts from them."""

    rows: tuple[int | None, ...]
    """For each class of the network, its number among those of the weights; None: it starts as usual."""
    count: int  # number of classes of the weights

    @classmethod
    def by_name(cls, own: Sequence[str], saved: Sequence[str]) -> Self:
        """Match the classes of a network with those of the weights, which may be unknown: ()."""
        numbers = {name: number for number, name in enumerate(saved)}
        return cls(tuple(map(numbers.get, own)), len(saved) or len(own))


@torch.no_grad()
def copy_state(network: nn.Module, state: Mapping[str, Tensor], classes: SavedClasses | None = None) -> None:
    """Copy the state_dict of a network of the same kind into `network`. classes: None if both have the same.

    Raises ValueError with the first tensor that does not fit and both shapes.
    """
    own, by_class = network.state_dict(), dict[str, tuple[int, int]]()  # dimension of the classes, index of the first
    for path, module in network.named_modules():
        place = f"{path}." if path else ""
        if isinstance(module, PerClass):
            by_class |= {f"{place}weight": (0, 0), f"{place}bias": (0, 0)}
        elif isinstance(module, Head):
            by_class |= {f"{place}{name}": (1, module.base_column) for name in module.base_weights}
            if module.ordered and classes is not None and classes.rows != tuple(range(classes.count)):
                raise ValueError("a head with lrnn can only start from weights with the same classes in the same order")
    if differing := sorted(own.keys() ^ state.keys()):
        where, missing = ("the weights", "the network") if differing[0] in state else ("the network", "the weights")
        raise ValueError(f"{differing[0]} is in {where}, but not in {missing}; both must have the same architecture")
    for name, value in own.items():
        saved, shape = state[name], list(value.shape)
        dimension, to, at = 0, None, None  # entries along a dimension; None: all
        if classes is not None and name in by_class:
            dimension, first = by_class[name]
            known = [(number, row) for number, row in enumerate(classes.rows) if row is not None]
            after, more = range(first + len(classes.rows), shape[dimension]), classes.count - len(classes.rows)
            to = [*range(first), *(first + number for number, _ in known), *after]
            at = [*range(first), *(first + row for _, row in known), *(k + more for k in after)]
            shape[dimension] += more
        if to == []:
            continue
        if list(saved.shape) != shape:
            raise ValueError(f"{name} has the shape {list(saved.shape)} in the weights, but {shape} is required")
        if to is None or at is None:
            value.copy_(saved)
        else:
            value.index_copy_(
                dimension, torch.tensor(to), saved.to(value.dtype).index_select(dimension, torch.tensor(at))
            )


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

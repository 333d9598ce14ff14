"""Networks over the slices of a study: from slice embeddings and logits to final logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ich.networks.label_rnn import SliceLabelHead
from ich.networks.layers import Classifier, Head, HeadSpec, Lengths, ZeroLinear, bidirectional, over_slices, padding_of
from ich.networks.transformer import SliceTransformer

GEOMETRY = 2  # values per slice: gap to the next slice, position in the series


def build_head(spec: HeadSpec) -> Head:
    """Build a network whose forward maps padded studies to logits float32 [B, T, c].

    Its arguments are features [B, T, D], base logits [B, T, c], geometry [B, T, 2] and lengths int64 [B], which stay
    on the CPU: copying them from a GPU would wait for it. Padding does not change the logits of real slices.

    residual: `ResidualHead`; plain, shortcut: `StackedHead`; linear, sdl, lrnn, sdl_lrnn, lrnn_sdl: `SliceLabelHead`.
    Only `residual` reads the base logits and the geometry. Raises ValueError where sdl cannot add its context.
    """
    if spec.name == "residual":
        return ResidualHead(spec)
    return StackedHead(spec) if spec.name in ("plain", "shortcut") else SliceLabelHead(spec)


def try_head(spec: HeadSpec) -> None:
    """Build a head without memory for its weights. Raises ValueError if that is not possible."""
    with torch.device("meta"):
        build_head(spec)


class MeanOfNetworks(nn.ModuleList):
    """The mean of the outputs of several networks on the same inputs."""

    def forward(self, *inputs: Tensor | Lengths) -> Tensor:
        return torch.stack([network(*inputs) for network in self]).mean(dim=0)


class ResidualHead(Head):
    """base + linear(context of [LayerNorm(features), base, geometry, differences]).

    The linear layer starts at zero, so that an untrained head returns the base logits: it learns what the neighbours
    of a slice add. The context is a bidirectional GRU or LSTM, a convolution over three slices before a GRU
    (conv_gru), or a transformer; its states have twice `hidden` values. The differences are optional.
    """

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.features)
        self.differences = spec.differences
        width = spec.features * (3 if spec.differences else 1) + spec.classes + GEOMETRY
        self.convolution, self.rnn, self.transformer = None, None, None
        self.base_column, self.base_weights = spec.features, ("rnn.weight_ih_l0", "rnn.weight_ih_l0_reverse")
        if spec.cell == "transformer":
            self.base_weights = ("transformer.start.weight",)
            self.transformer = SliceTransformer(width, 2 * spec.hidden, spec.layers, spec.dropout)
        else:
            if spec.cell == "conv_gru":
                self.base_weights = ("convolution.weight",)
                self.convolution = nn.Conv1d(width, 2 * spec.hidden, kernel_size=3, padding=1)
                width = 2 * spec.hidden
            self.rnn = bidirectional(spec.cell.removeprefix("conv_"), width, spec.hidden, spec.layers, spec.dropout)
        self.dropout = nn.Dropout(spec.dropout)
        self.width = 2 * spec.hidden
        self.residual = ZeroLinear(self.width, spec.classes)

    def states(self, features: Tensor, base: Tensor, geometry: Tensor, lengths: Lengths) -> Tensor:
        normed, padding = self.norm(features.float()), padding_of(features, lengths)
        parts = [normed, base.float(), geometry.float()]
        if self.differences:
            parts += neighbour_differences(normed, padding)
        inputs = torch.cat(parts, dim=-1).masked_fill(padding[..., None], 0.0)
        if self.transformer is not None:
            gaps = (geometry[..., 0].float() + 1).masked_fill(padding, 0.0)
            return self.transformer(inputs, gaps, padding)
        if self.convolution is not None:
            inputs = F.relu(self.convolution(inputs.transpose(1, 2))).transpose(1, 2)
        return over_slices(self.rnn, inputs, lengths)  # pyright: ignore[reportArgumentType]

    def classify(self, states: Tensor, base: Tensor) -> Tensor:
        return base.float() + self.residual(self.dropout(states))


def neighbour_differences(values: Tensor, padding: Tensor) -> list[Tensor]:
    """Differences to the previous and to the next slice, both [B, T, d]; zero at the ends of a study."""
    steps = (values[:, 1:] - values[:, :-1]).masked_fill(padding[:, 1:, None], 0.0)
    return [F.pad(steps, (0, 0, 1, 0)), F.pad(-steps, (0, 0, 0, 1))]


class StackedHead(Head):
    """linear(stacked bidirectional RNN), of its last layer (docs/background/seeds.md, CNN-LSTM).

    shortcut: of the sum of all layers, which shortens the path of the gradient to the first of them
    (docs/background/seeds.md, HOHOHO).
    """

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.shortcuts = spec.name == "shortcut"
        widths = [spec.features] + [2 * spec.hidden] * (spec.layers - 1)
        self.layers = nn.ModuleList([bidirectional(spec.cell, width, spec.hidden) for width in widths])
        self.dropout = nn.Dropout(spec.dropout)
        self.width = 2 * spec.hidden
        self.classifier = Classifier(self.width, spec.classes)

    def states(self, features: Tensor, base: Tensor, geometry: Tensor, lengths: Lengths) -> Tensor:
        below, outputs = features.float(), list[Tensor]()
        for layer in self.layers:
            below = self.dropout(outputs[-1]) if outputs else below
            outputs.append(over_slices(layer, below, lengths))  # pyright: ignore[reportArgumentType]
        return torch.stack(outputs).sum(dim=0) if self.shortcuts else outputs[-1]

    def classify(self, states: Tensor, base: Tensor) -> Tensor:
        return self.classifier(self.dropout(states))

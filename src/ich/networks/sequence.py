"""Networks over the slices of a study: from what the slice networks say of each slice to its final logits."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ich.networks.classifier import Classifier
from ich.networks.label_rnn import SliceLabelHead
from ich.networks.recurrent import Lengths, bidirectional, over_slices

HEADS = ("residual", "plain", "shortcut", "sdl", "lrnn", "sdl_lrnn", "lrnn_sdl")


def build_head(
    name: str, *, features: int, classes: int, cell: str, hidden: int, layers: int, dropout: float
) -> nn.Module:
    """A network whose forward takes padded studies to logits float32 [B, T, classes].

    Its arguments: features [B, T, D], base logits [B, T, c], geometry [B, T, 2], lengths int64 [B], better not on a
    GPU, for which they have to be known before it has got that far. What stands beyond a study's length changes
    nothing before it. `output_bias(prevalence)` starts it from the classes' frequencies. `residual` corrects the base
    logits and looks at the geometry; the others know the features alone.

    residual: `SequenceHead`. plain, shortcut: `StackedHead`. sdl, lrnn, sdl_lrnn, lrnn_sdl: `SliceLabelHead`,
    which says what cell, hidden and layers are there. Raises ValueError for unknown names and cells that do
    not fit.
    """
    if name not in HEADS:
        raise ValueError(f"unknown head {name!r}; use {', '.join(HEADS)}")
    cells = ("lstm", "gru", "conv") if "sdl" in name else ("lstm", "gru")
    if cell not in cells:
        raise ValueError(f"head {name} has no cell {cell!r}; use {' or '.join(cells)}")
    shape = {"hidden": hidden, "layers": layers, "dropout": dropout}
    if name == "residual":
        return SequenceHead(features, classes, cell, **shape)  # pyright: ignore[reportArgumentType]
    if name in {"plain", "shortcut"}:
        return StackedHead(features, classes, cell, shortcuts=name == "shortcut", **shape)
    return SliceLabelHead(name, features, classes, cell, **shape)


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
        self.norm = nn.LayerNorm(features)
        self.rnn = bidirectional(cell, features + classes + geometry, hidden, layers=layers, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.residual = Classifier(2 * hidden, classes)

    def forward(self, features: Tensor, base: Tensor, geometry: Tensor, lengths: Lengths) -> Tensor:
        """See `build_head`."""
        # half precision would cost digits of the logits
        with torch.autocast(features.device.type, enabled=False):
            inputs = torch.cat([self.norm(features.float()), base.float(), geometry.float()], dim=-1)
            states = over_slices(self.rnn, inputs, lengths)
            return base.float() + self.residual(self.dropout(states))

    def output_bias(self, prevalence: np.ndarray) -> None:
        """Nothing: the base logits bring the classes' frequencies along."""


class StackedHead(nn.Module):
    """linear(output of a stacked bidirectional RNN): of its last layer (docs/background/seeds.md, CNN-LSTM).

    With `shortcuts` the outputs of all layers are added up, which shortens the way of the gradient to the first of them
    (docs/background/seeds.md, HOHOHO).
    """

    def __init__(
        self,
        features: int,
        classes: int,
        cell: str,
        *,
        hidden: int,
        layers: int = 2,
        dropout: float = 0.0,
        shortcuts: bool = False,
    ) -> None:
        super().__init__()
        self.shortcuts = shortcuts
        widths = [features] + [2 * hidden] * (layers - 1)
        self.layers = nn.ModuleList([bidirectional(cell, width, hidden) for width in widths])
        self.dropout = nn.Dropout(dropout)
        self.classifier = Classifier(2 * hidden, classes)

    def forward(self, features: Tensor, base: Tensor, geometry: Tensor, lengths: Lengths) -> Tensor:
        """See `build_head`."""
        with torch.autocast(features.device.type, enabled=False):
            below, outputs = features.float(), list[Tensor]()
            for layer in self.layers:
                below = self.dropout(outputs[-1]) if outputs else below
                outputs.append(over_slices(layer, below, lengths))  # pyright: ignore[reportArgumentType]
            states = torch.stack(outputs).sum(dim=0) if self.shortcuts else outputs[-1]
            return self.classifier(self.dropout(states))

    def output_bias(self, prevalence: np.ndarray) -> None:
        """Start from the classes' frequencies [classes]."""
        self.classifier.output_bias(prevalence)

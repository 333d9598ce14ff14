"""Slice dependencies and the label decoder, alone or in either order (docs/background/seeds.md, SDL + LRNN)."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ich.networks.classifier import Classifier
from ich.networks.recurrent import Lengths, bidirectional, over_slices


class SliceContext(nn.Module):
    """SDL: features + context(features), both [B, T, D]; the sum is the document's neck.

    The context is a bidirectional GRU or LSTM of D / 2 units each way, or `layers` convolutions over three
    neighbouring slices, each followed by a ReLU.
    """

    def __init__(self, features: int, cell: str, *, layers: int, dropout: float) -> None:
        super().__init__()
        self.rnn, self.convolutions = None, None
        if cell == "conv":
            made = [nn.Conv1d(features, features, kernel_size=3, padding=1) for _ in range(layers)]
            self.convolutions = nn.ModuleList(made)
        elif features % 2:
            raise ValueError(f"a bidirectional {cell} cannot add to {features} features, an odd number; use cell conv")
        else:
            self.rnn = bidirectional(cell, features, features // 2, layers=layers, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, lengths: Lengths) -> Tensor:
        if self.rnn is not None:
            return features + over_slices(self.rnn, features, lengths)
        return features + self._convolved(features, lengths)

    def _convolved(self, features: Tensor, lengths: Lengths) -> Tensor:
        beyond = torch.arange(features.shape[1])[None] >= torch.as_tensor(lengths).cpu()[:, None]
        outside, context = beyond.to(features.device)[:, None], features.transpose(1, 2)
        for number, convolution in enumerate(self.convolutions or ()):
            context = self.dropout(context) if number else context
            # zeros beyond the last slice, as a study alone has them there
            context = F.relu(convolution(context.masked_fill(outside, 0.0)))
        return context.transpose(1, 2)


class LabelDecoder(nn.Module):
    """LRNN: an LSTM over the classes whose state starts from the slice's feature and whose input is zero.

    The feature is the hidden state and the memory cell at the start, through a linear layer where the widths
    differ. Slices do not see one another.
    """

    def __init__(self, features: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.classes = classes
        self.start = nn.Identity() if features == hidden else nn.Linear(features, hidden)
        self.rnn = nn.LSTM(1, hidden, batch_first=True)
        # The feature comes in at the first step only. With PyTorch's forget gates of 1/2, a 64th of it would be left at
        # the sixth class; these forget over as many steps as there are classes (Tallec and Ollivier, arXiv:1804.11188).
        forget = slice(hidden, 2 * hidden)
        nn.init.zeros_(self.rnn.get_parameter("bias_hh_l0")[forget])
        nn.init.constant_(self.rnn.get_parameter("bias_ih_l0")[forget], math.log(classes))

    def forward(self, features: Tensor, lengths: Lengths) -> Tensor:
        """The states [B, T, classes, hidden] of features [B, T, D], a step a class."""
        start = self.start(features).flatten(0, 1)[None].contiguous()
        states, _ = self.rnn(start.new_zeros(start.shape[1], self.classes, 1), (start, start))
        return states.unflatten(0, features.shape[:2])


class SliceLabelHead(nn.Module):
    """SDL and LRNN in the order of the name: sdl, lrnn, sdl_lrnn or lrnn_sdl.

    Where the decoder comes last, each of its steps becomes one scalar by weights of its class; before SDL its
    states are laid side by side, classes x hidden features a slice. `cell` (gru, lstm or conv) and `layers`
    are those of SDL, as wide as its input, and mean nothing to lrnn alone; `hidden` is that of the decoder,
    always one LSTM layer, and means nothing to sdl alone.
    """

    def __init__(
        self, name: str, features: int, classes: int, cell: str, *, hidden: int, layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        width = features
        for part in name.split("_"):
            if part == "sdl":
                self.parts.append(SliceContext(width, cell, layers=layers, dropout=dropout))
            else:
                self.parts.append(LabelDecoder(width, classes, hidden))
                width = classes * hidden
        self.dropout = nn.Dropout(dropout)
        self.classifier = Classifier(hidden if name.endswith("lrnn") else width, classes)

    def forward(self, features: Tensor, base: Tensor, geometry: Tensor, lengths: Lengths) -> Tensor:
        """See `ich.networks.sequence.build_head`."""
        with torch.autocast(features.device.type, enabled=False):
            states = features.float()
            for part in self.parts:
                states = part(states.flatten(2), lengths)
            states = self.dropout(states)
            if states.ndim == 4:  # a state a class: each with the weights of its class
                return (states * self.classifier.weight).sum(dim=-1) + self.classifier.bias
            return self.classifier(states)

    def output_bias(self, prevalence: np.ndarray) -> None:
        """Start from the classes' frequencies [classes]."""
        self.classifier.output_bias(prevalence)

"""Slice dependencies learning and the label decoder, alone and combined (docs/background/seeds.md, SDL + LRNN)."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ich.networks.layers import (
    Classifier,
    Head,
    HeadSpec,
    Lengths,
    SavedClasses,
    bidirectional,
    over_slices,
    padding_of,
)


class SliceContext(nn.Module):
    """SDL: features + context(features), both [B, T, D].

    The context is a bidirectional GRU or LSTM with D / 2 units per direction, or `layers` convolutions over three
    neighbouring slices with ReLUs between them. It starts at zero, since its last layer does.
    """

    def __init__(self, features: int, cell: str, layers: int, dropout: float) -> None:
        super().__init__()
        self.rnn, self.convolutions = None, None
        if cell == "conv":
            convolutions = [nn.Conv1d(features, features, kernel_size=3, padding=1) for _ in range(layers)]
            self.convolutions = nn.ModuleList(convolutions)
            for value in convolutions[-1].parameters():
                nn.init.zeros_(value)
        elif features % 2:
            raise ValueError(f"a bidirectional {cell} cannot add to {features} features, an odd number; use cell conv")
        else:
            self.rnn = bidirectional(cell, features, features // 2, layers, dropout)
            for name, value in self.rnn.named_parameters():
                if f"_l{layers - 1}" in name and "weight_hh" not in name:  # of the new state, third gate of both cells
                    nn.init.zeros_(value[features : features + features // 2])
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, lengths: Lengths) -> Tensor:
        if self.rnn is not None:
            return features + over_slices(self.rnn, features, lengths)
        beyond, context = padding_of(features, lengths)[:, None], features.transpose(1, 2)
        for number, convolution in enumerate(self.convolutions or ()):
            context = self.dropout(F.relu(context)) if number else context
            # zeros beyond the last slice, as in a study without padding
            context = convolution(context.masked_fill(beyond, 0.0))
        return features + context.transpose(1, 2)


class LabelDecoder(nn.Module):
    """LRNN: an LSTM with one step per class, whose state starts from the features of a slice and whose input is zero.

    The features are the first hidden state and the first memory cell, through a linear layer where the sizes differ.
    Slices do not influence one another.
    """

    def __init__(self, features: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.classes = classes
        self.start = nn.Identity() if features == hidden else nn.Linear(features, hidden)
        self.rnn = nn.LSTM(1, hidden, batch_first=True)
        # The features enter at the first step only. With PyTorch's forget gates of 1/2, 1/64 of them would be left at
        # the sixth class. These gates forget over as many steps as there are classes (Tallec and Ollivier,
        # arXiv:1804.11188).
        forget = slice(hidden, 2 * hidden)
        nn.init.zeros_(self.rnn.get_parameter("bias_hh_l0")[forget])
        nn.init.constant_(self.rnn.get_parameter("bias_ih_l0")[forget], math.log(classes))

    def forward(self, features: Tensor, lengths: Lengths) -> Tensor:
        """States [B, T, classes, hidden] of features [B, T, D]."""
        start = self.start(features).flatten(0, 1)[None].contiguous()
        states, _ = self.rnn(start.new_zeros(start.shape[1], self.classes, 1), (start, start))
        return states.reshape(*features.shape[:2], self.classes, -1)


class SliceLabelHead(Head):
    """SDL and LRNN in the order of the name: sdl, lrnn, sdl_lrnn or lrnn_sdl; linear has neither, as their control.

    After a final decoder, the step of each class becomes one logit by the weights of that class. SDL after the decoder
    reads the states of all classes side by side, classes x hidden features per slice. `cell` (gru, lstm or conv) and
    `layers` belong to SDL, which is as wide as its input; `hidden` belongs to the decoder, always one LSTM layer.
    """

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.spec, self.parts = spec, nn.ModuleList()
        width = spec.features
        for part in spec.name.split("_"):
            if part == "sdl":
                self.parts.append(SliceContext(width, spec.cell, spec.layers, spec.dropout))
            elif part == "lrnn":
                self.parts.append(LabelDecoder(width, spec.classes, spec.hidden))
                width = spec.classes * spec.hidden
        self.dropout = nn.Dropout(spec.dropout)
        self.ordered = "lrnn" in spec.name
        self.width = spec.classes * spec.hidden if spec.name.endswith("lrnn") else width
        self.classifier = Classifier(spec.hidden if spec.name.endswith("lrnn") else width, spec.classes)

    def start_from(self, state: Mapping[str, Tensor], classes: SavedClasses | None = None) -> None:
        """Load the state_dict of such a head, or the classifier of the Cnn whose features are read."""
        if any(name.startswith("backbone.") for name in state):
            self.take_classifier(state)
        else:
            super().start_from(state, classes)

    @torch.no_grad()
    def take_classifier(self, state: Mapping[str, Tensor]) -> None:
        """Take the classifier from the state_dict of the Cnn whose features are read, if `HeadSpec.takes_classifier`.

        linear and sdl then return the logits of the Cnn. After a decoder, each class reads its own states.
        """
        if self.spec.takes_classifier:
            weight = state["classifier.weight"]
            self.classifier.weight.copy_(torch.block_diag(*weight) if self.spec.name == "lrnn_sdl" else weight)
            self.classifier.bias.copy_(state["classifier.bias"])

    def states(self, features: Tensor, base: Tensor, geometry: Tensor, lengths: Lengths) -> Tensor:
        states = features.float()
        for part in self.parts:
            states = part(states.flatten(2), lengths)
        return states

    def classify(self, states: Tensor, base: Tensor) -> Tensor:
        states = self.dropout(states)
        if states.ndim == 4:  # one state per class
            return (states * self.classifier.weight).sum(dim=-1) + self.classifier.bias
        return self.classifier(states)

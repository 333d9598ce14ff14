"""Logits of a whole series, in addition to those of its slices: attention pooling over the states of a head."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ich.networks.layers import Head, Lengths, PerClass, SavedClasses, ZeroLinear, copy_state, padding_of


class StudyHead(nn.Module):
    """A head and logits of each series: the maximum of its slice logits + linear(attention pooling of its states).

    Each class has an attention of its own (Ilse et al., arXiv:1802.04712). The linear layer starts at zero, so that an
    untrained network returns the maximum.
    """

    def __init__(self, head: Head, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.head = head
        self.attention = PerClass(head.width, classes)
        self.dropout = nn.Dropout(dropout)
        self.residual = ZeroLinear(head.width, classes)

    def start_from(self, state: Mapping[str, Tensor], classes: SavedClasses | None = None) -> None:
        """Load the state_dict of such a network, or the classifier of a Cnn as `SliceLabelHead.start_from` does."""
        if any(name.startswith("backbone.") for name in state):
            self.head.start_from(state)
        else:
            copy_state(self, state, classes)

    def weights(self, states: Tensor, beyond: Tensor) -> Tensor:
        """Attention [B, T, c] of states [B, T, width]: its sum over a series is 1. beyond [B, T, 1]: the padding."""
        return self.attention(states).masked_fill(beyond, -torch.inf).softmax(dim=1)

    def forward(self, features: Tensor, base: Tensor, geometry: Tensor, lengths: Lengths) -> Tensor:
        """Logits float32 [B, T, 2 c]: c of the slice, then c of its series, repeated. Arguments: see `build_head`."""
        with torch.autocast(features.device.type, enabled=False):
            states = self.head.states(features, base, geometry, lengths)
            slices = self.head.classify(states, base)
            beyond = padding_of(states, lengths)[..., None]
            states = states.flatten(2).masked_fill(beyond, 0.0)
            pooled = self.dropout(self.weights(states, beyond).transpose(1, 2) @ states)  # [B, c, width]
            series = (pooled * self.residual.weight).sum(dim=-1) + self.residual.bias
            series = series + slices.masked_fill(beyond, -torch.inf).amax(dim=1)
            return torch.cat([slices, series[:, None].expand_as(slices)], dim=-1)

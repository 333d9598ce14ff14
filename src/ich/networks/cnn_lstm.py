"""A slice network and a study network trained together, a study at a time (docs/seeds.md, CNN-LSTM)."""

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ich.networks.cnn import Cnn
from ich.networks.recompute import count_once, norms


class EndToEnd(nn.Module):
    """A head of `ich.networks.sequence.build_head` on the embeddings and logits of a Cnn, with one gradient.

    The slices pass the Cnn in chunks of at most `chunk`, and the gradient computes each chunk anew, so that
    one chunk's activations are in memory at a time (Chen et al., arXiv:1604.06174). A chunk is a batch to
    batch norm; freeze_norm leaves those layers with the statistics they have.
    """

    def __init__(self, cnn: Cnn, head: nn.Module, *, chunk: int = 8, freeze_norm: bool = False) -> None:
        super().__init__()
        self.cnn, self.head = cnn, head
        self.chunk, self.freeze_norm = chunk, freeze_norm
        count_once(cnn)

    def forward(self, images: Tensor, geometry: Tensor, lengths: Tensor) -> Tensor:
        """Logits float32 [B, T, c] of padded studies.

        images uint8 [N, C, S, S]: the slices of all studies, one after the other; geometry [B, T, 2];
        lengths int64 [B], which add up to N.
        """
        if int(lengths.sum()) != len(images):
            raise ValueError(f"{len(images)} slices are not the {int(lengths.sum())} of studies of {lengths.tolist()}")
        # parts of nearly one size: a last part of one slice would be a batch of one to batch norm
        parts = images.tensor_split(-(-len(images) // self.chunk))
        embeddings, logits = zip(*(self._embed(part) for part in parts), strict=True)
        inside = (torch.arange(geometry.shape[1])[None] < lengths.cpu()[:, None]).to(images.device)
        features, base = (_padded(torch.cat(values), inside) for values in (embeddings, logits))
        return self.head(features, base, geometry, lengths)

    def _embed(self, part: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return self.cnn.embed(part)
        found: Any = checkpoint(self.cnn.embed, part, use_reentrant=False)
        return found

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_norm:
            for norm in norms(self.cnn):
                norm.eval()
        return self

    def output_bias(self, prevalence: np.ndarray) -> None:
        """Start from the classes' frequencies [classes]."""
        self.cnn.output_bias(prevalence)
        output_bias: Any = self.head.output_bias
        output_bias(prevalence)


def _padded(values: Tensor, inside: Tensor) -> Tensor:
    """Rows [N, d] at the true places of `inside` [B, T], zeros elsewhere: [B, T, d]."""
    padded = values.new_zeros(*inside.shape, values.shape[-1])
    padded[inside] = values
    return padded

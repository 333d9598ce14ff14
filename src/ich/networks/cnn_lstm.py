"""A slice network and a study network trained together (docs/background/seeds.md, CNN-LSTM)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ich.networks.cnn import Cnn
from ich.networks.recurrent import Lengths


class EndToEnd(nn.Module):
    """A head of `ich.networks.sequence.build_head` on the embeddings and logits of a Cnn, trained as one network.

    The slices pass the Cnn in chunks of at most `chunk`. The backward pass computes each chunk again, so that the
    activations of one chunk are in memory at a time (Chen et al., arXiv:1604.06174). Batch norm sees one chunk as one
    batch; freeze_norm keeps its statistics as they are.
    """

    def __init__(self, cnn: Cnn, head: nn.Module, *, chunk: int = 8, freeze_norm: bool = False) -> None:
        super().__init__()
        self.cnn, self.head = cnn, head
        self.chunk, self.freeze_norm = chunk, freeze_norm

    def forward(self, images: Tensor, geometry: Tensor, lengths: Lengths) -> Tensor:
        """Logits float32 [B, T, c] of padded studies.

        images uint8 [N, C, S, S]: the slices of all studies, one study after the other; geometry [B, T, 2];
        lengths int64 [B], which add up to N.
        """
        lengths = torch.as_tensor(lengths).cpu()
        if int(lengths.sum()) != len(images):
            raise ValueError(f"{len(images)} slices are not the {int(lengths.sum())} of studies of {lengths.tolist()}")
        # chunks of nearly equal size: a last chunk of one slice would be a batch of one for batch norm
        chunks = images.tensor_split(-(-len(images) // self.chunk))
        embeddings, logits = zip(*(self._embed(part) for part in chunks), strict=True)
        inside = (torch.arange(geometry.shape[1])[None] < lengths[:, None]).to(images.device)
        features, base = (_padded(torch.cat(values), inside) for values in (embeddings, logits))
        return self.head(features, base, geometry, lengths)

    def _embed(self, part: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return self.cnn.embed(part)
        found: Any = checkpoint(self.cnn.embed, part, use_reentrant=False, context_fn=self._contexts)
        return found

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Around the forward pass of a chunk, and around its second computation."""
        return nullcontext(), _statistics_kept(self.cnn)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_norm:
            for norm in _norms(self.cnn):
                norm.eval()
        return self

    def output_bias(self, prevalence: np.ndarray) -> None:
        """Start from the class frequencies [classes]."""
        self.cnn.output_bias(prevalence)
        output_bias: Any = self.head.output_bias
        output_bias(prevalence)


def _norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def _statistics_kept(network: nn.Module) -> Iterator[None]:
    """Let batch norm update copies of its running statistics, so that a slice seen twice counts once."""
    buffers = [(norm, name, value) for norm in _norms(network) for name, value in norm.named_buffers(recurse=False)]
    for norm, name, value in buffers:
        setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, name, value in buffers:
            setattr(norm, name, value)


def _padded(values: Tensor, inside: Tensor) -> Tensor:
    """Rows [N, d] at the true places of `inside` [B, T], zeros elsewhere: [B, T, d]."""
    padded = values.new_zeros(*inside.shape, values.shape[-1])
    padded[inside] = values
    return padded

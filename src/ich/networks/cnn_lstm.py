"""A CNN and a head over the slices of a study, trained together (docs/background/seeds.md, CNN-LSTM)."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ich.networks.cnn import Cnn
from ich.networks.label_rnn import SliceLabelHead
from ich.networks.layers import Lengths, SavedClasses, copy_state, padding_of


class EndToEnd(nn.Module):
    """A head of `ich.networks.sequence.build_head` on the embeddings and logits of a Cnn.

    The slices pass the Cnn in chunks of at most `chunk`. The backward pass recomputes each chunk, so that only the
    activations of one chunk are in memory (Chen et al., arXiv:1604.06174). A chunk is one batch for batch norm, so its
    slices are spread evenly over all studies.
    """

    def __init__(self, cnn: Cnn, head: nn.Module, *, chunk: int = 8) -> None:
        super().__init__()
        self.cnn, self.head, self.chunk = cnn, head, chunk

    def start_from(self, state: Mapping[str, Tensor], classes: SavedClasses | None = None) -> None:
        """Load the state_dict of such a network or of a Cnn; its classifier also into the head, if the head takes it.

        classes, errors: see `copy_state`.
        """
        if any(name.startswith("cnn.") for name in state):
            copy_state(self, state, classes)
            return
        self.cnn.start_from(state, classes)
        if isinstance(self.head, SliceLabelHead):
            self.head.take_classifier(self.cnn.state_dict())

    def forward(self, images: Tensor, geometry: Tensor, lengths: Lengths) -> Tensor:
        """Logits float32 [B, T, c] of padded studies, see `logits`."""
        return self.logits(images, geometry, lengths)[0]

    def logits(self, images: Tensor, geometry: Tensor, lengths: Lengths) -> tuple[Tensor, Tensor]:
        """Logits of the head and of the Cnn, both float32 [B, T, c], of padded studies.

        images: uint8 [N, C, S, S], the slices of one study after the other. geometry: [B, T, 2]. lengths: int64 [B],
        their sum is N.
        """
        lengths = torch.as_tensor(lengths).cpu()
        # chunks of nearly equal size: a last chunk of one slice would be a batch of one for batch norm
        n = -(-len(images) // self.chunk)
        embeddings, logits = zip(*(self._embed(images[k::n]) for k in range(n)), strict=True)
        order = torch.cat([torch.arange(k, images.shape[0], n) for k in range(n)]).argsort().to(images.device)
        inside = ~padding_of(geometry, lengths)
        features, base = (_padded(torch.cat(values)[order], inside) for values in (embeddings, logits))
        return self.head(features, base, geometry, lengths), base

    def _embed(self, part: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return self.cnn.embed(part)
        found: Any = checkpoint(self.cnn.embed, part, use_reentrant=False, context_fn=self._contexts)
        return found

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of the forward pass of a chunk and of its recomputation."""
        return nullcontext(), _keep_statistics(self.cnn)


@contextmanager
def _keep_statistics(network: nn.Module) -> Iterator[None]:
    """Let batch norm update copies of its running statistics: a recomputed slice must not count twice."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    buffers = [(norm, name, value) for norm in norms for name, value in norm.named_buffers(recurse=False)]
    for norm, name, value in buffers:
        setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, name, value in buffers:
            setattr(norm, name, value)


def _padded(values: Tensor, inside: Tensor) -> Tensor:
    """[B, T, d], zero in the padding, from rows [N, d] of real slices and their mask [B, T]."""
    padded = values.new_zeros(*inside.shape, values.shape[-1])
    padded[inside] = values
    return padded

"""A second output of a Cnn for training: the classes that are visible in each cell of a feature map."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ich.networks.cnn import Cnn

PRIOR = 0.01  # first probability of a class in a cell, so that the many empty cells do not dominate (arXiv:1708.02002)


class MaskedCnn(nn.Module):
    """A Cnn with a 1 x 1 convolution from the layer of its Grad-CAM maps to the classes.

    Its predictions are those of the Cnn, whose weights it shares. Raises ValueError if the Cnn has no such layer. size:
    pixels per side of the images.
    """

    def __init__(self, cnn: Cnn, size: int) -> None:
        super().__init__()
        layer, backbone = cnn.feature_layer(size), cnn.backbone
        if layer is None:
            raise ValueError(f"{cnn.spec.backbone} has no feature maps; use a convolutional backbone or masks: 0")
        chosen = next(one for one in backbone.feature_info if backbone.get_submodule(one["module"]) is layer)
        self.cnn, self.layer = cnn, str(chosen["module"])
        self.head = nn.Conv2d(chosen["num_chs"], cnn.spec.classes, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, math.log(PRIOR / (1 - PRIOR)))  # pyright: ignore[reportArgumentType]

    def forward(self, images: Tensor) -> Tensor:
        return self.cnn(images)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.cnn.embed(images)

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 of the slices [B, c] and of the cells [B, c, h, w], of uint8 [B, C, S, S]."""
        maps: list[Tensor] = []

        def keep(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            maps.append(output)

        hook = self.cnn.backbone.get_submodule(self.layer).register_forward_hook(keep)
        try:
            logits = self.cnn(images)
        finally:
            hook.remove()
        with torch.autocast(images.device.type, enabled=False):
            return logits, self.head(maps[-1].float())  # the Cnn may first have tried an image of its own


def mask_loss(cells: Tensor, masks: Tensor) -> Tensor:
    """Mean cross-entropy of logits of cells [B, c, h, w]; a cell is positive if any of its pixels is.

    masks: uint8 [B, 1, S, S], bit k: class k.
    """
    bits = torch.tensor([1 << k for k in range(cells.shape[1])], dtype=torch.uint8, device=masks.device)
    visible = (masks & bits[:, None, None]) != 0
    return F.binary_cross_entropy_with_logits(cells, F.adaptive_max_pool2d(visible.float(), cells.shape[-2:]))

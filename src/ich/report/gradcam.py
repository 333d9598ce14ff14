"""Where a network looks: Grad-CAM and saliency maps, and how often their maximum falls into the lesion.

The one module that knows captum.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from captum.attr import LayerGradCam, Saliency
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional


def grad_cam(network: nn.Module, layer: nn.Module, images: Tensor, class_index: int) -> NDArray[np.float32]:
    """Grad-CAM float32 [B, S, S] of a class's logit for uint8 pictures [B, C, S, S].

    The layer's channels, each weighted by its mean gradient, summed, negative sums as 0, brought to S x S bilinearly.
    Each map is then divided by its maximum; a map without anything above 0 stays 0.

    layer: a part of the network with output [B, channels, rows, columns], usually the last such one.
    (Selvaraju et al., Grad-CAM, 2017)
    """
    maps = torch.from_numpy(cells(network, layer, images, class_index))[:, None]
    size = (images.shape[-2], images.shape[-1])
    wide = functional.interpolate(maps, size, mode="bilinear", align_corners=False)[:, 0]
    largest = wide.amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, wide / largest.clamp_min(torch.finfo(wide.dtype).tiny), 0.0).numpy()


def cells(network: nn.Module, layer: nn.Module, images: Tensor, class_index: int) -> NDArray[np.float32]:
    """Grad-CAM as in `grad_cam`, float32 [B, rows, columns] of the layer's own cells, not divided by anything."""
    with _evaluating(network):
        maps = LayerGradCam(network, layer).attribute(_read(network, images), class_index, relu_attributions=True)
    assert isinstance(maps, Tensor), "of one layer with one output"
    return maps.detach().float()[:, 0].cpu().numpy()


def saliency(network: nn.Module, images: Tensor, class_index: int) -> NDArray[np.float32]:
    """|gradient| of a class's logit by the grey values of uint8 pictures [B, C, S, S], the channels' maximum [B, S, S].

    (Simonyan et al., Deep inside convolutional networks, 2013; docs/background/seeds.md, HOHOHO)
    """
    with _evaluating(network):
        gradient = Saliency(network).attribute(_read(network, images), class_index, abs=True)
    return gradient.detach().float().amax(dim=1).cpu().numpy()


def _read(network: nn.Module, images: Tensor) -> Tensor:
    """The pictures as floats with a gradient, where the network is."""
    device = next(network.parameters()).device
    return images.to(device, torch.float32).requires_grad_()


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Batch statistics and dropout at rest; each part's mode is put back."""
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def pointing_game(
    maps: NDArray[np.floating], masks: NDArray[np.bool_], inside: NDArray[np.bool_], tolerance: int = 0
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Whether each map's maximum lies in its mask, bool [n], and how likely a random point would, float64 [n].

    maps, masks (the lesion) and inside (what is not black) are [n, S, S]. Of several maxima the first counts; a map
    without anything above 0 never hits. The random point is one of those inside; where there are none, its chance is 0.

    tolerance: pixels by which the maximum, and the random point, may lie beside the mask.
    (Zhang et al., Top-down neural attention by excitation backprop, 2016, with 15 pixels of about 500)
    """
    if not maps.shape == masks.shape == inside.shape or maps.ndim != 3:
        raise ValueError(
            f"maps {list(maps.shape)}, masks {list(masks.shape)} and inside {list(inside.shape)} must be [n, S, S]"
        )
    aims = masks.copy()
    for place, mask in enumerate(masks if tolerance else ()):
        aims[place] = _dilated(mask, tolerance)
    flat = maps.reshape(len(maps), math.prod(maps.shape[1:]))
    rows, first = np.arange(len(maps)), flat.argmax(axis=1)
    hit = aims.reshape(flat.shape)[rows, first] & (flat[rows, first] > 0)
    chance = (aims & inside).sum(axis=(1, 2)) / np.maximum(inside.sum(axis=(1, 2)), 1)
    return hit, chance


def _dilated(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """All pixels at most `radius` pixels, centre to centre, from one of the mask."""
    across = np.arange(-radius, radius + 1)
    disc = (across[:, None] ** 2 + across**2 <= radius**2).astype(np.uint8)
    return cv2.dilate(mask.astype(np.uint8), disc).astype(bool)

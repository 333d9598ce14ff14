"""Grad-CAM and saliency maps, and the pointing game. The only module that imports captum.

Networks must be in evaluation mode.
"""

import math

import cv2
import numpy as np
import torch
from captum.attr import LayerGradCam, Saliency
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional


def grad_cam(network: nn.Module, layer: nn.Module, images: Tensor, class_index: int) -> NDArray[np.float32]:
    """Grad-CAM of a class, float32 [B, S, S], for uint8 images [B, C, S, S].

    layer: a layer with output [B, channels, rows, columns], usually the last one. Its map is resized bilinearly and
    divided by its maximum; a map without positive values is 0.
    (Selvaraju et al., Grad-CAM, 2017)
    """
    maps = torch.from_numpy(cells(network, layer, images, class_index))[:, None]
    wide = functional.interpolate(maps, tuple(images.shape[-2:]), mode="bilinear")[:, 0]
    largest = wide.amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, wide / largest.clamp_min(torch.finfo(wide.dtype).tiny), 0.0).numpy()


def cells(network: nn.Module, layer: nn.Module, images: Tensor, class_index: int) -> NDArray[np.float32]:
    """Grad-CAM in the cells of the layer, float32 [B, rows, columns], without scaling."""
    maps = LayerGradCam(network, layer).attribute(_on_device(network, images), class_index, relu_attributions=True)
    assert isinstance(maps, Tensor), "of one layer with one output"
    return maps.detach().float()[:, 0].cpu().numpy()


def saliency(network: nn.Module, images: Tensor, class_index: int) -> NDArray[np.float32]:
    """|gradient| of a class's logit for uint8 images [B, C, S, S]; maximum over channels, float32 [B, S, S].

    (Simonyan et al., Deep inside convolutional networks, 2013; docs/background/seeds.md, HOHOHO)
    """
    gradient = Saliency(network).attribute(_on_device(network, images), class_index, abs=True)
    return gradient.detach().float().amax(dim=1).cpu().numpy()


def _on_device(network: nn.Module, images: Tensor) -> Tensor:
    """The images as float32 with a gradient, on the device of the network."""
    return images.to(next(network.parameters()).device, torch.float32).requires_grad_()


def pointing_game(
    maps: NDArray[np.floating], masks: NDArray[np.bool_], inside: NDArray[np.bool_], tolerance: int = 0
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Hits bool [n] of the maps' maxima in the lesion masks, and the hit rate of a random point float64 [n].

    maps, masks and inside (pixels that are not black) are [n, S, S]. The first of several maxima counts; a map without
    positive values never hits. The random point is one of those inside.

    tolerance: distance in pixels from the mask that still counts as a hit.
    (Zhang et al., Top-down neural attention by excitation backprop, 2016, with 15 pixels of about 500)
    """
    across = np.arange(-tolerance, tolerance + 1)
    disc = (across[:, None] ** 2 + across**2 <= tolerance**2).astype(np.uint8)
    near = np.array([cv2.dilate(mask.astype(np.uint8), disc) for mask in masks], dtype=bool).reshape(masks.shape)
    flat = maps.reshape(len(maps), math.prod(maps.shape[1:]))
    rows, first = np.arange(len(maps)), flat.argmax(axis=1)
    hit = near.reshape(flat.shape)[rows, first] & (flat[rows, first] > 0)
    chance = (near & inside).sum(axis=(1, 2)) / np.maximum(inside.sum(axis=(1, 2)), 1)
    return hit, chance

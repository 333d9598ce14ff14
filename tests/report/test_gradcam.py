"""Grad-CAM, saliency and the pointing game against their definitions."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ich.networks.cnn import Cnn, CnnSpec
from ich.report.gradcam import grad_cam, pointing_game, saliency

SIZE = 12


class Tiny(nn.Module):
    """Two convolutions with everything that behaves differently in training."""

    def __init__(self) -> None:
        super().__init__()
        first, last = nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.maps = nn.Sequential(first, nn.BatchNorm2d(5), nn.ReLU(), last)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.maps(images.to(self.classifier.weight.dtype) / 255)
        return self.classifier(self.dropout(functional.silu(maps).mean((2, 3))))


@pytest.fixture
def network() -> Tiny:
    torch.manual_seed(3)
    made = Tiny()
    made.maps[1].running_mean.uniform_(-1, 1)
    return made


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def by_hooks(network: Tiny, picture: torch.Tensor, class_index: int) -> np.ndarray:
    """Grad-CAM of one picture, written down from the paper."""
    kept = {}

    def keep(_module: nn.Module, _inputs: object, out: torch.Tensor) -> None:
        kept["value"] = out[0]
        out.register_hook(lambda gradient: kept.update(gradient=gradient[0]))

    forward = network.maps.register_forward_hook(keep)
    network.eval()
    network(picture[None])[0, class_index].backward()
    forward.remove()
    network.zero_grad()
    total = torch.zeros(kept["value"].shape[1:])
    for value, gradient in zip(kept["value"], kept["gradient"], strict=True):
        total += gradient.mean() * value
    total = functional.interpolate(total.clamp(min=0)[None, None], (SIZE, SIZE), mode="bilinear")[0, 0].detach().numpy()
    return total / total.max() if total.max() > 0 else total


def test_grad_cam_follows_the_paper(network, images):
    found = []
    for c in range(4):
        maps = grad_cam(network, network.maps, images, c)
        assert maps.shape == (4, SIZE, SIZE)
        assert maps.dtype == np.float32
        for k, picture in enumerate(images):
            np.testing.assert_allclose(maps[k], by_hooks(network, picture, c), atol=1e-5)
        found.append(maps)
    assert not np.allclose(found[0], found[1])
    assert set(np.concatenate(found).max((1, 2)).tolist()) == {0.0, 1.0}  # some maps of this network are all 0


def test_saliency_is_the_slope_of_the_logit(network, images):
    """By finite differences; the network is smooth enough a step of 1/64 grey value away."""
    found = saliency(network, images[:1], 2)
    network.double().eval()
    step, exact = 1 / 64, np.zeros((3, SIZE, SIZE))
    with torch.no_grad():
        for place in np.ndindex(exact.shape):
            moved = torch.stack([images[0].double(), images[0].double()])
            moved[0][place] += step
            moved[1][place] -= step
            up, down = network(moved)[:, 2]
            exact[place] = abs(float(up - down)) / (2 * step)
    np.testing.assert_allclose(found[0], exact.max(axis=0), rtol=2e-3, atol=1e-8)


def test_a_network_of_timm_has_maps_of_its_feature_layer():
    torch.manual_seed(0)
    network = Cnn(CnnSpec("resnet10t", 3, 2, {"channels": [8, 8, 16, 16], "stem_width": 8}))
    nn.init.normal_(network.classifier.weight)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    layer = network.feature_layer(64)
    maps = grad_cam(network, layer, images, 1)
    assert maps.shape == saliency(network, images, 1).shape == (3, 64, 64)
    assert maps.max() == 1
    alone = np.concatenate([grad_cam(network, layer, one[None], 1) for one in images])
    np.testing.assert_allclose(maps, alone, atol=1e-4)


def test_nothing_is_left_behind(network, images):
    network.train()
    network.dropout.eval()
    grad_cam(network, network.maps, images, 0)
    saliency(network, images, 0)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.training
    assert network.maps[1].training
    assert not network.dropout.training
    assert images.dtype == torch.uint8
    assert int(network.maps[1].num_batches_tracked) == 0


class Bright(nn.Module):
    """Logit 0 grows with what is brighter than 160 anywhere, logit 1 falls with it; the rest does not matter."""

    def __init__(self) -> None:
        super().__init__()
        mean = nn.Conv2d(1, 1, 4, stride=4)
        nn.init.constant_(mean.weight, 1 / 16)
        nn.init.constant_(mean.bias, -160)
        self.bright = nn.Sequential(mean, nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.bright(images.float()).mean((2, 3))
        return torch.cat([found, -found], dim=1)


def test_maps_point_at_the_only_place_that_matters():
    rng, network = np.random.default_rng(9), Bright()
    images = rng.integers(0, 120, (30, 1, 64, 64)).astype(np.uint8)
    masks = np.zeros((30, 64, 64), dtype=bool)
    wide = np.zeros_like(masks)  # with a margin of 3 pixels
    for image, mask, around in zip(images, masks, wide, strict=True):
        row, column = rng.integers(0, 52, 2)
        mask[row : row + 12, column : column + 12] = True
        around[max(row - 3, 0) : row + 15, max(column - 3, 0) : column + 15] = True
        image[0][mask] = 230
    tensor, inside = torch.from_numpy(images), np.ones_like(masks)
    for maps in (grad_cam(network, network.bright, tensor, 0), saliency(network, tensor, 0)):
        hit, chance = pointing_game(maps, masks, inside, tolerance=2)
        assert hit.all()
        assert chance.max() < 0.07
    assert not saliency(network, tensor, 0)[~wide].any()
    assert not grad_cam(network, network.bright, tensor, 1).any()  # class 1 has no positive evidence
    assert saliency(network, tensor, 1).any()


def test_a_hit_is_a_maximum_in_the_mask():
    maps = np.zeros((4, 5, 6))
    masks = np.zeros((4, 5, 6), dtype=bool)
    masks[:, 1:3, 2:4] = True
    maps[0, 2, 3], maps[0, 4, 4] = 0.9, 0.8  # in the mask
    maps[1, 2, 3], maps[1, 4, 4] = 0.8, 0.9  # beside it
    maps[2, 0, 0] = maps[2, 1, 2] = 1.0  # two maxima, of which the first counts
    masks[3, 0, 0] = True  # a map of zeros, whose first maximum would be there
    inside = np.ones_like(masks)
    inside[1, 0] = inside[1, 1] = False  # of the black rows one crosses the mask
    hit, chance = pointing_game(maps, masks, inside)
    assert hit.tolist() == [True, False, False, False]
    np.testing.assert_allclose(chance, [4 / 30, 2 / 18, 4 / 30, 5 / 30])


def test_tolerance_is_a_distance_in_pixels():
    masks = np.zeros((1, 15, 15), dtype=bool)
    masks[0, 7, 7] = True
    for row, column in np.ndindex(15, 15):
        maps = np.zeros((1, 15, 15))
        maps[0, row, column] = 1
        hit, chance = pointing_game(maps, masks, np.ones_like(masks), tolerance=3)
        assert hit[0] == ((row - 7) ** 2 + (column - 7) ** 2 <= 9)
    assert chance[0] == pytest.approx(29 / 225)  # pixels within 3 of one


def test_black_pictures_and_empty_sets_are_no_trouble():
    hit, chance = pointing_game(*(np.zeros((0, 4, 4), dtype=bool) for _ in range(3)), tolerance=2)
    assert len(hit) == len(chance) == 0
    assert pointing_game(np.zeros((1, 4, 4)), np.ones((1, 4, 4), bool), np.zeros((1, 4, 4), bool))[1][0] == 0
    with pytest.raises(ValueError, match="must be"):
        pointing_game(np.zeros((1, 4, 4)), np.ones((1, 4, 4), bool), np.ones((1, 5, 4), bool))

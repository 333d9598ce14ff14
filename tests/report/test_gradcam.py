"""Grad-CAM, saliency and the pointing game against their definitions."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ich.report.gradcam import grad_cam, pointing_game, saliency

SIZE = 12


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        first, last = nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.maps = nn.Sequential(first, nn.BatchNorm2d(5), nn.ReLU(), last)
        self.classifier = nn.Linear(6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.maps(images.to(self.classifier.weight.dtype) / 255)
        return self.classifier(functional.silu(maps).mean((2, 3)))


@pytest.fixture
def network() -> Tiny:
    torch.manual_seed(3)
    network = Tiny().eval()
    network.maps[1].running_mean.uniform_(-1, 1)
    return network


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def by_definition(network: Tiny, image: torch.Tensor, class_index: int) -> np.ndarray:
    """Grad-CAM of one image by the formula of the paper."""
    values = network.maps(image[None] / 255).detach().requires_grad_()
    logit = network.classifier(functional.silu(values).mean((2, 3)))[0, class_index]
    (gradient,) = torch.autograd.grad(logit, values)
    total = (gradient.mean((2, 3), keepdim=True) * values).sum(dim=1, keepdim=True).clamp(min=0)
    total = functional.interpolate(total, (SIZE, SIZE), mode="bilinear")[0, 0].detach().numpy()
    return total / total.max() if total.max() > 0 else total


def test_grad_cam_follows_the_paper(network, images):
    found = []
    for c in range(4):
        maps = grad_cam(network, network.maps, images, c)
        assert maps.shape == (4, SIZE, SIZE)
        assert maps.dtype == np.float32
        for k, image in enumerate(images):
            np.testing.assert_allclose(maps[k], by_definition(network, image, c), atol=1e-5)
        found.append(maps)
    assert not np.allclose(found[0], found[1])
    assert set(np.concatenate(found).max((1, 2)).tolist()) == {0.0, 1.0}  # some maps of this network are all 0


def test_saliency_is_the_gradient_by_finite_differences(network, images):
    found = saliency(network, images[:1], 2)
    network.double()
    step, exact = 1 / 64, np.zeros((3, SIZE, SIZE))
    with torch.no_grad():
        for place in np.ndindex(exact.shape):
            moved = torch.stack([images[0].double(), images[0].double()])
            moved[0][place] += step
            moved[1][place] -= step
            up, down = network(moved)[:, 2]
            exact[place] = abs(float(up - down)) / (2 * step)
    np.testing.assert_allclose(found[0], exact.max(axis=0), rtol=2e-3, atol=1e-8)


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


def test_empty_sets_and_black_images_have_no_hits():
    hit, chance = pointing_game(*(np.zeros((0, 4, 4), dtype=bool) for _ in range(3)), tolerance=2)
    assert len(hit) == len(chance) == 0
    assert pointing_game(np.zeros((1, 4, 4)), np.ones((1, 4, 4), bool), np.zeros((1, 4, 4), bool))[1][0] == 0

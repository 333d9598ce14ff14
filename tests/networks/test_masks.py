import copy
import math

import pytest
import torch

from ich.networks.cnn import Cnn, CnnSpec
from ich.networks.masks import PRIOR, MaskedCnn, mask_loss

DENSENET = {"growth_rate": 4, "block_config": [2, 2, 2, 2]}


def images(size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("backbone", "kwargs"),
    [("resnet10t", {"channels": [8, 8, 16, 24], "stem_width": 8}), ("densenet121", DENSENET)],
)
def test_cells_are_predicted_from_the_layer_of_grad_cam_and_slices_as_before(backbone, kwargs):
    torch.manual_seed(0)
    cnn = Cnn(CnnSpec(backbone, 3, 6, kwargs)).eval()
    network = MaskedCnn(cnn, 128)
    seen = []
    layer = cnn.feature_layer(128)
    assert layer is not None
    layer.register_forward_hook(lambda *found: seen.append(found[-1]))
    logits, cells = network.logits(images(128))
    torch.testing.assert_close(cells, torch.full((3, 6, *seen[0].shape[2:]), math.log(PRIOR / (1 - PRIOR))))
    assert seen[0].shape[2] in (8, 16)
    for own, plain in zip(
        (logits, *network.embed(images(128))), (cnn(images(128)), *cnn.embed(images(128))), strict=True
    ):
        assert torch.equal(own, plain)

    torch.nn.init.normal_(network.head.weight)
    logits, cells = network.logits(images(128))
    expected = torch.einsum("bdhw,cd->bchw", seen[0], network.head.weight[..., 0, 0]) + network.head.bias[:, None, None]
    torch.testing.assert_close(cells, expected, rtol=1e-4, atol=1e-5)
    cells.sum().backward()
    first, *_ = cnn.backbone.parameters()
    assert first.grad is not None
    assert first.grad.abs().sum() > 0
    average = copy.deepcopy(network)  # as for the moving average of the weights
    torch.nn.init.zeros_(first)
    assert torch.equal(average.logits(images(128))[1], cells)


def test_cells_are_of_the_batch_in_full_precision_if_the_rest_is_not():
    network = MaskedCnn(Cnn(CnnSpec("resnet10t", 3, 6, {"channels": [8, 8, 16, 24], "stem_width": 8})), 64)
    with torch.autocast("cpu", torch.bfloat16):
        _, cells = network.logits(images())
    assert (cells.shape, cells.dtype) == ((3, 6, 8, 8), torch.float32)
    cells.sum().backward()


def test_networks_without_feature_maps_are_refused():
    transformer = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32, "patch_size": 16}
    with pytest.raises(ValueError, match=r"^vit_tiny_patch16_224 has no feature maps; use a convolutional backbone or"):
        MaskedCnn(Cnn(CnnSpec("vit_tiny_patch16_224", 3, 6, transformer)), 32)


def test_a_cell_is_positive_if_any_of_its_pixels_is():
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    masks[0, 0, 1, 3] = 0b101  # cell 0, 0
    masks[1, 0, 3:5, 7] = 0b010  # cells 0, 1 and 1, 1
    positive = torch.zeros(2, 3, 2, 2)
    positive[0, [0, 2], 0, 0] = positive[1, 1, :, 1] = 1
    cells = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = -(positive * cells.sigmoid().log() + (1 - positive) * (-cells).sigmoid().log()).mean()
    torch.testing.assert_close(mask_loss(cells, masks), expected)

import torch

from ich.networks.cnn import Cnn, CnnSpec
from ich.networks.simclr import SimClr


def test_the_projection_is_two_layers_on_the_embedding():
    torch.manual_seed(0)
    model = SimClr(Cnn(CnnSpec("resnet10t", 1, 3, {"channels": [8, 8, 16, 16], "stem_width": 8})), width=10).eval()
    images = torch.randint(0, 256, (6, 1, 32, 32), dtype=torch.uint8)
    first, _, second = model.projection
    embeddings = model.cnn.embed(images)[0]
    expected = (embeddings @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-6)
    model(images).square().sum().backward()
    assert all(value.grad is not None for value in model.cnn.backbone.parameters())

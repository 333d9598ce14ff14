import pytest
import torch

from ich.networks.cnn import Cnn, CnnSpec
from ich.networks.losses import nt_xent
from ich.networks.simclr import SimClr

SPEC = CnnSpec("resnet10t", 1, 3, {"channels": [8, 8, 16, 16], "stem_width": 8})
RNG = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (6, 1, 32, 32), generator=RNG, dtype=torch.uint8)


@pytest.fixture
def model() -> SimClr:
    torch.manual_seed(0)
    return SimClr(Cnn(SPEC), width=10)


def test_the_projection_is_two_layers_on_the_embedding(model: SimClr):
    model.eval()
    embeddings = model.cnn.embed(IMAGES)[0]
    first, _, second = model.projection
    expected = (embeddings @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
    torch.testing.assert_close(model(IMAGES), expected, rtol=1e-5, atol=1e-6)
    assert expected.shape == (6, 10)


def test_training_lowers_the_loss_of_two_views(model: SimClr):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    values = []
    for _ in range(8):
        values.append(nt_xent(model(IMAGES), model(IMAGES.flip(-1)), 0.5))
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    assert values[-1] < values[0]
    assert all(value.grad is not None for value in model.cnn.backbone.parameters())

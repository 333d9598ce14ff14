import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ich.training.predict import predict
from tests.training.small import Batch, batches


class Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.scale = nn.Dropout(0.5), nn.Parameter(torch.tensor(2.0))

    def embed(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.drop(features), self.scale * features[:, :2]


def slices(sizes: list[int]) -> list[Batch]:
    """Slices in a random order; the features are the row number."""
    rows = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(0))
    return [Batch(part[:, None] * torch.ones(3), None, part) for part in rows.split(sizes)]


def test_predictions_are_in_the_order_of_their_rows():
    advanced: list[int] = []
    found = predict(Embedder(), slices([4, 4, 1]), 9, "fp32", advanced.append)
    assert {name: value.dtype for name, value in found.items()} == {"logits": np.float32, "embeddings": np.float16}
    np.testing.assert_array_equal(found["logits"], 2 * np.arange(9)[:, None] * np.ones(2))
    np.testing.assert_array_equal(found["embeddings"], np.arange(9)[:, None] * np.ones(3))  # no dropout
    assert advanced == [4, 4, 1]
    assert predict(nn.Linear(3, 2), slices([5]), 5, "fp32").keys() == {"logits"}
    assert predict(Embedder(), [], 0) == {}


@pytest.mark.parametrize(("n", "message"), [(31, "more than 31 slices"), (33, "hold 32 slices, not 33")])
def test_a_wrong_number_of_slices_is_an_error(n, message):
    with pytest.raises(ValueError, match=message):
        predict(nn.Linear(4, 2), batches(0), n)


class MovesWeights(nn.Linear):
    """Replaces its weights when it is moved, as an RNN on a GPU does."""

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.weight.data = self.weight.data.clone()
        return self


def test_a_network_can_be_trained_after_a_prediction():
    network = MovesWeights(4, 2)
    predict(network, batches(0), 32, "fp32")
    network(torch.ones(1, 4, requires_grad=True)).sum().backward()

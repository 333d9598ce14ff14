from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
def test_too_many_or_too_few_slices_are_refused(n, message):
    with pytest.raises(ValueError, match=message):
        predict(nn.Linear(4, 2), batches(0), n)


class Padded(NamedTuple):
    features: Tensor
    rows: Tensor

    @property
    def inputs(self) -> tuple[Tensor]:
        return (self.features,)

    def real(self, values: Tensor) -> Tensor:
        return values[self.rows >= 0]

    @property
    def real_rows(self) -> Tensor:
        return self.rows[self.rows >= 0]


@settings(max_examples=25)
@given(st.permutations(range(12)), st.sets(st.integers(1, 11)), st.sampled_from([-9.0, float("nan")]))
def test_batches_and_padding_never_change_a_row(order, ends, beyond):
    network, divided = nn.Linear(1, 1), []
    for start, end in pairwise([0, *sorted(ends), 12]):
        studies = torch.tensor(order[start:end]).tensor_split(2)  # the first may be one slice longer
        rows = nn.utils.rnn.pad_sequence([*studies, torch.full((7,), -1)], batch_first=True, padding_value=-1)
        divided.append(Padded(torch.where(rows < 0, beyond, rows.float())[..., None], rows))
    found = predict(network, divided, 12, "fp32")["logits"]
    expected = network(torch.arange(12.0)[:, None]).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)

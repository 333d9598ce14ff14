from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ich.training import predict
from ich.training.predict import predict_study_pictures


class Batch(NamedTuple):
    images: Tensor
    geometry: Tensor
    lengths: Tensor
    targets: Tensor | None
    rows: Tensor


def batch(studies: list[list[int]], beyond: float = 0.0) -> Batch:
    """Studies of slices given by row; a row's picture and geometry say which it is, and padding is `beyond`."""
    lengths = torch.tensor([len(study) for study in studies])
    rows = torch.full((len(studies), max(map(len, studies))), -1)
    for line, study in zip(rows, studies, strict=True):
        line[: len(study)] = torch.tensor(study)
    inside = rows >= 0
    images = rows[inside].to(torch.uint8)[:, None, None, None] * torch.ones(1, 3, 2, 2, dtype=torch.uint8)
    geometry = torch.where(inside, rows.float() / 8, beyond)[..., None] * torch.ones(2)
    return Batch(images, geometry, lengths, None, rows)


class Fake(nn.Module):
    """Logits [its row, its row / 8, the mean row of its study]; NaN beyond a study's end."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.scale = nn.Dropout(0.5), nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor, geometry: Tensor, lengths: Tensor) -> Tensor:
        logits = torch.full((*geometry.shape[:2], 3), torch.nan)
        own = self.drop(images.float().mean(dim=(1, 2, 3)) * self.scale)
        for k, part in enumerate(own.split(lengths.tolist())):
            logits[k, : len(part), 0] = part
            logits[k, : len(part), 1] = geometry[k, : len(part), 0]
            logits[k, : len(part), 2] = part.mean()
        return logits


def test_every_real_slice_stands_with_its_row():
    found = predict_study_pictures(Fake(), [batch([[4, 2, 7], [5]]), batch([[0], [6, 1, 3]])], 8, "fp32")
    assert {name: value.dtype for name, value in found.items()} == {"rows": np.int64, "logits": np.float32}
    np.testing.assert_array_equal(found["rows"], [4, 2, 7, 5, 0, 6, 1, 3])
    np.testing.assert_array_equal(found["logits"][:, 0], found["rows"])  # no dropout, nothing of the padding
    np.testing.assert_array_equal(found["logits"][:, 1], found["rows"] / 8)
    np.testing.assert_allclose(found["logits"][:, 2], np.repeat([13 / 3, 5, 0, 10 / 3], [3, 1, 1, 3]), rtol=1e-6)


class Afterwards:
    """A column that is fetched later: it says when it was waited for."""

    def __init__(self, values: Tensor, asked: list[int]) -> None:
        self.values, self.asked = values, asked

    def __call__(self) -> Tensor:
        self.asked.append(int(self.values[0]))
        return self.values


def test_a_batch_is_waited_for_when_the_next_one_is_under_way(monkeypatch):
    asked, begun = list[int](), list[list[int]]()
    monkeypatch.setattr(predict, "fetch", lambda values: Afterwards(values, asked))

    class Rows(nn.Module):
        def forward(self, images: Tensor, geometry: Tensor, lengths: Tensor) -> Tensor:
            begun.append(list(asked))
            return images[None, :, :1, 0, 0].float()

    batches = [batch([[0, 1]]), batch([[2, 3]]), batch([[4, 5]])]
    found = predict_study_pictures(Rows(), batches, 6, "fp32")
    np.testing.assert_array_equal(found["logits"][:, 0], range(6))
    assert begun == [[], [], [0, 0]]  # rows and logits of the first batch, once the second had been begun


@pytest.mark.parametrize("announced", [3, 5])
def test_too_many_or_too_few_slices_are_refused(announced):
    with pytest.raises(ValueError, match=f"the {announced}"):
        predict_study_pictures(Fake(), [batch([[0, 1, 2], [3]])], announced, "fp32")


@st.composite
def shared_out(draw):
    """The rows 0..n-1 in a random order, cut into studies, these into batches."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=8))
    rows = iter(draw(st.permutations(range(sum(lengths)))))
    studies = [[next(rows) for _ in range(length)] for length in lengths]
    ends = draw(st.sets(st.integers(0, len(studies)))) | {0, len(studies)}
    return [studies[start:end] for start, end in pairwise(sorted(ends))]


@settings(max_examples=50)
@given(shared_out(), st.sampled_from([0.0, -9.0, float("nan")]))
def test_batches_and_padding_never_change_a_study(batches, beyond):
    n = sum(len(study) for studies in batches for study in studies)
    found = predict_study_pictures(Fake(), [batch(studies, beyond) for studies in batches], n, "fp32")
    alone = predict_study_pictures(Fake(), [batch([study]) for studies in batches for study in studies], n, "fp32")
    assert sorted(found["rows"]) == list(range(n))
    np.testing.assert_array_equal(found["rows"], alone["rows"])
    np.testing.assert_array_equal(found["logits"], alone["logits"])

"""How many loader processes a GPU gets: the choice, and what it is measured by."""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ich.training import pace


class Batch(NamedTuple):
    x: Tensor


@pytest.mark.parametrize(
    ("loading", "training", "most", "expected"),
    [(0.1, 0.1, 8, 2), (0.01, 0.1, 8, 1), (1.0, 0.2, 16, 8), (1.0, 0.1, 6, 6), (0.0, 0.1, 8, 1), (1.0, 0.1, 1, 1)],
)
def test_half_as_many_again_as_keep_up_and_no_more_than_there_is_room_for(loading, training, most, expected):
    assert pace.loaders(loading, training, most) == expected


def test_the_median_of_the_later_batches_counts_and_the_network_stays_as_it_was():
    """A clock that loading moves by 2 a batch and training by 3, and by 50 for the first of each."""
    now, network = [0.0], nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    before, made = copy.deepcopy(network.state_dict()), []

    def batches():
        for k in range(100):
            now[0] += 2 if k else 50
            made.append(k)
            yield Batch(torch.randn(6, 3))

    def loss_of(model: nn.Module, batch: Batch) -> Tensor:
        assert model is not network
        assert model.training
        now[0] += 3 if len(seen) else 50
        seen.append(batch)
        return model(batch.x).square().mean()

    seen: list[Batch] = []
    found = pace.measure(network, batches(), loss_of, "fp32", clock=lambda: now[0])
    assert found == (2, 3)
    assert len(seen) == len(made) == pace.BATCHES
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(value.grad is None for value in network.parameters())


def test_fewer_batches_than_it_wants_are_enough():
    found = pace.measure(nn.Linear(3, 1), [Batch(torch.ones(2, 3))], lambda model, batch: model(batch.x).mean(), "fp32")
    assert found is not None
    assert min(found) > 0


def test_where_memory_is_short_nothing_is_known_and_other_errors_are_raised():
    def short(_model: nn.Module, _batch: Batch) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def wrong(_model: nn.Module, _batch: Batch) -> Tensor:
        raise RuntimeError("a fault")

    batches = [Batch(torch.ones(2, 3))] * 3
    assert pace.measure(nn.Linear(3, 1), batches, short, "fp32") is None
    with pytest.raises(RuntimeError, match="a fault"):
        pace.measure(nn.Linear(3, 1), batches, wrong, "fp32")


def test_without_a_batch_nothing_is_known():
    assert pace.measure(nn.Linear(3, 1), [], lambda model, batch: model(batch.x).mean(), "fp32") is None

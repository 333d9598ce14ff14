"""Loader processes as a recipe wants them: a number, or as many as a GPU takes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ich.recipe import Cnn
from ich.stages import networks
from ich.training import device, pace

GPU = torch.device("cuda")
PLAN: Any = SimpleNamespace(cores=9, processes=2)


def paced(settings: Cnn) -> tuple[Any, Any, Any]:
    return networks.paced(PLAN, settings, None, lambda model, batch: None, lambda epoch, workers: (epoch, workers))


def chosen(workers: Any) -> Cnn:
    return Cnn(backbone="none", workers=workers)


def test_a_cpu_loads_in_the_process_that_trains():
    settings, batches, record = paced(chosen("auto"))
    assert Cnn(backbone="none").workers == "auto"
    assert settings.workers == 0
    assert batches(3) == (3, 0)
    assert record == {"loader": {"workers": 0}}
    assert networks.loaders(chosen("auto")) == 0


def test_a_number_is_taken_as_it_is(monkeypatch):
    monkeypatch.setattr(device, "default_device", lambda: GPU)
    monkeypatch.setattr(pace, "measure", lambda *_: pytest.fail("measured"))
    for workers in (0, 5):
        settings, batches, record = paced(chosen(workers))
        assert settings.workers == workers
        assert batches(1) == (1, workers)
        assert record == {"loader": {"workers": workers}}
        assert networks.loaders(settings) == workers


@pytest.mark.parametrize(
    ("seconds", "expected"), [((0.2, 0.2), 2), ((0.9, 0.1), 3), ((0.01, 1.0), 1), (None, 3)]
)  # 9 cores for 2 processes: three loaders each at most
def test_a_gpu_gets_as_many_as_it_was_found_to_take(monkeypatch, seconds, expected):
    asked = []

    def measure(_network, batches, _loss_of, _precision):
        asked.append(batches)
        return seconds

    monkeypatch.setattr(device, "default_device", lambda: GPU)
    monkeypatch.setattr(pace, "measure", measure)
    settings, batches, record = paced(chosen("auto"))
    assert asked == [(0, 1)]
    assert settings.workers == record["loader"]["workers"] == expected
    assert batches(7) == (7, expected)
    known = {} if seconds is None else {"seconds_to_load": seconds[0], "seconds_to_train": seconds[1]}
    assert record == {"loader": {"workers": expected, **known}}
    assert 1 <= networks.loaders(chosen("auto")) <= networks.MOST_LOADERS


@pytest.mark.parametrize("wrong", [-1, "many", True, 1.5, None])
def test_anything_else_is_refused_in_one_line(wrong):
    with pytest.raises(ValidationError) as caught:
        chosen(wrong)
    (fault,) = caught.value.errors()
    assert fault["msg"] == f"Value error, a number of loader processes, or auto, not {wrong!r}"

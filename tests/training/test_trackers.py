"""Training curves in TensorBoard and other trackers, which must not affect the training."""

import importlib.util
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, MagicMock, call

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray
from torch import nn

from ich import console
from ich.recipe.types import TRACKERS
from ich.training import trackers
from ich.training.fit import fit
from ich.training.run import Run, Trackers
from tests.training.small import LOADER, SETTINGS, Killed, killed_in, loss_of

ROWS = [{"epoch": k, "learning_rate": 0.1 / (k + 1), "loss": 1.0 - 0.25 * k} for k in range(3)]
HYPERPARAMETERS = {"epochs": 3, "loss": {"name": "bce"}, "kwargs": [1, 2], "ema_decay": None}


@pytest.fixture(autouse=True)
def _nothing_warned_yet():
    console._here.warned.clear()
    yield
    console._here.warned.clear()


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of all event files of a run, duplicates too."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((folder / "tensorboard/net/fold0").glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if (value.HasField("tensor") and value.tensor.float_val) or value.tensor.tensor_content:
                    found.setdefault(value.tag, []).append((event.step, float(make_ndarray(value.tensor))))
    return found


def curves(history: list[dict[str, Any]]) -> dict[str, list[tuple[int, Any]]]:
    keys = [key for key in history[0] if key != "epoch"]
    return {key: [(int(row["epoch"]), pytest.approx(row[key], rel=1e-6)) for row in history] for key in keys}


def draw(*_: Any, **__: Any) -> Any:
    torch.rand(7)
    return DEFAULT


@pytest.fixture
def wandb(monkeypatch) -> MagicMock:
    """Stands for the tracker of Weights & Biases; it draws random numbers."""
    real, kind = importlib.util.find_spec, MagicMock(requires_logging_directory=False, side_effect=draw)
    kind.return_value.log.side_effect = draw
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", kind)
    monkeypatch.setattr(trackers, "find_spec", lambda name: True if name == "wandb" else real(name))
    return kind


def send(folder: Path, names: list[str], *histories: list[dict[str, Any]]) -> None:
    settings = Trackers(tuple(names), folder, "demo", "net/fold0", HYPERPARAMETERS)
    with trackers.Curves(settings) as sent:
        for history in histories:
            sent.log(history)


def test_the_names_are_those_of_accelerate():
    assert sorted(TRACKERS) == sorted(LOGGER_TYPE_TO_CLASS)


def test_a_service_gets_the_settings_once_and_each_epoch_once(tmp_path, wandb):
    random = torch.get_rng_state()
    send(tmp_path, ["wandb"], ROWS[:2], ROWS, ROWS)
    assert torch.equal(torch.get_rng_state(), random)
    plain = {"epochs": 3, "loss.name": "bce", "kwargs": "[1, 2]", "ema_decay": "None"}
    assert wandb.mock_calls == [
        call("demo", name="net/fold0", dir=str(tmp_path / "wandb")),
        call().start(),
        call().store_init_configuration(plain),
        *(call().log({"learning_rate": row["learning_rate"], "loss": row["loss"]}, row["epoch"]) for row in ROWS),
        call().finish(),
    ]


def test_a_tracker_that_is_not_installed_or_cannot_write_is_a_warning(tmp_path, monkeypatch, capsys):
    (tmp_path / "tensorboard").write_text("in the way")
    send(tmp_path, ["tensorboard"], ROWS)
    assert capsys.readouterr().out.startswith("warning: tracker tensorboard: FileExistsError: ")
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    send(tmp_path, ["mlflow"], ROWS[:1], ROWS)
    assert capsys.readouterr().out.startswith("warning: tracker mlflow: not installed (pip install mlflow)")


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))


@pytest.mark.parametrize("fails", [None, "init", "start", "store_init_configuration", "log", "finish"])
def test_a_tracker_that_fails_is_dropped_with_one_warning_and_changes_nothing(wandb, fails, tmp_path, capsys):
    if fails is not None:
        method = wandb if fails == "init" else getattr(wandb.return_value, fails)
        method.side_effect = SystemExit(3) if fails == "finish" else OSError("no room\nat all")
    plain, tracked = network(), network()
    settings = Trackers(("wandb", "tensorboard"), tmp_path, "demo", "net/fold0", HYPERPARAMETERS)
    history = fit(plain, LOADER, loss_of, SETTINGS, Run("net fold 0"))
    assert fit(tracked, LOADER, loss_of, SETTINGS, Run("net fold 0", trackers=settings)) == history
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(warnings) == bool(fails)
    assert all("tracker wandb" in line and ("no room at all" in line or "SystemExit: 3" in line) for line in warnings)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), tracked.parameters(), strict=True))
    assert points(tmp_path) == curves(history)


def test_a_killed_fit_continues_its_curve(tmp_path):
    settings = Trackers(("tensorboard",), tmp_path, "demo", "net/fold0", HYPERPARAMETERS)
    run = Run("net fold 0", folder=tmp_path, trackers=settings)
    with pytest.raises(Killed):
        fit(network(), killed_in(2), loss_of, SETTINGS, run)
    assert [step for step, _ in points(tmp_path)["loss"]] == [0, 1]
    history = fit(network(), LOADER, loss_of, SETTINGS, run)
    assert points(tmp_path) == curves(history)

"""Training curves in TensorBoard and other trackers: the rows of the history, whatever happens to the tracker."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

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


class Fake:
    """A tracker that fails where it is told to, and draws random numbers all the time."""

    requires_logging_directory = False
    fails: str | None = None
    calls: list[tuple[str, Any]] = []  # noqa: RUF012

    def __init__(self, project: str, **options: Any) -> None:
        self._do("init", (project, options))

    def _do(self, what: str, value: Any = None) -> None:
        torch.rand(7)
        if self.fails == what:
            raise SystemExit(3) if what == "finish" else OSError(f"no {what}\nat all")
        Fake.calls.append((what, value))

    def start(self) -> None:
        self._do("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._do("settings", values)

    def log(self, values: dict[str, Any], step: int) -> None:
        self._do("log", (step, values))

    def finish(self) -> None:
        self._do("finish")


@pytest.fixture
def fake(monkeypatch) -> type[Fake]:
    """Stands for Weights & Biases."""
    real = importlib.util.find_spec
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Fake)
    monkeypatch.setattr(trackers, "find_spec", lambda name: True if name == "wandb" else real(name))
    monkeypatch.setattr(Fake, "fails", None)
    monkeypatch.setattr(Fake, "calls", [])
    return Fake


def send(folder: Path, names: list[str], *histories: list[dict[str, Any]]) -> None:
    settings = Trackers(tuple(names), folder, "demo", "net/fold0", HYPERPARAMETERS)
    with trackers.Curves(settings) as sent:
        for history in histories:
            sent.log(history)


def test_the_names_are_those_that_accelerate_knows():
    assert sorted(TRACKERS) == sorted(LOGGER_TYPE_TO_CLASS)


def test_a_service_gets_the_settings_once_and_each_epoch_once(tmp_path, fake):
    random = torch.get_rng_state()
    send(tmp_path, ["wandb"], ROWS[:2], ROWS, ROWS)
    assert torch.equal(torch.get_rng_state(), random), "the training draws the same random numbers"
    plain = {"epochs": 3, "loss.name": "bce", "kwargs": "[1, 2]", "ema_decay": "None"}
    folder = str(tmp_path / "wandb")
    sent = [("log", (row["epoch"], {"learning_rate": row["learning_rate"], "loss": row["loss"]})) for row in ROWS]
    began = [("init", ("demo", {"name": "net/fold0", "dir": folder})), ("start", None), ("settings", plain)]
    assert fake.calls == [*began, *sent, ("finish", None)]


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


@pytest.mark.parametrize("fails", [None, "init", "start", "settings", "log", "finish"])
def test_a_tracker_that_fails_is_dropped_with_one_warning_and_changes_nothing(fake, fails, tmp_path, capsys):
    plain, tracked, fake.fails = network(), network(), fails
    settings = Trackers(("wandb", "tensorboard"), tmp_path, "demo", "net/fold0", HYPERPARAMETERS)
    history = fit(plain, LOADER, loss_of, SETTINGS, Run("net fold 0"))
    assert fit(tracked, LOADER, loss_of, SETTINGS, Run("net fold 0", trackers=settings)) == history
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    reason = "SystemExit: 3" if fails == "finish" else f"OSError: no {fails} at all"
    assert warnings == [f"warning: tracker wandb: {reason}; training continues without it"] * bool(fails)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), tracked.parameters(), strict=True))
    assert points(tmp_path) == curves(history)


def test_a_killed_fit_continues_its_curve(tmp_path):
    settings = Trackers(("tensorboard",), tmp_path, "demo", "net/fold0", HYPERPARAMETERS)
    run = replace(Run("net fold 0", trackers=settings), folder=tmp_path)
    with pytest.raises(Killed):
        fit(network(), killed_in(2), loss_of, SETTINGS, run)
    assert [step for step, _ in points(tmp_path)["loss"]] == [0, 1]
    history = fit(network(), LOADER, loss_of, SETTINGS, run)
    assert points(tmp_path) == curves(history)

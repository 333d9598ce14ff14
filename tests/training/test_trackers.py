"""Training curves in TensorBoard and other trackers: as history.csv has them, and whatever happens to the tracker."""

import csv
import importlib.util
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray

from conftest import RECIPE, House
from ich import console
from ich.cli import app
from ich.recipe import RecipeError, load
from ich.recipe.types import TRACKERS
from ich.stages.member import Checkpoint
from ich.training import trackers
from ich.training.device import default_device

ROWS = [{"epoch": k, "learning_rate": 0.1 / (k + 1), "loss": 1.0 - 0.25 * k} for k in range(3)]
SETTINGS = {"epochs": 3, "loss": {"name": "bce"}, "kwargs": [1, 2], "ema": None}


@pytest.fixture(autouse=True)
def _state():
    default_device()
    yield
    console._here.warned.clear()


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of all event files of a run, as they are in the files: nothing is left out for being there twice."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if (value.HasField("tensor") and value.tensor.float_val) or value.tensor.tensor_content:
                    found.setdefault(value.tag, []).append((event.step, float(make_ndarray(value.tensor))))
    return found


def curve(history: list[dict[str, Any]], key: str) -> list[tuple[int, Any]]:
    return [(int(row["epoch"]), pytest.approx(float(row[key]), rel=1e-6)) for row in history]


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
def fake(monkeypatch) -> Iterator[type[Fake]]:
    """Weights & Biases, as far as anybody can tell."""
    real = importlib.util.find_spec
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Fake)
    monkeypatch.setattr(trackers, "find_spec", lambda name: True if name == "wandb" else real(name))
    Fake.fails, Fake.calls = None, []
    yield Fake
    Fake.fails, Fake.calls = None, []


def follow(folder: Path, names: list[str], *histories: list[dict[str, Any]]) -> list[str]:
    """Send these histories, one after each epoch; the warnings."""
    said: list[str] = []
    with trackers.Curves(names, folder, "demo", "net/fold0", SETTINGS, said.append) as sent:
        for history in histories:
            sent(history)
    return said


# ---- what is sent


def test_the_names_are_those_that_accelerate_knows():
    assert sorted(TRACKERS) == sorted(LOGGER_TYPE_TO_CLASS)


def test_tensorboard_reads_the_history_back(tmp_path):
    assert follow(tmp_path, ["tensorboard"], ROWS[:1], ROWS[:2], ROWS) == []
    folder = tmp_path / "tensorboard/net/fold0"
    found = points(folder)
    assert found == {key: curve(ROWS, key) for key in ("learning_rate", "loss")}
    [settings] = folder.glob("*/hparams.yml")
    assert "loss.name: bce" in settings.read_text()


def test_training_that_goes_on_continues_its_curve(tmp_path):
    follow(tmp_path, ["tensorboard"], ROWS[:1], ROWS[:2])
    follow(tmp_path, ["tensorboard"], ROWS)
    folder = tmp_path / "tensorboard/net/fold0"
    assert points(folder)["loss"] == curve(ROWS, "loss")
    assert len(list(folder.glob("*/hparams.yml"))) == 1


def test_a_service_gets_the_settings_once_and_each_epoch_once(tmp_path, fake):
    random = torch.get_rng_state()
    assert follow(tmp_path, ["wandb"], ROWS[:2], ROWS, ROWS) == []
    assert torch.equal(torch.get_rng_state(), random), "training draws what it would have drawn"
    plain = {"epochs": 3, "loss.name": "bce", "kwargs": "[1, 2]", "ema": "None"}
    folder = str(tmp_path / "wandb")
    sent = [("log", (row["epoch"], {"learning_rate": row["learning_rate"], "loss": row["loss"]})) for row in ROWS]
    began = [("init", ("demo", {"name": "net/fold0", "dir": folder})), ("start", None), ("settings", plain)]
    assert fake.calls == [*began, *sent, ("finish", None)]


# ---- what fails


@pytest.mark.parametrize("where", ["init", "start", "settings", "log", "finish"])
def test_a_tracker_that_fails_is_given_up_with_one_warning_and_the_others_go_on(tmp_path, fake, where):
    fake.fails = where
    said = follow(tmp_path, ["wandb", "tensorboard"], ROWS[:1], ROWS)
    why = "SystemExit: 3" if where == "finish" else f"OSError: no {where} at all"
    assert said == [f"tracker wandb: {why}; training goes on without it"]
    assert points(tmp_path / "tensorboard/net/fold0")["loss"] == curve(ROWS, "loss")


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    [said] = follow(tmp_path, ["tensorboard"], ROWS)
    assert said.startswith("tracker tensorboard: FileExistsError: ")


def test_a_tracker_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    said = follow(tmp_path, ["mlflow"], ROWS[:1], ROWS)
    assert said == ["tracker mlflow: not installed (pip install mlflow); training goes on without it"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("compute.trackers=[tensorbord]", "compute.trackers: no tracker 'tensorbord': did you mean tensorboard?"),
        ("compute.trackers=[wandb,wandb]", "compute.trackers: 'wandb' stands twice"),
        ("cnn.trackers={backbone: resnet10t, epochs: 1}", "member name 'trackers': use .* not blend or trackers"),
    ],
)
def test_the_recipe_is_refused(change, says):
    with pytest.raises(RecipeError, match=says):
        load(Path(__file__).parents[2] / RECIPE, [change])


# ---- with a fold


FOLD = ("cnn", RECIPE, "--model", "resnet", "--fold", "1", "--force")
TRACKED = ("--set", "compute.trackers=[wandb, tensorboard]")


def made(house: House) -> dict[str, str]:
    """Hashes of all that a fold leaves, but its record, which holds the time."""
    files = {path: content for path, (_, content) in house.files().items()}
    return {
        path: files[path] for path in files if "/resnet/" in path and "/trackers/" not in path and "run." not in path
    }


@pytest.fixture
def inside(house: House, monkeypatch) -> Iterator[House]:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    monkeypatch.setattr("ich.pipeline.plan.Plan.cores", 1)
    with chdir(house.root):
        yield house


def history(house: House) -> list[dict[str, Any]]:
    with (house.root / "oof/tiny/resnet/fold1/history.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("fails", [None, "start", "log", "finish"])
def test_a_fold_leaves_the_same_bytes_whatever_its_trackers_do(inside, fake, fails, capfd):
    before, fake.fails = made(inside), fails
    app([*FOLD, *TRACKED, "--quiet"], standalone_mode=False)
    assert made(inside) == before
    said = capfd.readouterr().out
    assert said.count("\n") == said.count("warning: tracker wandb: ") == (fails is not None)
    found = points(inside.root / "oof/tiny/trackers/tensorboard/resnet/fold1")
    rows = history(inside)
    assert found == {key: curve(rows, key) for key in rows[0] if key != "epoch"}
    app(["cnn", RECIPE, "--quiet"], standalone_mode=False)
    assert capfd.readouterr().out == "", "without trackers the fold is done, too"


class Killed(BaseException):
    """What nobody catches."""


def test_a_killed_fold_goes_on_with_its_curve(inside, monkeypatch, capfd):
    before, save = made(inside), Checkpoint.save
    (inside.root / "oof/tiny/resnet/fold1/run.json").unlink()

    def killed(self: Checkpoint, state: dict[str, Any]) -> None:
        save(self, state)
        if len(state.get("history", ())) == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoint, "save", killed)
        app([*FOLD[:-1], *TRACKED], standalone_mode=False)
    folder = inside.root / "oof/tiny/trackers/tensorboard/resnet/fold1"
    assert [step for step, _ in points(folder)["loss"]] == [0], "the state was saved, and the curve was not"
    app([*FOLD[:-1], *TRACKED], standalone_mode=False)
    assert points(folder)["loss"] == curve(history(inside), "loss")
    assert made(inside) == before
    assert capfd.readouterr().out.count("tracker wandb: not installed") == 1

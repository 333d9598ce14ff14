"""Engines run a step once its needs have finished, and steps that need a failed one not at all."""

import os
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest

from ich.errors import UserError
from ich.pipeline.engines import Step, local
from ich.pipeline.state import Plan
from ich.processes import run_parallel
from ich.recipe import Recipe

STEPS = [
    Step("prepare", cores=None),
    Step("cnn/a/fold0", ("prepare",)),
    Step("cnn/a/fold1", ("prepare",)),
    Step("sequence/s/fold0", ("cnn/a/fold0",)),
    Step("sequence/s/fold1", ("cnn/a/fold1",)),
    Step("blend", ("sequence/s/fold0", "sequence/s/fold1"), cores=None),
]


def make(folder: Path, fails: str, name: str) -> None:
    """Write down the step with its process; the steps that it needs must have been written before."""
    for need in next(step.needs for step in STEPS if step.name == name):
        assert (folder / need.replace("/", "-")).is_file()
    if name == fails:
        raise UserError("no such file")
    (folder / name.replace("/", "-")).write_text(str(os.getpid()))


def recipe(processes: int) -> Recipe:
    values = {
        "name": "test",
        "competition": {"format": "rsna2019", "root": "input"},
        "cnn": {"a": {"backbone": "resnet10t"}},
        "compute": {"processes": processes},
    }
    return Recipe.model_validate(values)


@pytest.mark.parametrize("processes", [1, 2])
def test_steps_run_after_those_that_they_need(tmp_path, processes):
    results = list(local.run(STEPS, partial(make, tmp_path, ""), recipe(processes), tmp_path))
    assert {result.name for result in results} == {step.name for step in STEPS}
    assert not any(result.error for result in results)
    pids = {path.name: int(path.read_text()) for path in tmp_path.iterdir()}
    assert pids["prepare"] == pids["blend"] == os.getpid(), "steps that use all cores run in this process"
    assert (pids["cnn-a-fold0"] == os.getpid()) == (processes == 1)


def on_gpus(folder: Path, name: str) -> None:
    """Write down the GPU of the process. The first step uses workers of its own, as `prepare` does."""
    if name == "prepare":
        assert list(run_parallel(len, [("a",), ("bc",)], 2)) == [1, 2]
    time.sleep(0.3)  # so that both workers take a step
    (folder / name.replace("/", "-")).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))


def test_each_worker_keeps_its_gpu_after_a_step_with_other_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(Plan, "gpus", ["0", "1"])
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    steps = [Step("prepare", cores=None), *(Step(f"fold{k}", ("prepare",)) for k in range(4))]
    results = list(local.run(steps, partial(on_gpus, tmp_path), recipe(2), tmp_path))
    assert not any(result.error for result in results)
    assert {(tmp_path / f"fold{k}").read_text() for k in range(4)} == {"0", "1"}


def dies(folder: Path, name: str) -> None:
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / name).touch()


def test_a_killed_worker_fails_its_step_and_not_the_run(tmp_path):
    steps = [Step("dies"), Step("after", ("dies",)), Step("here", cores=None), Step("later", ("here",))]
    results = {result.name: result.error for result in local.run(steps, partial(dies, tmp_path), recipe(2), tmp_path)}
    assert results == {"dies": results["dies"], "here": "", "later": results["later"]}
    assert "a worker process was killed" in results["dies"]


@pytest.mark.parametrize("processes", [1, 2])
def test_steps_that_need_a_failed_one_are_not_run_and_others_are(tmp_path, processes):
    results = list(local.run(STEPS, partial(make, tmp_path, "cnn/a/fold0"), recipe(processes), tmp_path))
    assert {result.name: result.error for result in results} == {
        "prepare": "",
        "cnn/a/fold0": "no such file",
        "cnn/a/fold1": "",
        "sequence/s/fold1": "",
    }

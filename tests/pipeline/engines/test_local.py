"""Engines run a step once its needs have finished, and steps that need a failed one not at all."""

import os
from functools import partial
from pathlib import Path

import pytest

from ich.errors import UserError
from ich.pipeline.engines import Step, local
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


@pytest.mark.parametrize("processes", [1, 2])
def test_steps_that_need_a_failed_one_are_not_run_and_others_are(tmp_path, processes):
    results = list(local.run(STEPS, partial(make, tmp_path, "cnn/a/fold0"), recipe(processes), tmp_path))
    assert {result.name: result.error for result in results} == {
        "prepare": "",
        "cnn/a/fold0": "no such file",
        "cnn/a/fold1": "",
        "sequence/s/fold1": "",
    }

"""The local engine: worker processes for single folds, and this process for steps that use all cores."""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from ich.pipeline.engines import Step, local
from ich.pipeline.state import Plan
from ich.processes import run_parallel
from tests.pipeline.engines.fake import STEPS, Fake, recipe


@dataclass(frozen=True)
class Located(Fake):
    """Write the process of each step and its GPU too. A step `prepare` uses workers of its own."""

    def __call__(self, name: str, note: str = "") -> None:
        if name == "prepare":
            assert list(run_parallel(len, [("a",), ("bc",)], 2)) == [1, 2]
        time.sleep(0.3)  # so that both workers take a step
        super().__call__(name, f" {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES', 'none')}")


def run(steps, make: Fake, processes: int = 2) -> dict[str, str]:
    """Errors by the names of the steps that were run."""
    results = local.run(steps, make, recipe(compute={"processes": processes}), make.folder)
    return {result.name: result.error for result in results}


@pytest.mark.parametrize("processes", [1, 2])
def test_steps_run_after_those_that_they_need_and_not_after_failed_ones(tmp_path, processes):
    make = Located(tmp_path)
    done = dict.fromkeys(("prepare", "cnn/a/fold0", "cnn/a/fold1", "cnn/a"), "")
    assert run(STEPS, make, processes) == {**done, "cnn/bad": "cnn/bad is not readable"}
    (first, here, _), (fold, worker, _), *_, (last, *_) = (line.split() for line in make.made)
    assert (first, int(here), last) == ("prepare", os.getpid(), "cnn/a"), "steps that use all cores run in this process"
    assert (int(worker) == os.getpid()) == (processes == 1), fold


def test_each_worker_keeps_its_gpu_after_a_step_with_other_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(Plan, "gpus", ["0", "1"])
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make, folds = Located(tmp_path), [Step(f"fold{k}", ("prepare",)) for k in range(4)]
    assert not any(run([Step("prepare", cores=None), *folds], make).values())
    assert {line.split()[2] for line in make.made if line.startswith("fold")} == {"0", "1"}


def test_a_killed_worker_fails_its_step_and_not_the_run(tmp_path: Path):
    steps = [Step("killed"), Step("after", ("killed",)), Step("here", cores=None), Step("later", ("here",))]
    found = run(steps, Fake(tmp_path))
    assert "a worker process was killed" in found["killed"]
    assert (found.keys(), found["here"]) == ({"killed", "here", "later"}, "")

"""`ich run` makes the artifacts of `run_all.sh`, in dependency order and without barriers between stages."""

import sys

import pytest

from conftest import RECIPE, Clone, plan_of
from ich.errors import UserError
from ich.pipeline import engines
from ich.pipeline.state import Plan
from ich.stages import run
from ich.stages.run import steps_of


def hashes(plan: Plan) -> dict[str, str]:
    """SHA-256 of every file of every task but the report, which shows times."""
    tasks = [task for task in plan.all() if task.stage != "report"]
    return {f"{task.name}/{name}": sha for task in tasks for name, sha in plan.files_of(task).items()}


def test_a_fold_needs_only_the_folds_that_it_reads(clone):
    steps = {step.name: step for step in steps_of(plan_of(clone.root))[0]}
    assert steps["folds"].needs == ("prepare",)
    assert steps["networks"].needs == ("prepare", "folds")
    assert steps["cnn/resnet/fold1"].needs == ("folds", "prepare", "networks")
    assert steps["cnn/small/fold1"].needs == ("folds", "prepare", "pretrain/simclr", "networks")
    inside = {need for need in steps["sequence/inside/fold1"].needs if need.startswith("cnn")}
    assert inside == {f"cnn/{model}/fold1{part}" for model in ("resnet", "small") for part in ("", "/train")}
    assert steps["stack/lgbm/fold0"].needs[-1] != "networks"
    assert list(steps)[-1] == "report"


def test_run_makes_the_files_of_the_single_stages_and_nothing_twice(clone, finished: Clone):
    said = clone.ich("run")
    assert "run: cnn/resnet/fold1 finished in" in said
    assert "submission.csv" in said
    ours, theirs = (hashes(plan_of(root, recipe=RECIPE)) for root in (clone.root, finished.root))
    assert len(ours) > 50
    assert ours == theirs
    before = clone.files()
    assert "run: everything is up to date" in clone.ich("run")
    assert clone.files() == before


def test_a_changed_setting_makes_the_steps_that_depend_on_it(clone_copy):
    steps, _ = steps_of(plan_of(clone_copy.root, "stack.lgbm.num_iterations=7", recipe=RECIPE))
    names = [step.name for step in steps]
    assert names[0] == "stack/lgbm/fold0"
    assert {name.partition("/")[0] for name in names} == {
        "stack", "blend", "thresholds", "submit", "score", "explain", "report",
    }  # fmt: skip


def test_a_failed_step_is_named_and_independent_steps_are_made(clone_copy, monkeypatch):
    make_task = run.make_task

    def fails(plan: Plan, name: str) -> None:
        if name == "cnn/resnext/fold0":
            raise UserError("the disk is full")
        make_task(plan, name)

    monkeypatch.setattr(run, "make_task", fails)
    words = ["--set", "cnn.resnext.learning_rate=1e-5", "--set", "sequence.bigru.inputs=[resnet]"]
    said = clone_copy.ich("run", *words, code=2)
    assert "warning: cnn/resnext/fold0 failed on" in said
    assert ": the disk is full" in said
    assert all(f"run: {name} finished" in said for name in ("cnn/resnext/fold1", "sequence/bigru/fold1"))
    # the tables of resnext; 2 folds and the tables of smooth, stack and blend; 5 stages after them
    assert "error: failed: cnn/resnext/fold0; 15 steps that need these were not run." in said


@pytest.mark.parametrize("engine", ["kubernetes", ""])
def test_an_unknown_engine_is_an_error_with_the_known_ones(clone, engine):
    assert "Choose from local, ray, slurm" in clone.ich("run", "--engine", engine, code=2)


@pytest.mark.parametrize("library", ["ray", "submitit"])
def test_a_missing_library_is_an_error_with_the_extra_to_install(monkeypatch, library):
    name = {"ray": "ray", "submitit": "slurm"}[library]
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"ich.pipeline.engines.{name}", raising=False)
    with pytest.raises(
        UserError, match=rf"--engine {name} requires {library}\. Install it: pip install 'ich\[cluster\]'"
    ):
        engines.engine(name)

"""`ich run` makes the artifacts of `run_all.sh`, in dependency order and without barriers between stages."""

import sys

import pytest

from conftest import PARTS, RECIPE, Clone, cloned, plan_of
from ich.errors import UserError
from ich.pipeline import engines
from ich.pipeline.state import Plan
from ich.stages import demo, run, transfer
from ich.stages.run import make_step, steps_of


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


def test_steps_that_read_images_are_expected_to_take_longest(clone):
    plan = plan_of(clone.root, recipe=PARTS)
    steps = [step.name for step in steps_of(plan)[0]]
    slow = [step for step in steps if run.time_of(plan, step) == 1]
    folds = [
        f"{model}/fold{k}" for model in ("cnn/resnet", "cnn/resnext", "cnn/small", "end_to_end/joint") for k in range(3)
    ]
    assert sorted(slow) == sorted(["prepare", "pretrain/simclr", *folds])


def test_run_makes_missing_files_of_every_stage_with_the_same_bytes_and_nothing_twice(clone_copy, finished: Clone):
    plan = plan_of(clone_copy.root, recipe=RECIPE)
    models = [task for name in ("resnet", "bigru", "lgbm") for task in (plan.fold(name, 1), plan.assembled(name))]
    for task in (plan.prepared, plan.folds, *models, plan.thresholds, plan.submit, plan.score, plan.explain):
        for name in (*plan.files_of(task), task.record.path.name):
            (task.folder / name).unlink()
    said = clone_copy.ich("run")
    assert "run: cnn/resnet/fold1 finished in" in said
    assert "submission.csv" in said
    ours, theirs = (hashes(plan_of(root, recipe=RECIPE)) for root in (clone_copy.root, finished.root))
    assert len(ours) > 50
    assert ours == theirs
    before = clone_copy.files()
    assert "run: everything is up to date" in clone_copy.ich("run")
    assert clone_copy.files() == before


def test_two_machines_with_disks_of_their_own_make_the_files_of_one(finished: Clone, tmp_path, monkeypatch):
    """Steps of a cluster up to the first model, alternately on two machines that share a store."""
    for name in ("driver", "one", "two"):
        (tmp_path / name).mkdir()
    driver, *machines = (cloned(tmp_path / name).root for name in ("driver", "one", "two"))
    words = [f"store.remote=file://{tmp_path}/store", "cnn.resnext=null", "sequence=null", "smooth=null", "stack=null"]
    monkeypatch.setattr(Plan, "cores", 1)
    plan = plan_of(driver, *words, "blend.inputs=[resnet]", recipe=RECIPE)
    demo.run(plan)
    plan, steps = run._exchanged(plan), steps_of(plan, in_parts=True)[0]
    names = [step.name for step in steps]
    for number, name in enumerate(names[: names.index("cnn/resnet") + 1]):
        monkeypatch.setenv("ICH_ROOT", str(machines[number % 2]))
        make_step(plan.recipe, driver, True, name)
    transfer.pull(Plan(plan.recipe, driver), model="resnet", raw=False)
    ours, theirs = (hashes(plan_of(root, recipe=RECIPE)) for root in (driver, finished.root))
    assert {name.partition("/")[0] for name in ours} >= {"prepare", "folds", "cnn"}
    assert ours == {name: theirs[name] for name in ours}
    fold = [(root / "oof/tiny/resnet/fold0/run.json").exists() for root in machines]
    assert sorted(fold) == [False, True], "made once"


@pytest.mark.parametrize("name", ["score", "explain", "report"])
def test_a_step_reads_only_what_it_takes_from_the_store(finished: Clone, tmp_path, monkeypatch, name):
    """On a machine without files. These steps read files of many others."""
    store = f"store.remote=file://{tmp_path}/store"
    pushed = plan_of(finished.root, store, recipe=RECIPE)
    for task in pushed.all():
        if task.stage not in ("demo", name):
            pushed.push(task)
    (tmp_path / "machine").mkdir()
    machine = cloned(tmp_path / "machine").root
    monkeypatch.setenv("ICH_ROOT", str(machine))
    monkeypatch.setattr(Plan, "cores", 1)
    plan = run._exchanged(pushed)
    make_step(plan.recipe, plan.root, True, name)
    made, wanted = (getattr(plan_of(root, recipe=RECIPE), name) for root in (machine, finished.root))
    assert made.record.read().keys() == wanted.record.read().keys()


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

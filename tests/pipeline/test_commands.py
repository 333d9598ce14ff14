"""The command line on the tiny recipe: interrupted and run twice."""

import os
import re
import shlex
import shutil
import signal
from importlib.metadata import version

import pytest

from conftest import ROOT, Clone, make, plan_of
from ich import cli
from ich.cli import GROUPS, app
from ich.console import duration
from ich.errors import UserError
from ich.pipeline.state import Plan
from ich.stages import status
from ich.store.locks import hold
from ich.store.records import Record, write_record


def tiny(clone_copy, *changes: str) -> Plan:
    return plan_of(clone_copy.root, *changes, recipe="tests/tiny.yaml")


def same_but_records(before: dict, after: dict) -> bool:
    kept = [path for path in before if not path.endswith("run.json")]
    return all(after[path][1] == before[path][1] for path in kept)


def test_run_all_on_a_finished_workspace_writes_nothing_and_ends_with_the_results(clone_copy):
    before = clone_copy.files()
    states = clone_copy.states()
    assert set(states.values()) == {"done"}
    assert set(states) == {task.name for task in tiny(clone_copy).all()}
    script = (clone_copy.root / "run_all.sh").read_text().replace('"$SECONDS"', "7")
    commands = [shlex.split(line, comments=True) for line in script.splitlines() if line.startswith("ich ")]
    assert len(commands) > 15
    said = [clone_copy.ich(name, *options, "--quiet") for _, name, _, *options in commands]
    assert clone_copy.files() == before
    last = said[-1].splitlines()[-3:]
    folder = clone_copy.root / "submissions/tiny"
    assert last[:2] == [f"Submit: {folder / 'submission.csv'}", f"Open:   {folder / 'report.html'}"]
    assert last[2] == "Time:   7 s"


@pytest.mark.slow
def test_an_interrupted_stage_resumes_to_the_same_bytes(clone_copy):
    before = clone_copy.files()
    for k in range(2):
        (clone_copy.root / f"oof/tiny/resnet/fold{k}/run.json").unlink()
    process = clone_copy.start("cnn", "--model", "resnet", "--set", "compute.processes=2")
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 1 of 2" in line:
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "\ninterrupted; finished work is kept: rerun the same command to resume\n"
    states = [tiny(clone_copy).standing(tiny(clone_copy).fold("resnet", k)) for k in range(2)]
    assert any("resume after the last finished epoch" in state.why for state in states)
    said = make(tiny(clone_copy), "cnn", model="resnet")
    assert said.count("epoch 1 of 2") < 2
    assert same_but_records(before, clone_copy.files())
    assert set(clone_copy.files()) == set(before), "no checkpoint is left"


def test_a_fold_of_another_process_ends_in_one_line(clone_copy):
    (clone_copy.root / "oof/tiny/resnet/fold0/run.json").unlink()
    with hold(clone_copy.root / "oof/tiny/resnet/.locks/fold0.lock", on_wait=pytest.fail):
        assert clone_copy.states()["cnn/resnet/fold0"] == "running"
        said = clone_copy.ich("cnn", "--model", "resnet", "--set", "compute.busy=leave", code=2)
    assert f"error: cnn/resnet/fold0 is being made by process {os.getpid()} on " in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("cnn", "--model", "resnt"), "--model resnt: unknown model. Choose from resnet, resnext"),
        (("cnn", "--set", "cnn.resnet.epoch=3"), "Did you mean epochs?"),
        (("cnn", "--set", "cnn.resnet.backbone=resnet10"), "Did you mean resnet10t"),
        (("ablate",), "recipe tiny has no section ablation"),
    ],
)
def test_a_user_error_is_one_line(finished, arguments, says):
    said = finished.ich(*arguments, code=2)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert says in line
    assert said.strip().endswith(line)


def test_an_end_to_end_network_alone_has_a_page_without_maps(copy):
    parts = ("pretrain", "cnn", "sequence", "smooth", "stack")
    alone = ("name=alone", "folds.n=2", "end_to_end.joint.start=null", "end_to_end.joint.epochs=1", "ablation=null")
    plan = plan_of(copy, *alone, *(f"{group}=null" for group in parts), "blend.calibration=none")
    make(plan, "prepare", "folds", "end_to_end", "blend", "thresholds", "submit", "score", "explain", "report")
    page = plan.workspace.submissions.joinpath("report.html").read_text()
    assert "This recipe has no CNN, so there are no embeddings of slices" in page
    assert "No network of this recipe has a layer for Grad-CAM" in page
    assert "Grad-CAM for" not in page


# ---- the end of a run


def test_results_that_are_missing_name_their_command(clone_copy):
    for name in ("submission.json", "report.html"):
        (clone_copy.root / "submissions/tiny" / name).unlink()
    assert clone_copy.ich("results").split("\n")[1:3] == [
        "Submit: not written yet, run `ich submit`",
        "Open:   not written yet, run `ich report`",
    ]
    record = Record(clone_copy.root / "submissions/tiny/submission.json")
    record.write("f", {})
    assert "Submit: nothing, there is no test set" in clone_copy.ich("results")


# ---- what is out of date


def advice(clone: Clone, *changes: str) -> list[str]:
    words = [word for change in changes for word in ("--set", change)]
    return clone.ich("status", *words).partition("\n\n")[2].splitlines()[1:]


def test_status_ends_with_the_command_and_the_time_of_what_is_out_of_date(clone_copy):
    assert advice(clone_copy) == ["Nothing is out of date."]
    assert advice(clone_copy, "report.studies=[nowhere]")[:2] == [
        "Out of date: report",
        "To make it:  ich report tests/tiny.yaml --set 'report.studies=[nowhere]'",
    ]
    out_of_date, command, time = advice(clone_copy, "stack.lgbm.num_iterations=7", "compute.processes=2")
    assert out_of_date == "Out of date: stack (3), blend (3), thresholds, submit, score, explain, report"
    changes = "--set stack.lgbm.num_iterations=7 --set compute.processes=2"
    assert command == f"To make it:  bash run_all.sh tests/tiny.yaml {changes}"
    plan = tiny(clone_copy)
    parallel = {task.name: 2 if task.fold is not None else 1 for task in plan.all()}
    stages = out_of_date.replace(",", "").split()
    seconds = [plan.record_of(t)["seconds"] / parallel[t.name] for t in plan.all() if t.stage in stages]
    assert time == f"Estimated time: {duration(sum(seconds))}, by recorded times"


def test_the_time_of_a_task_without_a_record_is_that_of_similar_ones(clone_copy):
    plan = tiny(clone_copy)
    for fold, seconds in enumerate((100.0, 300.0)):
        record = plan.fold("resnet", fold).record
        write_record(record.path, {**(record.read() or {}), "seconds": seconds})
        (clone_copy.root / f"oof/tiny/resnext/fold{fold}/run.json").unlink()
    plan.forget()
    tasks = list(plan.all())
    assert status._estimate(plan, tasks, [plan.fold("resnext", 0)]) == (200.0, [])
    (clone_copy.root / "submissions/tiny/report.run.json").unlink()
    plan.forget()
    assert status._estimate(plan, tasks, [plan.report, plan.fold("resnet", 1)]) == (300.0, ["report"])


# ---- what other settings made


def test_run_all_begins_with_what_other_settings_made(clone_copy):
    """As after `ich cnn --set ...` and `ich thresholds --metric f1`."""
    lines = (clone_copy.root / "run_all.sh").read_text().splitlines()
    assert next(line.split()[1] for line in lines if line.startswith("ich ")) == "changes"
    assert clone_copy.ich("changes") == ""
    changes = ("cnn.resnext.learning_rate=0.01", "cnn.resnext.loss.name=focal", "thresholds.metric=f1")
    plan = tiny(clone_copy, *changes)
    made = [plan.fold("resnext", 0), plan.fold("resnext", 1), plan.thresholds]
    for task in made:
        record = task.record.read() or {}
        settings = {"fingerprint": plan.fingerprint(task, record["inputs"]), "settings": dict(task.settings)}
        write_record(task.record.path, {**record, **settings})
    assert clone_copy.ich("changes", "--quiet").splitlines() == [
        "warning: cnn.resnext: learning_rate was 0.01, is 0.003, loss.name was focal, is bce. 2 folds will be made"
        " again. To avoid this, write `learning_rate: 0.01` under `cnn.resnext`, write `name: focal` under"
        " `cnn.resnext.loss` in tests/tiny.yaml",
        "warning: thresholds: metric was f1, is f2. thresholds will be made again. To avoid this, write `metric: f1`"
        " under `thresholds` in tests/tiny.yaml",
    ]
    words = [word for change in changes for word in ("--set", change)]
    assert clone_copy.ich("changes", *words) == "", "the recipe has the settings that made them"
    said = clone_copy.ich("changes", *words, "--set", "thresholds.trials=21")
    assert said == "warning: thresholds: trials was 20, is 21. thresholds will be made again\n", "--set is as intended"
    (clone_copy.root / "oof/tiny/resnext/fold1/run.json").unlink()
    assert "is bce. 1 fold will be made again" in clone_copy.ich("changes")
    fold0, fold1 = (clone_copy.root / f"oof/tiny/resnext/fold{k}" for k in (0, 1))
    shutil.rmtree(fold1)
    fold0.rename(fold1)
    assert "resnext" not in clone_copy.ich("changes"), "the number of a fold is no setting"


# ---- help


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_each_command_once_by_group(finished, option):
    said = finished.ich(option, recipe=None)
    commands = [name.name for name in app.registered_commands]
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(map(str, commands))
    for title, names in GROUPS.items():
        (group,) = re.findall(rf"^{title}:\n((?:  .*\n)+)", said, re.MULTILINE)
        assert [line.split()[0] for line in group.splitlines() if line[2] != " "] == list(names)
        assert "..." not in group  # every text fits a terminal of 80 columns
    assert "--force" in finished.ich("cnn", option, recipe=None)


def test_the_version_is_that_of_the_package(finished):
    assert finished.ich("--version", recipe=None) == f"ich {version('ich')}\n"


def test_a_subfolder_of_the_repository_is_no_working_folder(tmp_path, monkeypatch):
    recipe = ROOT / "configs" / "demo.yaml"
    monkeypatch.chdir(ROOT / "configs")
    with pytest.raises(UserError) as error:
        cli._plan(recipe, None)
    assert str(error.value) == f"{ROOT / 'configs'} has no folder input. Run the command in the repository: cd {ROOT}"
    for folder in (tmp_path, ROOT):
        monkeypatch.chdir(folder)
        assert cli._plan(recipe, None).root == folder


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        (
            "thresholds",
            ("--metric", "f1", "--trials", "9"),
            "thresholds: to keep this change, write `metric: f1` and `trials: 9` under `thresholds` in",
        ),
        ("smooth", ("--set", "smooth.gauss.widths=[5]"), "smooth: to keep this change, write `widths: [5]` under"),
        ("blend", ("--set", "blend.inputs=null"), "blend: to keep this change, remove `inputs` under `blend` in"),
    ],
)
def test_an_overridden_setting_ends_with_the_line_that_keeps_it(clone_copy, command, arguments, says):
    for _ in range(2):  # made, and up to date
        assert clone_copy.ich(command, *arguments).splitlines()[-1].startswith(says)
    assert "to keep" not in clone_copy.ich("smooth", "--set", "thresholds.metric=f1")
    assert "to keep" not in clone_copy.ich("smooth")

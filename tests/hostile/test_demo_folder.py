"""`ich demo` replaces only what it wrote itself."""

import json
import os
from pathlib import Path

import pytest

from conftest import ROOT
from ich.errors import UserError
from ich.pipeline.state import Plan
from ich.recipe import load
from ich.stages import demo
from ich.store.records import write_record


def write(folder: Path, **_: object) -> None:
    (folder / "stage_2_train").mkdir()
    (folder / "stage_2_train" / "a.dcm").write_bytes(os.urandom(8))
    (folder / "solution.csv").write_text("ID,Label\n")


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "write_competition", write)
    return Plan(load(ROOT / "tests/tiny.yaml"), tmp_path)


def test_its_own_files_are_replaced(plan):
    demo.run(plan)
    before = (plan.raw_root / "stage_2_train/a.dcm").read_bytes()
    (plan.raw_root / "solution.csv").unlink()
    demo.run(plan, force=True)
    assert (plan.raw_root / "stage_2_train/a.dcm").read_bytes() != before
    assert plan.state(plan.demo).done


def test_a_kill_before_the_record_needs_no_help(plan, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(type(plan.demo.record), "write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            demo.run(plan)
    assert not plan.state(plan.demo).done
    plan.forget()
    demo.run(plan)
    assert plan.state(plan.demo).done


@pytest.mark.parametrize("name", ["mine.dcm", "stage_2_train/mine.dcm", ".mine.tmp", "stage_2_train/\udcff"])
def test_a_foreign_file_beside_its_own_is_kept(plan, name):
    demo.run(plan)
    (plan.raw_root / name).write_bytes(b"mine")
    demo.run(plan)  # up to date
    with pytest.raises(UserError, match=r"mine|\\udcff") as refused:
        demo.run(plan, force=True)
    assert str(refused.value).isprintable()
    assert (plan.raw_root / name).read_bytes() == b"mine"


def test_a_file_that_arrives_meanwhile_is_kept(plan, monkeypatch):
    demo.run(plan)
    mine = plan.raw_root / "mine.dcm"
    monkeypatch.setattr(demo, "write_competition", lambda folder, **_: mine.write_bytes(b"mine"))
    with pytest.raises(UserError, match=r"mine\.dcm"):
        demo.run(plan, force=True)
    assert sorted(path.name for path in plan.raw_root.iterdir()) == [
        "mine.dcm",
        "run.json",
        "solution.csv",
        "stage_2_train",
    ]


def record_of_another(path: Path) -> None:
    write_record(path, {"files": {"stage_2_train.csv": "0" * 64}, "task": "folds"})


FOREIGN = {
    "no record": lambda path: None,
    "empty": lambda path: path.write_text("{}\n"),
    "forged": lambda path: path.write_text(json.dumps({"written": ["stage_2_train.csv", "run.json"]})),
    "another stage": record_of_another,
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_folder_with_another_record_is_kept(plan, case):
    plan.raw_root.mkdir(parents=True)
    (plan.raw_root / "stage_2_train.csv").write_text("real labels")
    FOREIGN[case](plan.raw_root / "run.json")
    for force in (False, True):
        with pytest.raises(UserError, match=r"stage_2_train\.csv.*[Mm]ove"):
            demo.run(plan, force=force)
    assert (plan.raw_root / "stage_2_train.csv").read_text() == "real labels"

"""`ich verify` on a finished house: one bit, a cut, a file that is gone, and promises broken where the hashes fit."""

import errno
import hashlib
import io
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from conftest import RECIPE, House
from ich.pipeline.graph import Task
from ich.pipeline.plan import Plan
from ich.recipe import load
from ich.stages import submit, verify
from ich.store.atomic import read_json, write_json
from ich.store.locks import hold
from ich.store.records import Record, read_record, write_record

pytestmark = pytest.mark.usefixtures("one_core")
FOLD, ROWS = "oof/tiny/resnet/fold0", "oof/tiny/resnet/fold0/train"


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("verified")
    subprocess.run(["cp", "-a", f"{finished.root}/.", str(root)], check=True)
    return root


@pytest.fixture
def root(copied, finished):
    """A house of which a test may break artefacts; they are put back, so that it is copied once."""
    yield copied
    for folder in ("input", "folds", "oof", "submissions"):
        shutil.rmtree(copied / folder)
        subprocess.run(["cp", "-a", str(finished.root / folder), str(copied)], check=True)


def plan_of(root: Path, *changes: str) -> Plan:
    return Plan(load(root / RECIPE, list(changes)), root)


def verified(root: Path, *changes: str) -> tuple[int, list[str]]:
    """Exit code, and what was said but for how far the reading was."""
    with redirect_stdout(io.StringIO()) as said:
        code = verify.run(plan_of(root, *changes))
    return code, [
        line for line in said.getvalue().splitlines() if not line.startswith(("verify: files", "verify: pixels"))
    ]


def errors(lines: list[str]) -> dict[str, str]:
    """File -> what is wrong with it and what to type."""
    return dict(line.removeprefix("error: ").split(": ", 1) for line in lines if line.startswith("error: "))


def artefacts(root: Path) -> list[Path]:
    """Every file that a record names."""
    tasks = plan_of(root).all()
    return [task.folder / name for task in tasks for name in (task.record.read() or {"files": ()})["files"]]


def flip(path: Path, random: np.random.Generator) -> None:
    """Change one bit, and not the modification time."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[random.integers(len(data))] ^= 1 << random.integers(8)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def cache(root: Path) -> str:
    return os.path.relpath(plan_of(root).prepared.folder, root)


# ---- hashes


def test_a_finished_house_is_sound_and_stays_as_it_is(finished):
    before = finished.files()
    code, lines = verified(finished.root)
    tasks = len(list(plan_of(finished.root).all()))
    assert (code, lines[-1]) == (0, f"verify: {tasks} sound")
    assert not errors(lines)
    assert finished.files() == before


def test_the_command_names_a_changed_file_and_what_to_type(root):
    assert "sound" in House(root).ich("verify")
    flip(root / FOLD / "model.safetensors", np.random.default_rng(0))
    said = House(root).ich("verify", code=2)
    assert f"error: {FOLD}/model.safetensors: was changed; delete it, then run `ich cnn`, which makes it anew" in said


@pytest.mark.parametrize("seed", range(2))
def test_one_bit_in_any_file_is_seen_though_its_time_is_the_same(root, seed):
    random, paths = np.random.default_rng(seed), artefacts(root)
    for path in paths:
        flip(path, random)
    code, lines = verified(root)
    assert code == 2
    assert set(errors(lines)) == {os.path.relpath(path, root) for path in paths}


def test_files_that_are_cut_or_gone_are_named(root):
    paths = artefacts(root)
    for path in paths[::2]:
        os.truncate(path, path.stat().st_size - 1)
    for path in paths[1::2]:
        path.unlink()
    code, lines = verified(root)
    found = errors(lines)
    assert code == 2
    assert all("was changed" in found[os.path.relpath(path, root)] for path in paths[::2])
    assert all("is missing" in found[os.path.relpath(path, root)] for path in paths[1::2])


def test_one_bit_in_any_record_is_seen(root):
    random = np.random.default_rng(0)
    paths = [task.record.path for task in plan_of(root).all()] + [plan_of(root).workspace.cache_pointer]
    for path in paths:
        flip(path, random)
    code, lines = verified(root)
    assert code == 2
    assert set(errors(lines)) == {os.path.relpath(path, root) for path in paths}


def test_what_it_says_to_do_mends_it(root):
    path = root / "submissions/tiny/submission.csv"
    whole = path.read_bytes()
    path.write_bytes(b"")
    code, lines = verified(root)
    assert code == 2
    assert list(errors(lines).values()) == ["was changed; delete it, then run `ich submit`, which makes it anew"]
    path.unlink()
    submit.run(plan_of(root))
    assert path.read_bytes() == whole
    assert verified(root)[0] == 0


def test_a_large_file_s_stamp_is_not_trusted(root):
    task = plan_of(root).prepared
    stat = (task.folder / "hu.npy").stat()
    record = read_record(task.record.path) or {}
    write_record(task.record.path, {**record, "stamps": {"hu.npy": [stat.st_size, stat.st_mtime_ns]}})
    flip(task.folder / "hu.npy", np.random.default_rng(0))
    assert plan_of(root).state(plan_of(root).prepared).done
    assert set(errors(verified(root)[1])) == {f"{cache(root)}/hu.npy"}


def test_the_cache_in_use_is_read_though_the_raw_files_are_others_now(root):
    name = f"{cache(root)}/quarantine.csv"
    (root / "input/tiny/new.txt").write_text("one file more")
    with (root / name).open("a") as file:
        file.write("\n")
    assert set(errors(verified(root)[1])) == {name}


def test_a_file_that_the_disk_does_not_give_is_named_and_the_others_are_read(root, monkeypatch):
    damage = Record.damage

    def failing(record: Record, written: Any, name: str, on_read: Any = None) -> str | None:
        if record.path.parent == root / FOLD and name == "history.csv":
            raise OSError(errno.EIO, "Input/output error")
        return damage(record, written, name, on_read)

    monkeypatch.setattr(Record, "damage", failing)
    (root / "oof/tiny/thresholds.json").write_text("{}")
    code, lines = verified(root)
    assert code == 2
    assert set(errors(lines)) == {f"{FOLD}/history.csv", "oof/tiny/thresholds.json"}
    assert "Input/output error" in errors(lines)[f"{FOLD}/history.csv"]


# ---- what is no fault


def test_what_is_not_made_is_no_fault(root):
    (root / "oof/tiny/lgbm/fold0/run.json").unlink()
    code, lines = verified(root, "thresholds.trials=21")
    assert code == 0
    assert not errors(lines)
    assert "1 missing" in lines[-2]
    assert "stale" in lines[-2]


def test_what_a_killed_process_replaced_is_no_fault(root):
    plan = plan_of(root)
    (root / FOLD / "model.safetensors").write_bytes(b"of the new run")
    plan.fold("resnet", 0).record.lock.write_text("process 1 on here, begun now")
    code, lines = verified(root)
    assert code == 0
    assert any(line.startswith("note: cnn/resnet/fold0 was killed") and "model.safetensors" in line for line in lines)


def test_what_another_process_makes_right_now_is_no_fault(root):
    (root / FOLD / "model.safetensors").write_bytes(b"of the new run")
    with hold(plan_of(root).fold("resnet", 0).record.lock, on_wait=print):
        code, lines = verified(root)
    assert code == 0
    assert "1 running" in lines[-2]


def test_what_lies_beside_the_artefacts_is_told(root):
    left = [
        f"{FOLD}/.model.safetensors.x.tmp",
        "folds/.tiny.csv.x.tmp",
        f"{cache(root)}/../.{Path(cache(root)).name}.x.tmp",
    ]
    for name in [*left, f"{FOLD}/notes.txt"]:
        (root / name).write_text("")
    code, lines = verified(root)
    notes = [line for line in lines if line.startswith("note: ")]
    assert code == 0
    assert len(notes) == 4
    assert sum("left by a process that was killed" in note for note in notes) == 3
    assert f"note: {FOLD}: its record does not name notes.txt; nothing reads it" in notes


# ---- promises: the hashes fit


def rewritten(root: Path, task: Task, name: str, change: Callable[[Path], None], **more: Any) -> None:
    """Change a file, and its hash in the record."""
    change(task.folder / name)
    record = read_record(task.record.path) or {}
    record["files"][name] = hashlib.sha256((task.folder / name).read_bytes()).hexdigest()
    write_record(task.record.path, {**record, **more})


def table(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    """A change of a Parquet table or a CSV file."""

    def of(path: Path) -> None:
        if path.suffix == ".csv":
            change(pd.read_csv(path)).to_csv(path, index=False)
        else:
            change(pd.read_parquet(path)).to_parquet(path, index=False)

    return of


def array(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda path: np.save(path, change(np.load(path, allow_pickle=False)), allow_pickle=False)


def put(row: int, column: str, value: Any) -> Callable[[Path], None]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[row, column] = value
        return frame

    return table(change)


def swapped(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[[1, 0, *range(2, len(frame))]]


def one_study_elsewhere(frame: pd.DataFrame) -> pd.DataFrame:
    """The second study of a patient goes to the other fold."""
    second = frame.index[frame["patient_id"].duplicated()][0]
    frame.loc[second, "fold"] = 1 - frame.loc[second, "fold"]
    return frame


def too_bright(hu: np.ndarray) -> np.ndarray:
    hu[5, 3, 3] = 4000
    return hu


def thresholds_of(**cuts: float) -> Callable[[Path], None]:
    return lambda path: write_json(path, (found := read_json(path)) | {"thresholds": found["thresholds"] | cuts})


def flipped(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[3, "Label"] = 1 - frame.loc[3, "Label"]
    return frame


FOLD_TASK = lambda plan: plan.fold("resnet", 0)
BROKEN = {
    "slices not in order": ("prepared", "slices.parquet", table(swapped), "lies before the slice above it"),
    "another split": ("prepared", "slices.parquet", put(4, "split", "valid"), "is in neither split"),
    "a value no scanner gives": ("prepared", "hu.npy", array(too_bright), "has values outside -1024..3071"),
    "a row fewer of pixels": ("prepared", "hu.npy", array(lambda hu: hu[:-1]), "a row a row of slices.parquet"),
    "a patient in two folds": ("folds", "tiny.csv", table(one_study_elsewhere), "is a patient in two folds"),
    "a slice less": (FOLD_TASK, "valid.parquet", table(lambda t: t[1:]), "is not in it"),
    "a slice twice": (FOLD_TASK, "test.parquet", table(lambda t: pd.concat([t, t[:1]])), "stands in it twice"),
    "another fold": (FOLD_TASK, "valid.parquet", put(2, "fold", 1), "names another fold than its own"),
    "no number": (FOLD_TASK, "valid.parquet", put(2, "logit_any", np.nan), "has a logit that is no finite number"),
    "a row fewer": (FOLD_TASK, "test_embeddings.npy", array(lambda e: e[1:]), "a row a row of its table"),
    "no table": (FOLD_TASK, "valid.parquet", lambda path: path.write_text("fold,any"), "is not what it should be"),
    "a training row less": (
        lambda plan: plan.training_rows("resnet", 0),
        "train.parquet",
        table(lambda t: t[1:]),
        "is not in it",
    ),
    "one more ulp": (
        lambda plan: plan.member("bigru"),
        "oof.parquet",
        table(lambda t: t.assign(logit_any=np.nextafter(t["logit_any"], t["logit_any"] + 1))),
        "has other logits than its fold's valid.parquet",
    ),
    "no mean": (lambda plan: plan.member("lgbm"), "test.parquet", put(0, "logit_any", 7.0), "than the mean over the"),
    "a threshold of 1.5": ("thresholds", "thresholds.json", thresholds_of(any=1.5), "any has a threshold outside 0..1"),
    "ids in another order": ("submit", "submission.csv", table(swapped), "not those that are wanted, in their order"),
    "another probability": ("submit", "submission.csv", put(3, "Label", 0.999), "another probability than the blend's"),
    "another decision": ("submit", "submission_binary.csv", table(flipped), "is decided otherwise"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_promise_is_named_though_the_hashes_fit(root, case):
    which, name, change, what = BROKEN[case]
    plan = plan_of(root)
    task = getattr(plan, which) if isinstance(which, str) else which(plan)
    rewritten(root, task, name, change)
    code, lines = verified(root)
    found = [line for line in lines if line.startswith(f"error: {os.path.relpath(task.folder / name, root)}: ")]
    assert code == 2, lines
    assert any(what in line for line in found), lines
    assert "1 broken" in lines[-1] or "1 broken" in lines[-2], lines


@pytest.mark.parametrize(
    ("without", "what"),
    [
        ({"files": {}}, "names no model.safetensors, history.csv, valid.parquet, test.parquet"),
        ({"model": None}, "does not say which network model.safetensors belongs to"),
        ({"inputs": {}}, "names other inputs than those that are there"),
    ],
)
def test_a_record_that_says_too_little_is_named(root, without, what):
    path = root / FOLD / "run.json"
    record = {**(read_record(path) or {}), **without}
    write_record(path, {key: value for key, value in record.items() if value is not None})
    code, lines = verified(root)
    assert code == 2
    assert errors(lines)[f"{FOLD}/run.json"].startswith(what)

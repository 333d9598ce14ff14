"""`ich verify` on a finished workspace: damaged and missing files, and broken rules."""

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

from conftest import RECIPE, Clone, copied
from conftest import plan_of as plan_of_recipe
from ich.data.cache import shard_name
from ich.pipeline import verify
from ich.pipeline.state import Plan
from ich.stages import submit
from ich.store import hashes
from ich.store.atomic import read_json, write_json
from ich.store.locks import hold
from ich.store.records import Record, read_record, write_record

SHARD = shard_name(0)
FOLD = "oof/tiny/resnet/fold0"


@pytest.fixture(scope="module")
def copy(finished, tmp_path_factory) -> Path:
    return copied(finished.root, tmp_path_factory.mktemp("verified"))


@pytest.fixture
def root(copy, finished):
    """A workspace in which a test may break artifacts; they are restored, so that it is copied once."""
    yield copy
    for folder in ("input", "folds", "oof", "submissions"):
        shutil.rmtree(copy / folder)
        subprocess.run(["cp", "-a", str(finished.root / folder), str(copy)], check=True)
    hashes._HASHES.clear()  # a restored file may have inode, size and time of the broken one


def plan_of(root: Path, *changes: str) -> Plan:
    return plan_of_recipe(root, *changes, recipe=RECIPE)


def verified(root: Path, *changes: str) -> tuple[int, list[str]]:
    """Exit code and printed lines, without progress."""
    with redirect_stdout(io.StringIO()) as said:
        code = verify.run(plan_of(root, *changes))
    progress = ("verify: files", "verify: pixels")
    return code, [line for line in said.getvalue().splitlines() if not line.startswith(progress)]


def errors(lines: list[str]) -> dict[str, str]:
    """Error and remedy by file."""
    return dict(line.removeprefix("error: ").split(": ", 1) for line in lines if line.startswith("error: "))


def recorded(root: Path) -> list[Path]:
    """Every file that a record lists."""
    plan = plan_of(root)
    return [task.folder / name for task in plan.all() for name in plan.files_of(task)]


def flip(path: Path, random: np.random.Generator) -> None:
    """Flip one bit and keep the modification time."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[random.integers(len(data))] ^= 1 << random.integers(8)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def cache(root: Path) -> str:
    return os.path.relpath(plan_of(root).prepared.folder, root)


# ---- hashes


def test_a_finished_workspace_is_sound_and_not_changed(finished):
    before = finished.files()
    code, lines = verified(finished.root)
    assert (code, lines) == (0, [f"verify: {len(list(plan_of(finished.root).all()))} sound"])
    assert finished.files() == before


def test_the_command_prints_a_changed_file_and_the_remedy(root):
    flip(root / FOLD / "model.safetensors", np.random.default_rng(0))
    said = Clone(root).ich("verify", code=2)
    assert f"error: {FOLD}/model.safetensors: was changed; delete it, then run `ich cnn`" in said


def test_a_flipped_bit_in_any_file_or_record_is_detected(root):
    random, plan = np.random.default_rng(0), plan_of(root)
    files = recorded(root)
    for path in files:
        flip(path, random)
    code, lines = verified(root)
    assert code == 2
    assert set(errors(lines)) == {os.path.relpath(path, root) for path in files}

    records = [task.record.path for task in plan.all()] + [plan.workspace.cache_pointer]
    for path in records:
        flip(path, random)
    code, lines = verified(root)
    assert code == 2
    assert set(errors(lines)) == {os.path.relpath(path, root) for path in records}


def test_truncated_and_missing_files_are_detected(root):
    paths = recorded(root)
    for path in paths[::2]:
        os.truncate(path, path.stat().st_size - 1)
    for path in paths[1::2]:
        path.unlink()
    code, lines = verified(root)
    found = errors(lines)
    assert code == 2
    assert all("was changed" in found[os.path.relpath(path, root)] for path in paths[::2])
    assert all("is missing" in found[os.path.relpath(path, root)] for path in paths[1::2])


def test_the_remedy_restores_the_file(root):
    path = root / "submissions/tiny/submission.csv"
    content = path.read_bytes()
    path.write_bytes(b"")
    code, lines = verified(root)
    assert code == 2
    assert list(errors(lines).values()) == ["was changed; delete it, then run `ich submit`"]
    path.unlink()
    submit.run(plan_of(root))
    assert path.read_bytes() == content
    assert verified(root)[0] == 0


def test_size_and_time_of_large_files_are_not_trusted(root):
    task = plan_of(root).prepared
    stat = (task.folder / SHARD).stat()
    record = read_record(task.record.path) or {}
    write_record(task.record.path, {**record, "stamps": {SHARD: [stat.st_size, stat.st_mtime_ns]}})
    flip(task.folder / SHARD, np.random.default_rng(0))
    plan = plan_of(root)
    assert plan.state(plan.prepared).done
    assert set(errors(verified(root)[1])) == {f"{cache(root)}/{SHARD}"}


def test_the_cache_in_use_is_verified_after_changes_of_raw_files(root):
    name = f"{cache(root)}/quarantine.csv"
    (root / "input/tiny/new.txt").write_text("one file more")
    with (root / name).open("a") as file:
        file.write("\n")
    assert set(errors(verified(root)[1])) == {name}


def test_an_unreadable_file_is_an_error_and_the_others_are_verified(root, monkeypatch):
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


# ---- no faults


def test_missing_and_stale_artifacts_are_no_faults(root):
    (root / "oof/tiny/lgbm/fold0/run.json").unlink()
    code, lines = verified(root, "thresholds.trials=21")
    assert (code, errors(lines)) == (0, {})
    assert "1 missing" in lines[-2]
    assert "stale" in lines[-2]


def test_files_replaced_by_a_killed_or_running_process_are_no_faults(root):
    (root / FOLD / "model.safetensors").write_bytes(b"of the new run")
    lock = plan_of(root).fold("resnet", 0).record.lock
    with hold(lock, on_wait=print):
        code, lines = verified(root)
    assert code == 0
    assert "1 running" in lines[-2]
    lock.write_text("process 1 on here, begun now")
    code, lines = verified(root)
    assert code == 0
    assert any(line.startswith("note: cnn/resnet/fold0 was killed") and "model.safetensors" in line for line in lines)


def test_files_that_nothing_reads_are_listed(root):
    whole = Path(cache(root)).name
    left = [f"{FOLD}/.model.safetensors.x.tmp", "folds/.tiny.csv.x.tmp", f"input/cache/.{whole}.x.tmp"]
    for name in [*left, f"{FOLD}/notes.txt"]:
        (root / name).write_text("")
    code, lines = verified(root)
    notes = [line for line in lines if line.startswith("note: ")]
    assert code == 0
    assert len(notes) == 4
    assert sum("temporary file of a killed process" in note for note in notes) == 3
    assert f"note: {FOLD}: unknown files, which are ignored: notes.txt" in notes


# ---- rules, with correct hashes


def table(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    """A change of a Parquet or CSV file."""

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
        frame.loc[row, column] = value(frame.loc[row, column]) if callable(value) else value
        return frame

    return table(change)


def swapped(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[[1, 0, *range(2, len(frame))]]


def one_study_elsewhere(frame: pd.DataFrame) -> pd.DataFrame:
    """The second study of a patient in another fold."""
    second = frame.index[frame["patient_id"].duplicated()][0]
    frame.loc[second, "fold"] = 1 - frame.loc[second, "fold"]
    return frame


def too_bright(hu: np.ndarray) -> np.ndarray:
    hu[1, 3, 3] = 4000
    return hu


def thresholds_of(**cuts: float) -> Callable[[Path], None]:
    return lambda path: write_json(path, (found := read_json(path)) | {"thresholds": found["thresholds"] | cuts})


FOLD_TASK = lambda plan: plan.fold("resnet", 0)
ULP = lambda value: np.nextafter(value, value + 1)
BROKEN = {
    "slices not in order": ("prepared", "slices.parquet", table(swapped), "expected in ascending order"),
    "a value outside HU": ("prepared", SHARD, array(too_bright), "expected values from -1024 to 3071"),
    "a patient in two folds": ("folds", "tiny.csv", table(one_study_elsewhere), "all studies of a patient in one fold"),
    "a slice less": (FOLD_TASK, "valid.parquet", table(lambda t: t[1:]), "is missing"),
    "a row fewer": (FOLD_TASK, "test_embeddings.npy", array(lambda e: e[1:]), "is malformed"),
    "no table": (FOLD_TASK, "valid.parquet", lambda path: path.write_text("fold,any"), "is malformed"),
    "a training row less": (
        lambda plan: plan.in_sample("resnet", 0),
        "train.parquet",
        table(lambda t: t[1:]),
        "is missing",
    ),
    "one more ulp": (
        lambda plan: plan.assembled("bigru"),
        "oof.parquet",
        put(0, "logit_any", ULP),
        "has other logits than the table of its fold",
    ),
    "a study twice": (
        lambda plan: plan.assembled("bigru"),
        "oof_studies.parquet",
        table(lambda t: pd.concat([t, t[:1]])),
        "occurs twice",
    ),
    "a study in another fold": (
        lambda plan: plan.fold("bigru", 0),
        "valid_studies.parquet",
        put(0, "fold", 1),
        "has another fold than in the folds file",
    ),
    "a study less": (
        lambda plan: plan.fold("bigru", 0),
        "test_studies.parquet",
        table(lambda t: t[1:]),
        "is missing",
    ),
    "no mean": (lambda plan: plan.assembled("lgbm"), "test.parquet", put(0, "logit_any", 7.0), "than the mean over"),
    "a threshold of 1.5": ("thresholds", "thresholds.json", thresholds_of(any=1.5), "any has a threshold outside 0..1"),
    "another probability": ("submit", "submission.csv", put(3, "Label", 0.999), "another probability than the blend's"),
    "another decision": ("submit", "submission_binary.csv", put(3, "Label", lambda v: 1 - v), "another decision than"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_rule_is_detected(root, case):
    which, name, change, what = BROKEN[case]
    plan = plan_of(root)
    task = getattr(plan, which) if isinstance(which, str) else which(plan)
    change(task.folder / name)
    record = read_record(task.record.path) or {}
    record["files"][name] = hashlib.sha256((task.folder / name).read_bytes()).hexdigest()
    write_record(task.record.path, record)
    code, lines = verified(root)
    found = [line for line in lines if line.startswith(f"error: {os.path.relpath(task.folder / name, root)}: ")]
    assert code == 2, lines
    assert any(what in line for line in found), lines
    assert "1 broken" in " ".join(lines[-2:]), lines


@pytest.mark.parametrize(
    ("without", "what"),
    [
        ({"files": {}}, "does not list model.safetensors, model.json, history.csv, valid.parquet, test.parquet"),
        ({"inputs": {}}, "lists outdated inputs"),
    ],
)
def test_an_incomplete_record_is_detected(root, without, what):
    path = root / FOLD / "run.json"
    write_record(path, {**(read_record(path) or {}), **without})
    code, lines = verified(root)
    assert code == 2
    assert errors(lines)[f"{FOLD}/run.json"].startswith(what)

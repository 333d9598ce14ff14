"""Several processes that make one fold, by `accelerate launch`: what one makes; and they end together."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import RECIPE, ROOT, House
from ich import ranks
from ich.cli import app
from ich.data.batches import EpochBatches
from tests.stages import together

HERE = Path(__file__).parent
LAUNCH = (
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"),
    *("--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"),
)
FOLD = ("--model", "resnet", "--fold", "0")
# batches of uneven parts, clipping and an average of the weights; layer norm, which looks at one slice at a time
EXACT = {
    **{"backbone": "test_convnext", "kwargs": "{}", "precision": "fp32"},
    **{"batch_size": "15", "gradient_clip": "0.5", "ema": "0.5"},
}
SOON = 20  # seconds; the processes themselves take two on a machine with nothing else to do


def changes(settings: Mapping[str, str]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"cnn.resnet.{key}={value}")]


# ---- who gets what


@given(st.integers(0, 200), st.integers(1, 9))
def test_the_parts_of_all_processes_are_the_whole(n, of):
    parts = [range(n)[ranks.stretch(n, k, of)] for k in range(of)]
    assert [i for part in parts for i in part] == list(range(n))
    sizes = [len(part) for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def batches_of(k: int, of: int, n: int, size: int, **order: Any) -> list[list[tuple[int, int]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "_here", ranks._Here(k, of, together=True))
        batches = EpochBatches(n, size, 7, 2, **order)
        assert len(batches) == len(list(batches))
        return list(batches)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 9), st.booleans())
def test_a_batch_to_train_on_is_that_of_one_process_in_parts(n, size, of, drop_last):
    order: dict[str, Any] = {"shuffle": True, "drop_last": drop_last}
    whole = list(EpochBatches(n, size, 7, 2, **order))
    parts = [batches_of(k, of, n, size, **order) for k in range(of)]
    for step, batch in enumerate(whole):  # those that have nothing of a batch have nothing of the later ones
        assert [i for part in parts for i in (part[step] if step < len(part) else [])] == batch
    assert all(batch for part in parts for batch in part)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 9))
def test_what_is_predicted_one_process_after_the_other_is_in_order(n, size, of):
    parts = [batches_of(k, of, n, size, shuffle=False, drop_last=False) for k in range(of)]
    assert [i for part in parts for batch in part for _, i in batch] == list(range(n))
    assert all(0 < len(batch) <= size for part in parts for batch in part)


def test_outside_of_common_work_every_process_is_alone(monkeypatch):
    monkeypatch.setattr(ranks, "_here", ranks._Here(1, 2))
    assert (ranks.count(), ranks.part(9)) == (1, slice(0, 9))
    assert [len(batch) for batch in EpochBatches(9, 4, 7, 2, shuffle=True, drop_last=False)] == [4, 4, 1]


# ---- three processes


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What one process does, and what three do together."""
    folder = tmp_path_factory.mktemp("three")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    launch |= {"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, str(HERE / "together.py"), str(folder / "found.json")]
    several = [
        subprocess.Popen(
            words, env={**os.environ, **launch, "RANK": str(k), "LOCAL_RANK": str(k)}, stderr=-1, stdout=-1
        )
        for k in range(3)
    ]
    one = together.work(folder / "one")
    for process in several:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err.decode()
        assert out == b"" or process is several[0], "the others say nothing"
    return one, json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", ["whole", "uneven", "fewer rows than processes", "short of memory"])
def test_several_processes_train_the_network_of_one(three, name):
    one, several = (found[name] for found in three)
    np.testing.assert_allclose(several["weights"], one["weights"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(several["history"], one["history"], rtol=0, atol=1e-6)
    assert several["files"] == one["files"]
    assert one["record"] == {"parts": 1}
    assert several["record"] == {"parts": 4 if name == "short of memory" else 1, "ranks": 3}


def test_memory_that_one_process_lacks_while_it_predicts_sends_all_back(three):
    one, several = (found["short of memory while it is judged"] for found in three)
    np.testing.assert_allclose(several["weights"], one["weights"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(several["history"], one["history"], rtol=0, atol=1e-4)  # a sum over what is predicted
    assert several["record"] == {"parts": 2, "ranks": 3}


@pytest.mark.parametrize("name", ["predicted", "predicted, fewer"])
def test_several_processes_predict_the_rows_of_one_in_its_order(three, name):
    one, several = (found[name] for found in three)
    assert several["rows"] == one["rows"]
    np.testing.assert_allclose(several["logits"], one["logits"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(several["embeddings"], one["embeddings"], rtol=0, atol=1e-3)  # float16


def test_each_process_draws_its_own_numbers_the_same_every_time(three):
    one, (first, again) = three[0]["drawn"], three[1]["drawn"]
    assert first == again
    assert len(set(first)) == 3
    assert [first[:1]] * 2 == one, "the first process draws what one process draws"


# ---- a fold, by the real command


class Fold(NamedTuple):
    record: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    bytes: dict[str, bytes]

    def logits(self, split: str) -> np.ndarray:
        return self.tables[split].filter(like="logit_").to_numpy()


def fold_of(house: House, member: str = "resnet") -> Fold:
    folder = house.root / f"oof/tiny/{member}/fold0"
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    tables = {split: pd.read_parquet(folder / f"{split}.parquet") for split in ("valid", "test")}
    record = json.loads(files.pop("run.json"))
    assert record["files"].keys() == files.keys()
    return Fold(record, tables, files)


def alone(house: House, *words: str) -> None:
    """`ich words` in this process."""
    with chdir(house.root), redirect_stdout(io.StringIO()):
        app([words[0], RECIPE, *words[1:]], standalone_mode=False)


def begin(house: House, *words: str, fault: str | None = None) -> subprocess.Popen[str]:
    """`accelerate launch ich words`, in two processes."""
    program = ["--module", "ich"] if fault is None else [str(HERE / "faulty.py")]
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "FAULT": fault or "", "HOUSE": str(house.root)}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "src")}
    command = [*LAUNCH, *program, words[0], RECIPE, *words[1:]]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=house.root, env=environment, start_new_session=True, **pipes)


def launch(house: House, *words: str) -> str:
    process = begin(house, *words)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    return out


def living(house: House) -> list[int]:
    """Processes of a launch in this house, whatever session they are in; Linux only."""
    mark, found = f"HOUSE={house.root}\0".encode(), []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ended = (path / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            if not ended and mark in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def gone(house: House) -> bool:
    end = time.monotonic() + SOON
    while living(house) and time.monotonic() < end:
        time.sleep(0.1)
    return not living(house)


def own_lines(said: str) -> list[str]:
    """What the processes say of their end: the launcher tells of it in lines of its own, with its own traceback."""
    return [line for line in said.splitlines() if line.startswith(("error: ", "interrupted; "))]


def assert_same_rows(one: Fold, several: Fold) -> None:
    assert several.bytes.keys() == one.bytes.keys()
    for split in ("valid", "test"):
        assert several.tables[split]["image_id"].tolist() == one.tables[split]["image_id"].tolist()
        assert several.tables[split]["image_id"].is_unique


def test_two_processes_leave_the_fold_of_one(house):
    alone(house, "cnn", *FOLD, "--force", *changes(EXACT))
    one = fold_of(house)
    said = launch(house, "cnn", *FOLD, "--force", *changes(EXACT))
    assert said.count("resnet fold 0: epoch 2 of 2") == said.count("resnet fold 0 finished") == 1
    several = fold_of(house)
    assert_same_rows(one, several)
    assert ("ranks" in one.record, several.record["ranks"]) == (False, 2)
    assert several.record["fingerprint"] == one.record["fingerprint"]
    for split in ("valid", "test"):
        assert one.logits(split).std(axis=0).min() > 1e-2, "of slices that are all alike equality says nothing"
        np.testing.assert_allclose(several.logits(split), one.logits(split), rtol=0, atol=1e-5)
        pair = (np.load(io.BytesIO(fold.bytes[f"{split}_embeddings.npy"])) for fold in (several, one))
        np.testing.assert_allclose(*pair, rtol=2e-3, atol=2e-3)  # float16
    alone(house, "cnn", *FOLD, *changes(EXACT))
    assert fold_of(house).bytes == several.bytes, "what several have made is done"


@pytest.mark.slow
def test_the_usual_network_scores_alike(house):
    alone(house, "cnn", *FOLD, "--force")
    one = fold_of(house)
    launch(house, "cnn", *FOLD, "--force")
    several = fold_of(house)
    assert_same_rows(one, several)
    score = "weighted_log_loss"  # batch norm sees 8 slices at a time instead of 16
    assert several.record["metrics"][score] == pytest.approx(one.record["metrics"][score], abs=0.005)


JOINT = (
    "end_to_end.joint={backbone: test_convnext, epochs: 2, batch_size: 3, hidden: 8, dropout: 0, head: sdl_lrnn,"
    " cell: conv, learning_rate: 0.02, cutmix: 1, precision: fp32, early_stopping: {metric: log_loss, share: 0.4}}"
)


@pytest.mark.slow
def test_two_processes_leave_the_end_to_end_fold_of_one(house):
    words = ("end_to_end", "--fold", "0", "--force", "--set", JOINT)
    alone(house, *words)
    one = fold_of(house, "joint")
    launch(house, *words)
    several = fold_of(house, "joint")
    assert_same_rows(one, several)
    for split in ("valid", "test"):
        assert one.logits(split).std(axis=0).min() > 1e-3
        np.testing.assert_allclose(several.logits(split), one.logits(split), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_other_commands_are_the_first_process_s_alone(house):
    assert launch(house, "status").count("cnn/resnet/fold0 ") == 1
    launch(house, "smooth", "--force")
    process = begin(house, "cnn", "--model", "none")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1
    assert own_lines(err) == ["error: --model none: this recipe has resnet, resnext"], out + err


# ---- their end


@pytest.fixture(scope="module")
def uninterrupted(finished, tmp_path_factory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("uninterrupted")
    subprocess.run(["cp", "-a", f"{finished.root}/.", str(root)], check=True)
    launch(House(root), "cnn", *FOLD, "--force", *changes(EXACT))
    return fold_of(House(root)).bytes


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_is_killed_ends_the_other_and_the_next_call_goes_on(house, uninterrupted, number):
    words = ("cnn", *FOLD, "--force", *changes(EXACT))
    process = begin(house, *words, fault=f"{number} 5 kill")  # in the second epoch
    out, err = process.communicate(timeout=600)
    assert process.returncode != 0
    assert gone(house)
    assert [line for line in own_lines(err) if "what was finished is kept" not in line] == [], out + err
    assert len(own_lines(err)) == 1, out + err
    assert (house.root / "oof/tiny/resnet/fold0/checkpoint.bin").is_file()
    said = launch(house, *words)
    assert "epoch 1 of 2" not in said
    assert fold_of(house).bytes == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "says"),
    [("1 2 nan", "error: resnet fold 0: the loss is nan at epoch 0, step 1: lower"), ("1 2 error", "a fault")],
)
def test_an_error_of_one_process_ends_both_and_is_said_once(house, fault, says):
    process = begin(house, "cnn", *FOLD, "--force", fault=fault)
    out, err = process.communicate(timeout=600)
    assert process.returncode != 0
    assert gone(house)
    assert err.count(says) == 1 + err.count(f'"{says}"'), out + err  # the second in the source line of a traceback
    assert len(own_lines(err)) == says.startswith("error: ")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_launch_leaves_no_process(house, number):
    process = begin(house, "cnn", *FOLD, "--force", fault="1 2 wait")
    assert process.stderr is not None
    said = iter(process.stderr)
    assert "waiting\n" in said
    process.send_signal(number)
    assert gone(house)
    err = process.stderr.read()
    assert err.count("interrupted; what was finished is kept") == (number != signal.SIGKILL)

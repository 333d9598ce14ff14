"""Worker processes end with their parent; an interruption ends all processes without a traceback."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ich.errors import UserError
from ich.processes import run_parallel

SOON = 10  # seconds; two on an idle machine
SLEEPS = "time.sleep(60)"
STUCK = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # never returns to Python


def square(x: int) -> int:
    return x * x


def killed(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(name: str) -> None:
    raise UserError(f"{name} is refused")


def blocked(_: int) -> set[signal.Signals]:
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize(("jobs", "ordered"), [(1, True), (2, True), (2, False)])
def test_results_of_all_tasks(jobs, ordered):
    results = list(run_parallel(square, ((x,) for x in range(20)), jobs, ordered=ordered))
    assert (results if ordered else sorted(results)) == [x * x for x in range(20)]


def test_a_killed_worker_is_an_error_with_advice():
    with pytest.raises(UserError, match=r"one of 2 processes was killed.*rerun slowly$"):
        list(run_parallel(killed, ((x,) for x in range(2)), 2, advice="slowly"))
    assert list(run_parallel(square, [(3,), (4,)], 2)) == [9, 16], "the next call has fresh workers"


@pytest.mark.parametrize("jobs", [1, 2])
def test_errors_of_a_task_are_raised(jobs):
    with pytest.raises(UserError, match=r"^b is refused$"):
        list(run_parallel(refuse, [("b",), ("b",)], jobs))


def gpu(wait: float) -> str:
    time.sleep(wait)  # so that each worker takes a task
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_each_worker_has_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert sorted(run_parallel(gpu, [(0.5,), (0.5,)], 2, gpus=["GPU-a", "GPU-b"])) == ["GPU-a", "GPU-b"]


def test_ctrl_c_is_blocked_in_workers_only():
    assert all(signal.SIGINT in mask for mask in run_parallel(blocked, [(0,), (1,)], 2))
    assert signal.SIGINT not in blocked(0)


BUSY = """
import hashlib, os, time
from ich.processes import interruptible, run_parallel
def work(_):
    os.write(1, b"working\\n")
    {work}
if __name__ == "__main__":
    with interruptible("that was all"):
        try:
            list(run_parallel(work, [(0,), (1,)], {jobs}))
        finally:
            print("tidied up", flush=True)
"""


@contextmanager
def program(tmp_path: Path, text: str) -> Iterator[subprocess.Popen[str]]:
    """A running program in a session of its own."""
    path = tmp_path / "program.py"
    path.write_text(text)
    process = subprocess.Popen(
        [sys.executable, str(path)], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    try:
        yield process
    finally:
        if running(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def running(session: int) -> int:
    """Number of running processes of a session."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, its_session, *_ = path.read_text().rpartition(")")[2].split()
            found += int(its_session) == session and state != "Z"
    return found


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code and output of the process after it and all its children have ended."""
    deadline = time.monotonic() + SOON
    while running(process.pid):
        assert time.monotonic() < deadline, "a process is still running"
        process.poll()
        time.sleep(0.02)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.mark.parametrize(("jobs", "number"), [(1, signal.SIGINT), (2, signal.SIGINT), (2, signal.SIGTERM)])
def test_an_interruption_ends_everything_without_a_traceback(tmp_path, jobs, number):
    with program(tmp_path, BUSY.format(work=SLEEPS, jobs=jobs)) as process:
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        code, out, err = end_of(process)
    assert code == 128 + number
    assert err == "\nthat was all\n"
    assert out.endswith("tidied up\n")


@pytest.mark.parametrize(("work", "listening"), [(STUCK, True), (STUCK, False), (SLEEPS, False)])
def test_stuck_calls_and_a_closed_stderr_do_not_prevent_the_end(tmp_path, work, listening):
    with program(tmp_path, BUSY.format(work=work, jobs=1)) as process:
        if not listening:
            assert process.stderr is not None
            process.stderr.close()
            process.stderr = None
        time.sleep(0.5)  # until the call has begun
        process.send_signal(signal.SIGINT)
        code, out, err = end_of(process)
    assert code == 130
    assert (err or "") == ("\nthat was all\n" if listening else "")
    assert out == ("" if work == STUCK else "tidied up\n")


def test_workers_of_a_killed_process_end(tmp_path):
    with program(tmp_path, BUSY.format(work=SLEEPS, jobs=2)) as process:
        process.kill()
        code, _, err = end_of(process)
    assert (code, err) == (-signal.SIGKILL, "")


STOPPED = """
import os, signal
from ich.processes import interruptible, run_parallel
def work(_):
    return os.getpid()
if __name__ == "__main__":
    with interruptible("that was all"):
        workers = list(run_parallel(work, [(0,), (1,)], 2))
        os.kill(workers[0], signal.SIGSTOP)
        os.write(1, b"working\\n")
"""


def test_a_worker_that_does_not_exit_does_not_delay_the_end(tmp_path):
    with program(tmp_path, STOPPED) as process:
        assert end_of(process) == (0, "", "")


LOADER = """
import os, time
import torch
from ich.data.batches import Batches, epoch_loader
from ich.processes import interruptible
class Slow(Batches):
    seed = 0
    def __len__(self): return 4
    def __getitems__(self, items):
        time.sleep({seconds})
        return (torch.zeros(1),)
with interruptible("that was all"):
    batches = iter(epoch_loader(Slow(), 0, 1, shuffle=False, workers=2))
    os.write(1, b"working\\n")
    print(len(list(batches)), "batches", flush=True)
    time.sleep(2.5)
    print("survived", flush=True)
"""


@pytest.mark.parametrize(
    ("seconds", "ending"), [(0, (0, "4 batches\nsurvived\n", "")), (60, (130, "", "\nthat was all\n"))]
)
def test_loader_processes_end_with_an_interruption_and_do_not_cause_one(tmp_path, seconds, ending):
    with program(tmp_path, LOADER.format(seconds=seconds)) as process:
        if seconds:
            time.sleep(0.5)  # until they have begun
            os.killpg(process.pid, signal.SIGINT)
        assert end_of(process) == ending

"""Fresh processes that end with their parent, and an interruption that ends everything soon and without a traceback."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ich.errors import UserError
from ich.processes import side_by_side

SOON = 10  # seconds; what is promised is two, on a machine with nothing else to do


def square(x: int) -> int:
    return x * x


def killed(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(name: str) -> None:
    raise UserError(f"{name} is refused")


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_the_order_of_the_tasks(jobs):
    assert list(side_by_side(square, ((x,) for x in range(20)), jobs)) == [x * x for x in range(20)]


def test_unordered_results_are_all_there():
    assert sorted(side_by_side(square, ((x,) for x in range(20)), 2, ordered=False)) == [x * x for x in range(20)]


def test_a_killed_process_is_said_in_one_line():
    with pytest.raises(UserError, match=r"one of 2 processes was killed.*run the same again"):
        list(side_by_side(killed, ((x,) for x in range(2)), 2))
    assert list(side_by_side(square, [(3,), (4,)], 2)) == [9, 16], "the next call has fresh processes"


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_a_task_refuses_arrives_as_it_is(jobs):
    with pytest.raises(UserError, match=r"^b is refused$"):
        list(side_by_side(refuse, [("b",), ("b",)], jobs))


BUSY = """
import hashlib, os, time
from ich.processes import interruptible, side_by_side
def work(_):
    os.write(1, b"working\\n")
    {work}
if __name__ == "__main__":
    with interruptible("that was all"):
        try:
            list(side_by_side(work, [(0,), (1,)], {jobs}))
        finally:
            print("tidied up", flush=True)
"""


@contextmanager
def program(tmp_path: Path, text: str) -> Iterator[subprocess.Popen[str]]:
    """The program at work, in a session of its own."""
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
        if of_session(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def of_session(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split() if folder.name.isdigit() else None
        except OSError:
            continue
        if fields and int(fields[3]) == session and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def ends(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code and output of the process once it and all that it started are gone."""
    deadline = time.monotonic() + SOON
    while of_session(process.pid) and time.monotonic() < deadline:
        process.poll()
        time.sleep(0.02)
    assert not of_session(process.pid), "something goes on"
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_everything_without_a_traceback(tmp_path, jobs, number):
    with program(tmp_path, BUSY.format(work="time.sleep(60)", jobs=jobs)) as process:
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        code, out, err = ends(process)
    assert code == 128 + number
    assert err == "\nthat was all\n"
    assert out.endswith("tidied up\n")


def test_a_call_that_never_returns_to_python_is_ended_too(tmp_path):
    with program(tmp_path, BUSY.format(work="hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)", jobs=1)) as process:
        time.sleep(0.5)  # until the call has begun
        process.send_signal(signal.SIGINT)
        code, out, err = ends(process)
    assert (code, out, err) == (130, "", "\nthat was all\n")


LOADER = """
import os, time
import torch
from ich.data.batches import Batches, EpochBatches, loader
from ich.processes import interruptible
class Slow(Batches):
    seed = 0
    def __len__(self): return 4
    def __getitems__(self, items):
        time.sleep({seconds})
        return (torch.zeros(1),)
with interruptible("that was all"):
    batches = iter(loader(Slow(), EpochBatches(4, 1, 0, 0, shuffle=False, drop_last=False), 2))
    os.write(1, b"working\\n")
    print(len(list(batches)), "batches", flush=True)
    time.sleep(2.5)
    print("survived", flush=True)
"""


def test_processes_that_load_batches_and_end_are_no_interruption(tmp_path):
    with program(tmp_path, LOADER.format(seconds=0)) as process:
        assert ends(process) == (0, "4 batches\nsurvived\n", "")


def test_processes_that_load_batches_end_with_the_interrupted_one_and_say_nothing(tmp_path):
    with program(tmp_path, LOADER.format(seconds=60)) as process:
        time.sleep(0.5)  # until they have begun
        os.killpg(process.pid, signal.SIGINT)
        assert ends(process) == (130, "", "\nthat was all\n")


@pytest.mark.parametrize("work", ["time.sleep(60)", "hashlib.pbkdf2_hmac('sha256', b'', b'', 6 * 10**6)"])
def test_the_exit_code_tells_of_the_interruption_even_if_nobody_listens_any_more(tmp_path, work):
    with program(tmp_path, BUSY.format(work=work, jobs=1)) as process:
        assert process.stderr is not None
        process.stderr.close()
        process.stderr = None
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert ends(process)[0] == 130


def test_children_of_a_killed_process_end(tmp_path):
    with program(tmp_path, BUSY.format(work="time.sleep(60)", jobs=2)) as process:
        process.kill()
        code, _, err = ends(process)
    assert (code, err) == (-signal.SIGKILL, "")

"""Locks: one owner at a time, whose name tells who works, and who was killed at it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ich.errors import UserError
from ich.processes import Interrupted
from ich.store.locks import held, hold, owner


def no_wait(who: str) -> None:
    pytest.fail(f"had to wait for {who}")


HOLDER = """
import sys, time
from pathlib import Path
from ich.store.locks import hold
with hold(Path(sys.argv[1]), on_wait=print):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until it is sent a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_names_its_owner_while_it_is_held_and_nobody_afterwards(tmp_path):
    path = tmp_path / ".locks" / "a.lock"
    with hold(path, on_wait=no_wait):
        assert f"process {os.getpid()} on " in (owner(path) or "")
        assert held(path)
    assert owner(path) is None
    assert not held(path)


def test_who_finds_it_held_is_told_by_whom_and_waits(tmp_path):
    path, told = tmp_path / "a.lock", []
    with holder(path) as process:

        def let_go(who: str) -> None:
            told.append(who)
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

        with hold(path, on_wait=let_go):
            assert f"process {os.getpid()} " in (owner(path) or "")
    assert len(told) == 1
    assert told[0].startswith(f"process {process.pid} on ")


def test_who_does_not_want_to_wait_leaves_the_owner_as_it_is(tmp_path):
    path = tmp_path / "a.lock"

    def leave(who: str) -> None:
        raise UserError(who)

    with holder(path) as process:
        with pytest.raises(UserError, match=f"process {process.pid}"), hold(path, on_wait=leave):
            pytest.fail("two hold it")
        assert f"process {process.pid} " in (owner(path) or "")
        process.communicate("\n")


def test_a_killed_owner_blocks_nobody_and_is_remembered(tmp_path):
    path = tmp_path / "a.lock"
    with holder(path) as process:
        process.send_signal(signal.SIGKILL)
    assert not held(path)
    assert f"process {process.pid} " in (owner(path) or "")
    with hold(path, on_wait=no_wait):
        pass
    assert owner(path) is None


def test_work_that_ended_with_an_error_was_not_killed_but_interrupted_work_was_cut_short(tmp_path):
    path = tmp_path / "a.lock"
    with pytest.raises(RuntimeError), hold(path, on_wait=no_wait):
        raise RuntimeError
    assert owner(path) is None
    with pytest.raises(Interrupted), hold(path, on_wait=no_wait):
        raise Interrupted(signal.SIGINT)
    assert owner(path) is not None
    assert not held(path)


def test_a_folder_in_which_no_lock_can_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"file/a\.lock: .*; what was finished is kept"),
        hold(tmp_path / "file" / "a.lock", on_wait=no_wait),
    ):
        pass
    assert not held(tmp_path / "file" / "a.lock")
    assert owner(tmp_path / "file" / "a.lock") is None

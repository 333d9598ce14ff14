"""Locks: one owner at a time, and the lock file names it, also after a kill."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ich.errors import UserError
from ich.processes import Interrupted
from ich.store.locks import held, hold, owner

HOLDER = """
import sys
from pathlib import Path
from ich.store.locks import hold
with hold(Path(sys.argv[1]), on_wait=print):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it reads a line."""
    words = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_second_process_waits_or_gives_up(tmp_path):
    path = tmp_path / "a.lock"

    def give_up(who: str) -> None:
        raise UserError(who)

    def let_go(who: str) -> None:
        assert who.startswith(f"process {process.pid} on ")
        process.communicate("\n")

    with holder(path) as process:
        with pytest.raises(UserError, match=f"process {process.pid} on "), hold(path, on_wait=give_up):
            pytest.fail("two hold it")
        assert f"process {process.pid} on " in (owner(path) or ""), "the owner stays"
        with hold(path, on_wait=let_go):
            assert process.returncode == 0
            assert held(path)
            assert f"process {os.getpid()} on " in (owner(path) or "")
    assert (owner(path), held(path)) == (None, False)


def test_a_killed_owner_does_not_block_and_is_remembered(tmp_path):
    path = tmp_path / "a.lock"
    with holder(path) as process:
        process.send_signal(signal.SIGKILL)
    assert not held(path)
    assert f"process {process.pid} " in (owner(path) or "")
    with hold(path, on_wait=pytest.fail):
        pass
    assert owner(path) is None


@pytest.mark.parametrize(("error", "remembered"), [(RuntimeError(), False), (Interrupted(signal.SIGINT), True)])
def test_an_interruption_is_remembered_but_an_error_is_not(tmp_path, error, remembered):
    path = tmp_path / "a.lock"
    with pytest.raises(type(error)), hold(path, on_wait=pytest.fail):
        raise error
    assert (owner(path) is not None) == remembered
    assert not held(path)


def test_a_lock_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "a.lock"
    with (
        pytest.raises(UserError, match=r"a\.lock: .*\. Move the file away .* is kept"),
        hold(path, on_wait=pytest.fail),
    ):
        pass
    assert (owner(path), held(path)) == (None, False)

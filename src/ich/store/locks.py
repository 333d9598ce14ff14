"""One process makes a thing at a time; who makes it, or was killed while at it, stands in the lock file.

The lock is the operating system's and dies with its owner, whose name stays in the file until the work has ended.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ich.errors import refused

LOOK = 0.5  # seconds; who but looks whether a lock is held has it for an instant


@contextmanager
def hold(path: Path, *, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock `path` in this block, alone. `on_wait(owner)` is called where it has to be waited for.

    An error that leaves the block ends the work; after a kill or an interruption `owner` goes on telling.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOOK)
    except Timeout:
        on_wait(owner(path) or "another process")
        lock.acquire()
    except OSError as error:
        raise refused(path, error) from error
    try:
        _write(path, f"process {os.getpid()} on {os.uname().nodename}, begun {time.strftime('%Y-%m-%d %H:%M:%S')}")
        try:
            yield
        except Exception:
            _write(path, "")
            raise
        _write(path, "")
    finally:
        lock.release()


def held(path: Path) -> bool:
    """Whether a process holds the lock right now."""
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # in a folder that may not be written nobody works
        return False


def owner(path: Path) -> str | None:
    """Who holds the lock; or, where nobody does, who held it and was killed. None where the work has ended."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") or None
    except OSError:
        return None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise refused(path, error) from error

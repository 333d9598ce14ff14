"""Locks: one process at a time makes an artifact.

The operating system releases the lock when its process ends. The lock file names the process until it has succeeded
or failed, so a killed process can be reported.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ich.errors import refused

PATIENCE = 0.5  # seconds; `held` takes a lock for an instant


@contextmanager
def hold(path: Path, *, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock `path` during the block. If another process holds it, call `on_wait(owner)`, then wait."""
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE)
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
    """Return whether a process holds the lock now."""
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # no process can work in a read-only folder
        return False


def owner(path: Path) -> str | None:
    """Return the process that holds the lock, or was killed while it held it, or None."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") or None
    except OSError:
        return None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise refused(path, error) from error

"""Atomic files and folders: a reader sees the old content or the new one, never a part."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ich.errors import refused


def _fsync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it is fsynced and renamed, on failure removed.

    A reader sees the old file or the new one, never a part; so does the disk after a crash. Raises UserError where the
    system refuses: the disk is full, the folder read-only.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _fsync(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        _fsync(path.parent)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends well; all in it is fsynced.

    Raises UserError as `atomic` does.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        temporary.chmod(0o755)
        yield temporary
        _take_place(temporary, path)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)


def part_of(path: Path) -> Path:
    """Where `lasting_folder` makes a folder."""
    return path.with_name(f".{path.name}.begun.part")


@contextmanager
def lasting_folder(path: Path, progress: str, *, anew: bool = False) -> Iterator[Path]:
    """As `atomic_folder`, but what was made before a failure or a kill is there again in the next call.

    progress: name of the file by which the block knows what is there; a folder without it is not kept. The file goes
    along to `path`, for who writes the record to remove it last: a folder that still has it, and no record, was killed
    just before its end and is made again from there. anew: leave what is there. Only for who holds the record's lock.
    """
    part = part_of(path)
    try:
        if anew and part.exists():
            shutil.rmtree(part)
        elif (path / progress).is_file() and not (path / "run.json").is_file() and not part.exists():
            path.rename(part)
        part.mkdir(parents=True, exist_ok=True)
        yield part
        _take_place(part, path)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        if part.exists() and not (part / progress).exists():
            shutil.rmtree(part)


def _take_place(temporary: Path, path: Path) -> None:
    """Let a folder, on the disk with all that is in it, take the place of another."""
    for folder, _, names in os.walk(temporary):
        for name in names:
            _fsync(Path(folder, name))
        _fsync(Path(folder))
    old = temporary.with_suffix(".old")
    if path.exists():
        path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        old.rename(path)  # after a kill between the two `Record.sweep` puts it back
        raise
    _fsync(path.parent)
    if old.exists():
        shutil.rmtree(old)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def rendered(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_text(path, rendered(value))


def read_json(path: Path) -> Any:
    """The JSON value in `path`, or None where there is none or it is damaged (then it has to be made again)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None

"""Atomic files and folders: a reader gets the old content or the new one, never a part."""

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ich.errors import UserError, refused


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary file, which is fsynced and renamed to `path` if the block succeeds.

    Raises UserError for an OSError, such as a full disk or a read-only folder.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        fsync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        fsync(path.parent)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder, which replaces the folder `path` if the block succeeds. Raises as `atomic` does.

    A folder cannot replace another in one step. A kill between the two renames leaves the old one under a temporary
    name, and `Record.sweep` restores it.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in (*names, ""):
                fsync(Path(folder, name))
        old = temporary.with_suffix(".old")
        if path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            old.rename(path)
            raise
        fsync(path.parent)
        if old.exists():
            shutil.rmtree(old)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)


def require_writable(path: Path) -> None:
    """Raise UserError unless a file can be written at `path`, which is left as it is. For use before long work."""
    if path.is_dir():
        raise UserError(f"{path} is a folder. Give the path of a file in it")
    # Root would replace /dev/null by the file, and the link /dev/stdout.
    if (path.exists() and not path.is_file()) or os.path.realpath(path.parent) == "/dev":
        raise UserError(f"{path} is a device or a pipe. Give the path of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path}: a parent of this path is a file, not a folder. Give another path") from None
    except OSError as error:
        raise refused(path, error) from error


def _umask() -> int:
    """Return the umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def json_text(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_text(path, json_text(value))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write dictionaries with the same keys as rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_json(path: Path) -> Any:
    """Return the JSON value in `path`, or None if the file is missing or malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None

"""Errors that the user can fix, printed as one line without a traceback."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """An error that the user can fix; the message says how."""


ADVICE = {
    errno.ENOSPC: "Free disk space",
    errno.EDQUOT: "Free space within the quota",
    errno.EROFS: "Use a writable folder",
    errno.EACCES: "Check the permissions",
    errno.EPERM: "Check the permissions",
    errno.EISDIR: "Move this folder away",
    errno.EEXIST: "Move the file away that is a parent of this path",
    errno.ENOTDIR: "Move the file away that is a parent of this path",
    errno.EMFILE: "Allow more open files (ulimit -n 4096)",
    errno.ENFILE: "Close other programs to free file handles",
}


def refused(path: object, error: OSError) -> UserError:
    """Return the error of a failed read or write of `path`, with the reason and a remedy."""
    reason = error.strerror or str(error)
    remedy = f"{ADVICE[error.errno]}, then rerun" if error.errno in ADVICE else "Rerun"
    return UserError(f"{path}: {reason}. {remedy} the same command; finished work is kept")


@contextmanager
def parsing(path: Path | str, remedy: str = "delete it and rerun the stage that wrote it") -> Iterator[None]:
    """Raise UserError with the remedy if the block, which reads and parses `path`, fails because of its content."""
    try:
        yield
    except (UserError, OSError, MemoryError):  # these have messages of their own
        raise
    except Exception as error:  # errors of pyarrow, safetensors, torch and LightGBM have no common base
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is malformed ({why}); {remedy}") from None

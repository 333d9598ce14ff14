"""Errors that the user can fix: printed as one line, without a traceback."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """What the user can mend: shown as one line, without a traceback."""


ADVICE = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room within the quota",
    errno.EROFS: "work in a folder that may be written",
    errno.EACCES: "see to whom it belongs",
    errno.EPERM: "see to whom it belongs",
    errno.EMFILE: "allow more open files (ulimit -n 4096)",
    errno.ENFILE: "close other programs, for the machine has no file handle left",
}


def refused(path: object, error: OSError) -> UserError:
    """What to say where the system refused to read or write `path`: the reason, and what to do."""
    reason = error.strerror or str(error)
    advice = f"; {ADVICE[error.errno]}" if error.errno in ADVICE else ""
    return UserError(f"{path}: {reason}{advice}; what was finished is kept: run the same again")


@contextmanager
def as_written(path: Path, remedy: str = "delete it and rerun the stage that wrote it") -> Iterator[None]:
    """A block that only reads `path` and parses it. Raises UserError with the remedy where the file is malformed."""
    try:
        yield
    except (UserError, OSError, MemoryError):  # they have a message of their own
        raise
    except Exception as error:  # errors of pyarrow, safetensors, torch and LightGBM have no common base
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is malformed ({why}); {remedy}") from None

"""Open input files: ordinary files of limited size only. A pipe would block, and a device has no end."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

MAX_TABLE = 1 << 28  # bytes; twice the labels of RSNA 2019


def regular(limit: int) -> Callable[[str, int], int]:
    """Return an `opener` for `open` that raises OSError for irregular files and those of more than `limit` bytes."""

    def opener(path: str, flags: int) -> int:
        descriptor = os.open(path, flags | os.O_NONBLOCK)
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_size <= limit:
            return descriptor
        os.close(descriptor)
        if stat.S_ISREG(status.st_mode):
            raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", path)
        raise OSError(errno.EINVAL, "not a regular file", path)

    return opener


def content(path: Path, limit: int) -> bytes:
    """Return the bytes of a file, up to its size when it is opened. Raises OSError as `regular` does."""
    with open(path, "rb", opener=regular(limit)) as file:
        return file.read(os.fstat(file.fileno()).st_size)

"""Hashes of files and JSON values."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


_HASHES: dict[tuple[str, int, int, int], str] = {}


def sha256_file(path: Path, on_read: Callable[[int], None] | None = None) -> str:
    """Hash of a file's content; a file that has not changed since this process last looked is not read again.

    With `on_read`, which is told how many bytes more were read, it is read in any case.
    """
    stat = path.stat()
    seen = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if on_read is not None or seen not in _HASHES:
        hasher = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                hasher.update(block)
                if on_read is not None:
                    on_read(len(block))
        _HASHES[seen] = hasher.hexdigest()
    return _HASHES[seen]


def digest(value: Any) -> str:
    """Hash of a JSON value, whatever the order of its keys."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())

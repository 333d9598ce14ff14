"""Hashes of files and JSON values."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

_HASHES: dict[tuple[str, int, int, int], str] = {}


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _key(path: Path) -> tuple[str, int, int, int]:
    stat = path.stat()
    return str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns


def sha256_file(path: Path, on_read: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file, cached until its size or modification time changes.

    With `on_read`, which is called with the size of each block in bytes, the cache is ignored.
    """
    key = _key(path)
    if on_read is not None or key not in _HASHES:
        hasher = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                hasher.update(block)
                if on_read is not None:
                    on_read(len(block))
        _HASHES[key] = hasher.hexdigest()
    return _HASHES[key]


def remember(path: Path, sha256: str) -> None:
    """Cache the hash of a file that another process has written and hashed."""
    _HASHES[_key(path)] = sha256


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def seed_of(seed: int, *names: object) -> int:
    """Return a 31-bit seed for a fold of a model, the same on every machine."""
    return int(digest([seed, *map(str, names)])[:8], 16) >> 1

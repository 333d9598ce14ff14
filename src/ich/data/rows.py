"""The rows of an .npy file of int16 pictures, while it is filled: space for them, moved up, cut off, checked."""

import io
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np


def _header(shape: tuple[int, ...]) -> bytes:
    """As long for few rows as for many: numpy leaves room for the digits."""
    file = io.BytesIO()
    kind = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int16)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, kind)
    return file.getvalue()


def reserve(target: Path, shape: tuple[int, ...]) -> None:
    """A file for `shape` with all its space on the disk: a hole would end the run with SIGBUS on a full disk.

    Rows that are there already stay as they are. Raises OSError where there is no such space.
    """
    header = _header(shape)
    size = len(header) + 2 * math.prod(shape)
    target.touch()
    with target.open("r+b") as file:
        file.write(header)
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise OSError(
                    error.errno, f"{os.strerror(error.errno or 0)} ({size / 1e9:.3g} GB are needed)"
                ) from None


def put(file: BinaryIO, first: int, pictures: np.ndarray) -> None:
    """Write pictures, int16 [n, size, size], to row `first` and those after it.

    By a call and not through a memory map: filling new pages one by one takes several times as long.
    """
    file.seek(len(_header((0, *pictures.shape[1:]))) + first * pictures[0].nbytes)
    file.write(pictures.data)


def move_up(target: Path, rows: np.ndarray, first: int) -> None:
    """Copy rows (ascending) to the place of row `first` and those after it, which is not behind them."""
    if len(rows) and rows[-1] != first + len(rows) - 1:
        pictures = np.lib.format.open_memmap(target, mode="r+")
        pictures[first : first + len(rows)] = pictures[rows]


def cut(target: Path, shape: tuple[int, ...]) -> None:
    """Leave the first rows alone, as many as `shape` says."""
    header = _header(shape)
    with target.open("r+b") as file:
        file.write(header)
        file.truncate(len(header) + 2 * math.prod(shape))


def keep(target: Path) -> None:
    """Have all that any process has written so far on the disk."""
    with target.open("rb") as file:
        os.fsync(file.fileno())


def checksums(target: Path, size: int, counts: Iterable[int]) -> Iterator[int]:
    """CRC-32 of the first `counts[0]` rows of size x size, of the next `counts[1]`, ...; 0 of none."""
    with target.open("rb") as file:
        file.seek(len(_header((0, size, size))))
        for count in counts:
            found = 0
            for _ in range(count):
                found = zlib.crc32(file.read(2 * size * size), found)
            yield found

"""Files below a folder and inside .zip archives: their names, their image ids, and where their bytes are.

A member of an archive is named `scans.zip!/a/1.dcm`. Nothing is unpacked under a name that an archive gives: a member's
bytes go to a temporary file with a name of our own, so that `../`, absolute names, NUL and links lead nowhere; such
members are not even listed.
"""

import os
import shutil
import stat
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO

from ich.data.refusal import Reason, Unreadable, exhausted

INSIDE = "!/"
SUFFIXES = (".dcm", ".dicom", ".ima", ".png")  # others belong to the name: 1.2.840.17 is a whole one
LARGEST = 1 << 30  # bytes of a member; a multi-frame CT of 2,000 slices is that large
FOLDED = 200  # a member that grows by more is no picture (an archive bomb)
BLOCK = 1 << 20
AHEAD, MOST_AHEAD = 16, 1 << 21  # files fetched ahead, and bytes of each: four slices of 512 x 512


class BadArchive(ValueError):
    """The archive, or a member of it, cannot be read; the text says why."""


def below(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    """The files below a folder whose name is `wanted`, as relative paths, sorted; each real folder is read once.

    Links are followed, also where they go round in a circle. Raises OSError for a folder that cannot be read and
    ValueError for a name that is no text (tables could not hold it).
    """

    def refuse(error: OSError) -> None:
        raise error

    found: list[str] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders.sort()
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder that was there already, or round in a circle
            folders.clear()
            continue
        seen.add(real)
        found += [Path(place, name).relative_to(folder).as_posix() for name in names if wanted(name)]
    for name in found:
        if any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in name):  # control characters, bytes that are no UTF-8
            raise ValueError(f"{folder}: the name {name!r} has characters that are no text; rename it")
    return sorted(found)


def image_ids(names: Sequence[str]) -> list[str]:
    """The name without .dcm; with its folders where two files share it, and in full where they share that too."""

    def bare(name: str) -> str:
        path = PurePosixPath(name)
        return path.with_suffix("").as_posix() if path.suffix.lower() in SUFFIXES else name

    ids = [PurePosixPath(bare(name)).name for name in names]
    for longer in (bare, str):
        count = Counter(ids)
        ids = [i if count[i] == 1 else longer(name) for i, name in zip(ids, names, strict=True)]
    return ids


def members(archive: Path) -> tuple[list[str], list[str]]:
    """The names of the files in an archive, sorted, and those refused, each with why. Raises BadArchive."""
    kept: set[str] = set()
    refused: list[str] = []
    for entry in _open(archive)[0].infolist():
        if entry.is_dir():
            continue
        name = _normal(entry.filename)
        why = _fault(entry) or ("its name is in the archive twice" if name in kept else "")
        if why:
            refused.append(f"{archive.name}: member {entry.orig_filename[:80]!r} is left out: {why}")
        else:
            kept.add(name)
    return sorted(kept), refused


@contextmanager
def located(path: Path) -> Iterator[Path]:
    """The file itself, or a temporary copy of it where `path` is `<archive>.zip!/<member>`. Raises Unreadable."""
    archive, inside, name = str(path).partition(INSIDE)
    if not inside or not archive.lower().endswith(".zip"):
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="ich-member-") as copy:
        try:
            _extract(Path(archive), name, copy)
        except BadArchive as error:
            raise Unreadable(Reason.UNREADABLE, str(error)) from None
        copy.flush()
        yield Path(copy.name)


def ahead(paths: Sequence[Path]) -> Iterator[Path]:
    """The paths, one by one, while the system already fetches the next AHEAD files from the disk.

    A disk that is asked for one file after the other may give them at a fifth of the rate. Where nothing can be fetched
    ahead, the paths come all the same.
    """
    for i in range(-AHEAD, len(paths)):
        if i + AHEAD < len(paths) and hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                _fetch(paths[i + AHEAD])
        if i >= 0:
            yield paths[i]


def _fetch(path: Path) -> None:
    if stat.S_ISREG(os.stat(path).st_mode):
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.posix_fadvise(file, 0, MOST_AHEAD, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)


def _extract(archive: Path, name: str, target: IO[bytes]) -> None:
    opened, entries = _open(archive)
    if name not in entries:
        raise BadArchive(f"{archive.name}: no member {name[:80]!r}")
    fault = _fault(entries[name])
    if fault:
        raise BadArchive(f"{archive.name}: member {name[:80]!r}: {fault}")
    try:
        with opened.open(entries[name]) as member:
            shutil.copyfileobj(member, target, BLOCK)  # zipfile itself stops at the size that the entry names
    except Exception as error:  # zipfile's errors, and those of zlib, bz2 and lzma, which have no common base
        if exhausted(error):
            raise
        raise BadArchive(f"{archive.name}: member {name[:80]!r} is damaged ({type(error).__name__})") from None


def _open(archive: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    try:
        stamp = archive.stat()
        return _opened(archive, stamp.st_size, stamp.st_mtime_ns)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        if exhausted(error):
            raise
        raise BadArchive(f"{archive}: not a whole .zip archive ({error}); copy it again") from None


@lru_cache(maxsize=4)
def _opened(archive: Path, _size: int, _changed: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    opened = zipfile.ZipFile(archive)
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in opened.infolist():
        entries.setdefault(_normal(entry.filename), entry)
    return opened, entries


def _normal(name: str) -> str:
    """As a path writes it: ./a//1.dcm is a/1.dcm."""
    return PurePosixPath(name).as_posix()


def _fault(entry: zipfile.ZipInfo) -> str:
    """Why an archive's member is not read, or nothing."""
    name = entry.orig_filename  # as the archive has it; zipfile cuts `filename` at a NUL
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not name or any(ord(c) < 32 for c in name) or ".." in parts or name[0] in "/\\" or name[1:2] == ":":
        return "its name leads out of the archive"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "it is a link"
    if entry.flag_bits & 1:
        return "it is encrypted"
    if entry.file_size > LARGEST or entry.file_size > FOLDED * max(entry.compress_size, 4096):
        return f"{entry.file_size} bytes from {entry.compress_size} are no picture"
    return ""

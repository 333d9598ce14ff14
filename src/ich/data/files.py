"""Files below a folder and members of .zip archives: names, image ids, and access to their bytes.

A member of an archive is named `scans.zip!/a/1.dcm`. Members are copied to temporary files with names of our own, so
that `../`, absolute names, NUL and links in an archive lead nowhere; such members are not even listed.
"""

import os
import re
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
SUFFIXES = (".dcm", ".dicom", ".ima", ".png")  # other suffixes are part of the name, as in 1.2.840.17
MAX_MEMBER = 1 << 30  # bytes; a multi-frame CT of 2,000 slices
MAX_RATIO = 200  # of compression; more is an archive bomb
AHEAD, MAX_AHEAD = 16, 1 << 21  # files to prefetch, and bytes of each: four slices of 512 x 512


BAD = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # controls, line ends, and what is not UTF-8


class BadArchive(ValueError):
    """An archive or one of its members cannot be read."""


def escaped(name: str) -> str:
    r"""The name; if it is not one line of UTF-8, with \xff for a byte or character, and \\\\ for a backslash."""
    if not BAD.search(name):
        return name
    return BAD.sub(lambda found: ascii(found[0])[1:-1], name.replace("\\", "\\\\"))


def below(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Relative paths, sorted, of the files below a folder whose name is `wanted`.

    Links are followed, but each real folder is read once, so that circular links end. Raises OSError for a folder
    that cannot be read and ValueError for a name with control characters or invalid UTF-8.
    """

    def fail(error: OSError) -> None:
        raise error

    found: list[str] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders.sort()
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [Path(place, name).relative_to(folder).as_posix() for name in names if wanted(name)]
    for name in found:
        if any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in name):
            raise ValueError(f"{folder}: the name {name!r} has invalid characters; rename the file")
    return sorted(found)


def image_ids(names: Sequence[str]) -> list[str]:
    """The name without suffix; with its folders where two files share it, and in full where they share that too."""

    def bare(name: str) -> str:
        path = PurePosixPath(name)
        return path.with_suffix("").as_posix() if path.suffix.lower() in SUFFIXES else name

    ids = [PurePosixPath(bare(name)).name for name in names]
    for longer in (bare, str):
        count = Counter(ids)
        ids = [i if count[i] == 1 else longer(name) for i, name in zip(ids, names, strict=True)]
    return ids


def members(archive: Path) -> tuple[list[str], list[str]]:
    """The names of the files in an archive, sorted, and a message for each refused one. Raises BadArchive."""
    kept: set[str] = set()
    refused: list[str] = []
    for entry in _open(archive)[0].infolist():
        if entry.is_dir():
            continue
        name = _normal(entry.filename)
        fault = _fault(entry) or ("its name is in the archive twice" if name in kept else "")
        if fault:
            refused.append(f"{archive.name}: member {entry.orig_filename[:80]!r} is ignored: {fault}")
        else:
            kept.add(name)
    return sorted(kept), refused


@contextmanager
def located(path: Path) -> Iterator[Path]:
    """The file itself, or a temporary copy of a member `<archive>.zip!/<member>`. Raises Unreadable."""
    archive, inside, name = str(path).partition(INSIDE)
    if not inside or not archive.lower().endswith(".zip"):
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="ich-member-") as copy:
        try:
            with _member(Path(archive), name) as member:
                shutil.copyfileobj(member, copy)  # zipfile stops at the size that the entry announces
        except BadArchive as error:
            raise Unreadable(Reason.UNREADABLE, str(error)) from None
        except Exception as error:  # errors of zipfile, zlib, bz2 and lzma have no common base
            if exhausted(error):
                raise
            detail = f"{Path(archive).name}: member {name[:80]!r} is damaged ({type(error).__name__})"
            raise Unreadable(Reason.UNREADABLE, detail) from None
        copy.flush()
        yield Path(copy.name)


def ahead(paths: Sequence[Path]) -> Iterator[Path]:
    """The paths, one by one, while the system prefetches the next AHEAD files from the disk.

    Some disks are five times as fast with several requests at once. Files that cannot be prefetched are skipped.
    """
    for i in range(-AHEAD, len(paths)):
        if i + AHEAD < len(paths) and hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                _prefetch(paths[i + AHEAD])
        if i >= 0:
            yield paths[i]


def _prefetch(path: Path) -> None:
    if stat.S_ISREG(os.stat(path).st_mode):
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.posix_fadvise(file, 0, MAX_AHEAD, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)


def _member(archive: Path, name: str) -> IO[bytes]:
    opened, entries = _open(archive)
    fault = _fault(entries[name]) if name in entries else "it does not exist"
    if fault:
        raise BadArchive(f"{archive.name}: member {name[:80]!r}: {fault}")
    return opened.open(entries[name])


def _open(archive: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """An archive and its first entry of each name. Raises BadArchive."""
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
    """The canonical form of a path: ./a//1.dcm is a/1.dcm."""
    return PurePosixPath(name).as_posix()


def _fault(entry: zipfile.ZipInfo) -> str:
    """Why a member is refused; empty if it is not."""
    name = entry.orig_filename  # `filename` ends at a NUL
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not name or any(ord(c) < 32 for c in name) or ".." in parts or name[0] in "/\\" or name[1:2] == ":":
        return "its name leads out of the archive"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "it is a link"
    if entry.flag_bits & 1:
        return "it is encrypted"
    if entry.file_size > MAX_MEMBER or entry.file_size > MAX_RATIO * max(entry.compress_size, 4096):
        return f"{entry.file_size} bytes, compressed to {entry.compress_size}, are too large"
    return ""

"""Files below a folder and members of .zip archives: names, image ids, and access to their bytes.

A member of an archive is named `scans.zip!/a/1.dcm`. Members are copied to temporary files with names of our own, so
that `../`, absolute names, NUL and links in an archive lead nowhere; such members are refused. Refused files are listed
under their escaped names: one line of UTF-8.
"""

import io
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from ich.data.refusal import Reason, Unreadable, exhausted
from ich.inputs import regular

INSIDE = "!/"
SUFFIXES = (".dcm", ".dicom", ".ima", ".png")  # other suffixes are part of the name, as in 1.2.840.17
MAX_MEMBER = 1 << 30  # bytes; a multi-frame CT of 2,000 slices
MAX_ARCHIVE = 1 << 42  # bytes
MAX_DIRECTORY = 1 << 24  # bytes of an archive's list of members: about 120,000 slices
MAX_RATIO = 200  # of compression; more is an archive bomb
BROKEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # controls, line ends, invalid UTF-8
AHEAD, MAX_AHEAD = 16, 1 << 21  # files to prefetch, and bytes of each: four slices of 512 x 512


class BadArchive(ValueError):
    """An archive or one of its members cannot be read."""


class Found(NamedTuple):
    """Relative paths of files, sorted; and of what is refused (escaped), with the reason."""

    names: list[str]
    refused: dict[str, str]


def escaped(name: str) -> str:
    r"""The name; if it is not one line of UTF-8, with escapes as in Python: \n, \udcff for the byte 255, \\ for \."""
    if not BROKEN.search(name):
        return name
    return BROKEN.sub(lambda found: ascii(found[0])[1:-1], name.replace("\\", "\\\\"))


def below(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> Found:
    """Find the files below a folder whose name is `wanted`. Subfolders that cannot be read are refused as `name/`.

    Links are followed, but each real folder is read once, so that circular links end. Raises OSError if `folder` itself
    cannot be read.
    """
    unread: dict[str, str] = {}

    def note(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise error
        unread[f"{escaped(os.path.relpath(error.filename, folder))}/"] = error.strerror or type(error).__name__

    names: list[str] = []
    seen: set[str] = set()
    for place, folders, inside in os.walk(folder, onerror=note, followlinks=True):
        folders.sort()
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        start = "" if place == os.fspath(folder) else f"{os.path.relpath(place, folder)}/"
        names += [start + name for name in inside if wanted(name)]
    found = checked(names)
    return Found(found.names, found.refused | unread)


def checked(names: Iterable[str]) -> Found:
    """Refuse the names that are not one line of UTF-8."""
    kept: list[str] = []
    refused: dict[str, str] = {}
    for name in names:
        if BROKEN.search(name):
            refused[escaped(name)] = "control characters or invalid UTF-8 in the name; rename it"
        else:
            kept.append(name)
    return Found(sorted(kept), refused)


def with_members(root: Path, found: Found, wanted: Callable[[str], bool] = lambda name: True) -> Found:
    """Replace each .zip archive by its members, and keep files and members whose name is `wanted`."""
    names = {name for name in found.names if wanted(_last(name))}
    refused = dict(found.refused)
    for archive in (name for name in found.names if name.lower().endswith(".zip")):
        names.discard(archive)
        try:
            inside = members(root / archive)
        except BadArchive as error:
            refused[archive] = str(error)
            continue
        there = {archive + INSIDE + name for name in inside.names if wanted(_last(name))}
        refused |= dict.fromkeys(names & there, "a file in a folder has the same name")
        refused |= {archive + INSIDE + name: why for name, why in inside.refused.items() if wanted(_last(name))}
        names |= there
    return Found(sorted(names), refused)


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def image_ids(names: Sequence[str]) -> list[str]:
    """The name without suffix; with its folders where two files share it, and in full where they share that too."""

    def bare(name: str) -> str:
        path = PurePosixPath(name)
        return path.with_suffix("").as_posix() if path.suffix.lower() in SUFFIXES else name

    ids = [PurePosixPath(bare(name)).name for name in names]
    for longer in (bare, str, str):  # twice: a full name may be the short one of another file
        count = Counter(ids)
        ids = [i if count[i] == 1 else longer(name) for i, name in zip(ids, names, strict=True)]
    return ids


def members(archive: Path) -> Found:
    """Find the files in an archive. Raises BadArchive."""
    kept: set[str] = set()
    refused: dict[str, str] = {}
    for entry in _open(archive)[0].infolist():
        if entry.filename.endswith("/"):
            continue
        name = _normal(entry.filename)
        if fault := _fault(entry) or ("its name is in the archive twice" if name in kept else ""):
            refused[escaped(entry.orig_filename)] = fault
        else:
            kept.add(name)
    return Found(sorted(kept), refused)


def member(path: Path) -> tuple[str, str] | None:
    """Return archive and name of a member `<archive>.zip!/<name>`; None for a file, also in a folder `<name>.zip!`."""
    archive, inside, name = str(path).rpartition(INSIDE)
    return (archive, name) if inside and archive.lower().endswith(".zip") and not os.path.lexists(path) else None


@contextmanager
def located(path: Path) -> Iterator[Path]:
    """The file itself, or a temporary copy of a member `<archive>.zip!/<member>`. Raises Unreadable."""
    found = member(path)
    if found is None:
        yield path
        return
    archive, name = found
    with tempfile.NamedTemporaryFile(prefix="ich-member-") as copy:
        try:
            with _member(Path(archive), name) as source:
                shutil.copyfileobj(source, copy)  # zipfile stops at the size that the entry announces
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
    except Exception as error:  # see `located`
        if exhausted(error):
            raise
        why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise BadArchive(f"{archive.name}: not a whole .zip archive ({why}); copy it again") from None


class _Archive(io.FileIO):
    """An archive. zipfile reads its list of members at once, and small parts of a member."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"a list of members of {size:,} bytes; unpack it")
        return super().read(size) or b""


@lru_cache(maxsize=4)
def _opened(archive: Path, _size: int, _changed: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    opened = zipfile.ZipFile(_Archive(archive, opener=regular(MAX_ARCHIVE)))
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
    if not name or ".." in parts or name[0] in "/\\" or name[1:2] == ":":
        return "its name leads out of the archive"
    if BROKEN.search(name) or INSIDE in name:
        return "control characters or !/ in its name"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "it is a link"
    if entry.flag_bits & 1:
        return "it is encrypted"
    if entry.file_size > MAX_MEMBER or entry.file_size > MAX_RATIO * max(entry.compress_size, 4096):
        return f"{entry.file_size} bytes, compressed to {entry.compress_size}, are too large"
    return ""

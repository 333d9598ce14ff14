"""Identity of raw files: size and a sample of the content. Copies with other modification times are the same.

Hashing the 460 GB of RSNA 2019 takes longer than preparing them. The samples of its 870,000 files are 10 GB, and are
read again only for files with another size or modification time.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from ich.store.hashes import sha256_bytes, sha256_file
from ich.store.records import read_hashed, write_hashed

BLOCK = 1 << 12  # bytes at the start (the ids of a DICOM file), in the middle (the brain) and at the end
LENGTH = 32  # hexadecimal digits of a sample
TABLES = (".csv", ".txt")  # read in full: a label may be corrected anywhere
THREADS, TOGETHER = 16, 256  # of a disk with latency; files per call
Stamp = tuple[int, int]  # size and modification time in ns
RawFiles = Mapping[str, Sequence[int | str]]  # size, modification time and sample by path


def listing(root: Path, without: tuple[str, ...] = ()) -> dict[str, Stamp]:
    """Return the stamp of every file below `root` by relative path, sorted.

    A subfolder that cannot be read is listed as `name/`. Raises OSError for `root` itself.
    """
    found: dict[str, Stamp] = {}
    folders, seen = [root], set()
    while folders:
        folder = folders.pop()
        if (real := folder.resolve()) in seen:  # links may be circular
            continue
        seen.add(real)
        try:
            entries = os.scandir(folder)
        except OSError:
            if folder == root:
                raise
            found[f"{os.path.relpath(folder, root)}/"] = (0, 0)
            continue
        with entries:
            for entry in entries:
                follow = not entry.is_symlink() or os.path.exists(entry.path)  # not a link to nothing or to itself
                if entry.is_dir(follow_symlinks=follow):
                    folders.append(Path(entry.path))
                elif entry.name not in without:
                    stat = entry.stat(follow_symlinks=follow and entry.is_file())
                    found[os.path.relpath(entry.path, root)] = (stat.st_size, stat.st_mtime_ns)
    return dict(sorted(found.items()))


def unknown(stamps: Mapping[str, Stamp], known: RawFiles) -> list[str]:
    """Return the files whose stamp differs from the known one, and those without a sample."""
    return [path for path, stamp in stamps.items() if (*known.get(path, ())[:2],) != stamp or not known[path][2]]


def samples(root: Path, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield path and sample: the hash of three blocks, or of a small file or a table as a whole.

    The sample of an unreadable file is empty.
    """
    parts = [paths[k : k + TOGETHER] for k in range(0, len(paths), TOGETHER)]
    with ThreadPoolExecutor(THREADS) as pool:
        yield from chain.from_iterable(pool.map(lambda part: [(path, _sample(root / path)) for path in part], parts))


def _sample(path: Path) -> str:
    try:
        if not path.is_file():  # a broken link, or a pipe, which would block
            return ""
        with path.open("rb") as file:
            size, blocks = file.seek(0, os.SEEK_END), b""
            if size <= 3 * BLOCK or path.suffix.lower() in TABLES:
                return sha256_file(path)[:LENGTH]
            for place in (0, size // 2, size - BLOCK):
                file.seek(place)
                blocks += file.read(BLOCK)
            return sha256_bytes(blocks)[:LENGTH]
    except OSError:  # the stage that reads it reports it
        return ""


def identity(files: RawFiles) -> dict[str, tuple[int | str, ...]]:
    """Return size and sample of each file."""
    return {path: (size, sample) for path, (size, _, sample) in files.items()}


def read_files(path: Path, root: str) -> RawFiles:
    """Return what `write_files` wrote for the same root; empty if it is missing or damaged."""
    return json.loads(read_hashed(path, root) or b"{}")


def write_files(path: Path, root: str, files: RawFiles) -> None:
    write_hashed(path, root, json.dumps(files).encode())

"""Where everything lies and how it is written: paths, atomic files, hashes, run records. Standard library only."""

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Files above this size are not read again to see whether they changed: size and modification time decide.
# (The Hounsfield cache of RSNA 2019 has 114 GB; every other artefact stays far below.)
TRUST_STAMP_ABOVE = 1 << 28
SEAL = "sha256"  # of a record, of itself


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
FULL = 1 << 20  # bytes free below which a write that failed without a reason failed for a full disk


def refused(path: object, error: OSError) -> UserError:
    """What to say where the system refused to read or write `path`: the reason, and what to do."""
    number, reason = error.errno, error.strerror or str(error)
    if (
        number is None and isinstance(path, Path) and shutil.disk_usage(path.parent).free < FULL
    ):  # numpy names no reason
        number, reason = errno.ENOSPC, os.strerror(errno.ENOSPC)
    advice = f"; {ADVICE[number]}" if number in ADVICE else ""
    return UserError(f"{path}: {reason}{advice}; what was finished is kept: run the same again")


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


_HASHES: dict[tuple[str, int, int, int], str] = {}


def sha256_file(path: Path) -> str:
    """Hash of a file's content; a file that has not changed since this process last looked is not read again."""
    stat = path.stat()
    seen = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if seen not in _HASHES:
        with path.open("rb") as file:
            _HASHES[seen] = hashlib.file_digest(file, "sha256").hexdigest()
    return _HASHES[seen]


def digest(value: Any) -> str:
    """Hash of a JSON value, whatever the order of its keys."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def _fsync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it is fsynced and renamed, on failure removed.

    A reader sees the old file or the new one, never a part; so does the disk after a crash. Raises UserError where the
    system refuses: the disk is full, the folder read-only.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _fsync(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        _fsync(path.parent)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends well; all in it is fsynced.

    Raises UserError as `atomic` does.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        temporary.chmod(0o755)
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _fsync(Path(folder, name))
            _fsync(Path(folder))
        old = temporary.with_suffix(".old")
        if path.exists():
            path.rename(old)  # a kill before the next line leaves it so: `Record.sweep` puts it back
        temporary.rename(path)
        _fsync(path.parent)
        if old.exists():
            shutil.rmtree(old)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)


def _remove(folder: Path, pattern: str) -> None:
    """Remove the temporary files and folders of that name."""
    for left in folder.glob(f"{pattern}.tmp"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _rendered(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_text(path, _rendered(value))


def read_json(path: Path) -> Any:
    """The JSON value in `path`, or None where there is none or it is damaged (then it has to be made again)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """As `write_json`, with the hash of all the rest as the last key."""
    plain = json.loads(_rendered(value))
    write_json(path, {**plain, SEAL: digest(plain)})


def read_record(path: Path) -> dict[str, Any] | None:
    """What `write_record` wrote, without the hash; None where there is none, or where a single bit has changed."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        rest = {key: part for key, part in value.items() if key != SEAL}
        return rest if text == _rendered({**rest, SEAL: digest(rest)}) else None
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError, RecursionError):
        return None


def write_sealed(path: Path, fingerprint: str, payload: bytes) -> None:
    """One file with its own hash and the fingerprint of what it belongs to: training checkpoints."""
    seal = json.dumps({"fingerprint": fingerprint, "sha256": sha256_bytes(payload)}).encode()
    with atomic(path) as temporary:
        temporary.write_bytes(seal + b"\n" + payload)


def read_sealed(path: Path, fingerprint: str) -> bytes | None:
    """The payload, or None where the file is missing, damaged or belongs to another fingerprint."""
    if not path.is_file():
        return None
    head, _, payload = path.read_bytes().partition(b"\n")
    try:
        seal = json.loads(head)
    except ValueError:
        return None
    whole = {"fingerprint": fingerprint, "sha256": sha256_bytes(payload)}
    return payload if seal == whole else None


def listing(root: Path, without: tuple[str, ...] = ()) -> dict[str, tuple[int, int]]:
    """Relative path -> (size, modification time in ns) of every file below `root`, sorted by path.

    Raw data is judged by this listing: hashing the 460 GB of RSNA 2019 would take longer than preparing them.
    """
    found: dict[str, tuple[int, int]] = {}
    folders, seen = [root], set()
    while folders:
        folder = folders.pop()
        if (real := folder.resolve()) in seen:  # a link round in a circle, or to a folder that was there already
            continue
        seen.add(real)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=True):
                    folders.append(Path(entry.path))
                elif entry.name not in without:
                    stat = entry.stat(follow_symlinks=entry.is_file())  # of a broken link, the link's own
                    found[os.path.relpath(entry.path, root)] = (stat.st_size, stat.st_mtime_ns)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Record:
    """A run record: what was made, from what, and the hashes of the files. It is written last."""

    path: Path

    @property
    def lock(self) -> Path:
        """The lock of what this record describes, beside it: recipes that share a cache share its lock."""
        if self.path.name == "run.json":  # of a whole folder, which may be replaced
            return self.path.parent.parent / ".locks" / f"{self.path.parent.name}.lock"
        return self.path.parent / ".locks" / f"{self.path.name.split('.')[0]}.lock"

    def sweep(self) -> None:
        """Remove what killed writers of this record and its files left; only for who holds the lock."""
        folder = self.path.parent
        if self.path.name == "run.json":
            name = f".{glob.escape(folder.name)}.*"
            for old in folder.parent.glob(f"{name}.old"):  # another folder was about to take its place
                shutil.rmtree(old) if folder.exists() else old.rename(folder)
            _remove(folder.parent, name)
            _remove(folder, ".*")
        else:
            _remove(folder, f".{self.path.name.split('.')[0]}.*")

    def read(self) -> dict[str, Any] | None:
        value = read_record(self.path)
        return value if value is not None and isinstance(value.get("files"), dict) else None

    def write(self, fingerprint: str, files: Mapping[str, Path], **more: Any) -> None:
        stats = {name: path.stat() for name, path in files.items()}
        write_record(
            self.path,
            {
                "fingerprint": fingerprint,
                "files": {name: sha256_file(path) for name, path in sorted(files.items())},
                "stamps": {
                    name: [stat.st_size, stat.st_mtime_ns]
                    for name, stat in sorted(stats.items())
                    if stat.st_size > TRUST_STAMP_ABOVE
                },
                **more,
            },
        )

    def damaged(self, record: Mapping[str, Any]) -> str | None:
        """The name of the first file that is not what the record says, or None."""
        for name, expected in record["files"].items():
            path = self.path.parent / name
            if not path.is_file():
                return f"{name} is missing"
            stat = path.stat()
            if record.get("stamps", {}).get(name) == [stat.st_size, stat.st_mtime_ns]:
                continue
            if sha256_file(path) != expected:
                return f"{name} was changed"
        return None


class Stopwatch:
    """Seconds and peak memory for a run record."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def measured(self) -> dict[str, float]:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"seconds": round(time.perf_counter() - self.started, 2), "peak_memory_mib": round(peak, 1)}


@dataclass(frozen=True)
class Workspace:
    """Paths of one recipe below `root`, the repository."""

    root: Path
    recipe: str

    @property
    def cache_root(self) -> Path:
        return self.root / "input" / "cache"

    @property
    def cache_pointer(self) -> Path:
        """Names the cache folder that this recipe's latest `ich prepare` made or found."""
        return self.cache_root / f"{self.recipe}.json"

    def cache(self, key: str) -> Path:
        return self.cache_root / key

    @property
    def folds(self) -> Path:
        return self.root / "folds" / f"{self.recipe}.csv"

    @property
    def oof(self) -> Path:
        return self.root / "oof" / self.recipe

    def member(self, name: str) -> Path:
        return self.oof / name

    def fold(self, member: str, fold: int) -> Path:
        return self.oof / member / f"fold{fold}"

    @property
    def thresholds(self) -> Path:
        return self.oof / "thresholds.json"

    @property
    def submissions(self) -> Path:
        return self.root / "submissions" / self.recipe

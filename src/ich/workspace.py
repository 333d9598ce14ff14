"""Where everything lies and how it is written: paths, atomic files, hashes, run records. Standard library only."""

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
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


def refused(path: object, error: OSError) -> UserError:
    """What to say where the system refused to read or write `path`: the reason, and what to do."""
    reason = error.strerror or str(error)
    advice = f"; {ADVICE[error.errno]}" if error.errno in ADVICE else ""
    return UserError(f"{path}: {reason}{advice}; what was finished is kept: run the same again")


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
        _take_place(temporary, path)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)


def part_of(path: Path) -> Path:
    """Where `lasting_folder` makes a folder."""
    return path.with_name(f".{path.name}.begun.part")


@contextmanager
def lasting_folder(path: Path, progress: str, *, anew: bool = False) -> Iterator[Path]:
    """As `atomic_folder`, but what was made before a failure or a kill is there again in the next call.

    progress: name of the file by which the block knows what is there; a folder without it is not kept. The file goes
    along to `path`, for who writes the record to remove it last: a folder that still has it, and no record, was killed
    just before its end and is made again from there. anew: leave what is there. Only for who holds the record's lock.
    """
    part = part_of(path)
    try:
        if anew and part.exists():
            shutil.rmtree(part)
        elif (path / progress).is_file() and not (path / "run.json").is_file() and not part.exists():
            path.rename(part)
        part.mkdir(parents=True, exist_ok=True)
        yield part
        _take_place(part, path)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        if part.exists() and not (part / progress).exists():
            shutil.rmtree(part)


def _take_place(temporary: Path, path: Path) -> None:
    """Let a folder, on the disk with all that is in it, take the place of another."""
    for folder, _, names in os.walk(temporary):
        for name in names:
            _fsync(Path(folder, name))
        _fsync(Path(folder))
    old = temporary.with_suffix(".old")
    if path.exists():
        path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        old.rename(path)  # after a kill between the two `Record.sweep` puts it back
        raise
    _fsync(path.parent)
    if old.exists():
        shutil.rmtree(old)


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
    also: tuple[str, ...] = ()
    """Names, without suffixes, of files beside a record that shares its folder with others', other than its own."""

    @property
    def lock(self) -> Path:
        """The lock of what this record describes, beside it: recipes that share a cache share its lock."""
        if self.path.name == "run.json":  # of a whole folder, which may be replaced
            return self.path.parent.parent / ".locks" / f"{self.path.parent.name}.lock"
        return self.path.parent / ".locks" / f"{self.path.name.split('.')[0]}.lock"

    def left(self) -> list[Path]:
        """Temporary files and folders of the writers of this record and its files; of killed ones, if nobody writes.

        The folder of `lasting_folder` is none: its name is that of the folder to be, and its content tells for itself.
        """
        folder = self.path.parent
        if self.path.name == "run.json":
            places = [(folder.parent, f".{glob.escape(folder.name)}."), (folder, "."), (part_of(folder), ".")]
        else:
            places = [(folder, f".{glob.escape(stem)}.") for stem in (self.path.name.split(".")[0], *self.also)]
        return [path for place, start in places for path in place.glob(f"{start}*") if path.suffix in (".tmp", ".old")]

    def sweep(self) -> None:
        """Remove what killed writers left; only for who holds the lock."""
        for path in self.left():
            if path.suffix == ".old" and not self.path.parent.exists():
                path.rename(self.path.parent)  # another folder was about to take its place
            else:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def read(self) -> dict[str, Any] | None:
        value = read_record(self.path)
        objects = ("files", "stamps", "settings", "inputs")
        whole = value is not None and "files" in value and all(isinstance(value.get(key, {}), dict) for key in objects)
        return value if whole else None

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
        """The name of the first file that is not what the record says, and what it is; or None."""
        for name in record["files"]:
            what = self.damage(record, name)
            if what is not None:
                return f"{name} {what}"
        return None

    def damage(self, record: Mapping[str, Any], name: str, on_read: Callable[[int], None] | None = None) -> str | None:
        """What is wrong with one file; None where it is what the record says. `on_read` as of `sha256_file`: with it
        the file's stamp is not trusted.
        """
        path = self.path.parent / name
        if not path.is_file():
            return "is missing"
        stat = path.stat()
        if on_read is None and record.get("stamps", {}).get(name) == [stat.st_size, stat.st_mtime_ns]:
            return None
        return None if sha256_file(path, on_read) == record["files"][name] else "was changed"


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
    def trackers(self) -> Path:
        return self.oof / "trackers"

    @property
    def thresholds(self) -> Path:
        return self.oof / "thresholds.json"

    @property
    def submissions(self) -> Path:
        return self.root / "submissions" / self.recipe

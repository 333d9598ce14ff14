"""Run records: what was made, from what, and the hash of every file. Written last."""

import glob
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ich.store.atomic import atomic, part_of, rendered, write_json
from ich.store.hashes import digest, sha256_bytes, sha256_file

# Files above this size are not read again to see whether they changed: size and modification time decide.
# (The Hounsfield cache of RSNA 2019 has 114 GB; every other artefact stays far below.)
TRUST_STAMP_ABOVE = 1 << 28

SEAL = "sha256"  # of a record, of itself


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """As `write_json`, with the hash of all the rest as the last key."""
    plain = json.loads(rendered(value))
    write_json(path, {**plain, SEAL: digest(plain)})


def read_record(path: Path) -> dict[str, Any] | None:
    """What `write_record` wrote, without the hash; None where there is none, or where a single bit has changed."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        rest = {key: part for key, part in value.items() if key != SEAL}
        return rest if text == rendered({**rest, SEAL: digest(rest)}) else None
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

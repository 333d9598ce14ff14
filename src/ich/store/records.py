"""Run records: what was made, from what, and the hash of every file. Written last."""

import glob
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ich.store.atomic import json_text, write_bytes, write_text
from ich.store.hashes import digest, sha256_bytes, sha256_file

# If the files of a record are larger together, unchanged sizes and modification times count as unchanged content:
# hashing the cache of RSNA 2019 (114 GB) takes minutes. Nearly all other artifacts are far smaller.
TRUST_STAMP_ABOVE = 1 << 28

SEAL = "sha256"  # the last key of a record: the hash of all others


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object and, as its last key, the hash of the others."""
    plain = json.loads(json_text(value))
    write_text(path, json_text({**plain, SEAL: digest(plain)}))


def read_record(path: Path) -> dict[str, Any] | None:
    """The object written by `write_record` without its hash, or None if it is missing or a bit of it has changed."""
    try:
        text = path.read_text(encoding="utf-8")
        plain = {key: value for key, value in json.loads(text).items() if key != SEAL}
        return plain if text == json_text({**plain, SEAL: digest(plain)}) else None
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError, RecursionError):
        return None


def write_sealed(path: Path, fingerprint: str, payload: bytes) -> None:
    """Write a file that holds its own hash and a fingerprint, as a training checkpoint does."""
    write_bytes(path, _seal(fingerprint, payload) + payload)


def read_sealed(path: Path, fingerprint: str) -> bytes | None:
    """The payload, or None if the file is missing, damaged or has another fingerprint."""
    if not path.is_file():
        return None
    head, newline, payload = path.read_bytes().partition(b"\n")
    return payload if head + newline == _seal(fingerprint, payload) else None


def _seal(fingerprint: str, payload: bytes) -> bytes:
    return json.dumps({"fingerprint": fingerprint, "sha256": sha256_bytes(payload)}).encode() + b"\n"


@dataclass(frozen=True)
class Record:
    """The run record of one artifact: a whole folder if it is called run.json, otherwise files next to the record."""

    path: Path
    also: tuple[str, ...] = ()
    """Stems of its files in a folder that several records share, other than the record's own stem."""

    @property
    def stem(self) -> str:
        return self.path.name.split(".")[0]

    @property
    def of_folder(self) -> bool:
        return self.path.name == "run.json"

    @property
    def lock(self) -> Path:
        """The lock of the artifact. That of a folder lies outside, since the folder may be replaced."""
        folder = self.path.parent
        if self.of_folder:
            return folder.parent / ".locks" / f"{folder.name}.lock"
        return folder / ".locks" / f"{self.stem}.lock"

    def leftovers(self) -> list[Path]:
        """Temporary files and folders of this artifact: those of killed processes, unless one is writing now."""
        folder = self.path.parent
        if self.of_folder:
            places = [(folder.parent, f".{glob.escape(folder.name)}."), (folder, ".")]
        else:
            places = [(folder, f".{glob.escape(stem)}.") for stem in (self.stem, *self.also)]
        return [path for place, start in places for path in place.glob(f"{start}*") if path.suffix in (".tmp", ".old")]

    def sweep(self) -> None:
        """Remove leftovers; restore a folder that was about to be replaced. Call it only with the lock held."""
        for path in self.leftovers():
            if path.suffix == ".old" and not self.path.parent.exists():
                path.rename(self.path.parent)
            else:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def read(self) -> dict[str, Any] | None:
        """The record, or None if it is missing, damaged or not of this form."""
        value = read_record(self.path)
        objects = ("files", "stamps", "settings", "inputs")
        fits = value is not None and "files" in value and all(isinstance(value.get(key, {}), dict) for key in objects)
        return value if fits else None

    def write(self, fingerprint: str, files: Mapping[str, Path], **more: Any) -> None:
        stats = {name: path.stat() for name, path in sorted(files.items())}
        large = sum(stat.st_size for stat in stats.values()) > TRUST_STAMP_ABOVE
        hashes = {name: sha256_file(files[name]) for name in stats}
        stamps = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items() if large}
        write_record(self.path, {"fingerprint": fingerprint, "files": hashes, "stamps": stamps, **more})

    def damaged(self, record: Mapping[str, Any]) -> str | None:
        """The first file that is missing or changed, with which of the two it is, or None."""
        return next((f"{name} {what}" for name in record["files"] if (what := self.damage(record, name))), None)

    def damage(self, record: Mapping[str, Any], name: str, on_read: Callable[[int], None] | None = None) -> str | None:
        """Whether a file is missing or changed, in words, or None. With `on_read` (see `sha256_file`) it is read."""
        path = self.path.parent / name
        if not path.is_file():
            return "is missing"
        stat = path.stat()
        if on_read is None and record.get("stamps", {}).get(name) == [stat.st_size, stat.st_mtime_ns]:
            return None
        return None if sha256_file(path, on_read) == record["files"][name] else "was changed"

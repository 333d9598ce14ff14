"""Run records: inputs, settings and file hashes of an artifact. Written last."""

import glob
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ich.store.atomic import fsync, json_text, write_bytes, write_text
from ich.store.hashes import digest, sha256_bytes, sha256_file

# Above this total size, files with unchanged sizes and modification times count as unchanged: hashing the cache of
# RSNA 2019 (114 GB) takes minutes.
TRUST_STAMP_ABOVE = 1 << 28

HASH = "sha256"  # the last key of a record: the hash of all others


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, with the hash of its keys as the last key."""
    write_text(path, record_text(value))


def record_text(value: Mapping[str, Any]) -> str:
    """Return the text of such a file."""
    plain = json.loads(json_text(value))
    return json_text({**plain, HASH: digest(plain)})


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the object that `write_record` wrote, or None if it is missing or damaged."""
    try:
        return record_value(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def record_value(data: bytes) -> dict[str, Any] | None:
    """Return the object in the content of such a file, or None if it is damaged."""
    try:
        plain = {key: value for key, value in json.loads(data).items() if key != HASH}
        return plain if data == json_text({**plain, HASH: digest(plain)}).encode() else None
    except (ValueError, AttributeError, RecursionError):
        return None


def write_hashed(path: Path, fingerprint: str, payload: bytes) -> None:
    """Write a file that starts with its own hash and a fingerprint, such as a training checkpoint."""
    write_bytes(path, hashed(fingerprint, payload))


def hashed(fingerprint: str, payload: bytes) -> bytes:
    """Return the content of such a file."""
    return json.dumps({"fingerprint": fingerprint, "sha256": sha256_bytes(payload)}).encode() + b"\n" + payload


def read_hashed(path: Path, fingerprint: str) -> bytes | None:
    """Return the payload, or None if the file is missing, damaged or has another fingerprint."""
    return payload_of(path.read_bytes(), fingerprint) if path.is_file() else None


def payload_of(data: bytes, fingerprint: str) -> bytes | None:
    """Return the payload in the content of such a file, or None if it is damaged or has another fingerprint."""
    payload = data.partition(b"\n")[2]
    return payload if data == hashed(fingerprint, payload) else None


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


@dataclass(frozen=True)
class Record:
    """Run record of one artifact: of its whole folder if it is named run.json, otherwise of files in that folder."""

    path: Path
    also: tuple[str, ...] = ()  # further stems of its files, in a folder that several records share
    staged: bool = False  # its files are written to `work`, and replace the old ones when all are complete

    @property
    def stem(self) -> str:
        return self.path.name.split(".")[0]

    @property
    def of_folder(self) -> bool:
        return self.path.name == "run.json"

    @property
    def lock(self) -> Path:
        """Lock of the artifact; outside of a folder, which may be replaced."""
        folder = self.path.parent
        if self.of_folder:
            return folder.parent / ".locks" / f"{folder.name}.lock"
        return folder / ".locks" / f"{self.stem}.lock"

    @property
    def work(self) -> Path:
        """Folder in which the files are written."""
        return self.path.parent / "unfinished" if self.staged else self.path.parent

    def leftovers(self) -> list[Path]:
        """Temporary files and folders of killed processes, or of one that is running."""
        folder = self.path.parent
        if self.of_folder:
            places = [
                (folder.parent, f".{glob.escape(folder.name)}."),
                *((place, ".") for place in {folder, self.work}),
            ]
        else:
            places = [(folder, f".{glob.escape(stem)}.") for stem in (self.stem, *self.also)]
        return [path for place, start in places for path in place.glob(f"{start}*") if path.suffix in (".tmp", ".old")]

    def sweep(self) -> None:
        """Remove leftovers and restore a folder that was being replaced. Requires the lock."""
        for path in self.leftovers():
            if path.suffix == ".old" and not self.path.parent.exists():
                path.rename(self.path.parent)
            else:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def publish(self) -> None:
        """Replace the old files by complete ones from `work`, the record last. Requires the lock.

        A call after a kill completes it.
        """
        record = Record(self.work / self.path.name).read() if self.staged else None
        if record is None:
            return
        folder = self.path.parent
        for path in self.work.iterdir():
            if path.name in record["files"]:
                path.replace(folder / path.name)
        fsync(folder)
        (self.work / self.path.name).replace(self.path)
        fsync(folder)
        self.discard()

    def discard(self) -> None:
        """Remove `work` of a killed process. Requires the lock."""
        if self.staged and self.work.exists():
            shutil.rmtree(self.work)

    def read(self) -> dict[str, Any] | None:
        """Return the record, or None if it is missing, damaged or malformed."""
        value = read_record(self.path)
        if value is None or "files" not in value:
            return None
        objects = ("files", "stamps", "settings", "inputs")
        return value if all(isinstance(value.get(key, {}), dict) for key in objects) else None

    def write(self, fingerprint: str, files: Mapping[str, Path], **more: Any) -> None:
        large = sum(path.stat().st_size for path in files.values()) > TRUST_STAMP_ABOVE
        hashes = {name: sha256_file(path) for name, path in sorted(files.items())}
        stamps = {name: _stamp(path) for name, path in sorted(files.items()) if large}
        record = {"fingerprint": fingerprint, "files": hashes, "stamps": stamps, **more}
        write_record(self.work / self.path.name, record)
        self.publish()

    def outdated_stamps(self, record: Mapping[str, Any]) -> bool:
        """Return whether large files have other modification times, as in a copy, and so are hashed at each use."""
        return any(stamp != _stamp(self.path.parent / name) for name, stamp in record.get("stamps", {}).items())

    def restamp(self) -> None:
        """Record the modification times of large files whose hashes have just been compared. Requires the lock."""
        record = self.read() or {}
        stamps = {name: _stamp(self.path.parent / name) for name in record["stamps"]}
        write_record(self.path, {**record, "stamps": stamps})

    def damaged(self, record: Mapping[str, Any]) -> str | None:
        """Return the first damaged file as `<name> is missing` or `<name> was changed`, or None."""
        return next((f"{name} {what}" for name in record["files"] if (what := self.damage(record, name))), None)

    def damage(self, record: Mapping[str, Any], name: str, on_read: Callable[[int], None] | None = None) -> str | None:
        """Return `is missing`, `was changed` or None. on_read: see `sha256_file`; the stamp is not trusted then."""
        path = self.path.parent / name
        if not path.is_file():
            return "is missing"
        if on_read is None and record.get("stamps", {}).get(name) == _stamp(path):
            return None
        return None if sha256_file(path, on_read) == record["files"][name] else "was changed"

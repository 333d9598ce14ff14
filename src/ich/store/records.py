"""Run records: inputs, settings and file hashes of an artifact. Written last."""

import glob
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ich.store.atomic import json_text, write_bytes, write_text
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
        text = path.read_text(encoding="utf-8")
        plain = {key: value for key, value in json.loads(text).items() if key != HASH}
        return plain if text == json_text({**plain, HASH: digest(plain)}) else None
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError, RecursionError):
        return None


def write_hashed(path: Path, fingerprint: str, payload: bytes) -> None:
    """Write a file that starts with its own hash and a fingerprint, such as a training checkpoint."""
    write_bytes(path, _header(fingerprint, payload) + payload)


def read_hashed(path: Path, fingerprint: str) -> bytes | None:
    """Return the payload, or None if the file is missing, damaged or has another fingerprint."""
    if not path.is_file():
        return None
    head, newline, payload = path.read_bytes().partition(b"\n")
    return payload if head + newline == _header(fingerprint, payload) else None


def _header(fingerprint: str, payload: bytes) -> bytes:
    return json.dumps({"fingerprint": fingerprint, "sha256": sha256_bytes(payload)}).encode() + b"\n"


@dataclass(frozen=True)
class Record:
    """Run record of one artifact: of its whole folder if it is named run.json, otherwise of files in that folder."""

    path: Path
    also: tuple[str, ...] = ()  # further stems of its files, in a folder that several records share

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

    def leftovers(self) -> list[Path]:
        """Temporary files and folders of killed processes, or of one that is running."""
        folder = self.path.parent
        if self.of_folder:
            places = [(folder.parent, f".{glob.escape(folder.name)}."), (folder, ".")]
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

    def read(self) -> dict[str, Any] | None:
        """Return the record, or None if it is missing, damaged or malformed."""
        value = read_record(self.path)
        if value is None or "files" not in value:
            return None
        objects = ("files", "stamps", "settings", "inputs")
        return value if all(isinstance(value.get(key, {}), dict) for key in objects) else None

    def write(self, fingerprint: str, files: Mapping[str, Path], **more: Any) -> None:
        stats = {name: path.stat() for name, path in sorted(files.items())}
        large = sum(stat.st_size for stat in stats.values()) > TRUST_STAMP_ABOVE
        hashes = {name: sha256_file(files[name]) for name in stats}
        stamps = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items() if large}
        write_record(self.path, {"fingerprint": fingerprint, "files": hashes, "stamps": stamps, **more})

    def damaged(self, record: Mapping[str, Any]) -> str | None:
        """Return the first damaged file as `<name> is missing` or `<name> was changed`, or None."""
        return next((f"{name} {what}" for name in record["files"] if (what := self.damage(record, name))), None)

    def damage(self, record: Mapping[str, Any], name: str, on_read: Callable[[int], None] | None = None) -> str | None:
        """Return `is missing`, `was changed` or None. on_read: see `sha256_file`; the stamp is not trusted then."""
        path = self.path.parent / name
        if not path.is_file():
            return "is missing"
        stat = path.stat()
        if on_read is None and record.get("stamps", {}).get(name) == [stat.st_size, stat.st_mtime_ns]:
            return None
        return None if sha256_file(path, on_read) == record["files"][name] else "was changed"

"""Object store of artifacts for machines without a shared folder, by fsspec: s3, gs, file and memory.

    objects/<first 2 digits>/<SHA-256>            content of files, by the hash that records hold
    records/<path of the record>/<fingerprint>.json
    latest/<path>                                 small files that change, such as pointers, with their hash

Objects are written before the record that names them, and read only if their hash is right. Every write is atomic, so
an interrupted push is never visible as finished. Two machines that make the same artifact write the same objects, so
there are no locks. Failed calls are repeated a few times.

fsspec is imported when a store is opened. Listings are not cached, so objects of other processes are seen at once.
Open a store in the process that uses it: s3fs has a thread that does not survive a fork.
"""

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ich.errors import UserError
from ich.store.atomic import atomic
from ich.store.failures import Damaged, Failed, Missing, Wrong, repeated, translated
from ich.store.hashes import remember, sha256_file
from ich.store.records import hashed, payload_of, record_text, record_value

THREADS = 8  # parallel transfers
TOGETHER = 1024  # files that wait for a thread
BLOCK = 1 << 24  # bytes per request; each thread holds two blocks at most
LISTED = 2000  # above this number of objects, sizes are read by listing: 1000 per request instead of one
HEX = re.compile(r"[0-9a-f]{64}")
PACKAGES = {"s3": ("s3fs", "cluster"), "gs": ("gcsfs", "")}  # of a protocol, and the extra that installs it
Item = TypeVar("Item")
Result = TypeVar("Result")
OnBytes = Callable[[int], None]
"""Called with the number of bytes since the last call; negative if a failed transfer begins again."""


class Remote:
    """A store at `url`, such as s3://bucket/prefix. Credentials are read from the environment by fsspec."""

    def __init__(self, url: str) -> None:
        """Raise UserError if the URL contains credentials or the package of its protocol is not installed."""
        import fsspec
        from fsspec.callbacks import Callback

        protocol, _, path = url.partition("://")
        if "@" in url or not path.strip("/"):
            raise UserError(
                "store.remote: give s3://bucket/prefix, gs://bucket/prefix or file:///folder, no credentials"
            )
        self.url = url.rstrip("/")
        self._lock = threading.Lock()
        self._local = protocol == "file"
        self._callback = Callback
        options = {"max_concurrency": 1, "default_block_size": BLOCK} if protocol == "s3" else {}
        try:
            self.fs: Any = fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False, **options)
        except ImportError:
            package, extra = PACKAGES[protocol]
            command = f"pip install 'ich[{extra}]'" if extra else f"pip install {package}"
            raise UserError(f"{self.url}: the package {package} is not installed. Run: {command}") from None
        if protocol == "s3":  # calls are repeated here, not by three layers
            self.fs.retries = 1
            self.fs.config_kwargs = {"retries": {"max_attempts": 0}, **self.fs.config_kwargs}
        self._root = self.fs._strip_protocol(self.url)

    # ---- records

    def read_record(self, record_name: str, fingerprint: str) -> dict[str, Any] | None:
        """Return the record of an artifact with this fingerprint, or None if it is missing or damaged.

        record_name: path of the record relative to the workspace, such as oof/demo/resnet/fold0/run.json.
        """
        with suppress(Damaged):
            return self._record(_record_path(record_name, fingerprint), fingerprint)
        return None

    def _record(self, name: str, fingerprint: str) -> dict[str, Any] | None:
        def attempt() -> dict[str, Any] | None:
            text = self._read(name)
            value = None if text is None else record_value(text)
            if text is not None and not _sound(value, fingerprint):
                raise Wrong("it is damaged")
            return value

        return self._repeated("read", name, attempt)

    def push(
        self, record_name: str, record: Mapping[str, Any], files: Mapping[str, Path], on_bytes: OnBytes | None = None
    ) -> None:
        """Write the files of an artifact that the store does not have, then its record.

        files: path of each file that the record names. Raises UserError if the store has a record of the same
        fingerprint with other files, or if a file does not have the recorded hash.
        """
        name, fingerprint = _record_path(record_name, record["fingerprint"]), record["fingerprint"]
        if not _sound(record, fingerprint):
            raise UserError(f"{record_name} is not a valid record. Run `ich status`")
        with suppress(Damaged):  # a damaged record will be replaced
            self._compare(name, record_name, record)
        self.push_files({files[file]: digest for file, digest in record["files"].items()}, on_bytes)

        def attempt() -> None:
            try:
                known = self._compare(name, record_name, record)
            except Damaged:
                self._write(name, record_text(record).encode())
            else:
                if not known:
                    self._write(name, record_text(record).encode(), create=True)

        self._repeated("write", name, attempt)

    def _compare(self, name: str, record_name: str, record: Mapping[str, Any]) -> bool:
        """Return whether the store has this record. Raises UserError if it has one with other files."""
        other = self._record(name, record["fingerprint"])
        if other is not None and other["files"] != record["files"]:
            both = {*other["files"], *record["files"]}
            unlike = sorted(file for file in both if other["files"].get(file) != record["files"].get(file))
            raise UserError(
                f"{self.url}/{name} and {record_name} have the same fingerprint, but other files: {', '.join(unlike)}."
                " Another kind of machine or version made one of them. Delete the record in the store, or pull it"
            )
        return other is not None

    # ---- files

    def push_files(self, files: Mapping[Path, str], on_bytes: OnBytes | None = None) -> None:
        """Write files by their SHA-256, except those that the store has in full."""
        paths = {digest: path for path, digest in files.items()}
        known = self.sizes(paths)

        def push(digest: str) -> None:
            path, progress = paths[digest], _Progress(on_bytes, self._lock)
            size = path.stat().st_size if path.is_file() else -1
            if known.get(digest) != size:
                self._push_file(path, digest, size, progress)
            progress.at(size)

        for _ in in_parallel(push, paths):
            pass

    def _push_file(self, path: Path, digest: str, size: int, progress: "_Progress") -> None:
        name = _object_path(digest)

        def attempt() -> None:
            progress.at(0)
            _require_content(path, digest)
            if self._local:
                self._save(_blocks_of(path), Path(self._path(name)), digest, progress)
                return
            callback = self._callback(hooks={"bytes": lambda _, value, **more: progress.at(value)})
            with translated():
                self.fs.put_file(str(path), self._path(name), callback=callback, chunksize=BLOCK)
            try:
                _require_content(path, digest)
            except UserError:  # it was changed during the transfer
                with translated():
                    self.fs.rm_file(self._path(name))
                raise
            if self._size(digest) != size:
                raise Wrong("it is incomplete")

        self._repeated("write", name, attempt)

    def pull(self, files: Mapping[Path, str], on_bytes: OnBytes | None = None) -> None:
        """Read files by their SHA-256, except those that are here with the same content.

        Each file appears under its path once its hash has been compared. Raises Damaged if the store has no such
        content.
        """
        paths: dict[str, list[Path]] = {}
        for path, digest in files.items():
            if not (path.is_file() and sha256_file(path) == digest):
                paths.setdefault(digest, []).append(path)
        known = self.sizes(paths)

        def pull(digest: str) -> None:
            for path in paths[digest]:
                self._pull_file(path, digest, known, _Progress(on_bytes, self._lock))

        for _ in in_parallel(pull, paths):
            pass

    def _pull_file(self, path: Path, digest: str, known: dict[str, int], progress: "_Progress") -> None:
        def attempt() -> None:
            progress.at(0)
            size = known.pop(digest, None)  # later attempts ask again: another process may replace a damaged object
            size = self._size(digest) if size is None else size
            if size is None:
                raise Wrong("it is missing")
            self._save(self._blocks(_object_path(digest), size), path, digest, progress)

        self._repeated("read", _object_path(digest), attempt)
        remember(path, digest)

    def _blocks(self, name: str, size: int) -> Iterator[bytes]:
        for start in range(0, size, BLOCK):
            with translated():
                block = self.fs.cat_file(self._path(name), start=start, end=min(size, start + BLOCK))
            yield block

    @staticmethod
    def _save(blocks: Iterable[bytes], path: Path, digest: str, progress: "_Progress") -> None:
        """Write a file that appears under its path if its hash is right."""
        hasher, done = sha256(), 0
        with atomic(path) as temporary:
            with temporary.open("wb") as file:
                for block in blocks:
                    hasher.update(block)
                    file.write(block)
                    progress.at(done := done + len(block))
            if hasher.hexdigest() != digest:
                raise Wrong("its content does not have this SHA-256")

    def sizes(self, digests: Iterable[str]) -> dict[str, int]:
        """Return the sizes of those objects that the store has, by SHA-256."""
        wanted = list(digests)
        if len(wanted) > LISTED:

            def listing() -> dict[str, int]:
                with translated():
                    found = self.fs.find(self._path("objects"), detail=True)
                return {PurePosixPath(path).name: entry["size"] for path, entry in found.items()}

            known = self._repeated("list", "objects", listing)
            return {digest: known[digest] for digest in wanted if digest in known}
        ask = lambda digest: self._repeated("read", _object_path(digest), lambda: self._size(digest))
        return {digest: size for digest, size in in_parallel(ask, wanted) if size is not None}

    def _size(self, digest: str) -> int | None:
        try:
            with translated():
                return self.fs.info(self._path(_object_path(digest)))["size"]
        except Missing:
            return None

    # ---- small files

    def write_latest(self, name: str, data: bytes) -> None:
        """Write a small file, replacing an earlier one."""
        path = f"latest/{_checked(name)}"
        self._repeated("write", path, lambda: self._write(path, hashed(name, data)))

    def read_latest(self, name: str) -> bytes | None:
        """Return the content of a small file, or None if there is none. Raises Damaged if its hash is wrong."""
        path = f"latest/{_checked(name)}"

        def attempt() -> bytes | None:
            data = self._read(path)
            payload = None if data is None else payload_of(data, name)
            if data is not None and payload is None:
                raise Wrong("it is damaged")
            return payload

        return self._repeated("read", path, attempt)

    def _read(self, name: str) -> bytes | None:
        try:
            with translated():
                return self.fs.cat_file(self._path(name))
        except Missing:
            return None

    def _write(self, name: str, data: bytes, *, create: bool = False) -> None:
        """Write a file. create: fail if there is one."""
        path = self._path(name)
        if not self._local:
            with translated():
                self.fs.pipe_file(path, data, mode="create" if create else "overwrite")
            return
        with atomic(Path(path)) as temporary:
            temporary.write_bytes(data)
            if create and os.path.exists(path):
                raise Failed("another process has written it")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _repeated(self, verb: str, name: str, call: Callable[[], Result]) -> Result:
        return repeated(self.url, verb, name, call)


class _Progress:
    """Reports the bytes of one file, from any thread."""

    def __init__(self, on_bytes: OnBytes | None, lock: threading.Lock) -> None:
        self.on_bytes, self.lock, self.done = on_bytes, lock, 0

    def at(self, done: int) -> None:
        if self.on_bytes is not None and done != self.done:
            with self.lock:
                self.on_bytes(done - self.done)
            self.done = done


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """Yield items and results in order, computed by threads."""
    waiting = list(items)
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(waiting), TOGETHER):
            part = waiting[start : start + TOGETHER]
            yield from zip(part, pool.map(function, part), strict=True)


def _blocks_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def _require_content(path: Path, digest: str) -> None:
    if not path.is_file() or sha256_file(path) != digest:
        raise UserError(f"{path} is missing or was changed since its hash was recorded. Run `ich status`")


def _sound(record: Any, fingerprint: str) -> bool:
    """Return whether a record has this fingerprint, and its files have plain names and hashes."""
    if not isinstance(record, Mapping) or record.get("fingerprint") != fingerprint:
        return False
    return plain_files(record.get("files"))


def plain_files(files: Any) -> bool:
    """Return whether these are hashes by path, and no path leads out of its folder."""
    return isinstance(files, Mapping) and all(
        plain(name) and isinstance(digest, str) and HEX.fullmatch(digest) for name, digest in files.items()
    )


def plain(name: str) -> bool:
    """Return whether a name is a relative path that leads below its folder."""
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & {*name.split("/")}


def _checked(name: str) -> str:
    """Return a relative path below the store. Raises UserError for one that leads elsewhere."""
    if not plain(name):
        raise UserError(f"{name!r} is not the name of a file in a store")
    return name


def _object_path(digest: str) -> str:
    return f"objects/{digest[:2]}/{digest}"


def _record_path(record_name: str, fingerprint: str) -> str:
    return f"records/{_checked(record_name)}/{_checked(fingerprint)}.json"

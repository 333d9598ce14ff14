"""`ich serve`: receive studies by C-STORE, score them, and send the results to a node. The only user of pynetdicom.

The queue is a folder. A study moves through its subfolders by renames, so that a kill loses nothing:

    incoming/           objects that are being received; discarded at the start
    receiving/<study>/  <instance>.dcm, written to disk before the sender gets the status "success"
    ready/<study>/      complete: nothing arrived for `quiet` seconds
    answers/<study>/    results that the node has not accepted yet
    done/<study>.json   all results were accepted; the instances that were scored
    failed/<study>/     could not be scored; failed/<study>.txt has the reason
"""

import logging
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import ComprehensiveSRStorage, SecondaryCaptureImageStorage, Verification  # pyright: ignore

from ich.console import say, warn
from ich.data import decoders
from ich.data.dicom import Reason, Unreadable, geometry
from ich.data.dicom.reading import CT_CLASSES, NATIVE, OTHER_IMAGES
from ich.data.dicom.results import valid_uid
from ich.errors import UserError
from ich.store.atomic import atomic_folder, fsync, read_json, write_json, write_text
from ich.store.locks import held, hold

SUCCESS, FULL, NOT_CT, UNREADABLE, LATE = 0x0000, 0xA700, 0xA900, 0xC000, 0xC001  # C-STORE statuses (PS3.4, B.2.3)
LOCALIZERS = tuple(f"a {word.lower()}" for word in OTHER_IMAGES)  # part of most studies: accepted, but not scored
STATES = ("incoming", "receiving", "ready", "answers", "done", "failed")
MOST = 1 << 30  # bytes of an object
ASSOCIATIONS = 8  # at a time
ABANDONED = 600  # seconds without a byte, after which an object in incoming/ is removed
RETRY = 30  # seconds until the node is asked again
POLL = 0.5  # seconds
TITLE = r"[!-?A-\[\]-~]{1,16}"  # of an application entity: no space, @ and backslash
Score = Callable[[Path, Path], None]
"""score(scans, results): write the results of a folder with one study to another folder."""


@dataclass(frozen=True)
class Node:
    """A DICOM node that accepts results."""

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Node":
        found = re.fullmatch(rf"({TITLE})@(.+):(\d{{1,5}})", text)
        if not found or not 0 < int(found[3]) < 1 << 16:
            raise UserError(f"--send-to {text}: not a node. Use AET@HOST:PORT, such as ARCHIVE@127.0.0.1:11112")
        return cls(found[1], found[2], int(found[3]))


class Queue:
    """The studies on disk. `limit`: bytes of all files. Methods may be called from several threads."""

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit, self._lock, self._started = root, limit, threading.Lock(), time.time()
        for state in STATES:
            (root / state).mkdir(parents=True, exist_ok=True)
        for path in [*(root / "incoming").iterdir(), *(root / "answers").glob(".*")]:
            _remove(path)
        self.measure()

    def add(self, file: Path, study: str, instance: str) -> int:
        """Move a received file to its study; return the status. An instance that is there already is accepted again."""
        size = file.stat().st_size
        fsync(file)
        with self._lock:
            known = self._known(study)
            if known is not None:
                return SUCCESS if instance in known else LATE
            target = self.root / "receiving" / study / f"{instance}.dcm"
            if target.exists():
                return SUCCESS
            if self._used + size > self.limit:
                return FULL
            target.parent.mkdir(exist_ok=True)
            fsync(target.parent.parent)
            file.rename(target)
            fsync(target.parent)
            self._used += size
        return SUCCESS

    def _known(self, study: str) -> list[str] | None:
        """Instances of a study that is complete; None if it is not."""
        if (path := self.root / "done" / f"{study}.json").exists():
            return (read_json(path) or {}).get("instances", [])
        folders = [self.root / state / study for state in ("ready", "failed")]
        return next((_instances(folder) for folder in folders if folder.exists()), None)

    def complete(self, quiet: float) -> None:
        """Move the studies for which nothing has arrived for `quiet` seconds to `ready`."""
        now = time.time()
        with self._lock:
            for folder in _folders(self.root / "receiving"):
                if now - max(folder.stat().st_mtime, self._started) < quiet:
                    continue
                if not _instances(folder):  # killed before the first one was there
                    _remove(folder)
                else:
                    folder.rename(self.root / "ready" / folder.name)
                    say(f"serve: study {folder.name} is complete")
        for path in (self.root / "incoming").glob("*.dcm"):
            if now - path.stat().st_mtime > ABANDONED:
                path.unlink(missing_ok=True)

    def ready(self) -> list[Path]:
        """Return the complete studies, the oldest first."""
        return sorted(_folders(self.root / "ready"), key=lambda folder: folder.stat().st_mtime)

    def finish(self, scans: Path) -> None:
        """Record that the node has accepted all results of a study, and remove its files."""
        done = self.root / "done" / f"{scans.name}.json"
        if not done.exists():
            write_json(done, {"instances": _instances(scans)})
        with self._lock:
            _remove(self.root / "answers" / scans.name)
            _remove(scans)
        self.measure()

    def fail(self, scans: Path, why: str) -> None:
        """Put a study aside that cannot be scored."""
        write_text(self.root / "failed" / f"{scans.name}.txt", f"{why}\n")
        with self._lock:
            scans.rename(self.root / "failed" / scans.name)
        warn(f"study {scans.name} was not scored: {why}. See {self.root / 'failed'}")

    def measure(self) -> None:
        """Add up the sizes of scans and results."""
        with self._lock:
            states = (self.root / state for state in ("receiving", "ready", "answers", "failed"))
            self._used = sum(path.stat().st_size for state in states for path in state.glob("*/*"))


def _folders(state: Path) -> list[Path]:
    return sorted(path for path in state.iterdir() if path.is_dir())


def _instances(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.dcm"))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def run(
    score: Score,
    root: Path,
    node: Node,
    allow: Sequence[str],
    *,
    title: str = "ICH",
    host: str = "127.0.0.1",
    port: int = 11112,
    quiet: float = 30,
    limit: int = 20 << 30,
) -> None:
    """Serve until the process is ended. root: the folder of the queue. allow: AE titles that may send.

    Sending is at least once with the same UIDs: after a kill between the response of the node and its record, an
    object is sent again, with the same bytes.
    """
    if held(root / "lock"):
        raise UserError(f"{root}: another process serves this queue. End it, or give another folder")
    with hold(root / "lock", on_wait=lambda owner: None):
        queue = Queue(root, limit)
        server = _receive(queue, allow, title, host, port)
        say(f"serve: {title} listens on {host}:{port} and answers {', '.join(allow)}; results go to {node.title}")
        again: dict[str, float] = {}
        try:
            while True:
                queue.complete(quiet)
                for scans in queue.ready():
                    if again.get(scans.name, 0) <= time.monotonic() and not _answer(queue, scans, score, node, title):
                        again[scans.name] = time.monotonic() + RETRY
                    queue.complete(quiet)
                time.sleep(POLL)
        finally:
            server.shutdown()


# ---- receiving


def _receive(queue: Queue, allow: Sequence[str], title: str, host: str, port: int) -> Any:
    """Start the threads that receive objects."""
    for name in (title, *allow):
        if not re.fullmatch(TITLE, name):
            raise UserError(f"{name!r} is not an AE title. Use at most 16 characters without spaces, @ and \\")
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # its messages may contain elements of the scans
    _config.STORE_RECV_CHUNKED_DATASET = True  # objects are received in files, not in memory
    tempfile.tempdir = str((queue.root / "incoming").absolute())  # on the disk of the queue
    entity = AE(title)
    entity.require_calling_aet, entity.require_called_aet = list(allow), True
    entity.maximum_associations = ASSOCIATIONS
    entity.add_supported_context(Verification)
    for sop_class in CT_CLASSES:
        entity.add_supported_context(sop_class, sorted({*NATIVE, *decoders.SYNTAXES}))
    received: dict[Any, int] = {}

    def count(event: Any) -> None:
        received[event.assoc] = received.get(event.assoc, 0) + len(event.data)
        if received[event.assoc] > MOST:
            event.assoc.abort(block=False)

    def store(event: Any) -> int:
        received[event.assoc] = 0
        try:
            return _stored(queue, event.dataset_path, str(event.request.AffectedSOPInstanceUID))
        except OSError as error:
            warn(f"an object could not be stored: {error.strerror}")
            return FULL

    def end(event: Any) -> None:
        received.pop(event.assoc, None)

    handlers: Any = [(evt.EVT_DATA_RECV, count), (evt.EVT_C_STORE, store), (evt.EVT_CONN_CLOSE, end)]
    try:
        return entity.start_server((host, port), block=False, evt_handlers=handlers)
    except OSError as error:
        raise UserError(f"{host}:{port}: {error.strerror}. Give another --host or --port") from None


def _stored(queue: Queue, file: Path, instance: str) -> int:
    """Validate a received file and move it to the queue; return the status."""
    try:
        found = geometry(file)
    except Unreadable as refusal:
        if refusal.detail in LOCALIZERS:
            return SUCCESS
        return NOT_CT if refusal.reason is Reason.NOT_CT_SLICE else UNREADABLE
    if not valid_uid(found.study_id) or not valid_uid(found.instance_uid) or found.instance_uid != instance:
        return UNREADABLE
    return queue.add(file, found.study_id, found.instance_uid)


# ---- answering


def _answer(queue: Queue, scans: Path, score: Score, node: Node, title: str) -> bool:
    """Score a study unless that is done, and send its results. Return False if it must be tried again."""
    answers = queue.root / "answers" / scans.name
    if not (queue.root / "done" / f"{scans.name}.json").exists():
        if not answers.exists():
            try:
                with atomic_folder(answers) as temporary:
                    score(scans, temporary)
            except Exception as error:
                if isinstance(error.__cause__ or error, OSError | MemoryError):  # a full disk, for example
                    warn(f"study {scans.name} was not scored: {error}. It is scored again in {RETRY} s")
                    return False
                queue.fail(scans, str(error) if isinstance(error, UserError) else type(error).__name__)
                return True
            queue.measure()
        if why := _send(sorted(answers.glob("*.dcm")), node, title):
            warn(f"study {scans.name}: {why}. It is sent again in {RETRY} s")
            return False
    queue.finish(scans)
    say(f"serve: study {scans.name} was answered")
    return True


def _send(files: Sequence[Path], node: Node, title: str) -> str:
    """Send files and remove each one that the node accepts. Return why one was not accepted, or an empty text."""
    entity = AE(title)
    entity.connection_timeout = RETRY
    for sop_class in (ComprehensiveSRStorage, SecondaryCaptureImageStorage):
        entity.add_requested_context(sop_class)
    association = entity.associate(node.host, node.port, ae_title=node.title)
    if not association.is_established:
        return f"{node.title} at {node.host}:{node.port} does not accept an association"
    try:
        for path in files:
            try:
                status = getattr(association.send_c_store(path), "Status", None)
            except (ValueError, RuntimeError) as error:  # no presentation context, or the association ended
                return f"{node.title} does not accept {path.name} ({error})"
            if status is None or not (status == SUCCESS or 0xB000 <= status < 0xC000):
                why = "no response" if status is None else f"status {status:04X}"
                return f"{node.title} does not accept {path.name} ({why})"
            path.unlink()
            fsync(path.parent)
    finally:
        association.release()
    return ""

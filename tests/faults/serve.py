"""`python -m tests.faults.serve [STUDIES] [KILLS]`: `ich serve` is killed at random moments while studies arrive.

A sender repeats a study until all its slices are accepted. A node counts the results. Each study must be answered
exactly once: one report per study; an object that is sent twice must have the same UID and bytes.
"""

import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pynetdicom import AE, evt
from pynetdicom.sop_class import ComprehensiveSRStorage, CTImageStorage, SecondaryCaptureImageStorage  # pyright: ignore

from ich.data.dicom.results import Finding, Model, read_sources, secondary_capture, structured_report
from ich.processes import interruptible
from ich.stages import serve
from tests.hospital_slice import write_slice

ROOT = Path(__file__).parents[2]
MODEL = Model("stub", "0.1.0", "ab" * 32)
SLICES = 5
QUIET = 4.0  # seconds; a sender must resume within this time
SCORING = 0.5  # seconds per study
SENDING = 0.2  # seconds per object
PAUSES = (1.0, 5.0)  # seconds between a start and a kill, and between two studies


def score(scans: Path, results: Path) -> None:
    """Stand-in for the models: a report, and a heat map of the first slice."""
    time.sleep(SCORING)
    sources = read_sources(scans, sorted(path.name for path in scans.iterdir()))
    first = next(iter(sources))
    content = structured_report(sources, [Finding("any", 0.7, 0.5, [(first, 0)])], len(sources), MODEL)
    (results / "sr.dcm").write_bytes(content)
    image = np.zeros((64, 64, 3), np.uint8)
    (results / "heat-map-001.dcm").write_bytes(secondary_capture(sources[first], 0, image, 1, MODEL))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Archive:
    """A node that accepts results. received: contents by SOPInstanceUID and study."""

    def __init__(self) -> None:
        self.received: dict[tuple[str, str], set[bytes]] = {}
        self.repeated, self.port = 0, free_port()
        entity = AE("ARCHIVE")
        entity.add_supported_context(ComprehensiveSRStorage)
        entity.add_supported_context(SecondaryCaptureImageStorage)
        handlers: Any = [(evt.EVT_C_STORE, self.store)]
        self.server: Any = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def store(self, event: Any) -> int:
        found = event.dataset
        time.sleep(SENDING)
        key = (str(found.StudyInstanceUID), f"{found.Modality} {found.SOPInstanceUID}")
        self.repeated += key in self.received
        self.received.setdefault(key, set()).add(event.encoded_dataset())
        return 0x0000


class Server:
    """`serve.run` in a process of its own, which can be killed."""

    def __init__(self, queue: Path, archive: Archive) -> None:
        self.port, self.process = free_port(), None
        self.words = [
            sys.executable,
            "-m",
            "tests.faults.serve",
            "--serve",
            str(queue),
            str(self.port),
            str(archive.port),
        ]

    def start(self) -> None:
        self.process = subprocess.Popen(self.words, cwd=ROOT)

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait()


def send(port: int, files: list[Path], title: str = "SCANNER") -> bool:
    """Send files once; return whether all were accepted."""
    entity = AE(title)
    entity.add_requested_context(CTImageStorage)
    association = entity.associate("127.0.0.1", port, ae_title="ICH")
    if not association.is_established:
        return False
    try:
        return all(getattr(association.send_c_store(path), "Status", None) == 0 for path in files)
    except (RuntimeError, ValueError):
        return False
    finally:
        association.release()


def main(studies: int, kills: int, seed: int = 1) -> int:
    chance, pauses = random.Random(seed), random.Random(seed + 1)
    folder, archive = Path(tempfile.mkdtemp(prefix="serve-")), Archive()
    server = Server(folder / "queue", archive)
    scans = {f"1.2.{k}": [folder / f"{k}-{n}.dcm" for n in range(SLICES)] for k in range(1, studies + 1)}
    for study, files in scans.items():
        for number, path in enumerate(files):
            write_slice(path, number, study)
    server.start()

    def send_all() -> None:
        for files in scans.values():
            while not send(server.port, files):
                time.sleep(0.1)
            time.sleep(pauses.uniform(0, PAUSES[1]))

    sender = threading.Thread(target=send_all)
    sender.start()
    begun, killed, answered = time.monotonic(), 0, set[str]()
    while (killed < kills or len(answered) < studies) and time.monotonic() - begun < 60 + 10 * (studies + kills):
        time.sleep(chance.uniform(*PAUSES))
        if killed < kills:
            server.kill()
            killed += 1
            server.start()
        answered = {study for study, name in archive.received if name.startswith("SR")}
    sender.join(60)
    time.sleep(2 * (serve.POLL + SCORING + SENDING))  # a second answer would arrive now
    code = server.kill(signal.SIGTERM)
    names = [study for study, name in archive.received if name.startswith("SR")]
    once = sum(names.count(study) == 1 for study in scans)
    same = all(len(contents) == 1 for contents in archive.received.values())
    whole = all(
        len(instances(next(iter(archive.received[key])))) == SLICES for key in archive.received if "SR" in key[1]
    )
    left = sorted(
        path.name for state in ("receiving", "ready", "answers") for path in (folder / "queue" / state).iterdir()
    )
    print(
        f"{once} of {studies} studies were answered exactly once; {killed} kills, {archive.repeated} objects sent twice"
    )
    print(f"same bytes: {same}, all slices: {whole}, left in the queue: {left}, exit code after SIGTERM: {code}")
    return int(
        once < studies or len(archive.received) != 2 * studies or not same or not whole or bool(left) or code != 143
    )


def instances(report: bytes) -> list[str]:
    """The scored instances that a report lists."""
    found = pydicom.dcmread(pydicom.filebase.DicomBytesIO(report))
    return [
        item.ReferencedSOPInstanceUID
        for study in found.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        place, port, archive_port = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
        node = serve.Node("ARCHIVE", "127.0.0.1", archive_port)
        with interruptible("interrupted"):
            serve.run(score, place, node, ["SCANNER"], port=port, quiet=QUIET)
    sys.exit(main(*(int(word) for word in sys.argv[1:])) if sys.argv[1:] else main(20, 20))

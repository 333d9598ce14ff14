"""The DICOM server: what it accepts, and the queue of studies. tests/faults/test_serve.py kills it."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage, MRImageStorage, Verification  # pyright: ignore

from hospital_slice import STUDY, write_slice
from ich.errors import UserError
from ich.stages import serve
from ich.stages.serve import FULL, LATE, NOT_CT, SUCCESS, UNREADABLE, Node, Queue
from tests.faults.serve import free_port, send

NODE = Node("NOBODY", "127.0.0.1", 9)


@pytest.fixture
def queue(tmp_path) -> Queue:
    return Queue(tmp_path / "queue", 1 << 30)


@pytest.fixture
def port(queue, monkeypatch):
    """Port of a server that answers SCANNER."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    number = free_port()
    server = serve._receive(queue, ["SCANNER"], "ICH", "127.0.0.1", number)
    yield number
    server.shutdown()


def status(port: int, path: Path, sop_class: Any = CTImageStorage) -> int:
    entity = AE("SCANNER")
    entity.add_requested_context(sop_class)
    association = entity.associate("127.0.0.1", port, ae_title="ICH")
    assert association.is_established
    try:
        return association.send_c_store(path).Status
    finally:
        association.release()


def files(queue: Queue, state: str) -> list[str]:
    return sorted(str(path.relative_to(queue.root / state)) for path in (queue.root / state).glob("*/*"))


def test_slices_are_stored_by_study_and_instance(queue, port, tmp_path):
    path = write_slice(tmp_path / "a.dcm")
    assert status(port, path) == SUCCESS
    assert status(port, path) == SUCCESS  # sent again
    assert files(queue, "receiving") == [f"{STUDY}/{STUDY}.1.1.dcm"]
    assert not list((queue.root / "incoming").iterdir())


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"Modality": "MR"}, NOT_CT),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, SUCCESS),  # not scored
        ({"StudyInstanceUID": "../../etc"}, UNREADABLE),
        ({"StudyInstanceUID": None}, UNREADABLE),
        ({"RescaleSlope": "0"}, UNREADABLE),
        ({"Rows": 4000}, UNREADABLE),
    ],
)
def test_what_cannot_be_scored_is_not_queued(queue, port, tmp_path, elements, expected):
    assert status(port, write_slice(tmp_path / "a.dcm", **elements)) == expected
    assert not files(queue, "receiving")


def test_only_known_titles_and_ct_are_answered(port, tmp_path):
    path = write_slice(tmp_path / "a.dcm")
    assert not send(port, [path], title="STRANGER")
    assert send(port, [path])
    entity = AE("SCANNER")
    entity.add_requested_context(MRImageStorage)
    assert not entity.associate("127.0.0.1", port, ae_title="ICH").is_established
    entity.requested_contexts = []
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", port, ae_title="ICH")
    assert association.send_c_echo().Status == SUCCESS
    association.release()


def test_a_full_queue_refuses(queue, port, tmp_path):
    queue.limit = 10
    assert status(port, write_slice(tmp_path / "a.dcm")) == FULL


def test_a_study_is_complete_when_nothing_arrives(queue, tmp_path):
    queue.add(write_slice(tmp_path / "a.dcm"), STUDY, "1")
    queue.complete(60)
    assert not queue.ready()
    queue.complete(0)
    assert [path.name for path in queue.ready()] == [STUDY]
    assert queue.add(write_slice(tmp_path / "a.dcm"), STUDY, "1") == SUCCESS
    assert queue.add(write_slice(tmp_path / "b.dcm"), STUDY, "2") == LATE
    assert files(queue, "receiving") == []


def test_a_study_without_slices_is_forgotten(queue, tmp_path):
    (queue.root / "receiving" / STUDY).mkdir()  # as by a kill before the first slice
    queue.complete(0)
    assert not queue.ready()
    assert queue.add(write_slice(tmp_path / "a.dcm"), STUDY, "1") == SUCCESS


def test_after_a_start_senders_have_time_to_resume(queue, tmp_path, monkeypatch):
    queue.add(write_slice(tmp_path / "a.dcm"), STUDY, "1")
    monkeypatch.setattr(serve.time, "time", lambda: (queue.root / "receiving" / STUDY).stat().st_mtime + 1000)
    later = Queue(queue.root, 1 << 30)
    later.complete(60)
    assert not later.ready()


def test_a_study_that_cannot_be_scored_is_put_aside(queue, tmp_path, capsys):
    queue.add(write_slice(tmp_path / "a.dcm"), STUDY, "1")
    queue.complete(0)

    def score(scans: Path, results: Path) -> None:
        raise UserError("no readable slice")

    assert serve._answer(queue, queue.ready()[0], score, NODE, "ICH")
    assert files(queue, "failed") == [f"{STUDY}/1.dcm"]
    assert (queue.root / "failed" / f"{STUDY}.txt").read_text() == "no readable slice\n"
    assert queue.add(write_slice(tmp_path / "b.dcm"), STUDY, "2") == LATE


def test_a_study_is_tried_again_after_a_fault_of_the_machine(queue, tmp_path, capsys):
    queue.add(write_slice(tmp_path / "a.dcm"), STUDY, "1")
    queue.complete(0)

    def score(scans: Path, results: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert not serve._answer(queue, queue.ready()[0], score, NODE, "ICH")
    assert "No space left on device" in capsys.readouterr().out
    assert files(queue, "ready") == [f"{STUDY}/1.dcm"]
    assert not files(queue, "failed")


def test_results_are_kept_until_the_node_accepts_them(queue, tmp_path, monkeypatch):
    queue.add(write_slice(tmp_path / "a.dcm"), STUDY, "1")
    queue.complete(0)
    scored = []

    def score(scans: Path, results: Path) -> None:
        scored.append(scans.name)
        (results / "sr.dcm").write_bytes(b"report")

    assert not serve._answer(queue, queue.ready()[0], score, Node("NOBODY", "127.0.0.1", free_port()), "ICH")
    assert files(queue, "answers") == [f"{STUDY}/sr.dcm"]
    monkeypatch.setattr(serve, "_send", lambda files, node, title: "")
    assert serve._answer(queue, queue.ready()[0], score, NODE, "ICH")
    assert scored == [STUDY]
    assert [path.name for path in (queue.root / "done").iterdir()] == [f"{STUDY}.json"]
    assert not queue.ready()
    assert queue.add(write_slice(tmp_path / "a.dcm"), STUDY, "1") == SUCCESS
    assert queue.add(write_slice(tmp_path / "b.dcm"), STUDY, "2") == LATE


@pytest.mark.parametrize("text", ["ARCHIVE", "ARCHIVE@host", "A B@host:104", "A@host:0", "A@host:70000", "@host:104"])
def test_a_malformed_node_is_refused(text):
    with pytest.raises(UserError, match=r"not a node. Use AET@HOST:PORT"):
        Node.parse(text)
    assert Node.parse("ARCHIVE@10.0.0.1:104") == Node("ARCHIVE", "10.0.0.1", 104)

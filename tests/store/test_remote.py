"""The object store: what is transferred, what another process sees, and what is refused."""

import errno
import os
import random
import subprocess
import sys
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from ich.errors import UserError
from ich.store import failures, remote
from ich.store.hashes import digest, sha256_bytes
from ich.store.remote import Damaged, Remote

NAME = "oof/demo/resnet/fold0/run.json"
FINGERPRINT = digest("settings and inputs")
CONTENTS = {"empty.csv": b"", "history.csv": b"epoch\n1\n", "model.bin": bytes(range(256)) * 700, "same": b"epoch\n1\n"}


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    monkeypatch.setattr(remote, "BLOCK", 5 << 20)  # the smallest part of an upload to S3
    monkeypatch.setattr(failures, "PAUSE", 1e-4)


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path) -> str:
    """A store without content."""
    name = uuid.uuid4().hex
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{name}"
    return f"memory://{name}" if request.param == "memory" else f"file://{tmp_path}/store"


any_kind = pytest.mark.parametrize("url", ["memory", "file", "s3"], indirect=True)


@pytest.fixture
def memory(monkeypatch) -> str:
    monkeypatch.setattr(remote, "BLOCK", 1 << 16)  # model.bin has three blocks
    return f"memory://{uuid.uuid4().hex}"


def artifact(folder: Path, **changes: bytes) -> tuple[dict, dict[str, Path]]:
    """Record and paths of an artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {**CONTENTS, **changes}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    hashes = {name: sha256_bytes(content) for name, content in contents.items()}
    return {"fingerprint": FINGERPRINT, "files": hashes, "seconds": 1.5}, {name: folder / name for name in contents}


def pulled(store: Remote, folder: Path) -> bool:
    """Pull the artifact; return whether the store has it. Every file that arrives is compared."""
    record = store.read_record(NAME, FINGERPRINT)
    try:
        if record is not None:
            store.pull({folder / name: sha256 for name, sha256 in record["files"].items()})
            assert {path.name for path in folder.iterdir()} == set(CONTENTS)
    finally:
        for path in folder.iterdir() if folder.is_dir() else ():
            assert path.read_bytes() == CONTENTS[path.name]
    return record is not None


class Watched:
    """A file system that counts its calls, and calls `before` and changes what is written and read."""

    def __init__(self, fs):
        self.fs, self.calls = fs, Counter()

    def __getattr__(self, name):
        function = getattr(self.fs, name)
        if name not in ("info", "find", "cat_file", "put_file", "pipe_file"):
            return function

        def called(*args, **options):
            self.calls[name] += 1
            return self.call(name, function, *args, **options)

        return called

    def call(self, name, function, *args, **options):
        return function(*args, **options)


# ---- transfers


@any_kind
def test_an_artifact_arrives_with_the_same_bytes(url, tmp_path):
    record, files = artifact(tmp_path / "here")
    store, done = Remote(url), list[int]()
    assert not store.read_record(NAME, FINGERPRINT)
    store.push(NAME, record, files, done.append)
    assert sum(done) == sum(map(len, CONTENTS.values())) - len(CONTENTS["same"])  # written once
    assert Remote(url).read_record(NAME, FINGERPRINT) == record
    assert store.read_record(NAME, digest("others")) is None
    done.clear()
    Remote(url).pull({tmp_path / "there" / name: sha for name, sha in record["files"].items()}, done.append)
    assert sum(done) == sum(map(len, CONTENTS.values()))
    assert {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()} == CONTENTS


def test_small_files_are_replaced(url):
    store = Remote(url)
    assert store.read_latest("input/cache/demo.json") is None
    for content in (b"1", b"2"):
        store.write_latest("input/cache/demo.json", content)
        assert Remote(url).read_latest("input/cache/demo.json") == content


def test_only_what_is_missing_is_transferred(memory, tmp_path):
    record, files = artifact(tmp_path / "here")
    store = Remote(memory)
    watched = store.fs = Watched(store.fs)
    store.push_files({files["history.csv"]: record["files"]["history.csv"]})
    store.push(NAME, record, files)
    assert (watched.calls["put_file"], watched.calls["pipe_file"]) == (3, 1)
    store.push(NAME, record, files)
    assert (watched.calls["put_file"], watched.calls["pipe_file"]) == (3, 1)
    assert pulled(store, tmp_path / "there")
    before = watched.calls["cat_file"]
    (tmp_path / "there" / "history.csv").write_bytes(b"changed")
    assert pulled(store, tmp_path / "there")
    assert watched.calls["cat_file"] - before == 2  # the record and one file


def test_a_truncated_object_is_replaced(url, tmp_path):
    record, files = artifact(tmp_path / "here")
    store = Remote(url)
    store.push(NAME, record, files)
    store.fs.pipe_file(store._path(remote._object_path(record["files"]["model.bin"])), CONTENTS["model.bin"][:-1])
    with pytest.raises(Damaged, match=r"^\S+: cannot read objects/\S+: its content .* push it again"):
        pulled(store, tmp_path / "there")
    store.push(NAME, record, files)
    assert pulled(store, tmp_path / "there")


def test_many_sizes_are_read_by_listing(url, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "LISTED", 1)
    record, files = artifact(tmp_path / "here")
    store = Remote(url)
    store.push(NAME, record, files)
    store.fs = Watched(store.fs)
    hashes = record["files"]
    assert store.sizes([*hashes.values(), digest("none")]) == {sha: len(CONTENTS[name]) for name, sha in hashes.items()}
    assert store.fs.calls == {"find": 1}


def test_large_files_are_sent_and_read_in_parts(s3, tmp_path):
    url, content = f"{s3}/large", os.urandom(12 << 20)
    large, sha256 = tmp_path / "large", sha256_bytes(content)
    large.write_bytes(content)
    store, sent = Remote(url), list[int]()

    def interrupted(count: int) -> None:
        sent.append(count)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.push_files({large: sha256}, interrupted)
    assert sent == [5 << 20]
    assert store.sizes([sha256]) == {}
    store.push_files({large: sha256})
    store.fs = Watched(store.fs)
    store.pull({tmp_path / "there": sha256})
    assert store.fs.calls["cat_file"] == 3
    assert (tmp_path / "there").read_bytes() == content


# ---- several pushers


def test_two_pushers_at_once_leave_one_complete_artifact(url, tmp_path):
    barrier = threading.Barrier(2)

    def push(folder: str) -> None:
        record, files = artifact(tmp_path / folder)
        barrier.wait()
        Remote(url).push(NAME, record, files)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(push, ("first", "second")))
    assert pulled(Remote(url), tmp_path / "there")


BOTH = rf"^\S+/records/{NAME}/{FINGERPRINT}.json and {NAME} have the same fingerprint, but other files: model.bin\. "


def test_a_record_of_other_files_is_refused_before_anything_is_written(url, tmp_path):
    store = Remote(url)
    store.push(NAME, *artifact(tmp_path / "first"))
    store.fs = Watched(store.fs)
    with pytest.raises(UserError, match=BOTH):
        store.push(NAME, *artifact(tmp_path / "second", **{"model.bin": b"others"}))
    assert not store.fs.calls["put_file"]
    store.push(NAME, *artifact(tmp_path / "first"))


@any_kind
def test_a_record_of_other_files_that_arrives_meanwhile_is_refused(url, tmp_path):
    class Slower(Remote):
        def _write(self, name, data, *, create=False):
            Remote(url).push(NAME, *artifact(tmp_path / "first"))
            super()._write(name, data, create=create)

    with pytest.raises(UserError, match=BOTH):
        Slower(url).push(NAME, *artifact(tmp_path / "second", **{"model.bin": b"others"}))
    assert pulled(Remote(url), tmp_path / "there")


# ---- interruptions and faults


class Killed(BaseException):
    """The process ends here."""


class Interrupted(Watched):
    """Ends at its call number `at`: before it, or with half of its bytes written."""

    def __init__(self, fs, at, half):
        super().__init__(fs)
        self.at, self.half = at, half

    def call(self, name, function, *args, **options):
        if self.calls.total() != self.at:
            return function(*args, **options)
        if self.half and name == "put_file":
            content = Path(args[0]).read_bytes()
            self.fs.pipe_file(args[1], content[: len(content) // 2])
        elif self.half and name == "pipe_file":
            function(args[0], args[1][: len(args[1]) // 2])
        raise Killed


@pytest.mark.parametrize("half", [False, True])
def test_a_push_that_is_interrupted_at_any_call_is_not_visible_and_resumes(half, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "THREADS", 1)
    record, files = artifact(tmp_path / "here")
    for at in range(1, 100):
        url = f"memory://{uuid.uuid4().hex}"
        store = Remote(url)
        store.fs = Interrupted(store.fs, at, half)
        try:
            store.push(NAME, record, files)
        except Killed:
            assert not pulled(Remote(url), tmp_path / f"killed{at}")
        else:
            break
        Remote(url).push(NAME, record, files)
        assert pulled(Remote(url), tmp_path / f"resumed{at}")
    assert at == 13  # the 12 calls: a record, 3 + 3 sizes, 3 objects, then the record


def test_a_push_into_a_folder_that_is_interrupted_at_any_write_is_not_visible(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "THREADS", 1)
    record, files = artifact(tmp_path / "here")
    fsync, left = os.fsync, 0

    def interrupted(descriptor):
        nonlocal left
        left -= 1
        if not left:
            raise Killed
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", interrupted)
    for at in range(1, 100):
        url, left = f"file://{tmp_path}/store{at}", at
        try:
            Remote(url).push(NAME, record, files)
        except Killed:
            seen = pulled(Remote(url), tmp_path / f"killed{at}")
            assert not seen or at == 8  # in the last one, the record is there
        else:
            break
        Remote(url).push(NAME, record, files)
        assert pulled(Remote(url), tmp_path / f"resumed{at}")
    assert at == 9  # a file and its folder for three objects and the record


class Unreliable(Watched):
    """Loses connections, answers with errors, is slow, and truncates or flips what is read and written."""

    KINDS = ("before", "after", "timeout", "500", "slow", "truncated", "flipped")

    def __init__(self, fs, seed, share):
        super().__init__(fs)
        self.random, self.share, self.faults = random.Random(seed), share, Counter[str]()

    def call(self, name, function, *args, **options):
        kind = self.random.choice(self.KINDS) if self.random.random() < self.share else ""
        place = self.random.random()
        if kind in ("truncated", "flipped") and name not in ("cat_file", "put_file", "pipe_file"):
            kind = "500"
        self.faults[kind] += 1
        match kind:
            case "before":
                raise ConnectionResetError(errno.ECONNRESET, "lost")
            case "timeout":
                raise TimeoutError
            case "500":
                raise OSError(errno.EREMOTEIO, "internal error")
            case "slow":
                threading.Event().wait(0.002)
            case "truncated" | "flipped" if name == "put_file":
                return self.fs.pipe_file(args[1], spoiled(Path(args[0]).read_bytes(), kind, place))
            case "truncated" | "flipped" if name == "pipe_file":
                return function(args[0], spoiled(args[1], kind, place), **options)
        result = function(*args, **options)
        if kind == "after":
            raise ConnectionResetError(errno.ECONNRESET, "lost")
        return spoiled(result, kind, place) if name == "cat_file" else result


def spoiled(content: bytes, kind: str, place: float) -> bytes:
    at = int(place * len(content))
    match kind:
        case "truncated":
            return content[:at]
        case "flipped" if content:
            return content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
    return content


def test_200_faults_are_repeated_or_refused_and_no_wrong_byte_is_used(tmp_path):
    faults = 200
    record, files = artifact(tmp_path / "here")
    counts, outcomes = Counter[str](), Counter[str]()
    for seed in range(10 * faults):
        url, folder = f"memory://{uuid.uuid4().hex}", tmp_path / str(seed)
        store = Remote(url)
        store.fs = Unreliable(store.fs, seed, share=random.Random(seed).choice([0.1, 0.3, 0.7]))
        for work, arguments in ((store.push, (NAME, record, files)), (pulled, (store, folder))):
            try:
                work(*arguments)
                outcomes["succeeded"] += 1
            except UserError as error:
                outcomes["refused"] += str(error).startswith(f"{url}: cannot ") and "\n" not in str(error)
                outcomes["with other messages"] += not str(error).startswith(f"{url}: cannot ")
        counts += store.fs.faults
        store = Remote(url)  # without faults: complete, or damaged until the object is deleted
        store.push(NAME, record, files)
        while True:
            try:
                assert pulled(store, folder)
                break
            except Damaged as error:
                outcomes["damaged"] += 1
                store.fs.rm_file(store._path(str(error).split()[3].rstrip(":")))
                store.push(NAME, record, files)
        if counts.total() - counts[""] >= faults:
            break
    assert counts.keys() >= set(Unreliable.KINDS)
    print(counts, outcomes)
    assert outcomes["succeeded"]
    assert outcomes["refused"]
    assert not outcomes["with other messages"]


def test_a_damaged_record_is_not_used_and_is_replaced(url, tmp_path):
    record, files = artifact(tmp_path / "here")
    store = Remote(url)
    store.push(NAME, record, files)
    path = store._path(remote._record_path(NAME, FINGERPRINT))
    content = store.fs.cat_file(path)
    for wrong in (b"", content[:-9], content.replace(b"1.5", b"2.5"), b"[" * 100_000):
        store.fs.pipe_file(path, wrong)
        assert not store.read_record(NAME, FINGERPRINT)
        store.push(NAME, record, files)
        assert store.read_record(NAME, FINGERPRINT) == record


def test_a_file_that_was_changed_is_not_pushed(memory, tmp_path):
    record, files = artifact(tmp_path / "here")
    files["model.bin"].write_bytes(b"changed")
    store = Remote(memory)
    with pytest.raises(UserError, match=r"model\.bin is missing or was changed"):
        store.push(NAME, record, files)
    assert not store.read_record(NAME, FINGERPRINT)
    assert record["files"]["model.bin"] not in store.sizes(record["files"].values())


def test_a_file_that_is_changed_during_its_transfer_is_not_pushed(url, tmp_path, monkeypatch):
    record, files = artifact(tmp_path / "here")
    store, read = Remote(url), remote._require_content

    def changed(path: Path, sha256: str) -> None:
        read(path, sha256)
        path.write_bytes(path.read_bytes()[::-1] + b"1")

    monkeypatch.setattr(remote, "_require_content", changed)
    with pytest.raises(UserError, match=r"model\.bin is missing or was changed"):
        store.push_files({files["model.bin"]: record["files"]["model.bin"]})
    assert store.sizes([record["files"]["model.bin"]]) == {}


# ---- hostile names, addresses, credentials


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a//b", "", "a\\b", "a\nb", "."])
def test_names_that_lead_out_of_a_folder_are_refused(memory, name, tmp_path):
    store = Remote(memory)
    for call in (
        lambda: store.read_latest(name),
        lambda: store.read_record(name, FINGERPRINT),
        lambda: store.read_record(NAME, name),
    ):
        with pytest.raises(UserError, match="is not the name of a file in a store"):
            call()
    text = remote.record_text({"fingerprint": FINGERPRINT, "files": {name: digest(1)}})
    store._write(remote._record_path(NAME, FINGERPRINT), text.encode())
    assert not store.read_record(NAME, FINGERPRINT)


@pytest.mark.parametrize("address", ["s3://key:secret@bucket/prefix", "s3://", "file:///"])
def test_addresses_with_credentials_or_without_a_place_are_refused(address):
    with pytest.raises(UserError, match=r"give s3://bucket/prefix") as error:
        Remote(address)
    assert "secret" not in str(error.value)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    def missing(*_, **__):
        raise ImportError

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(
        UserError, match=r"^s3://a/b: the package s3fs is not installed\. Run: pip install 'ich\[cluster\]'"
    ):
        Remote("s3://a/b")


class Echo(BaseHTTPRequestHandler):
    """A server that answers each request with an error that contains all that it was sent."""

    def answer(self) -> None:
        said = f"{self.path} {dict(self.headers)}".replace("<", "").replace("&", "")
        status = 403 if "denied" in self.path else 500
        body = f"<Error><Code>{said}</Code><Message>{said}</Message></Error>".encode()
        self.send_response(status, "failed")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    do_GET = do_PUT = do_HEAD = do_POST = answer

    def log_message(self, *_) -> None:
        pass


SAID = """
import sys
from ich.errors import UserError
from ich.store import failures, remote
failures.PAUSE = 1e-3
for url in sys.argv[1:]:
    store = remote.Remote(url)
    for call, value in ((store.read_latest, "x"), (store.sizes, ["0" * 64])):
        try:
            call(value)
        except UserError as error:
            print(error)
    try:
        store.write_latest("x", b"1")
    except UserError as error:
        print(error)
"""


def test_no_credentials_are_printed():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    secrets = {"AWS_ACCESS_KEY_ID": "AKIAHIDDEN", "AWS_SECRET_ACCESS_KEY": "secret9Q", "AWS_SESSION_TOKEN": "token9Q"}
    environment = {**os.environ, **secrets, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
    words = [sys.executable, "-c", SAID, "s3://failing/prefix", "s3://denied/prefix"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100)
    server.shutdown()
    for why in (" HTTP status 500. Check the network", " permission denied. Check the credentials"):
        assert done.stdout.count(why) == 3, done.stdout + done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in secrets.values())

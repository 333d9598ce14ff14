"""Atomic writes, hashes, run records and listings."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.errors import UserError
from ich.models.artifacts import write_array
from ich.store import records
from ich.store.atomic import atomic, atomic_folder, read_json, write_json
from ich.store.hashes import digest
from ich.store.raw import BLOCK, listing, samples
from ich.store.records import Record, read_hashed, read_record, write_hashed, write_record

# ---- atomic writes


def test_a_failed_write_keeps_the_old_file_only(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == 1
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_replaces_the_old_one_only_if_complete(tmp_path):
    target = tmp_path / "folder"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "b").write_text("new")
        raise RuntimeError
    assert os.listdir(target) == ["a"]
    with atomic_folder(target) as folder:
        (folder / "b").write_text("new")
    assert os.listdir(target) == ["b"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_that_cannot_be_renamed_keeps_the_old_one(tmp_path, monkeypatch):
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "a").write_text("old")
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with (
        pytest.raises(UserError, match=r"folder: No space left on device. Free disk space"),
        atomic_folder(tmp_path / "folder") as folder,
    ):
        (folder / "b").write_text("new")
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(tmp_path / "folder") == ["a"]


@pytest.mark.parametrize("size", [300, 5000, 100_000])
def test_an_array_that_does_not_fit_on_the_disk_keeps_the_old_file(tmp_path, size):
    code = (
        "import resource, sys; from pathlib import Path; import numpy as np\n"
        "from ich.models.artifacts import write_array; from ich.errors import UserError\n"
        "path = Path(sys.argv[1]); write_array(path, np.zeros(4))\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        "try:\n    write_array(path, np.ones(100_000, np.float16))\n"
        "except UserError as error:\n    print(error)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "a.npy")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "a.npy: File too large" in done.stdout
    assert os.listdir(tmp_path) == ["a.npy"]
    assert (tmp_path / "a.npy").stat().st_size == 128 + 4 * 8


@pytest.mark.parametrize("shape", [(0,), (0, 7), (3, 4), (2, 3, 4)])
def test_an_array_is_written_as_by_numpy(tmp_path, shape):
    for array in (np.random.default_rng(0).random(shape).astype(np.float16), np.asfortranarray(np.ones(shape))):
        write_array(tmp_path / "a.npy", array)
        np.save(tmp_path / "b.npy", np.ascontiguousarray(array))
        assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


# ---- hashes

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
)


@settings(max_examples=20)
@given(st.dictionaries(st.text(), json_values, max_size=3))
def test_a_digest_does_not_depend_on_the_order_of_keys(value):
    assert digest(value) == digest(dict(reversed(value.items())))


def test_a_digest_is_the_hash_of_the_plain_json():
    assert digest({"b": 1, "a": [True, None]}) == hashlib.sha256(b'{"a":[true,null],"b":1}').hexdigest()


# ---- records


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (lambda path: write_hashed(path, "fp", b"weights"), lambda path: read_hashed(path, "fp")),
        (lambda path: write_record(path, {"files": {"a": "b"}, "n": [1.5, None]}), read_record),
    ],
    ids=["hashed", "record"],
)
def test_every_flipped_bit_and_truncation_is_detected(tmp_path, write, read):
    path = tmp_path / "file"
    write(path)
    content = path.read_bytes()
    assert read(path)
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(flipped))
        assert read(path) is None, bit
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert read(path) is None, length
    path.unlink()
    assert read(path) is None


def test_a_hashed_file_has_one_fingerprint(tmp_path):
    write_hashed(tmp_path / "s", "one", b"x")
    assert read_hashed(tmp_path / "s", "two") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', "\xff"])
def test_a_malformed_record_is_not_read(tmp_path, text):
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    assert Record(tmp_path / "run.json").read() is None


def test_a_record_names_changed_and_missing_files(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    record = Record(tmp_path / "run.json")
    record.write("fp", {"a": tmp_path / "a", "b": tmp_path / "b"}, seconds=1.0)
    value = record.read()
    assert value is not None
    assert value["seconds"] == 1.0
    assert record.damaged(value) is None
    (tmp_path / "b").write_text("3")
    assert record.damaged(value) == "b was changed"
    (tmp_path / "a").unlink()
    assert record.damaged(value) == "a is missing"


def test_large_files_are_hashed_again_only_if_size_or_time_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "TRUST_STAMP_ABOVE", 3)
    path = tmp_path / "big"
    path.write_text("12345")
    record = Record(tmp_path / "run.json")
    record.write("fp", {"big": path})
    value = record.read()
    assert value is not None
    monkeypatch.setattr(records, "sha256_file", lambda *_: pytest.fail("read the whole file"))
    assert record.damaged(value) is None
    monkeypatch.undo()
    path.write_text("54321")
    os.utime(path, ns=(0, 0))
    assert record.damaged(value) == "big was changed"
    assert record.damage(value, "big", on_read=lambda _: None) == "was changed"


@pytest.mark.parametrize("moved", range(4))
def test_complete_files_replace_the_old_ones_together(tmp_path, monkeypatch, moved):
    """A kill after any number of moves: the next call completes them."""
    record = Record(tmp_path / "fold0" / "run.json", staged=True)

    def written(text: str) -> None:
        record.work.mkdir(parents=True)
        for name in ("a", "b", "checkpoint.bin"):
            (record.work / name).write_text(text)
        record.write(text, {name: record.work / name for name in ("a", "b")})

    def content() -> dict[str, str]:
        return {path.name: path.read_text() for path in record.path.parent.iterdir() if path.name != "run.json"}

    written("old")
    assert content() == {"a": "old", "b": "old"}
    replace, moves = Path.replace, 0

    def killed(source: Path, target: Path) -> Path:
        nonlocal moves
        moves += source.parent == record.work and source.name[0] != "."
        if moves > moved:
            raise KeyboardInterrupt
        return replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        patch.setattr("shutil.rmtree", lambda _: killed(record.work / "end", tmp_path))
        written("new")
    record.publish()
    record.discard()  # nothing is left but `unfinished` if the record was moved
    assert content() == {"a": "new", "b": "new"}
    found = record.read()
    assert found is not None
    assert found["fingerprint"] == "new"
    assert record.damaged(found) is None


LEFT = (
    ".fold0.x.tmp",
    ".fold01.x.tmp",
    "fold0/.a.npy.x.tmp",
    ".scores.csv.x.tmp",
    ".scores.run.json.x.tmp",
    ".confusion.csv.x.tmp",
    ".submission.csv.x.tmp",
)


@pytest.mark.parametrize(
    ("record", "swept"),
    [
        (Record(Path("fold0/run.json")), {".fold0.x.tmp", "fold0/.a.npy.x.tmp"}),
        (
            Record(Path("scores.run.json"), ("confusion",)),
            {".scores.csv.x.tmp", ".scores.run.json.x.tmp", ".confusion.csv.x.tmp"},
        ),
        (Record(Path("submission.json")), {".submission.csv.x.tmp"}),
    ],
    ids=["folder", "several stems", "one stem"],
)
def test_a_sweep_removes_the_leftovers_of_its_own_artifact(tmp_path, monkeypatch, record, swept):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fold0").mkdir()
    for name in (*LEFT, "scores.csv", "fold0/a.npy"):
        (tmp_path / name).write_text("")
    record.sweep()
    gone = {name for name in LEFT if not (tmp_path / name).exists()}
    assert gone == swept
    assert (tmp_path / "scores.csv").exists()
    assert (tmp_path / "fold0/a.npy").exists()


def test_a_sweep_restores_a_folder_that_a_killed_process_had_moved(tmp_path):
    (tmp_path / ".folder.x.old").mkdir()
    (tmp_path / ".folder.x.old" / "a").write_text("old")
    (tmp_path / ".folder.x.tmp").mkdir()
    Record(tmp_path / "folder" / "run.json").sweep()
    assert os.listdir(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "a").read_text() == "old"


# ---- listings


@pytest.mark.parametrize(
    ("name", "size", "place", "differs"),
    [
        ("a.dcm", 9 * BLOCK, 0, True),
        ("a.dcm", 9 * BLOCK, 4 * BLOCK + BLOCK // 2, True),
        ("a.dcm", 9 * BLOCK, -1, True),
        ("a.dcm", 9 * BLOCK, 2 * BLOCK, False),  # between the blocks
        ("a.dcm", 2 * BLOCK, BLOCK + 1, True),
        ("labels.csv", 9 * BLOCK, 2 * BLOCK, True),
    ],
)
def test_a_sample_is_of_three_blocks_and_of_small_files_and_tables_as_a_whole(tmp_path, name, size, place, differs):
    found = []
    for changed in (b"a", b"b"):
        content = bytearray(size)
        content[place] = changed[0]
        (tmp_path / name).write_bytes(content)
        found += dict(samples(tmp_path, [name])).values()
    assert len(found[0]) == 32
    assert (found[0] != found[1]) == differs


def test_pipes_and_broken_links_have_no_sample(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert dict(samples(tmp_path, ["pipe", "nowhere"])) == {"pipe": "", "nowhere": ""}


def test_a_listing_ends_despite_circular_and_broken_links(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.dcm").touch()
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert list(listing(tmp_path)) == ["a/x.dcm", "nowhere"]


def test_a_listing_holds_sizes_and_times_of_all_folders(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "b.dcm").write_bytes(b"123")
    (tmp_path / "a.csv").write_bytes(b"1")
    (tmp_path / "run.json").write_bytes(b"")
    os.utime(tmp_path / "a.csv", ns=(5, 7))
    found = listing(tmp_path, ("run.json",))
    assert list(found) == ["a.csv", "x/b.dcm"]
    assert found["a.csv"] == (1, 7)
    assert found["x/b.dcm"][0] == 3

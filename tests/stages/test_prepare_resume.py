import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from ich.data import cache, dicom, slice_table
from ich.errors import UserError
from ich.pipeline.state import Plan
from ich.pipeline.tasks import HEADERS
from ich.stages import prepare
from ich.store import atomic
from ich.store.records import Record
from stages.test_check import Competition

SHARDS = [3, 3, 4, 3, 3, 3, 3]  # slices: one series each
SLICES = sum(SHARDS)
FILES = SLICES - 1  # one has two frames


class Killed(BaseException):
    """Raised in place of a kill; nothing catches it."""


class Workspace(Competition):
    """Seven patients with three slices each. ID_11 cannot be decoded, and ID_20 has two frames."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, patients=7, train=5, crop="head")
        broken = self.raw / "stage_2_train" / "ID_11.dcm"
        dataset = pydicom.dcmread(broken)
        dataset.file_meta.TransferSyntaxUID = RLELossless
        dataset.PixelData = encapsulate([b"no pixels"])
        dataset["PixelData"].VR = "OB"
        dataset.save_as(broken)
        several = self.raw / "stage_2_train" / "ID_20.dcm"
        dataset = pydicom.dcmread(several)
        dataset.NumberOfFrames, dataset.PixelData = 2, 2 * dataset.PixelData
        dataset.save_as(several)

    def prepare(self, *overrides: str, force: bool = False) -> dict[str, bytes]:
        plan = self.plan(*overrides)
        prepare.run(plan, force=force)
        files = {path.name: path.read_bytes() for path in plan.prepared.folder.iterdir()}
        assert plan.state(plan.prepare()).done
        del files["run.json"]
        assert sorted(files) == [*map(cache.shard_name, range(len(SHARDS))), "quarantine.csv", "slices.parquet"]
        return files

    @property
    def folder(self) -> Path:
        return self.plan().prepare().folder

    def forget(self) -> None:
        """Remove the cache."""
        for path in self.folder.iterdir():
            path.unlink()


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Workspace:
    monkeypatch.setattr(Plan, "cores", 1)
    return Workspace(tmp_path)


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The names of the files whose pixels are read."""
    names, real = [], cache.read_frames

    def counted(path, frames, *arguments):
        names.extend([path.stem] * len(frames))
        return real(path, frames, *arguments)

    monkeypatch.setattr(cache, "read_frames", counted)
    return names


@pytest.fixture
def headers(monkeypatch) -> list[str]:
    """The names of the files whose headers are read."""
    names, real = [], slice_table.read_geometry

    def counted(path, values):
        names.append(path.stem)
        return real(path, values)

    monkeypatch.setattr(slice_table, "read_geometry", counted)
    return names


def killed(workspace: Workspace, monkeypatch, *, after: int, force: bool = False) -> None:
    """Kill `ich prepare` after so many shards."""
    real, left = cache.record_text, after

    def write(*arguments):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "record_text", write)
        with pytest.raises(Killed):
            prepare.run(workspace.plan(), force=force)


def test_a_killed_prepare_resumes_from_its_headers_and_shards(workspace, monkeypatch, headers, read, capsys):
    whole = workspace.prepare()
    assert len(read) == SLICES
    assert b"not_decoded" in whole["quarantine.csv"]
    for shards, last in ((0, "headers"), (1, "finished shards"), (4, "finished shards"), (6, "finished shards")):
        workspace.forget()
        killed(workspace, monkeypatch, after=shards)
        (workspace.folder / ".hu-00005.npy.x.tmp").touch()  # the kill came while it was written
        assert workspace.plan().standing(workspace.plan().prepare()).why.endswith(f"resume after the {last}")
        headers.clear()
        read.clear()
        capsys.readouterr()
        assert workspace.prepare() == whole
        there = sum(SHARDS[:shards])
        assert not headers
        assert len(read) == SLICES - there
        assert not any(name[3] < str(shards) for name in read)
        said = f"prepare: resumed, {there} of {SLICES} slices were in finished shards\n"
        assert (said in capsys.readouterr().out) == bool(shards)


def test_machines_that_write_the_parts_end_in_the_same_bytes(workspace, monkeypatch, headers, read):
    monkeypatch.setattr(cache, "PARTS", 3)
    prepare.make_headers(workspace.plan())
    plan = workspace.plan()
    folder = plan.prepare().folder
    assert plan.known_raw_files() == plan.raw_files  # so that the parts do not read samples of all files
    prepare.make_part(plan, 2)
    assert [path.stem for path in cache.notes(folder)] == ["hu-00002", "hu-00005"]
    for part in (0, 1, 0):
        prepare.make_part(workspace.plan(), part)
    parts = workspace.prepare()
    assert (len(headers), len(read)) == (FILES, SLICES)
    prepare.make_headers(workspace.plan())
    prepare.make_part(workspace.plan(), 0)
    assert {path.name for path in folder.iterdir()} == {*parts, "run.json"}, "a finished cache is left as it is"
    workspace.forget()
    assert workspace.prepare() == parts


def test_a_kill_at_any_write_is_resumed(workspace, monkeypatch):
    real, left = atomic.fsync, 0

    def fsync(path):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        real(path)

    monkeypatch.setattr(cache, "PARTS", 2)
    whole = workspace.prepare()
    for moment in (0, 1, 8, 17, 20, 21):  # headers, their folder, a shard, slice table, record, its folder
        workspace.forget()
        left = moment
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(atomic, "fsync", fsync)
            prepare.make_headers(workspace.plan())
            for part in range(cache.PARTS):
                prepare.make_part(workspace.plan(), part)
            prepare.run(workspace.plan())
        assert workspace.prepare() == whole


def test_finished_shards_survive_a_sigkill(workspace, capsys):
    whole = workspace.prepare()
    workspace.forget()
    script = """
import time
from pathlib import Path
from ich.data import cache
from ich.recipe import load
from ich.stages import prepare
from ich.pipeline.state import Plan
Plan.cores = 2
real = cache.run_parallel
cache.run_parallel = lambda *arguments: (time.sleep(0.1) or result for result in real(*arguments))
prepare.run(Plan(load(Path("configs/small.yaml")), Path.cwd()))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=workspace.root, stdout=subprocess.DEVNULL, start_new_session=True
    )
    until = time.monotonic() + 60
    while not cache.notes(workspace.folder) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.6))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert cache.notes(workspace.folder)
    capsys.readouterr()
    assert workspace.prepare() == whole
    assert "prepare: resumed, " in capsys.readouterr().out


@pytest.mark.parametrize("killed_at", ["its record", "the removal of its notes"])
def test_a_prepare_killed_at_the_end_reads_no_pixels_again(workspace, monkeypatch, read, killed_at):
    def kill(*_, **__):
        raise Killed

    whole = workspace.prepare()
    workspace.forget()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(*((Record, "write", kill) if killed_at == "its record" else (Plan, "point_to", kill)))
        prepare.run(workspace.plan())
    assert len(cache.notes(workspace.folder)) == len(SHARDS)
    read.clear()
    assert workspace.prepare() == whole
    assert not read


def test_other_settings_and_files_restart_and_report_the_unfinished_cache(workspace, monkeypatch, read, capsys):
    whole = workspace.prepare()
    workspace.forget()
    killed(workspace, monkeypatch, after=3)
    left = workspace.folder
    capsys.readouterr()
    read.clear()
    workspace.prepare("image.crop=none")
    assert len(read) == SLICES
    assert f"prepare: {left} is unfinished" in capsys.readouterr().out
    read.clear()
    (workspace.raw / "stage_2_train" / "notes.txt").touch()
    assert workspace.prepare() == whole
    assert len(read) == SLICES
    assert cache.notes(left)
    assert not cache.notes(workspace.folder)


def test_damaged_headers_are_read_again_and_their_shard_is_made_again(workspace, monkeypatch, read):
    whole = workspace.prepare()
    workspace.forget()
    with monkeypatch.context() as patch:
        broken, real = workspace.raw / "stage_2_train" / "ID_02.dcm", dicom.geometry

        def geometry(path):
            if path == broken:
                raise dicom.Unreadable(dicom.Reason.UNREADABLE)
            return real(path)

        patch.setattr(dicom, "geometry", geometry)
        killed(workspace, monkeypatch, after=3)
    path = workspace.folder / HEADERS
    path.write_bytes(path.read_bytes()[:-1])
    read.clear()
    assert workspace.prepare() == whole
    assert len(read) == SLICES - sum(SHARDS[1:3])


def test_force_restarts(workspace, monkeypatch, headers, read):
    whole = workspace.prepare()
    killed(workspace, monkeypatch, after=3, force=True)
    headers.clear()
    read.clear()
    assert workspace.prepare(force=True) == whole
    assert (len(headers), len(read)) == (FILES, SLICES)


def test_a_full_disk_is_one_error_and_the_next_call_resumes(workspace, monkeypatch, read):
    real, left = cache.resize_all, 4

    def full(*arguments):
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    whole = workspace.prepare()
    workspace.forget()
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"hu-0000\d.npy: No space left.*[Ff]ree disk space"),
    ):
        patch.setattr(cache, "resize_all", full)
        prepare.run(workspace.plan())
    done = len(cache.notes(workspace.folder))
    assert 0 < done < len(SHARDS)
    assert len(list(workspace.folder.iterdir())) == 1 + 2 * done  # nothing of the unfinished shard takes space
    read.clear()
    assert workspace.prepare() == whole
    assert len(read) == SLICES - sum(SHARDS[:done])

import errno
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from ich.data import cache, dicom
from ich.data.competitions.rsna2019 import CLASSES
from ich.errors import UserError
from ich.pipeline.state import Plan
from ich.recipe import load
from ich.stages import prepare
from ich.store.records import Record
from plain_slice import HEADER

RECIPE = """
name: small
competition: {format: rsna2019, root: input/small}
image: {size: 16, crop: head}
folds: {n: 2}
cnn: {net: {backbone: resnet10t}}
"""
SHARDS = [3, 3, 4, 3, 3, 3, 3]  # slices: one series each
SLICES = sum(SHARDS)


class Killed(BaseException):
    """What a kill leaves: nothing after it is written."""


class House:
    """Seven patients with three slices each, of which ID_11 cannot be decoded and ID_20 has two frames."""

    def __init__(self, root: Path) -> None:
        self.root, self.raw, noise = root, root / "input" / "small", np.random.default_rng(7)
        labels, asked = ["ID,Label"], ["ID,Label"]
        for k in range(7):
            split = "train" if k < 5 else "test"
            (self.raw / f"stage_2_{split}").mkdir(parents=True, exist_ok=True)
            for z in range(3):
                image, path = f"ID_{k}{z}", self.raw / f"stage_2_{split}" / f"ID_{k}{z}.dcm"
                header = replace(HEADER, image_id=image, patient_id=f"p{k}", study_id=f"s{k}", series_id=f"r{k}")
                pixels = noise.integers(-1000, 1000, (32, 32)).astype(np.int16)
                dicom.write(path, pixels, replace(header, position=(0.0, 0.0, 5.0 * z)))
                (labels if k < 5 else asked).extend(f"{image}_{name},{int(z == 1)}" for name in CLASSES)
        (self.raw / "stage_2_train.csv").write_text("\n".join(labels) + "\n")
        (self.raw / "stage_2_sample_submission.csv").write_text("\n".join(asked) + "\n")
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
        (root / "small.yaml").write_text(RECIPE)

    def plan(self, *overrides: str) -> Plan:
        return Plan(load(self.root / "small.yaml", overrides), self.root)

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
def house(tmp_path, monkeypatch) -> House:
    monkeypatch.setattr(Plan, "cores", 1)
    return House(tmp_path)


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The names of the files whose pixels are read."""
    names, real = [], cache.read_frames

    def counted(path, frames, values):
        names.extend([path.stem] * len(frames))
        return real(path, frames, values)

    monkeypatch.setattr(cache, "read_frames", counted)
    return names


def killed(house: House, monkeypatch, *, after: int, force: bool = False, overrides: tuple[str, ...] = ()) -> None:
    """`ich prepare` that is killed where it has written so many shards, and the next one without its note."""
    real, left = cache.write_record, after

    def write(*arguments):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "write_record", write)
        with pytest.raises(Killed):
            prepare.run(house.plan(*overrides), force=force)


def test_a_killed_prepare_is_resumed_from_its_shards(house, monkeypatch, read, capsys):
    whole = house.prepare()
    assert len(read) == SLICES
    assert b"not_decoded" in whole["quarantine.csv"]
    for shards in (1, 4, 6):
        house.forget()
        killed(house, monkeypatch, after=shards)
        (house.folder / ".hu-00005.npy.x.tmp").touch()  # the kill came while it was written
        assert house.plan().standing(house.plan().prepare()).why.endswith("resume after the finished shards")
        read.clear()
        capsys.readouterr()
        assert house.prepare() == whole
        there = sum(SHARDS[:shards])
        assert len(read) == SLICES - there
        assert not any(name[3] < str(shards) for name in read)
        said = f"prepare: resumed, {there} of {SLICES} slices were in finished shards\n"
        assert said in capsys.readouterr().out


def test_a_kill_by_the_system_loses_no_finished_shard(house, capsys):
    whole = house.prepare()
    house.forget()
    script = """
import time
from pathlib import Path
from ich.data import cache
from ich.recipe import load
from ich.stages import prepare
from ich.pipeline.state import Plan
Plan.cores = 2
real = cache.side_by_side
cache.side_by_side = lambda *arguments: (time.sleep(0.1) or result for result in real(*arguments))
prepare.run(Plan(load(Path("small.yaml")), Path.cwd()))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=house.root, stdout=subprocess.DEVNULL, start_new_session=True
    )
    until = time.monotonic() + 60
    while not cache.notes(house.folder) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.6))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert cache.notes(house.folder)
    capsys.readouterr()
    assert house.prepare() == whole
    assert "prepare: resumed, " in capsys.readouterr().out


@pytest.mark.parametrize("killed_at", ["its record", "the removal of its notes"])
def test_killed_at_the_end_it_reads_no_pixel_again(house, monkeypatch, read, killed_at):
    def kill(*_, **__):
        raise Killed

    whole = house.prepare()
    house.forget()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(*((Record, "write", kill) if killed_at == "its record" else (Plan, "point_to", kill)))
        prepare.run(house.plan())
    assert len(cache.notes(house.folder)) == len(SHARDS)
    read.clear()
    assert house.prepare() == whole
    assert not read


def test_other_settings_and_other_files_begin_anew_and_name_what_is_left(house, monkeypatch, read, capsys):
    whole = house.prepare()
    house.forget()
    killed(house, monkeypatch, after=3)
    left = house.folder
    capsys.readouterr()
    read.clear()
    house.prepare("image.crop=none")
    assert len(read) == SLICES
    assert f"prepare: {left} is unfinished" in capsys.readouterr().out
    read.clear()
    os.utime(house.raw / "stage_2_train" / "ID_00.dcm", ns=(1, 1))
    assert house.prepare() == whole
    assert len(read) == SLICES
    assert cache.notes(left)
    assert not cache.notes(house.folder)


def test_a_header_that_cannot_be_read_this_time_makes_its_shard_again(house, monkeypatch, read):
    whole = house.prepare()
    house.forget()
    with monkeypatch.context() as patch:
        broken, real = house.raw / "stage_2_train" / "ID_02.dcm", dicom.geometry

        def geometry(path):
            if path == broken:
                raise dicom.Unreadable(dicom.Reason.UNREADABLE)
            return real(path)

        patch.setattr(dicom, "geometry", geometry)
        killed(house, monkeypatch, after=3)
    read.clear()
    assert house.prepare() == whole
    assert len(read) == SLICES - sum(SHARDS[1:3])


def test_force_begins_anew(house, monkeypatch, read):
    whole = house.prepare()
    killed(house, monkeypatch, after=3, force=True)
    read.clear()
    assert house.prepare(force=True) == whole
    assert len(read) == SLICES


def test_on_a_full_disk_it_ends_in_one_line_and_goes_on_later(house, monkeypatch, read):
    real, left = cache.resize_all, 4

    def full(*arguments):
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*arguments)

    whole = house.prepare()
    house.forget()
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"hu-0000\d.npy: No space left.*[Ff]ree disk space"):
        patch.setattr(cache, "resize_all", full)
        prepare.run(house.plan())
    done = len(cache.notes(house.folder))
    assert 0 < done < len(SHARDS)
    assert len(list(house.folder.iterdir())) == 2 * done  # nothing of the unfinished shard takes space
    read.clear()
    assert house.prepare() == whole
    assert len(read) == SLICES - sum(SHARDS[:done])

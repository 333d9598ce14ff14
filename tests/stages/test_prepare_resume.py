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
from ich.pipeline.graph import PROGRESS
from ich.pipeline.plan import Plan
from ich.recipe import load
from ich.stages import prepare
from ich.store.atomic import part_of
from ich.store.records import Record
from plain_slice import HEADER

RECIPE = """
name: small
competition: {format: rsna2019, root: input/small}
image: {size: 16, crop: head}
folds: {n: 2}
cnn: {net: {backbone: resnet10t}}
"""
FILES = ("hu.npy", "slices.parquet", "quarantine.csv")
SLICES = 22  # with the frames of ID_20


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
        folder = plan.prepared.folder
        assert sorted(path.name for path in folder.iterdir()) == sorted((*FILES, "run.json"))
        assert plan.state(plan.prepare()).done
        return {name: (folder / name).read_bytes() for name in FILES}

    @property
    def folder(self) -> Path:
        return self.plan().prepare().folder

    def cached(self) -> list[str]:
        """What lies beside the caches that are whole: locks aside."""
        return sorted(path.name for path in self.folder.parent.glob(".*") if path.name != ".locks")


@pytest.fixture
def house(tmp_path, monkeypatch) -> House:
    monkeypatch.setattr(Plan, "cores", 1)
    monkeypatch.setattr(cache, "SAVE_EVERY", 0)
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
    """`ich prepare` that is killed where it writes its progress file for so many times and once more."""
    real, left = prepare.write_sealed, after

    def write(*arguments):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "write_sealed", write)
        with pytest.raises(Killed):
            prepare.run(house.plan(*overrides), force=force)


def forgotten(house: House) -> None:
    """Remove the cache."""
    os.rename(house.folder, house.root / "before")


def test_a_killed_prepare_goes_on_where_it_was(house, monkeypatch, read, capsys):
    whole = house.prepare()
    assert len(read) == SLICES
    assert b"not_decoded" in whole["quarantine.csv"]
    for series in (1, 2, 4, 7):
        forgotten(house)
        killed(house, monkeypatch, after=series)
        (part_of(house.folder) / f".{PROGRESS}.x.tmp").touch()  # the kill came while it was written
        assert house.plan().standing(house.plan().prepare()).why.endswith("goes on from the last slices kept")
        read.clear()
        capsys.readouterr()
        assert house.prepare() == whole
        there = {1: 3, 2: 6, 4: 13, 7: 22}[series]
        assert len(read) == SLICES - there
        assert not any(name[3] < str(series) for name in read)
        assert f"prepare: goes on, {there} of {SLICES} slices are there\n" in capsys.readouterr().out
        assert not house.cached()
        (house.root / "before").rename(house.root / f"before{series}")


def test_killed_again_and_again_it_comes_to_the_same_end(house, monkeypatch, read):
    whole = house.prepare()
    forgotten(house)
    read.clear()
    for _ in range(4):
        killed(house, monkeypatch, after=1)
    assert house.prepare() == whole
    assert len(read) <= SLICES + 4 * 4  # no more than the series after the one saved


def test_a_kill_by_the_system_loses_nothing_that_was_saved(house, monkeypatch, capsys):
    whole = house.prepare()
    forgotten(house)
    script = """
import sys, time
from pathlib import Path
from ich.data import cache
from ich.recipe import load
from ich.stages import prepare
from ich.pipeline.plan import Plan
cache.SAVE_EVERY, real = 0, prepare.write_sealed
prepare.write_sealed = lambda *arguments: (real(*arguments), time.sleep(0.1))
Plan.cores = 2
prepare.run(Plan(load(Path("small.yaml")), Path.cwd()))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=house.root, stdout=subprocess.DEVNULL, start_new_session=True
    )
    progress = part_of(house.folder) / PROGRESS
    until = time.monotonic() + 60
    while not progress.is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.6))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert progress.is_file()
    capsys.readouterr()
    assert house.prepare() == whole
    assert "prepare: goes on, " in capsys.readouterr().out
    assert not house.cached()


def test_killed_before_its_record_is_written_it_reads_no_pixel_again(house, monkeypatch, read):
    def kill(*_, **__):
        raise Killed

    whole = house.prepare()
    forgotten(house)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Record, "write", kill)
        prepare.run(house.plan())
    assert (house.folder / PROGRESS).is_file()
    assert house.plan().standing(house.plan().prepare()).why.endswith("goes on from the last slices kept")
    read.clear()
    assert house.prepare() == whole
    assert not read
    (house.folder / PROGRESS).write_text("killed before it was removed")
    assert house.prepare() == whole
    assert not read


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "of another"])
def test_a_damaged_progress_file_begins_anew(house, monkeypatch, read, damage):
    whole = house.prepare()
    forgotten(house)
    killed(house, monkeypatch, after=3)
    path = part_of(house.folder) / PROGRESS
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-20] ^= 1
    elif damage == "of another":
        data = data.replace(b'"fingerprint": "', b'"fingerprint": "0')
    path.write_bytes({"cut": data[:-1], "empty": b""}.get(damage, data))
    read.clear()
    assert house.prepare() == whole
    assert len(read) == SLICES


def test_a_flipped_bit_in_the_kept_pixels_is_found(house, monkeypatch, read):
    whole = house.prepare()
    forgotten(house)
    killed(house, monkeypatch, after=4)
    path = part_of(house.folder) / "hu.npy"
    data = bytearray(path.read_bytes())
    data[128 + 512 * 4] ^= 1  # ID_12, for ID_11 is not there
    path.write_bytes(data)
    read.clear()
    assert house.prepare() == whole
    assert len(read) == SLICES - 3


def test_other_settings_and_other_files_begin_anew_and_name_what_is_left(house, monkeypatch, read, capsys):
    whole = house.prepare()
    forgotten(house)
    killed(house, monkeypatch, after=3)
    left = part_of(house.folder)
    capsys.readouterr()
    read.clear()
    house.prepare("image.crop=none")
    assert len(read) == SLICES
    assert f"prepare: {left} is left of another killed prepare" in capsys.readouterr().out
    read.clear()
    os.utime(house.raw / "stage_2_train" / "ID_00.dcm", ns=(1, 1))
    assert house.prepare() == whole
    assert len(read) == SLICES
    assert house.cached() == [left.name]


def test_a_header_that_cannot_be_read_this_time_begins_anew(house, monkeypatch, read):
    whole = house.prepare()
    forgotten(house)
    with monkeypatch.context() as patch:
        broken, real = house.raw / "stage_2_train" / "ID_02.dcm", cache.read_header

        def header(path, values):
            if path == broken:
                raise dicom.Unreadable(dicom.Reason.UNREADABLE)
            return real(path, values)

        patch.setattr(cache, "read_header", header)
        killed(house, monkeypatch, after=3)
    read.clear()
    assert house.prepare() == whole
    assert len(read) == SLICES


def test_force_begins_anew_and_its_leftovers_are_named(house, monkeypatch, read, capsys):
    whole = house.prepare()
    killed(house, monkeypatch, after=3, force=True)
    capsys.readouterr()
    assert house.prepare() == whole
    assert "is left of another killed prepare" in capsys.readouterr().out
    read.clear()
    assert house.prepare(force=True) == whole
    assert len(read) == SLICES
    assert not house.cached()


def test_on_a_full_disk_it_ends_in_one_line_and_goes_on_later(house, monkeypatch, read):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    whole = house.prepare()
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"No space left.*GB are needed.*make room"):
        patch.setattr(os, "posix_fallocate", full)
        prepare.run(house.plan(), force=True)
    assert not house.cached()  # and the place is free again
    assert house.prepare() == whole
    forgotten(house)
    killed(house, monkeypatch, after=3)
    with monkeypatch.context() as patch, pytest.raises(UserError):
        patch.setattr(os, "posix_fallocate", full)
        prepare.run(house.plan())
    read.clear()
    assert house.prepare() == whole
    assert len(read) == SLICES - 10

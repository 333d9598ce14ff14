"""A machine that has run out of memory or file handles ends the run, and quarantines no file."""

import errno
import io
import resource
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest

from ich.data import dicom, files, images
from ich.data.dicom import plain
from ich.data.refusal import Unreadable, exhausted
from plain_slice import HEADER


@pytest.fixture
def scans(tmp_path):
    """An intact slice as a DICOM file, as a PNG image and in an archive."""
    dicom.write(tmp_path / "a.dcm", np.zeros((16, 16), np.int16), HEADER)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8), np.uint8))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.dcm", "a.dcm")
    return tmp_path


READ = {
    "a.dcm": lambda folder: dicom.geometry(folder / "a.dcm"),
    "a.png": lambda folder: images.grey(folder / "a.png"),
    "a.zip": lambda folder: files.members(folder / "a.zip"),
}


@pytest.mark.parametrize("name", READ)
def test_without_file_handles_no_file_is_refused(scans, name):
    READ[name](scans)
    files._opened.cache_clear()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                opened.append(io.FileIO("/dev/null"))
        with pytest.raises(OSError, match="Too many open files") as found:
            READ[name](scans)
        assert found.value.errno == errno.EMFILE
    finally:
        for file in opened:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("function", ["geometry", "hounsfield"])
def test_a_header_that_requests_too_much_memory_is_refused(scans, monkeypatch, function):
    monkeypatch.setattr(plain, "read", lambda _: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(Unreadable):
        getattr(dicom, function)(scans / "a.dcm")


def test_a_memory_error_without_free_memory_is_of_the_machine():
    code = (
        "import resource; from ich.data.refusal import exhausted\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "assert not exhausted(MemoryError())\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)\n"
        "assert exhausted(MemoryError())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("error", "machine"),
    [
        (OSError(errno.EMFILE, ""), True),
        (OSError(errno.ENOSPC, ""), True),
        (OSError(errno.EACCES, ""), False),
        (OSError("no number"), False),
        (ValueError(), False),
    ],
)
def test_errors_of_the_machine_are_told_from_those_of_the_file(error, machine):
    assert exhausted(error) is machine

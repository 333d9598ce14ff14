"""A decoder that crashes or hangs ends its own process and that file only."""

import signal
import subprocess
import sys
import time
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest

import plain_slice
from compressed_slice import JPEG_LS, write_compressed
from ich.data import decoders, dicom
from ich.data.dicom import Reason, Unreadable

CRASHING, HANGING, GREEDY, FAULTY = 11, 22, 33, 44
# The decoding process with a decoder whose behaviour depends on the value of the pixels.
FAKE = """
import importlib.util, os
spec = importlib.util.spec_from_file_location("decoders", {file!r})
decoders = importlib.util.module_from_spec(spec)
spec.loader.exec_module(decoders)
real = decoders.pixels

def pixels(codec, data, rows, columns, width):
    plain = real(codec, data, rows, columns, width)
    if plain[0] == 11:
        os.abort()
    if plain[0] == 22:
        while True:
            pass
    if plain[0] == 33:
        bytearray(1 << 40)
    if plain[0] == 44:
        print("output of a library", flush=True)
        raise KeyError("of the library")
    return plain

decoders.pixels = pixels
decoders.serve()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    script = tmp_path / "fake.py"
    script.write_text(FAKE.format(file=decoders.__file__))
    decoders.stop()
    monkeypatch.setattr(decoders, "COMMAND", [sys.executable, "-P", str(script)])
    monkeypatch.setattr(decoders, "LIMIT", 1.0)
    yield tmp_path
    decoders.stop()


def written(folder, value: int):
    header = replace(plain_slice.HEADER, signed=False, image_id=str(value))
    stream = bytes(imagecodecs.jpegls_encode(np.full((16, 16), value, np.uint16)))
    return write_compressed(folder / f"{value}.dcm", JPEG_LS, [stream], (16, 16), header)


def test_a_crashing_or_hanging_decoder_refuses_the_file_and_the_next_one_is_read(folder):
    good = written(folder, 40)
    for value, expected in (
        (CRASHING, Reason.DECODER_CRASHED),
        (HANGING, Reason.DECODER_HUNG),
        (GREEDY, Reason.NOT_DECODED),
        (FAULTY, Reason.NOT_DECODED),
    ):
        start = time.monotonic()
        with pytest.raises(Unreadable) as refused:
            dicom.hounsfield(written(folder, value))
        assert refused.value.reason is expected
        assert time.monotonic() - start < 10
        assert (dicom.hounsfield(good) == 40).all()


def test_an_installation_without_decoders_is_an_error_and_blames_no_file(folder, monkeypatch):
    path = written(folder, 40)
    monkeypatch.setattr(decoders, "COMMAND", [sys.executable, "-c", "raise ImportError"])
    with pytest.raises(decoders.NoDecodingProcess, match="does not start"):
        dicom.hounsfield(path)


def test_a_decoder_that_blocks_without_computing_is_ended():
    code = "import time; from ich.data import decoders; decoders.pixels = lambda **_: time.sleep(60); decoders.serve()"
    request = b'{"length": 0, "limit": 0.05}\n'
    done = subprocess.run([sys.executable, "-c", code], input=request, capture_output=True, timeout=30, check=False)
    assert done.returncode == -signal.SIGALRM

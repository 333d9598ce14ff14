"""A decoder that crashes or hangs takes down its own process, on that file, and nothing else."""

import sys
import time
from dataclasses import replace

import imagecodecs
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.encaps import encapsulate

import plain_slice
from ich.data import cache, decoders, dicom, slice_table
from ich.data.competitions import Raw
from ich.data.dicom import Reason, Unreadable

HEADER = replace(plain_slice.HEADER, signed=False)
CRASHING, HANGING, GREEDY, FAULTY = 11, 22, 33, 44
# The decoding process with a decoder that does to a picture what the value of its pixels says.
FAKE = """
import importlib.util, os, time
spec = importlib.util.spec_from_file_location("decoders", {file!r})
decoders = importlib.util.module_from_spec(spec)
spec.loader.exec_module(decoders)
real = decoders.pixels

def pixels(codec, data, rows, columns, width):
    plain = real(codec, data, rows, columns, width)
    if plain[0] == 11:
        os.abort()
    if plain[0] == 22:
        time.sleep(60)
    if plain[0] == 33:
        bytearray(1 << 40)
    if plain[0] == 44:
        print("a library's own chatter", flush=True)
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


def written(folder, value: int, z: float = 0.0, plain: bool = False):
    path = folder / f"{value}.dcm"
    stored = np.full((16, 16), value, np.uint16)
    dicom.write(path, stored, replace(HEADER, image_id=str(value), position=(0.0, 0.0, z)))
    if not plain:
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID("1.2.840.10008.1.2.4.80")
        dataset.PixelData = encapsulate([bytes(imagecodecs.jpegls_encode(stored))])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
    return path


def reason(path) -> Reason:
    with pytest.raises(Unreadable) as refused:
        dicom.hounsfield(path)
    return refused.value.reason


def test_a_decoder_that_crashes_or_hangs_is_refused_and_the_next_file_is_read(folder):
    good = written(folder, 40)
    for value, expected in (
        (CRASHING, Reason.DECODER_CRASHED),
        (HANGING, Reason.DECODER_HUNG),
        (GREEDY, Reason.NOT_DECODED),
        (FAULTY, Reason.NOT_DECODED),
    ):
        start = time.monotonic()
        assert reason(written(folder, value)) == expected
        assert time.monotonic() - start < 10
        assert (dicom.hounsfield(good) == 40).all()


def test_a_series_with_such_files_is_prepared_without_them(folder):
    values = [40, CRASHING, 41, HANGING, 42]
    for z, value in enumerate(values):
        written(folder, value, z, plain=value == 42)
    files = pd.DataFrame({"image_id": list(map(str, values)), "split": "test", "path": [f"{v}.dcm" for v in values]})
    labels = pd.DataFrame({"image_id": pd.Series(dtype="str"), "bleed": pd.Series(dtype="float")})
    raw = Raw(files, labels, [], {"bleed": 1.0}, "", ())
    headers = slice_table.read_geometries(folder, files["path"].tolist(), 1, lambda _: None)
    table, refused = slice_table.slice_table(raw, headers)
    assert not refused
    table, refused, _ = cache.write_shards(folder, table, folder, cache.ImageFormat(16), 1, lambda _: None)
    assert table["image_id"].tolist() == ["40", "41", "42"]
    assert cache.HuCache.open(folder, table)[:][:, 0, 0].tolist() == [40, 41, 42]
    assert [(q.image_id, q.reason) for q in refused] == [
        (str(CRASHING), "decoder_crashed"),
        (str(HANGING), "decoder_hung"),
    ]


def test_an_installation_without_decoders_is_said_and_no_file_is_blamed(folder, monkeypatch):
    path = written(folder, 40)
    monkeypatch.setattr(decoders, "COMMAND", [sys.executable, "-c", "raise ImportError"])
    with pytest.raises(decoders.NoDecodingProcess, match="does not start"):
        dicom.hounsfield(path)

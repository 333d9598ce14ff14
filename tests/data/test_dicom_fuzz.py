"""Mutated files are read, or refused with a reason of the list; none raises, hangs or ends the process."""

import time
from collections import Counter
from dataclasses import replace
from io import BytesIO

import numpy as np
import pydicom
import pytest

from compressed_slice import ENCODERS, HEADER, noisy_ramp, write_compressed
from ich.data import dicom
from ich.data.dicom import Reason, Unreadable

LONGEST = 5  # seconds per file
ABSURD = [0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF]
NUMBERS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel")
TEXTS = ("NumberOfFrames", "RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "PixelSpacing", "InstanceNumber")
WRITTEN = ["", "0", "-1", "1e300", "nan", "inf", "2147483648", "99999999", "a", "1\\2\\3\\4", "../../etc/passwd", "\0"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("sources")
    stored, path = noisy_ramp(48, 32, 4095), folder / "a.dcm"
    found = []
    for explicit in (True, False):
        dicom.write(path, stored, replace(HEADER, explicit_vr=explicit))
        found.append(path.read_bytes())
    dataset = pydicom.dcmread(path)
    for syntax, little in (("1.2.840.10008.1.2.2", False), ("1.2.840.10008.1.2.1.99", True)):
        dicom.write(path, stored, HEADER)
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
        pydicom.dcmwrite(path, dataset, little_endian=little, implicit_vr=False)
        found.append(path.read_bytes())
    for syntax, encode in ENCODERS.items():
        for count in (1, 2):
            frames = [bytes(encode(noisy_ramp(48, 32, 255)))] * count
            found.append(write_compressed(path, syntax, frames, (48, 32), NumberOfFrames=count).read_bytes())
    return found


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """A damaged copy: bytes, cuts, lengths, elements."""
    data = bytearray(content)
    kinds = ["header", "anywhere", "cut", "length", "element", "doubled", "swapped"]
    for kind in rng.choice(kinds, rng.integers(1, 4)):
        size = len(data)
        where = int(rng.integers(128, size)) if size > 160 else size // 2
        if kind == "header":
            data[int(rng.integers(128, min(size, 900)))] = int(rng.integers(256))
        elif kind == "anywhere":
            for place in rng.integers(128, size, rng.integers(1, 30)):
                data[place] = int(rng.integers(256))
        elif kind == "cut":
            data = data[: max(where, 140)]
        elif kind == "length":  # of the pixels or of a fragment, for example
            place = data.find(b"\xe0\x7f\x10\x00") + int(rng.choice([4, 8, 16, 24]))
            data[place : place + 4] = int(rng.choice(ABSURD)).to_bytes(4, "little")
        elif kind == "element":
            data[where : where + 4] = int(rng.choice(ABSURD)).to_bytes(4, "little")
        elif kind == "doubled":
            data[where:where] = data[where : where + int(rng.integers(1, 200))]
        else:
            other = int(rng.integers(128, size)) if size > 160 else where
            data[where : where + 8], data[other : other + 8] = data[other : other + 8], data[where : where + 8]
        if len(data) < 200:
            break
    return bytes(data)


def rewritten(content: bytes, rng: np.random.Generator) -> bytes:
    """A whole file with absurd values in its header."""
    dataset = pydicom.dcmread(BytesIO(content))
    for _ in range(rng.integers(1, 3)):
        if rng.random() < 0.6:
            setattr(dataset, str(rng.choice(NUMBERS)), int(rng.choice([0, 1, 2, 7, 8, 12, 16, 32, 4096, 4097, 65535])))
        else:
            dataset.add(pydicom.DataElement(str(rng.choice(TEXTS)), "LO", str(rng.choice(WRITTEN))))
    written = BytesIO()
    dataset.save_as(written)
    return written.getvalue()


def examine(sources: list[bytes], count: int, seed: int, path) -> Counter:
    outcomes: Counter = Counter()
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        source = sources[i % len(sources)]
        path.write_bytes(rewritten(source, rng) if rng.random() < 0.2 else mutated(source, rng))
        start = time.monotonic()
        try:
            first = dicom.geometry(path)
            frames = range(1 + len(first.further))
            found = list(dicom.hounsfields(path, frames))
            assert len(found) == len(frames)
            for image in found:
                if isinstance(image, Unreadable):
                    raise image
                assert image.dtype == np.int16
                assert image.shape == (first.rows, first.columns)
                assert dicom.HU_LOW <= image.min() <= image.max() <= dicom.HU_HIGH
            outcomes["read"] += 1
        except Unreadable as refused:
            outcomes[Reason(refused.reason).name] += 1
            outcomes["unprintable"] += not refused.detail.isprintable()
        except Exception as error:
            raise AssertionError(f"mutation {(seed, i)} of source {i % len(sources)}") from error
        taken = time.monotonic() - start
        outcomes["slowest, ms"] = max(outcomes["slowest, ms"], round(taken * 1000))
        assert taken < LONGEST, f"mutation {(seed, i)} took {taken:.1f} s"
    assert not outcomes["unprintable"]
    return outcomes


def test_mutated_files_are_read_or_refused(sources, tmp_path):
    outcomes = examine(sources, 300, 1, tmp_path / "mutated.dcm")
    assert {"read", "NOT_DICOM", "TRUNCATED", "NOT_DECODED", "BAD_SIZE"} <= set(outcomes)


@pytest.mark.slow
def test_five_thousand_mutated_files_are_read_or_refused(sources, tmp_path):
    outcomes = examine(sources, 5000, 2, tmp_path / "mutated.dcm")
    assert outcomes["read"] > 500

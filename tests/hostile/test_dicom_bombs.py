"""Small DICOM files that claim or expand to much more than a slice."""

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest

from compressed_slice import JPEG_LS, write_compressed
from ich.data import dicom
from ich.data.cache import read_frames
from ich.data.dicom import Reason, Unreadable, parsed, reading
from plain_slice import HEADER

STORED = np.zeros((2, 3), np.uint16)
SLICE = replace(HEADER, explicit_vr=True)


@pytest.fixture
def content(tmp_path):
    """The bytes of an intact slice, explicit little endian, and the place of its first element after the meta."""
    path = tmp_path / "intact.dcm"
    dicom.write(path, STORED, SLICE)
    data = path.read_bytes()
    return data, 144 + struct.unpack_from("<L", data, 140)[0]


def refused(tmp_path, data):
    path = tmp_path / "bomb.dcm"
    path.write_bytes(data)
    with pytest.raises(Unreadable) as error:
        dicom.geometry(path)
    return error.value


def element(group, number, vr, value):
    long = struct.pack("<2xL", len(value)) if vr in (b"OB", b"SQ", b"UN") else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + vr + long + value


def deflated(data, begin, *, wrong_length=0):
    meta = data[:begin].replace(
        element(2, 16, b"UI", b"1.2.840.10008.1.2.1\0"), element(2, 16, b"UI", b"1.2.840.10008.1.2.1.99")
    )
    meta = meta[:140] + struct.pack("<L", len(meta) - 144 + wrong_length) + meta[144:]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return meta + packer.compress(data[begin:]) + packer.flush()


@pytest.mark.parametrize("wrong_length", [0, 7])
def test_a_deflated_file_is_inflated_up_to_a_limit(tmp_path, content, monkeypatch, wrong_length):
    data, begin = content
    path = tmp_path / "deflated.dcm"
    path.write_bytes(deflated(data, begin, wrong_length=wrong_length))
    assert dicom.hounsfield(path).shape == STORED.shape
    monkeypatch.setattr(parsed, "MAX_COPIED", 1 << 22)
    bomb = deflated(data + bytes(1 << 23), begin, wrong_length=wrong_length)
    assert len(bomb) < 20_000
    assert refused(tmp_path, bomb).reason == Reason.BAD_SIZE


def test_a_deflated_file_that_is_cut_off_is_refused(tmp_path, content):
    assert refused(tmp_path, deflated(*content)[:-3]).reason == Reason.TRUNCATED


def test_at_most_4096_frames_are_read(tmp_path, content):
    data, begin = content
    many = data[:begin] + data[begin:].replace(
        element(0x28, 0x10, b"US", b"\2\0"), element(0x28, 8, b"IS", b"4097") + element(0x28, 0x10, b"US", b"\2\0")
    )
    why = refused(tmp_path, many + bytes(12 * 4097))
    assert (why.reason, why.detail) == (Reason.BAD_SIZE, "4097 frames of 2 x 3")


def in_front(content, elements):
    """The slice with elements before its first element."""
    data, begin = content
    return data[:begin] + elements + data[begin:]


NESTED = b"\xfe\xff\0\xe0\xff\xff\xff\xff"  # an item of undefined length
LOOPS = {
    "zeros": bytes(80_000),
    "elements": element(8, 1, b"UN", b"") * 10_000,
    "zeros in a sequence": struct.pack("<HH2s2xL", 8, 6, b"SQ", 0xFFFFFFFF) + NESTED + bytes(80_000),
    "nested sequences": (struct.pack("<HH2s2xL", 8, 6, b"SQ", 0xFFFFFFFF) + NESTED) * 4_000,
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_header_of_endless_elements_is_refused(tmp_path, content, monkeypatch, name):
    monkeypatch.setattr(parsed, "MAX_READS", 5_000)
    assert refused(tmp_path, in_front(content, LOOPS[name])).reason == Reason.NOT_DICOM


def test_a_header_is_parsed_within_a_time_limit(tmp_path, content, monkeypatch):
    monkeypatch.setattr(parsed, "SECONDS", 0)
    assert refused(tmp_path, deflated(*content)).detail == "too many or too large elements"


@pytest.mark.parametrize("elements", [element(0x7000, 1, b"UN", b""), bytes(8), 2 * element(8, 1, b"UN", b"")])
def test_elements_that_are_not_in_order_are_refused(tmp_path, content, elements):
    assert refused(tmp_path, in_front(content, elements)).reason == Reason.NOT_DICOM


def test_a_value_that_claims_to_be_huge_is_not_read(tmp_path, content):
    path = tmp_path / "huge.dcm"
    path.write_bytes(in_front(content, element(8, 5, b"UN", b"")[:-4] + b"\0\0\0\x40"))  # the character set
    with path.open("r+b") as file:
        file.truncate(1 << 31)
    with pytest.raises(Unreadable, match="too large"):
        dicom.geometry(path)


def test_a_long_identifier_is_damaged_and_not_missing(tmp_path, content):
    patient = element(0x10, 0x20, b"LO", b"p ")
    data = content[0].replace(patient, element(0x10, 0x20, b"LO", b"p" * 2000))
    assert data != content[0]
    assert refused(tmp_path, data).reason == Reason.NO_IDENTITY


def test_a_frame_that_is_compressed_to_more_than_its_pixels_is_not_read(tmp_path):
    path = write_compressed(tmp_path / "huge.dcm", JPEG_LS, [bytes([1]) * 100_000], (16, 16))
    with pytest.raises(Unreadable, match="larger than its pixels"):
        dicom.hounsfield(path)


def test_the_frames_of_a_file_are_read_one_by_one(tmp_path, content, monkeypatch):
    path, read = tmp_path / "intact.dcm", []
    monkeypatch.setattr(reading, "_hounsfield", lambda file, frame: read.append(frame))
    next(read_frames(path, [0, 1]))
    assert read == [0]

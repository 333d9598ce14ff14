"""Files read without pydicom have the same geometry, units and refusals as with pydicom."""

import struct
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32, STANDARD_VR

import plain_slice
from ich.data import cache, dicom
from ich.data.dicom import Geometry, Unreadable, elements, plain

SHIPPED = Path(pydicom.__file__).parent / "data"
FILES = sorted(p for p in SHIPPED.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc", ".json"))
CQ500 = Path(__file__).parents[2] / "../shared/data/cq500/CQ500CT0"
ROWS, COLUMNS = 12, 10
UNDEFINED = 0xFFFFFFFF

Element = tuple[int, str, bytes]
# As a scanner writes it, with a sequence of defined length, and private and empty elements.
SCANNED: list[Element] = [
    (0x00080005, "CS", b"ISO_IR 100"),
    (0x00080008, "CS", b"ORIGINAL\\PRIMARY\\AXIAL "),
    (0x00080016, "UI", b"1.2.840.10008.5.1.4.1.1.2\0"),
    (0x00080018, "UI", b"1.2.3.4\0"),
    (0x00080060, "CS", b"CT"),
    (0x00081140, "SQ", b"\xfe\xff\x00\xe0\x00\x00\x00\x00"),
    (0x00090010, "LO", b"A SCANNER "),
    (0x00091001, "UN", b"\1\2\3\4"),
    (0x00100010, "PN", b"M\xfcller^A"),
    (0x00100020, "LO", b"ID_1"),
    (0x0020000D, "UI", b"1.2.5\0"),
    (0x0020000E, "UI", b"1.2.5.6\0"),
    (0x00200010, "SH", b""),
    (0x00200012, "IS", b"1 "),
    (0x00200013, "IS", b"17"),
    (0x00200032, "DS", b"-125.5\\-100\\30.25 "),
    (0x00200037, "DS", b"1\\0\\0\\0\\0.94\\0.34 "),
    (0x00280002, "US", b"\1\0"),
    (0x00280004, "CS", b"MONOCHROME2 "),
    (0x00280008, "IS", b"1 "),
    (0x00280010, "US", bytes([ROWS, 0])),
    (0x00280011, "US", bytes([COLUMNS, 0])),
    (0x00280030, "DS", b"0.5\\0.45"),
    (0x00280100, "US", b"\x10\0"),
    (0x00280101, "US", b"\x0c\0"),
    (0x00280102, "US", b"\x0b\0"),
    (0x00280103, "US", b"\0\0"),
    (0x00280120, "US", b"\0\0"),
    (0x00281050, "DS", b"40"),
    (0x00281052, "DS", b"-1024 "),
    (0x00281053, "DS", b"1 "),
    (0x00281054, "LO", b"HU"),
]
SCANNED = [(tag, vr, value + b" "[: len(value) % 2]) for tag, vr, value in SCANNED]
TEXTS = [b"", b"  ", b"0 ", b"-1", b"1\0", b" 2 ", b"1e300 ", b"nan ", b"1\\2 ", b"1\\2\\3 ", b"12", b"a\\b\\"]
TEXTS += [b"\\ ", b"CT", b"ct", b"MR", b"LOCALIZER ", b"A\xe9", b"\x1b$B", b"\0\0", b"MONOCHROME1 ", b"RGB ", b"Z_EFF "]
TEXTS += [b"ID_2", b"ISO_IR 192", b"ISO_IR 6", b"\\ISO 2022 IR 87", b"ISO_IR 999", b"1.2.840.10008.1.2.1.99", b"65536 "]
TEXTS += [b"1_0 "]
NUMBERS = [b"\0\0", b"\1\0", b"\2\0", b"\x0c\0", b"\x10\0", b"\xff\xff", b"\0\x80", b"", b"\1\0\2\0", b"\1"]
SYNTAXES = [b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0", b"1.2.840.10008.1.2.1.99"]
SYNTAXES += [b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2 ", b"1.2.840.10008.1.2.1 ", b"1.2.3 ", b"", b"1.2\\1.3 "]
ADDED = [0x00000002, 0x00020016, 0x00041130, 0x00080005, 0x00280008, 0x00280121, 0x00283000, 0x52009229, 0x52009230]
ADDED += [0x7FE00001, 0x7FE00008, 0x7FE00009, 0x7FE00010, 0xFFFEE00D, 0xFFFEE0DD, 0x00290010, 0x00081032, 0x00189999]
VRS = [*sorted(map(str, STANDARD_VR)), "ZZ", "A0", "  ", "\0\0"]
LONG = set(map(str, EXPLICIT_VR_LENGTH_32))


def encoded(element: Element, explicit: bool, length: int | None = None) -> bytes:
    tag, vr, value = element
    length = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if not explicit:
        return head + struct.pack("<L", length) + value
    if vr in LONG:
        return head + vr.encode() + b"\0\0" + struct.pack("<L", length) + value
    return head + vr.encode() + struct.pack("<H", length & 0xFFFF) + value


def file_of(
    header: list[Element],
    pixels: bytes,
    explicit: bool,
    syntax: bytes | None = None,
    lengths: dict[int, int] | None = None,
    pixel_vr: str = "OW",
    first_meta: int = 0,
) -> bytes:
    """A DICOM file.

    lengths: wrong lengths, by number of the element in the header. first_meta: the first element of group 2.
    """
    meta = [(0x00020001, "OB", b"\0\1"), (0x00020002, "UI", b"1.2.840.10008.5.1.4.1.1.2\0")]
    meta += [(0x00020003, "UI", b"1.2.3.4\0"), (0x00020010, "UI", SYNTAXES[explicit] if syntax is None else syntax)]
    data = b"".join(encoded(one, True) for one in meta if one[0] & 0xFFFF >= first_meta)
    if first_meta == 0:
        data = encoded((0x00020000, "UL", struct.pack("<L", len(data))), True) + data
    data += b"".join(encoded(one, explicit, (lengths or {}).get(i)) for i, one in enumerate(header))
    return bytes(128) + b"DICM" + data + encoded((0x7FE00010, pixel_vr, pixels), explicit)


def changed(rng: np.random.Generator) -> bytes:
    """A scanner's file with one to three changed, added, doubled, moved or removed elements or bytes."""
    header, lengths, syntax, kept = list(SCANNED), {}, None, None
    kind = VRS[rng.integers(len(VRS))] if rng.random() < 0.1 else "OW"
    explicit, pixels = bool(rng.integers(2)), rng.integers(0, 256, 2 * ROWS * COLUMNS, dtype=np.uint8).tobytes()
    bytes_changed, first_meta = 0, int(rng.choice([0, 0, 1, 2, 2, 3, 16]))
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(header)))
        tag, vr, value = header[at]
        changes = ["value"] * 5 + ["vr", "out", "doubled", "moved", "added", "length", "syntax", "bytes", "cut"]
        match rng.choice(changes):
            case "value":
                pool = NUMBERS if vr in ("US", "SS") else TEXTS
                value = pool[rng.integers(len(pool))]
                header[at] = (tag, vr, value + b" "[: len(value) % 2 and rng.random() < 0.9])
            case "vr":
                header[at] = (tag, VRS[rng.integers(len(VRS))], value)
            case "out":
                del header[at]
            case "doubled":
                header.insert(at, header[at])
            case "moved":
                header.insert(int(rng.integers(len(header))), header.pop(at))
            case "added":
                tag, value = ADDED[rng.integers(len(ADDED))], TEXTS[rng.integers(len(TEXTS))]
                place = at if rng.random() < 0.2 else sum(one[0] < tag for one in header)
                header.insert(place, (tag, VRS[rng.integers(len(VRS))], value))
            case "length":
                lengths[at] = int(
                    rng.choice([0, 1, 2, 3, len(value) + 1, 0x4141, 0x5A5A, 0xFFFF, 0x7FFFFFFF, UNDEFINED])
                )
            case "syntax":
                syntax = SYNTAXES[rng.integers(len(SYNTAXES))]
            case "bytes":
                bytes_changed += int(rng.integers(1, 4))
            case _:
                kept = rng.random()
    data = bytearray(file_of(header, pixels, explicit, syntax, lengths, kind, first_meta))
    for _ in range(bytes_changed):
        data[rng.integers(128, len(data) - len(pixels))] = rng.integers(256)
    return bytes(data if kept is None else data[: int(kept * len(data))])


def outcome(path: Path) -> list[object]:
    """Geometry, and units of each frame; in place of either, reason and detail of the refusal."""
    try:
        first = dicom.geometry(path)
    except Unreadable as refused:
        first = refused
    frames = range(1 + len(first.further) if isinstance(first, Geometry) else 1)
    found: list[object] = [repr(first) if isinstance(first, Geometry) else (first.reason, first.detail)]
    images = cache.read_frames(path, frames)
    return found + [(i.reason, i.detail) if isinstance(i, Unreadable) else (i.shape, i.tobytes()) for i in images]


def compared(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, list[object]]:
    """True if pydicom is not needed, and the outcome, after checking that it is the same with pydicom alone."""
    is_plain = plain.read(path.read_bytes()[: plain.HEAD]) is not None
    found = outcome(path)
    with monkeypatch.context() as patch:
        patch.setattr(plain, "read", lambda head: None)
        assert found == outcome(path), path
    return is_plain, found


def by_outcome(count: int, seed: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counts: Counter[str] = Counter()
    for i in range(count):
        path.unlink(missing_ok=True)  # some file systems sync a file that is truncated and written again
        path.write_bytes(changed(np.random.default_rng((seed, i))))
        try:
            is_plain, (first, *_) = compared(path, monkeypatch)
        except AssertionError as error:
            raise AssertionError(f"change {(seed, i)}") from error
        counts[f"{'plain' if is_plain else 'pydicom'}: {first[0].name if isinstance(first, tuple) else 'read'}"] += 1
    return counts


@pytest.mark.parametrize("explicit", [True, False])
def test_a_scanners_file_needs_no_pydicom(tmp_path, monkeypatch, explicit):
    pixels = np.arange(ROWS * COLUMNS, dtype="<u2").tobytes()
    (tmp_path / "a.dcm").write_bytes(file_of(SCANNED, pixels, explicit))
    is_plain, (geometry, image) = compared(tmp_path / "a.dcm", monkeypatch)
    assert is_plain
    assert "position=62.4599" in str(geometry)  # (100 x 0.34 + 30.25 x 0.94) / 0.99959
    assert isinstance(image, tuple)
    assert np.frombuffer(image[1], np.int16).tolist() == list(range(-1024, -1024 + ROWS * COLUMNS))


def test_a_written_slice_needs_no_pydicom(tmp_path, monkeypatch):
    stored = np.random.default_rng(1).integers(0, 4096, (ROWS, COLUMNS)).astype(np.int16)
    for explicit, short in product((True, False), repeat=2):
        dicom.write(tmp_path / "a.dcm", stored, replace(plain_slice.HEADER, explicit_vr=explicit, short_meta=short))
        assert compared(tmp_path / "a.dcm", monkeypatch)[0]


@pytest.mark.parametrize("first", [0, 1, 2, 3, 16])
def test_file_meta_information_begins_with_length_version_or_sop_class(tmp_path, monkeypatch, first):
    whole = file_of(SCANNED, bytes(2 * ROWS * COLUMNS), False, first_meta=first)
    (tmp_path / "a.dcm").write_bytes(whole)
    assert compared(tmp_path / "a.dcm", monkeypatch)[0] == (first < 3)
    (tmp_path / "b.dcm").write_bytes(whole[:136] + b"ZZ" + whole[138:])
    assert not compared(tmp_path / "b.dcm", monkeypatch)[0]


def test_pydicoms_files_and_truncated_files_have_the_outcome_of_pydicom(tmp_path, monkeypatch):
    assert sum(compared(path, monkeypatch)[0] for path in FILES) >= 10
    whole, path = file_of(SCANNED, bytes(2 * ROWS * COLUMNS), True), tmp_path / "cut.dcm"
    for end in range(120, len(whole) + 1, 19):
        path.unlink(missing_ok=True)
        path.write_bytes(whole[:end])
        compared(path, monkeypatch)


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize(
    "added",
    [
        (0x00000002, "UI", b"1.2\0"),
        (0x00041130, "CS", b"A "),
        (0x00080005, "CS", b"ISO_IR 999"),
        (0x00080006, "LO", b"A" * plain.HEAD),
        (0x00283000, "SQ", b""),
        (0x52009229, "SQ", b""),
        (0x52009230, "SQ", b""),
        (0x7FE00008, "OF", b"1234"),
        (0x7FE00009, "OD", b"12345678"),
        (0xFFFEE00D, "UN", b""),
    ],
    ids=lambda added: f"{added[0]:08x}",
)
def test_unusual_elements_are_left_to_pydicom(tmp_path, monkeypatch, added, explicit):
    header = [one for one in SCANNED if one[0] != added[0]]
    header.insert(sum(one[0] < added[0] for one in header), added)
    (tmp_path / "a.dcm").write_bytes(file_of(header, bytes(2 * ROWS * COLUMNS), explicit))
    assert not compared(tmp_path / "a.dcm", monkeypatch)[0]


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ((0x00280301, "CS", b"YES "), "BurnedInAnnotation is YES"),
        ((0x00280301, "CS", b"NO"), ""),
        ((0x00080016, "UI", b"1.2.840.10008.5.1.4.1.1.7\0"), "Secondary Capture"),
        ((0x00080016, "UI", b"1.2.840.10008.5.1.4.1.1.7.3\0"), "Secondary Capture"),
        ((0x00080016, "UI", b"1.2.840.10008.5.1.4.1.1.77.1.4\0"), ""),
        ((0x00080008, "CS", b"DERIVED\\SECONDARY\\AXIAL"), ""),  # reformatted slices
    ],
    ids=lambda case: str(case[2]) if isinstance(case, tuple) else None,
)
def test_text_in_the_pixels_is_declared_in_the_header(tmp_path, monkeypatch, changed, expected, explicit):
    header = sorted([one for one in SCANNED if one[0] != changed[0]] + [changed])
    (tmp_path / "a.dcm").write_bytes(file_of(header, bytes(2 * ROWS * COLUMNS), explicit))
    is_plain, (geometry, _) = compared(tmp_path / "a.dcm", monkeypatch)
    assert is_plain
    assert f"burned_in={expected!r}," in str(geometry)


@pytest.mark.parametrize("explicit", [True, False])
def test_an_odd_length_needs_no_pydicom(tmp_path, monkeypatch, explicit):
    header = sorted([*SCANNED, (0x00081030, "LO", b"odd")])
    (tmp_path / "a.dcm").write_bytes(file_of(header, bytes(2 * ROWS * COLUMNS), explicit))
    assert compared(tmp_path / "a.dcm", monkeypatch)[0]


def test_the_vr_of_the_pixels_has_the_outcome_of_pydicom(tmp_path, monkeypatch):
    for vr in ("OB", "UN", "LT", "ZZ"):
        (tmp_path / "a.dcm").write_bytes(file_of(SCANNED, bytes(2 * ROWS * COLUMNS), True, pixel_vr=vr))
        assert compared(tmp_path / "a.dcm", monkeypatch)[0] == (vr == "OB")


def test_multi_frame_files_without_functional_groups_need_no_pydicom(tmp_path, monkeypatch):
    header = [(tag, vr, b"3 " if tag == 0x00280008 else value) for tag, vr, value in SCANNED]
    pixels = np.arange(3 * ROWS * COLUMNS, dtype="<u2").tobytes()
    (tmp_path / "a.dcm").write_bytes(file_of(header, pixels, True))
    is_plain, (_, *images) = compared(tmp_path / "a.dcm", monkeypatch)
    assert is_plain
    assert len(images) == 3


@pytest.mark.skipif(not CQ500.is_dir(), reason="../shared/data/cq500 is not here")
def test_files_of_a_hospital_have_the_outcome_of_pydicom(monkeypatch):
    for path in sorted(CQ500.glob("*.dcm"))[:4]:
        assert isinstance(compared(path, monkeypatch)[1][0], str)


def test_changed_headers_have_the_outcome_of_pydicom(tmp_path, monkeypatch):
    counts = by_outcome(500, 1, tmp_path / "a.dcm", monkeypatch)
    assert {"plain: read", "plain: BAD_RESCALE", "plain: NOT_CT_SLICE", "plain: BAD_SIZE"} <= set(counts)
    assert {"pydicom: read", "pydicom: NOT_DICOM", "pydicom: TRUNCATED"} <= set(counts)
    assert counts["plain: read"] > 50


@pytest.mark.slow
def test_many_changed_headers_have_the_outcome_of_pydicom(tmp_path, monkeypatch):
    counts = by_outcome(30_000, 2, tmp_path / "a.dcm", monkeypatch)
    print(counts)
    assert sum(count for kind, count in counts.items() if kind.startswith("plain")) > 5_000


def test_constants_of_the_format_are_those_of_pydicom():
    assert set(plain.SHORT.values()) == set(map(str, EXPLICIT_VR_LENGTH_16))
    assert set(plain.LONG.values()) == LONG
    sequences = ("ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    known = [elements.MODALITY_LUT, elements.SHARED_GROUPS, elements.PER_FRAME_GROUPS]
    assert [tag_for_keyword(keyword) for keyword in sequences] == known
    assert 0 not in elements.TAGS.values()
    assert plain.HEAD <= 0x4141  # "AA"

"""Patient names and other identifying tags stay in the raw files.

They are planted in every raw file. After all commands, all artifacts and all output are searched, including compressed,
base64-encoded and tabular content.
"""

import base64
import io
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from ich.data import dicom
from ich.phantom.competition import write_competition

RECIPE = """
name: planted
competition: {format: rsna2019, root: input/planted}
image: {size: 32}
folds: {n: 2}
cnn: {net: {backbone: resnet10t, kwargs: {channels: [4, 8, 8, 8], stem_width: 4}, epochs: 1, batch_size: 16}}
sequence: {gru: {cell: gru, inputs: [net], epochs: 1, hidden: 8, features: oof}}
smooth: {gauss: {}}
stack: {lgbm: {neighbours: 2, num_iterations: 3, min_data_in_leaf: 5}}
thresholds: {trials: 5}
compute: {processes: 1}
"""
STAGES = "check prepare folds cnn sequence smooth stack blend thresholds submit score explain report status verify"
# all commands in one process, verbose and with all warnings
COMMANDS = """
import sys
from ich.cli import app
for stage in sys.argv[1].split():
    app([stage, "planted.yaml", "--verbose"], standalone_mode=False)
for name in ("stage_2_test", "broken"):
    raw, out = f"input/planted/{name}", f"{name}.csv"
    app(["predict", "planted.yaml", raw, "-o", out, "--verbose"], standalone_mode=False)
"""

IDENTIFYING = """
    PatientName PatientBirthName PatientMotherBirthName OtherPatientNames OtherPatientIDs PatientAddress
    PatientTelephoneNumbers PatientComments AdditionalPatientHistory Occupation EthnicGroup IssuerOfPatientID
    InstitutionName InstitutionAddress InstitutionalDepartmentName StationName DeviceSerialNumber
    ReferringPhysicianName PerformingPhysicianName OperatorsName NameOfPhysiciansReadingStudy RequestingPhysician
    StudyDescription SeriesDescription ProtocolName StudyID AccessionNumber ImageComments StudyComments
    RequestedProcedureDescription TextComments
"""
KEYWORDS = IDENTIFYING.split()
BORN = "19010203"
WORD = re.compile(rb"Zq(\d\d)Vex|ZQ(\d\d)VEX|zq(\d\d)vex|(19010203|1901-02-03)")
BASE64 = re.compile(rb"[A-Za-z0-9+/]{32,}")


# ---- planting


def word(n: int) -> str:
    return f"Zq{n:02}Vex"


def plant(path: Path, unusual: bool) -> None:
    """Put a distinct word into each identifying element, private element and sequence item.

    unusual: a header that only pydicom reads.
    """
    slice_ = pydicom.dcmread(path)
    for n, keyword in enumerate(KEYWORDS):
        setattr(slice_, keyword, f"{word(n)}^{word(n)}" if "Name" in keyword else word(n))
    slice_.PatientBirthDate = slice_.StudyDate = BORN
    for group, n in ((0x0009, 90), (0x0029, 91), (0x0041, 92)):
        slice_.private_block(group, f"{word(n)} CREATOR", create=True).add_new(1, "LO", word(n + 3))
    inner = Dataset()
    inner.PatientID = inner.RequestedProcedureComments = word(96)
    slice_.OtherPatientIDsSequence = slice_.RequestAttributesSequence = Sequence([inner])
    if unusual:
        slice_.SpecificCharacterSet, slice_.PatientName = "ISO_IR 101", "Zq00Vex^Žofie"
    slice_.save_as(path)


def broken(data: bytes) -> dict[str, bytes]:
    """Damaged versions of a file with explicit value representations, for error messages that may quote it."""
    place = {
        name: data.index(tag)
        for name, tag in {
            "modality": b"\x08\0\x60\0CS",
            "description": b"\x08\0\x30\x10LO",
            "name": b"\x10\0\x10\0PN",
            "patient": b"\x10\0\x20\0LO",
            "birth": b"\x10\0\x30\0DA",
            "address": b"\x10\0\x40\x10LO",
            "slope": b"\x28\0\x53\x10DS",
            "requester": b"\x32\0\x60\x10LO",
        }.items()
    }

    def swallowing(first: str, end: str) -> bytes:
        """A length up to the end of another element; the rest of the header is valid."""
        at = place[first]
        return data[: at + 6] + (place[end] - at - 8).to_bytes(2, "little") + data[at + 8 :]

    name = place["name"]
    return {
        "fewer_pixels": data[:-100],
        "cut_in_a_name": data[: name + 12],
        "cut_after_the_names": data[: place["birth"]],
        "long_name": data[: name + 6] + b"\xff\xff" + data[name + 8 :],
        "name_of_no_kind": data[: name + 4] + b"??" + data[name + 6 :],
        "no_dicom": word(0).encode() * 50,
        "another_modality": data.replace(b"\x08\0\x60\0CS\x02\0CT", b"\x08\0\x60\0CS\x02\0MR"),
        "swallowing_modality": swallowing("modality", "description"),
        "swallowing_slope": swallowing("slope", "requester"),
        "swallowing_patient": swallowing("patient", "address"),
    }


@dataclass(frozen=True)
class Planted:
    root: Path
    said: str


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Planted:
    """A competition with planted words, after all commands."""
    root = tmp_path_factory.mktemp("planted")
    raw = root / "input/planted"
    write_competition(raw, train_studies=10, test_studies=2, slices=5, size=48, seed=3)
    paths = sorted(raw.glob("stage_2_*/*.dcm"))
    for number, path in enumerate(paths):
        plant(path, unusual=number % 5 == 0)
    explicit = next(path for path in paths if b"\x10\0\x10\0PN" in path.read_bytes())
    (raw / "broken").mkdir()
    (raw / "broken/sound.dcm").write_bytes(explicit.read_bytes())
    train = sorted((raw / "stage_2_train").iterdir())
    for number, (name, data) in enumerate(broken(explicit.read_bytes()).items()):
        (raw / "broken" / f"{name}.dcm").write_bytes(data)
        train[4 * number].write_bytes(data)
    (root / "planted.yaml").write_text(RECIPE)
    words = [sys.executable, "-W", "always", "-c", COMMANDS, STAGES]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return Planted(root, done.stdout + done.stderr)


# ---- searching


def unpacked(data: bytes) -> Iterator[bytes]:
    """Yield the bytes and everything that is encoded or compressed in them."""
    yield data
    yield data.replace(b"\0", b"")  # text of two or four bytes a letter
    if data.startswith(b"PAR1"):
        table = pq.read_table(io.BytesIO(data))
        yield str(table.schema.to_string(show_schema_metadata=True)).encode()
        yield table.to_pandas().to_csv().encode()
    elif data.startswith(b"PK\3\4"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield from unpacked(archive.read(name))
    elif data.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            yield repr(image.info).encode() + image.tobytes()
    else:
        for kind in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):
            with suppress(zlib.error):
                yield zlib.decompressobj(kind).decompress(data)
        for text in BASE64.findall(data):
            whole = text[: len(text) - (len(text) % 4 == 1)]
            yield from unpacked(base64.b64decode(whole + b"=" * (-len(whole) % 4)))


def words_in(data: bytes) -> set[str]:
    """Planted words in the content of a file."""
    return {match.group().decode() for part in unpacked(data) for match in WORD.finditer(part)}


def hidden(text: bytes) -> dict[str, bytes]:
    """Places in which the search must find a word."""
    png, parquet, archive, info = io.BytesIO(), io.BytesIO(), io.BytesIO(), PngInfo()
    info.add_text("Comment", text.decode(), zip=True)
    Image.new("L", (2, 2)).save(png, "PNG", pnginfo=info)
    pq.write_table(pa.table({"a": [text.decode()]}), parquet)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", text)
    packed = {"zlib": zlib.compress(text), "raw": zlib.compress(text, wbits=-15), "png": png.getvalue()}
    pages = {f"page with {name}": b'{"a":"%s"}' % base64.b64encode(data) for name, data in packed.items()}
    wide = text.decode().encode("utf-32")
    return {"parquet": parquet.getvalue(), "zip": archive.getvalue(), "upper": text.upper(), "utf-32": wide, **pages}


@pytest.mark.parametrize("place", hidden(b"").keys())
def test_the_search_finds_words_in_every_encoding(place):
    text = b"0123456789 abcdefghijklmnopqrstuvwxyz Zq07Vex"
    assert words_in(hidden(text)[place])
    assert not words_in(hidden(text.replace(b"q", b"p"))[place])


def test_every_raw_file_has_the_words(planted):
    for path in (planted.root / "input/planted/stage_2_test").iterdir():
        assert len(words_in(path.read_bytes())) > len(KEYWORDS)


def test_every_broken_file_was_quarantined(planted):
    names = {path.name for path in (planted.root / "input/planted/broken").iterdir()}
    assert {name for name in names if f"quarantined: {name}: " not in planted.said} == {"sound.dcm"}


def test_no_artifact_and_no_output_has_a_planted_word(planted):
    raw = planted.root / "input/planted"
    made = [path for path in sorted(planted.root.rglob("*")) if path.is_file() and raw not in path.parents]
    names = {path.name for path in made}
    assert {"report.html", "slices.parquet", "quarantine.csv", "check.csv", "submission.csv", "broken.csv"} <= names
    found = {path.relative_to(planted.root).as_posix(): words_in(path.read_bytes()) for path in made}
    assert not {path: words for path, words in found.items() if words}
    assert not words_in(planted.said.encode())


def test_the_anonymous_patient_id_is_kept(planted):
    table = pq.read_table(next((planted.root / "input/cache").glob("*/slices.parquet"))).to_pandas()
    row = table[table["split"] == "train"].iloc[0]
    path = planted.root / f"input/planted/stage_2_train/{row['image_id']}.dcm"
    assert dicom.geometry(path).patient_id == row["patient_id"]

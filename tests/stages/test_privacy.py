"""Patient names and other identifying tags stay in the raw files, and ids and paths in files that are not shared.

All are planted in own scans. After all commands, all artifacts and all output are searched, including compressed,
base64-encoded and tabular content.
"""

import base64
import html
import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from conftest import ROOT, copied, make, plan_of
from ich import console
from ich.cli import app
from ich.data import dicom
from ich.errors import UserError
from ich.models.table import SliceTable, read_folds
from ich.phantom.study import CLASSES, make_study
from ich.pipeline.state import Plan
from ich.stages import evidence
from plain_slice import HEADER

RECIPE = """
name: planted
competition: {format: folder, root: input/Zq82Vex}
image: {size: 32}
folds: {n: 2}
cnn: {net: {backbone: resnet10t, kwargs: {channels: [4, 8, 8, 8], stem_width: 4}, epochs: 1, batch_size: 16}}
sequence: {gru: {cell: gru, inputs: [net], epochs: 1, hidden: 8, features: oof}}
smooth: {gauss: {}}
stack: {lgbm: {neighbours: 2, num_iterations: 3, min_data_in_leaf: 5}}
thresholds: {trials: 5}
report: {studies: [Zq71Vex0]}
compute: {processes: 1}
"""
STAGES = "check prepare folds cnn sequence smooth stack blend thresholds submit score explain report status verify"

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
LOCAL = {"Zq70Vex", "Zq71Vex", "Zq72Vex", "Zq73Vex", "Zq80Vex", "Zq81Vex", "Zq82Vex"}  # ids and parts of paths
BASE64 = re.compile(rb"[A-Za-z0-9+/]{32,}")


# ---- planting


def word(n: int) -> str:
    return f"Zq{n:02}Vex"


def plant(path: Path, unusual: bool, burned_in: bool) -> None:
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
    slice_.BurnedInAnnotation = "YES" if burned_in else "NO"
    if unusual:
        slice_.SpecificCharacterSet, slice_.PatientName = "ISO_IR 101", "Zq00Vex^Žofie"
    slice_.save_as(path)


def own_scans(root: Path) -> list[Path]:
    """Write scans with ids of planted words, in folders with planted names, and labels.csv; return their paths."""
    paths, rows = [], [f"image_id,{','.join(CLASSES)}"]
    for n in range(12):
        study = make_study(3, n, 0, slices=5, size=48, kinds=(n % 5,) if n % 3 else ())
        folder = root / ("test" if n > 9 else "") / f"Zq80Vex^Anna{n}" / "Zq81Vex"
        folder.mkdir(parents=True)
        for k, (x, y, z) in enumerate(study.scan.positions.tolist()):
            ids = {"patient_id": f"Zq70Vex{n}", "study_id": f"Zq71Vex{n}", "series_id": f"Zq72Vex{n}"}
            header = replace(HEADER, **ids, image_id=f"Zq73Vex{n}.{k}", position=(x, y, z), explicit_vr=n % 2 == 0)
            paths.append(folder / f"IM{k}")
            dicom.write(paths[-1], study.hu[k], header)
            plant(paths[-1], unusual=k == n % 5, burned_in=n == 11)
            rows.append(",".join([paths[-1].relative_to(root).as_posix(), *map(str, study.labels[k])]))
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return paths


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

    @property
    def raw(self) -> Path:
        return self.root / "input/Zq82Vex"

    @cached_property
    def made(self) -> dict[str, bytes]:
        """The content of all files that the commands wrote."""
        files = [path for path in sorted(self.root.rglob("*")) if path.is_file()]
        inputs = (self.raw, self.root / "new", self.root / "planted.yaml")
        return {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for path in files
            if not {path, *path.parents} & {*inputs}
        }

    @cached_property
    def words(self) -> dict[str, set[str]]:
        """Planted words by file."""
        return {name: words_in(data) for name, data in self.made.items()}

    @property
    def shared(self) -> set[str]:
        """The files that may be shared by the table in docs/reference/privacy.md."""
        lines = (ROOT / "docs/reference/privacy.md").read_text().splitlines()
        rows = [line.split(" | ") for line in lines if line.startswith("| `")]
        patterns = [one for cells in rows if cells[1] == "yes" for one in re.findall("`(.*?)`", cells[0])]
        found = [self.root.glob(re.sub("<.*?>", "*", pattern)) for pattern in patterns]
        return {path.relative_to(self.root).as_posix() for paths in found for path in paths}


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Planted:
    """Own scans with planted words, after all commands."""
    root = tmp_path_factory.mktemp("planted")
    paths = own_scans(root / "input/Zq82Vex")
    explicit = next(data for data in (path.read_bytes() for path in paths) if b"\x10\0\x10\0PN" in data)
    (root / "new").mkdir()
    (root / "new/sound.dcm").write_bytes(explicit)
    for number, (name, data) in enumerate(broken(explicit).items()):
        (root / "new" / f"{name}.dcm").write_bytes(data)
        paths[4 * number].write_bytes(data)
    (root / "planted.yaml").write_text(RECIPE)
    commands = [[stage, "planted.yaml"] for stage in STAGES.split()]
    commands.append(["predict", "planted.yaml", "new", "-o", "new.csv"])
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(printed),
        redirect_stderr(printed),
        warnings.catch_warnings(record=True, action="always") as warned,
    ):
        patch.chdir(root)
        patch.setattr(Plan, "cores", 1)
        for command in commands:
            app([*command, "--verbose"], standalone_mode=False)
    console.set_level("normal")
    return Planted(root, printed.getvalue() + "".join(str(warning.message) for warning in warned))


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
    for path in planted.raw.glob("test/*/*/*"):
        assert len(words_in(path.read_bytes())) > len(KEYWORDS)


def test_every_broken_file_was_quarantined(planted):
    names = {path.name for path in (planted.root / "new").iterdir()}
    assert {name for name in names if f"quarantined: {name}: " not in planted.said} == {"sound.dcm"}


def test_no_file_and_no_output_has_a_planted_tag(planted):
    names = {name.rpartition("/")[2] for name in planted.made}
    assert {"report.html", "slices.parquet", "quarantine.csv", "check.csv", "submission.csv", "new.csv"} <= names
    assert not {name: words - LOCAL for name, words in planted.words.items() if words - LOCAL}
    assert not words_in(planted.said.encode()) - LOCAL


def test_no_shared_file_has_an_id_or_a_part_of_a_path(planted):
    words, shared, folder = planted.words, planted.shared, "submissions/planted"
    assert {f"{folder}/report.html", f"{folder}/explain/suspicious_labels.csv", "folds/planted.csv"} <= shared
    assert not {name: words[name] for name in sorted(shared) if words[name]}
    assert {name for name in words if name.endswith((".html", ".png", ".safetensors", ".txt"))} <= shared
    local = {name for name, found in words.items() if found}
    assert {f"{folder}/check.csv", f"{folder}/submission.csv", "new.csv", "input/private/planted.csv"} <= local


def test_the_page_has_pseudonyms_and_its_owner_finds_the_scans(planted):
    page = planted.made["submissions/planted/report.html"].decode()
    rows = pd.read_csv(planted.root / "input/private/planted.csv").set_index("image")
    named = rows.loc[rows["study_id"] == "Zq71Vex0", "study"].iloc[0]
    assert "named in the recipe" in page
    assert all(f'"{id}"' in page for id in (named, rows.loc[rows["study"] == named, "patient"].iloc[0]))
    suspicious = pd.read_csv(planted.root / "submissions/planted/explain/suspicious_labels.csv").iloc[0]
    owner = rows.loc[suspicious["image_id"]]
    assert owner["study"] == suspicious["study_id"]
    assert dicom.geometry(planted.raw / owner["path"]).patient_id == owner["patient_id"]


def test_burned_in_text_is_a_warning_of_check_prepare_and_the_page(planted):
    n = len(list(planted.raw.glob("test/*11/*/*")))
    counts = f"The pixels of {n} files may show text such as the patient's name (BurnedInAnnotation is YES: {n})"
    assert planted.said.count(f"warning: {counts}") == 1
    found = pd.read_csv(planted.root / "submissions/planted/check.csv")
    assert (found["rule"] == "burned_in").sum() == n
    assert counts in html.unescape(planted.made["submissions/planted/report.html"].decode())


def test_only_the_owner_may_read_the_key_and_no_file_has_it(planted):
    path = planted.root / "input/private/pseudonyms.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert (path.parent / ".gitignore").read_text() == "*\n"
    key = path.read_text()
    assert [name for name, data in planted.made.items() if key.encode() in data] == ["input/private/pseudonyms.key"]
    assert key not in planted.said


def test_folds_and_slices_do_not_depend_on_the_key(planted, tmp_path):
    def table() -> pd.DataFrame:
        plan = plan_of(tmp_path, recipe="planted.yaml")
        return SliceTable.read(plan.workspace, plan.prepared.folder).table

    copied(planted.root, tmp_path)
    before, path = table(), tmp_path / "folds/planted.csv"
    shared = path.read_bytes()
    assert before["fold"].notna().sum() > 30
    (tmp_path / "input/private/pseudonyms.key").unlink()
    with pytest.raises(UserError, match="Restore the key"):
        table()
    make(plan_of(tmp_path, recipe="planted.yaml"), "folds", force=True)
    assert path.read_bytes() != shared
    pd.testing.assert_frame_equal(table(), before)


def test_a_fold_file_with_ids_is_accepted_and_gets_pseudonyms(planted, tmp_path):
    copied(planted.root, tmp_path)
    plan, path = plan_of(tmp_path, recipe="planted.yaml"), tmp_path / "folds/planted.csv"
    shared = path.read_bytes()
    slices = SliceTable.read(plan.workspace, plan.prepared.folder)
    read_folds(path, slices.pseudonyms, slices.table).to_csv(path, index=False)
    assert words_in(path.read_bytes()) == {"Zq70Vex", "Zq71Vex"}
    plan.folds.record.path.unlink()
    make(plan, "folds")
    assert path.read_bytes() == shared


def test_a_study_is_named_by_id_or_by_pseudonym(planted):
    plan = plan_of(planted.root, recipe="planted.yaml")
    slices = SliceTable.read(plan.workspace, plan.prepared.folder)
    pseudonym = slices.pseudonyms.of_id("study_id", "Zq71Vex3")
    assert list(evidence.named_studies(["Zq71Vex3", pseudonym], slices)) == [pseudonym] * 2

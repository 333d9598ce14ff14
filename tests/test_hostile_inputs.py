"""Payloads in pickles, texts and paths never run.

Each payload creates a marker file if it runs. It is put into every format that the program reads. Where a record has
the hash of a file, the record is updated, so that the payload reaches the loader.
"""

import ast
import io
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
import torch
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEG2000Lossless

from conftest import RECIPE, copied, plan_of, score_scans
from ich.data import cache, slice_table
from ich.data.competitions import LayoutError, cq500
from ich.data.dicom import Unreadable
from ich.errors import UserError
from ich.models.network import new_backbone
from ich.models.table import SliceTable, read_parquet
from ich.networks.cnn import CnnSpec
from ich.pipeline.runner import assemble, load_fitted, run_stage
from ich.pipeline.state import Plan
from ich.pipeline.tasks import Task
from ich.recipe import Cnn, RecipeError, load, table_thresholds
from ich.stages import check, folds, maps, prepare, score, status, submit
from ich.stages import thresholds as thresholds_stage
from ich.store.hashes import sha256_file
from ich.store.records import Record, read_record, write_hashed, write_record
from ich.training.checkpoint import TrainingState
from ich.training.run import Run

SOURCE = Path(__file__).parents[1] / "src" / "ich"
MARKER = Path(os.environ.get("TMPDIR", "/tmp")) / f"ich-hostile-{os.getpid()}"
COMMAND = f"touch {MARKER}"


class Payload:
    """Unpickling creates the marker."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.system, (COMMAND,)


def saved(save: Callable[..., object], *values: object, **options: object) -> bytes:
    file = io.BytesIO()
    save(*values, file, **options)
    return file.getvalue()


def array_with(value: object) -> np.ndarray:
    found = np.empty((1, 1), dtype=object)
    found[0, 0] = value
    return found


PICKLES = {
    "pickle": pickle.dumps(Payload()),
    "torch": saved(torch.save, {"weight": Payload()}),
    "legacy torch": saved(torch.save, {"weight": Payload()}, _use_new_zipfile_serialization=False),
    "npy": saved(lambda value, file: np.save(file, value, allow_pickle=True), array_with(Payload())),
    "npz": saved(lambda value, file: np.savez(file, a=value), array_with(Payload())),
}
EVEN = PICKLES["pickle"] + b"\0" * (len(PICKLES["pickle"]) % 2)
TEXTS = [
    f"=cmd|'/C {COMMAND}'!A0",
    f'=HYPERLINK("file://{MARKER}")',
    f"__import__('os').system({COMMAND!r})",
    f"$({COMMAND})",
    f"; {COMMAND} #",
    "../../../../" + str(MARKER),
    str(MARKER),
    f"@{MARKER}",
    "{0.__class__.__init__.__globals__}",
    "%s%n\0",
]


@pytest.fixture(autouse=True)
def nothing_runs(one_core) -> Iterator[None]:
    MARKER.unlink(missing_ok=True)
    yield
    ran = MARKER.exists()
    MARKER.unlink(missing_ok=True)
    assert not ran, "a payload has run"


def refused(call: Callable[[], object], text: str = "") -> None:
    """The call fails with a one-line message that contains `text`."""
    with pytest.raises((UserError, RecipeError, FileNotFoundError)) as error:
        call()
    assert text in str(error.value), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", PICKLES)
def test_the_payloads_run_if_unpickled(form):
    file = io.BytesIO(PICKLES[form])
    if form == "pickle":
        pickle.load(file)
    elif "torch" in form:
        torch.load(file, weights_only=False)
    else:
        found = np.load(file, allow_pickle=True)
        assert len(found["a"] if form == "npz" else found)
    assert MARKER.exists()
    MARKER.unlink()


# ---- recipes


TAGS = [
    f"!!python/object/apply:os.system ['{COMMAND}']",
    f"!!python/object/new:os.system ['{COMMAND}']",
    "!!python/name:os.system",
    f"!!python/object/new:tuple [!!python/object/new:map [!!python/name:eval , [\"open('{MARKER}','w')\"]]]",
    "!payload {a: 1}",
]


@pytest.mark.parametrize("tag", TAGS, ids=range(len(TAGS)))
def test_a_yaml_tag_in_a_recipe_its_base_or_an_override_is_refused(tmp_path, tag):
    (tmp_path / "evil.yaml").write_text(f"name: x\ncompetition: {tag}\n")
    (tmp_path / "base.yaml").write_text("base: evil.yaml\nname: y\n")
    (tmp_path / "good.yaml").write_text("name: x\ncompetition: {format: rsna2019, root: input/x}\n")
    for name in ("evil.yaml", "base.yaml"):
        refused(lambda name=name: load(tmp_path / name), "evil.yaml: invalid YAML")
    refused(lambda: load(tmp_path / "good.yaml", [f"cnn={tag}"]), "--set")


def test_other_files_than_recipes_are_refused(tmp_path):
    path = tmp_path / "x.yaml"
    bases = (["a", "b"], "/etc/hostname", "../../../../../etc/hostname", "/dev/null", *TEXTS[:3])
    for data in (*(f"base: {json.dumps(base)}\nname: x\n".encode() for base in bases), *PICKLES.values()):
        path.write_bytes(data)
        refused(lambda: load(path))


# ---- weights


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.bin", "weights.npz"])
@pytest.mark.parametrize("form", PICKLES)
def test_weights_of_a_recipe_are_never_unpickled(tmp_path, form, name):
    (tmp_path / name).write_bytes(PICKLES[form])
    data: Any = SimpleNamespace(settings=Cnn(backbone="resnet10t"), model="resnet", start=None)
    shape = {"channels": (4, 8, 8, 8), "stem_width": 4}
    for kwargs, weights in ((shape, str(tmp_path / name)), ({**shape, "checkpoint_path": str(tmp_path / name)}, None)):
        spec = CnnSpec("resnet10t", in_channels=3, classes=2, kwargs=kwargs, weights=weights)
        refused(lambda spec=spec: new_backbone(spec, data, Run("resnet fold 0")), "cnn.resnet")


# ---- raw data


def raw_plan(root: Path, form: str) -> Plan:
    (root / "recipe.yaml").write_text(
        f"name: x\ncompetition: {{format: {form}, root: input/x}}\nimage: {{size: 32}}\n"
        "cnn: {a: {backbone: resnet10t}}\n"
    )
    (root / "input" / "x").mkdir(parents=True, exist_ok=True)
    return Plan(load(root / "recipe.yaml"), root)


def hostile_scans(finished: Path, folder: Path) -> None:
    """DICOM files with payloads in elements and pixels, and payloads with name and preamble of DICOM files."""
    source = sorted(finished.rglob("*.dcm"))[0]
    texts = [text.replace("\0", "") for text in TEXTS]
    for name in ("fields", "pixels", "compressed", "numbers"):
        scan = pydicom.dcmread(source)
        scan.SOPInstanceUID = scan.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{len(name)}")
        scan.PatientName, scan.PatientID, scan.InstitutionName = texts[0], texts[2], texts[8]
        scan.SeriesDescription, scan.StudyID, scan.ImageComments = texts[3], texts[5][-16:], texts[4]
        scan.add_new((0x0029, 0x0010), "LO", "payload")
        scan.add_new((0x0029, 0x1010), "OB", EVEN)
        scan.ReferencedFileID = "../../x"
        if name == "pixels":
            scan.PixelData = EVEN
        elif name == "compressed":
            scan.file_meta.TransferSyntaxUID = JPEG2000Lossless
            scan.PixelData = encapsulate([PICKLES["torch"]])
            scan["PixelData"].is_undefined_length = True
        elif name == "numbers":
            for keyword, value in (("WindowCenter", []), ("RescaleSlope", []), ("ImagePositionPatient", ["1", "2"])):
                scan.add_new(keyword, "LO", [TEXTS[2], *value])
        scan.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    for form, data in PICKLES.items():
        (folder / f"{form}.dcm").write_bytes(data)
        (folder / f"preamble_{form}.dcm").write_bytes(b"\0" * 128 + b"DICM" + data)


def test_hostile_scans_and_archives_are_quarantined_and_write_nothing(finished, tmp_path):
    plan = raw_plan(tmp_path, "folder")
    hostile_scans(finished.root / "input", plan.raw_root)
    (plan.raw_root / f"$(touch {MARKER.name}).dcm").write_bytes(PICKLES["pickle"])
    with zipfile.ZipFile(plan.raw_root / "scans.zip", "w") as archive:
        whole = (plan.raw_root / "fields.dcm").read_bytes()
        for name in ("../../../out.dcm", str(MARKER), f"{MARKER}.dcm", "..\\..\\out.dcm", "a/../../out.dcm"):
            archive.writestr(name, whole)
        archive.writestr("inside.dcm", PICKLES["pickle"])
    rows = [f"{path.stem},1" for path in sorted(plan.raw_root.glob("*.dcm"))]
    (plan.raw_root / "labels.csv").write_text("\n".join(["image_id,bleed", *rows]) + "\n")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert check.run(plan) == 2  # one labelled patient cannot fill the folds
    prepare.run(plan)
    table = pd.read_parquet(plan.prepared.folder / "slices.parquet")
    assert table["image_id"].tolist() == ["fields"]
    reasons = pd.read_csv(plan.prepared.folder / "quarantine.csv").set_index("image_id")["reason"]
    assert {"pixels", "compressed", "numbers", "pickle", "preamble_pickle", "inside"} <= set(reasons.index)
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    kept = (plan.workspace.cache_root, plan.workspace.submissions)
    assert all(any(path.is_relative_to(folder) for folder in kept) for path in new)


TABLES = {  # the tables of each format and their headers
    "folder": {"labels.csv": "image_id,bleed"},
    "rsna2019": {"stage_2_train.csv": "ID,Label", "stage_2_sample_submission.csv": "ID,Label"},
    "unibuc": dict.fromkeys(("train_labels.txt", "validation_labels.txt", "sample_submission.txt"), "id,class"),
    "ntu_dlmi": {"TrainingData_new.csv": "dirname,ID,ich", "sample_submission.csv": "ID,label"},
}


@pytest.mark.parametrize("form", TABLES)
def test_label_tables_are_text(finished, tmp_path, form):
    plan = raw_plan(tmp_path, form)
    scan = sorted((finished.root / "input").rglob("*.dcm"))[0]
    for folder in ("stage_2_train", "stage_2_test", "TrainingData", "TestingData"):
        (plan.raw_root / folder).mkdir()
        shutil.copy(scan, plan.raw_root / folder / "a.dcm")
    (plan.raw_root / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + PICKLES["pickle"])
    rows = ["\n".join(f'"{text}",1,1,1' for text in TEXTS), "\n".join(f'a,"{text}"' for text in TEXTS)]
    for row in (*rows, *(text.replace(",", "") + ",1" for text in TEXTS)):
        for name, header in TABLES[form].items():
            (plan.raw_root / name).write_text(f"{header}\n{row}\n")
        refused(lambda: prepare.run(plan))
    for name, data in product(TABLES[form], PICKLES.values()):
        (plan.raw_root / name).write_bytes(data)
        refused(lambda: prepare.run(plan), str(plan.raw_root))
    assert check.run(plan) == 2


def test_the_labels_of_cq500_are_text(tmp_path):
    names = [f"{reader}:{finding}" for finding in cq500.FINDINGS for reader in cq500.READERS]
    tables = [",".join(["name", *names]) + f'\n"{text}"' + f',"{text}"' * len(names) for text in TEXTS]
    for data in (*(table.encode() for table in tables), *PICKLES.values()):
        (tmp_path / "reads.csv").write_bytes(data)
        with pytest.raises(LayoutError, match=r"reads\.csv"):
            cq500.reads(tmp_path)


def test_payloads_in_png_files_are_quarantined(tmp_path):
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x10\0\0\0\x10\x08\0\0\0\0\0\0\0\0"
    for data in PICKLES.values():
        (tmp_path / "a.png").write_bytes(data)
        (tmp_path / "b.png").write_bytes(head + data + b"\0\0\0\0IEND\xaeB`\x82")
        assert isinstance(slice_table.read_geometries(tmp_path, ["a.png"], 1, lambda _: None, "grey")[0], Unreadable)
        assert isinstance(next(cache.read_frames(tmp_path / "b.png", [0], "grey")), Unreadable)


# ---- ich thresholds --table


def test_a_table_of_predictions_is_csv_or_parquet_whatever_its_suffix(tmp_path):
    settings = table_thresholds([])
    suffixes = (".pkl", ".joblib", ".parquet", ".csv", ".csv.gz", ".npy", "")
    for (form, data), suffix in product(PICKLES.items(), suffixes):
        source = tmp_path / f"{form}{suffix}"
        source.write_bytes(data)
        refused(lambda source=source: thresholds_stage.run_on_table(source, settings, None), str(source))
    for text in TEXTS:
        table = tmp_path / "a.csv"
        pd.DataFrame({"bleed": [0, 1, text], "prob_bleed": [0.1, 0.2, 0.3]}).to_csv(table, index=False)
        refused(lambda source=table: thresholds_stage.run_on_table(source, settings, None), "bleed")


def with_payloads(table: pa.Table) -> list[pa.Table]:
    """The same columns with payloads in the metadata of pandas, in other metadata and in an extension type."""
    column = {"name": "x", "pandas_type": "object", "numpy_type": TEXTS[2], "metadata": {"encoding": "pickle"}}
    note = {"index_columns": [TEXTS[2]], "columns": [column], "column_indexes": [column], "attributes": {"a": TEXTS[2]}}
    extension = {
        b"ARROW:extension:name": b"arrow.py_extension_type",  # was once unpickled (CVE-2023-47248)
        b"ARROW:extension:metadata": PICKLES["pickle"],
    }
    fields = [field.with_metadata(extension) for field in table.schema]
    return [
        table.replace_schema_metadata({b"pandas": json.dumps(note).encode()}),
        table.replace_schema_metadata({b"x": PICKLES["pickle"]}),
        table.cast(pa.schema(fields)).replace_schema_metadata(None),
    ]


def test_payloads_in_the_metadata_of_a_parquet_file_are_not_read(tmp_path):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"bleed": rng.integers(0, 2, 50), "prob_bleed": rng.random(50)})
    settings, source = table_thresholds(["thresholds.trials=1"]), tmp_path / "a.parquet"
    for table in with_payloads(pa.Table.from_pandas(rows)):
        pq.write_table(table, source)
        thresholds_stage.run_on_table(source, settings, None)
        pd.testing.assert_frame_equal(read_parquet(source), rows)
    for name in (b"pandas", b"ARROW:schema"):
        pq.write_table(pa.table(rows).replace_schema_metadata({name: PICKLES["pickle"]}), source)
        refused(lambda: thresholds_stage.run_on_table(source, settings, None), "not a readable table")


# ---- artifacts, with records that match


@pytest.fixture(scope="module")
def plan(finished, tmp_path_factory) -> Plan:
    return plan_of(copied(finished.root, tmp_path_factory.mktemp("hostile")), recipe=RECIPE)


@pytest.fixture
def put(plan) -> Iterator[Callable[[Task, str, bytes], None]]:
    """Replace a file of a task and update its record; both are restored after the test."""
    with ExitStack() as stack:

        def replace(task: Task, name: str, content: bytes) -> None:
            for path in (task.folder / name, task.record.path):
                stack.enter_context(restored(path))
            (task.folder / name).write_bytes(content)
            record = read_record(task.record.path) or {}
            record["files"][name] = sha256_file(task.folder / name)
            write_record(task.record.path, record)
            plan.forget()

        yield replace
    plan.forget()


@contextmanager
def restored(path: Path) -> Iterator[None]:
    content, stamps = path.read_bytes(), path.stat()
    try:
        yield
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))


def fresh(plan: Plan) -> Plan:
    return Plan(plan.recipe, plan.root)


def slices(plan: Plan) -> SliceTable:
    return SliceTable.read(plan.workspace, plan.prepared.folder)


def scored(plan: Plan) -> None:
    """Score one file with the trained ensemble."""
    score_scans(fresh(plan), sorted(plan.raw_root.rglob("*.dcm"))[0], plan.root / "out.csv")


Case = tuple[Callable[[Plan], Task], str, Callable[[Plan], object]]
CASES: dict[str, Case] = {
    "pixels": (lambda p: p.prepared, "hu-00000.npy", lambda p: run_stage(p, "cnn", model="resnet", fold=0)),
    "slices": (lambda p: p.prepared, "slices.parquet", folds.run),
    "quarantine": (lambda p: p.prepared, "quarantine.csv", submit.run),
    "folds": (lambda p: p.folds, "tiny.csv", slices),
    "embeddings": (lambda p: p.fold("resnet", 0), "valid_embeddings.npy", lambda p: run_stage(p, "sequence", fold=0)),
    "predictions to stack": (lambda p: p.fold("resnet", 0), "valid.parquet", lambda p: run_stage(p, "stack")),
    "predictions to assemble": (lambda p: p.fold("resnet", 0), "valid.parquet", lambda p: assemble(p, "resnet")),
    "predictions of the blend": (lambda p: p.assembled("blend"), "oof.parquet", thresholds_stage.run),
    "weights": (lambda p: p.fold("resnet", 0), "model.safetensors", lambda p: load_fitted(p, "resnet", 0)),
    "network": (lambda p: p.fold("bigru", 0), "model.json", scored),
    "trees": (lambda p: p.fold("lgbm", 0), "model_any.txt", scored),
    "stack": (lambda p: p.fold("lgbm", 0), "stack.json", scored),
    "blend": (lambda p: p.fold("blend", 0), "blend.json", scored),
    "smooth": (lambda p: p.fold("gauss", 0), "smooth.json", scored),
    "thresholds to submit": (lambda p: p.thresholds, "thresholds.json", submit.run),
    "thresholds to score": (lambda p: p.thresholds, "thresholds.json", score.run),
    "thresholds to predict": (lambda p: p.thresholds, "thresholds.json", scored),
}


@pytest.mark.parametrize("case", CASES)
def test_an_artifact_that_is_a_pickle_is_refused(plan, put, case):
    task_of, name, reader = CASES[case]
    for form in {".npy": [*PICKLES], ".safetensors": ["pickle", "torch"]}.get(Path(name).suffix, ["pickle"]):
        put(task_of(plan), name, PICKLES[form])
        refused(lambda: reader(fresh(plan)), name)


OTHER_TYPES = ["[]", "5", "null", "{}", '{"thresholds": 3}']
OTHER_TYPES += ['{"classes": [1], "widths": "x", "inputs": 3, "thresholds": []}']
OTHER_TYPES += [
    json.dumps({key: dict.fromkeys(("any", "subdural"), value) for key in ("thresholds", "classes", "widths")})
    for value in (TEXTS[2], [])
]


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][1].endswith(".json")])
def test_other_types_in_json_are_refused(plan, put, case):
    task_of, name, reader = CASES[case]
    for text in OTHER_TYPES[:: 3 if reader is score.run else 1]:  # scoring takes longer
        put(task_of(plan), name, text.encode())
        refused(lambda: reader(fresh(plan)))


def test_a_checkpoint_is_never_unpickled(tmp_path):
    for data in PICKLES.values():
        write_hashed(tmp_path / "checkpoint.bin", "fingerprint", data)
        network = torch.nn.Linear(1, 1)
        optimizer, scaler = torch.optim.SGD(network.parameters()), torch.amp.GradScaler(enabled=False)
        state = TrainingState(network, None, optimizer, scaler)
        refused(lambda state=state: state.load(tmp_path / "checkpoint.bin", "fingerprint"), "checkpoint.bin")


def test_masks_that_are_objects_are_refused(plan):
    path, table = plan.raw_root / "masks.npz", slices(plan)
    with np.load(path, allow_pickle=False) as known:
        row = table.table.index[table.table["image_id"].isin(known.files)].to_numpy()[:1]
    objects = saved(lambda masks, file: np.savez(file, **masks), {table.ids(row)[0]: array_with(Payload())})
    with restored(path):
        for data in (objects, *(data for data in PICKLES.values() if data[:2] != b"PK")):
            path.write_bytes(data)
            refused(lambda: maps._masks(plan, table, row, "any"), "masks.npz")


STRANGE = [[], "../../x", {"../../x": "y"}, {"hu.npy": ["x"]}]


@pytest.mark.parametrize("key", ["files", "stamps", "settings", "inputs", "fingerprint", "classes", "model", "values"])
def test_a_record_with_other_types_is_out_of_date_or_refused(plan, put, key):
    for task in (plan.prepared, plan.fold("resnet", 0), plan.thresholds):
        record = read_record(task.record.path) or {}
        put(task, next(iter(record["files"])), (task.folder / next(iter(record["files"]))).read_bytes())
        for value in STRANGE:
            write_record(task.record.path, {**record, key: value})
            with suppress(UserError):
                submit.run(fresh(plan))
        status.run(fresh(plan), "")
        write_record(task.record.path, record)


@pytest.mark.parametrize("key", ["../../evil", "/etc", "..", "", None, 5, ["x"], {"a": 1}])
def test_the_pointer_to_the_cache_stays_in_the_cache(plan, key):
    pointer = plan.workspace.cache_pointer
    (plan.root / "evil").mkdir(exist_ok=True)
    Record(plan.root / "evil" / "run.json").write("f", {})
    with restored(pointer):
        write_record(pointer, {"key": key, "settings": plan.image_settings})
        assert fresh(plan).prepared.folder.parent == plan.workspace.cache_root
        write_record(pointer, {"settings": [key]})
        assert fresh(plan).prepared.folder == plan.workspace.cache("none")


def test_hostile_texts_in_the_folds_are_refused(plan):
    path = plan.workspace.folds
    with restored(path):
        for text in TEXTS:
            path.write_text(f'study_id,patient_id,fold\n"{text}","{text}","{text}"\n')
            refused(lambda: folds.run(fresh(plan)), path.name)


# ---- the source


MODULES = {"cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle"}
# torch.compile loads pickles from a folder with a known name in $TMPDIR
NEVER = {"eval", "exec", "__import__", "compile", "breakpoint", "os.system", "torch.compile"}
LOADER = re.compile(
    "load|loads|load_(all|module|state_dict_from_url)|(unsafe|full|hub)_load|loadtxt|genfromtxt|fromfile|(open_)?memmap"
    "|read_(array|pickle|hdf|feather|excel|parquet|csv|table|schema)|[Uu]npickler?|deserialize"
)
KNOWN = {  # every call that reads a file, and the argument that makes it safe
    "np.load": "allow_pickle=False",
    "torch.load": "weights_only=True",
    "yaml.load": "_Loader)",
    **dict.fromkeys(("pd.read_parquet", "pd.read_csv", "json.load", "json.loads"), ""),
    **dict.fromkeys(("pyarrow.parquet.read_table", "pyarrow.parquet.read_schema"), ""),
    **dict.fromkeys(("kind.load", "state.load", "fitted.load", "super().load", "self.bundle.load"), ""),  # of models
}


def unsafe(path: Path) -> list[str]:
    """Imports and calls in a source file that could run what they read."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            package, names = str(node.module).split(".")[0], [alias.name for alias in node.names]
            if package in {*MODULES, "pickle"}:
                found.append(package)
            elif package not in ("ich", "safetensors"):
                found += [name for name in names if name in NEVER or LOADER.fullmatch(name)]
        elif isinstance(node, ast.Call):
            name, call = ast.unparse(node.func), ast.unparse(node)
            loads = isinstance(node.func, ast.Attribute) and LOADER.fullmatch(node.func.attr)
            explicit = any(word in call for word in ("shell=", "allow_pickle=True", "weights_only=False"))
            if name in NEVER or explicit or (loads and KNOWN.get(name, "\0") not in call):
                found.append(call)
    return found


def test_the_source_has_no_unsafe_loader():
    paths = sorted(SOURCE.rglob("*.py"))
    assert len(paths) > 50
    assert not {path.name: found for path in paths if (found := unsafe(path))}


DANGEROUS = (
    "import pickle; pickle.load(f) | from pickle import load | from dill import loads | import shelve | joblib.load(p)"
    " | np.load(p) | np.load(p, allow_pickle=True) | np.lib.format.read_array(f) | from numpy import load"
    " | torch.load(p) | torch.load(p, weights_only=False) | yaml.load(f, yaml.Loader) | yaml.unsafe_load(f)"
    " | pd.read_pickle(p) | eval('1') | exec('1') | __import__('os') | subprocess.run('x', shell=True)"
    " | os.system('x') | marshal.loads(b'') | pickle.Unpickler(f) | torch.compile(network)"
)


@pytest.mark.parametrize("text", DANGEROUS.split(" | "))
def test_unsafe_loaders_are_found(tmp_path, text):
    (tmp_path / "a.py").write_text(text)
    assert unsafe(tmp_path / "a.py")

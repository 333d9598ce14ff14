"""Files that would run code if they were loaded as pickles, text to evaluate or paths to follow: none of them does.

Each payload makes a marker file once it runs. It is put into every format that the program reads; where a record
holds a file's hash, the record is written anew to fit, so that it is the loader that meets the payload.
"""

import ast
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
import torch
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEG2000Lossless

from ich.ensemble import thresholds
from ich.errors import UserError
from ich.pipeline.graph import Task
from ich.pipeline.plan import Plan
from ich.recipe import RecipeError, load, table_thresholds
from ich.stages import check, cnn, folds, maps, predict, prepare, score, sequence, smooth, stack, status, submit
from ich.stages import thresholds as thresholds_stage
from ich.stages.inputs import Slices
from ich.stages.member import Checkpoint
from ich.stages.networks import network_of, with_weights
from ich.store.hashes import sha256_file
from ich.store.records import Record, read_record, write_record, write_sealed

SOURCE = Path(__file__).parents[1] / "src" / "ich"
MARKER = Path(os.environ.get("TMPDIR", "/tmp")) / f"ich-hostile-{os.getpid()}"
COMMAND = f"touch {MARKER}"


class Payload:
    """A pickle of it makes the marker when it is loaded."""

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


PICKLES: dict[str, bytes] = {
    "pickle": pickle.dumps(Payload()),
    "joblib": saved(joblib.dump, Payload()),
    "torch": saved(torch.save, {"weight": Payload()}),
    "torch of old": saved(torch.save, {"weight": Payload()}, _use_new_zipfile_serialization=False),
    "npy": saved(lambda value, file: np.save(file, value, allow_pickle=True), array_with(Payload())),
    "npz": saved(lambda value, file: np.savez(file, a=value), array_with(Payload())),
}
UNSAFE: dict[str, Callable[[io.BytesIO], object]] = {
    "pickle": pickle.load,
    "joblib": joblib.load,
    "torch": lambda file: torch.load(file, weights_only=False),
    "torch of old": lambda file: torch.load(file, weights_only=False),
    "npy": lambda file: np.load(file, allow_pickle=True),
    "npz": lambda file: np.load(file, allow_pickle=True)["a"],
}
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


def refused(call: Callable[[], object], says: str = "") -> None:
    """The call ends with what becomes one line on the terminal, and that names the file."""
    with pytest.raises((UserError, RecipeError)) as error:
        call()
    assert says in str(error.value), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", PICKLES)
def test_the_payloads_run_where_they_are_loaded(form):
    UNSAFE[form](io.BytesIO(PICKLES[form]))
    assert MARKER.exists()
    MARKER.unlink()


# ---- recipes


TAGS = [
    f"!!python/object/apply:os.system ['{COMMAND}']",
    f"!!python/object/new:os.system ['{COMMAND}']",
    f"!!python/object/apply:subprocess.check_output [['touch', '{MARKER}']]",
    "!!python/name:os.system",
    "!!python/module:os",
    f"!!python/object/new:tuple [!!python/object/new:map [!!python/name:eval , [\"open('{MARKER}','w')\"]]]",
    "!payload {a: 1}",
]


@pytest.mark.parametrize("tag", TAGS, ids=range(len(TAGS)))
def test_a_tag_in_a_recipe_its_base_or_an_override_makes_nothing(tmp_path, tag):
    (tmp_path / "evil.yaml").write_text(f"name: x\ncompetition: {tag}\n")
    (tmp_path / "base.yaml").write_text("base: evil.yaml\nname: y\n")
    for name in ("evil.yaml", "base.yaml"):
        refused(lambda name=name: load(tmp_path / name), "evil.yaml: not a YAML file")
    refused(lambda: load(tmp_path / "good.yaml", [f"name={tag}"]), "good.yaml")
    (tmp_path / "good.yaml").write_text("name: x\ncompetition: {format: rsna2019, root: input/x}\n")
    refused(lambda: load(tmp_path / "good.yaml", [f"cnn={tag}"]), "--set")


BASES = ["[a, b]", "/etc/hostname", "../../../../../etc/hostname", "/dev/null", *TEXTS[:3]]


@pytest.mark.parametrize("base", BASES, ids=range(len(BASES)))
def test_a_base_that_is_no_recipe_is_refused(tmp_path, base):
    (tmp_path / "x.yaml").write_text(f"base: {base if base[0] == '[' else json.dumps(base)}\nname: x\n")
    refused(lambda: load(tmp_path / "x.yaml"))


@pytest.mark.parametrize("form", PICKLES)
def test_a_pickle_is_no_recipe(tmp_path, form):
    (tmp_path / "x.yaml").write_bytes(PICKLES[form])
    refused(lambda: load(tmp_path / "x.yaml"), "x.yaml")


# ---- weights


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.bin", "weights.npz"])
@pytest.mark.parametrize("form", PICKLES)
def test_weights_that_a_recipe_names_are_never_unpickled(tmp_path, form, name):
    from ich.networks.cnn import CnnSpec

    (tmp_path / name).write_bytes(PICKLES[form])
    shape = {"channels": (4, 8, 8, 8), "stem_width": 4}
    for kwargs, weights in ((shape, str(tmp_path / name)), ({**shape, "checkpoint_path": str(tmp_path / name)}, None)):
        spec = CnnSpec("resnet10t", in_channels=3, classes=2, kwargs=kwargs, weights=weights)
        refused(lambda spec=spec: network_of("cnn.resnet", spec, 0), "cnn.resnet")


# ---- raw data


def raw_plan(root: Path, form: str) -> Plan:
    (root / "recipe.yaml").write_text(
        f"name: x\ncompetition: {{format: {form}, root: input/x}}\nimage: {{size: 32}}\n"
        "cnn: {a: {backbone: resnet10t}}\n"
    )
    (root / "input" / "x").mkdir(parents=True, exist_ok=True)
    return Plan(load(root / "recipe.yaml"), root)


def hostile_fields(dataset: pydicom.Dataset) -> None:
    texts = [text.replace("\0", "") for text in TEXTS]
    dataset.PatientName, dataset.PatientID, dataset.InstitutionName = texts[0], texts[2], texts[8]
    dataset.SeriesDescription, dataset.StudyID, dataset.ImageComments = texts[3], texts[5][-16:], texts[4]
    dataset.add_new((0x0029, 0x0010), "LO", "payload")
    dataset.add_new((0x0029, 0x1010), "OB", PICKLES["pickle"] + b"\0" * (len(PICKLES["pickle"]) % 2))
    dataset.add_new((0x0029, 0x1011), "UN", PICKLES["torch"] + b"\0" * (len(PICKLES["torch"]) % 2))
    dataset.ReferencedFileID = "../../x"


def hostile_scans(finished: Path, folder: Path) -> None:
    """DICOM files of the synthetic competition, their fields and pixels replaced, and files that only claim to be."""
    source = sorted(finished.rglob("*.dcm"))[0]
    for name in ("fields", "pixels", "compressed", "numbers"):
        dataset = pydicom.dcmread(source)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{len(name)}")
        hostile_fields(dataset)
        if name == "pixels":
            dataset.PixelData = PICKLES["pickle"] + b"\0" * (len(PICKLES["pickle"]) % 2)
        elif name == "compressed":
            dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
            dataset.PixelData = encapsulate([PICKLES["torch"]])
            dataset["PixelData"].is_undefined_length = True
        elif name == "numbers":
            dataset.add_new("WindowCenter", "LO", TEXTS[2])
            dataset.add_new("RescaleSlope", "LO", TEXTS[2])
            dataset.add_new("ImagePositionPatient", "LO", [TEXTS[2], "1", "2"])
        dataset.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    for form, data in PICKLES.items():
        (folder / f"{form}.dcm").write_bytes(data)
        (folder / f"preamble_{form}.dcm").write_bytes(b"\0" * 128 + b"DICM" + data)


def test_scans_members_of_archives_and_their_names_run_and_leave_nothing(finished, tmp_path):
    plan = raw_plan(tmp_path, "folder")
    hostile_scans(finished.root / "input", plan.raw_root)
    (plan.raw_root / f"$(touch {MARKER.name}).dcm").write_bytes(PICKLES["pickle"])
    with zipfile.ZipFile(plan.raw_root / "scans.zip", "w") as archive:
        whole = (plan.raw_root / "fields.dcm").read_bytes()
        for name in (
            "../../../out.dcm",
            str(MARKER),
            f"{MARKER}.dcm",
            "..\\..\\out.dcm",
            "C:\\out.dcm",
            "a/../../out.dcm",
        ):
            archive.writestr(name, whole)
        archive.writestr("inside.dcm", PICKLES["pickle"])
        archive.writestr("inside.pkl", PICKLES["pickle"])
    rows = [f"{path.stem},1" for path in sorted(plan.raw_root.glob("*.dcm"))]
    (plan.raw_root / "labels.csv").write_text("\n".join(["image_id,bleed", *rows]) + "\n")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert check.run(plan) == 1  # warnings: quarantined, left out
    prepare.run(plan)
    table = pd.read_parquet(plan.prepared.folder / "slices.parquet")
    assert table["image_id"].tolist() == ["fields"]
    reasons = pd.read_csv(plan.prepared.folder / "quarantine.csv").set_index("image_id")["reason"]
    assert {"pixels", "compressed", "numbers", "pickle", "preamble_pickle", "inside"} <= set(reasons.index)
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    kept = (plan.workspace.cache_root, plan.workspace.submissions)
    assert all(any(path.is_relative_to(folder) for folder in kept) for path in new)


TABLES = {  # the tables of each format, with their header and a row that a payload is put into
    "folder": {"labels.csv": "image_id,bleed\n{}"},
    "rsna2019": {"stage_2_train.csv": "ID,Label\n{}", "stage_2_sample_submission.csv": "ID,Label\n{}"},
    "unibuc": {
        "train_labels.txt": "id,class\n{}",
        "validation_labels.txt": "id,class\n{}",
        "sample_submission.txt": "id,class\n{}",
    },
    "ntu_dlmi": {"TrainingData_new.csv": "dirname,ID,ich\n{}", "sample_submission.csv": "ID,label\n{}"},
}


@pytest.mark.parametrize("form", TABLES)
def test_label_tables_are_text(finished, tmp_path, form):
    plan = raw_plan(tmp_path, form)
    scan = sorted((finished.root / "input").rglob("*.dcm"))[0]
    for folder in ("stage_2_train", "stage_2_test", "TrainingData", "TestingData", "CQ500CT0"):
        (plan.raw_root / folder).mkdir()
        shutil.copy(scan, plan.raw_root / folder / "a.dcm")
    (plan.raw_root / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + PICKLES["pickle"])
    rows = ["\n".join(f'"{text}",1,1,1' for text in TEXTS), "\n".join(f'a,"{text}"' for text in TEXTS)]
    rows += [text.replace(",", "") + ",1" for text in TEXTS]
    for row in rows:
        for name, content in TABLES[form].items():
            (plan.raw_root / name).write_text(content.format(row) + "\n")
        refused(lambda: prepare.run(plan))
    for name in TABLES[form]:
        for data in PICKLES.values():
            (plan.raw_root / name).write_bytes(data)
            refused(lambda: prepare.run(plan), str(plan.raw_root))
    assert check.run(plan) == 2


def test_the_table_of_an_outside_validation_is_text(tmp_path):
    from ich.data.competitions import LayoutError, cq500

    names = [f"{reader}:{finding}" for finding in cq500.FINDINGS for reader in cq500.READERS]
    tables = [",".join(["name", *names]) + f'\n"{text}"' + f',"{text}"' * len(names) for text in TEXTS]
    for data in (*(table.encode() for table in tables), *PICKLES.values()):
        (tmp_path / "reads.csv").write_bytes(data)
        with pytest.raises(LayoutError, match=r"reads\.csv"):
            cq500.reads(tmp_path)


@pytest.mark.parametrize("form", PICKLES)
def test_a_picture_that_is_none_is_quarantined(tmp_path, form):
    from ich.data import cache
    from ich.data.dicom import Unreadable

    (tmp_path / "a.png").write_bytes(PICKLES[form])
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x10\0\0\0\x10\x08\0\0\0\0\0\0\0\0"
    (tmp_path / "b.png").write_bytes(head + PICKLES[form] + b"\0\0\0\0IEND\xaeB`\x82")
    assert isinstance(cache.read_geometries(tmp_path, ["a.png"], 1, lambda _: None, "grey")[0], Unreadable)
    assert isinstance(cache.read_frames(tmp_path / "b.png", [0], "grey")[0], Unreadable)


# ---- ich thresholds --table


def test_a_user_s_table_is_csv_or_parquet_whatever_its_name(tmp_path):
    settings = table_thresholds([])
    for form, data in PICKLES.items():
        for suffix in (".pkl", ".pickle", ".joblib", ".parquet", ".csv", ".csv.gz", ".npy", ".feather", ""):
            source = tmp_path / f"{form}{suffix}"
            source.write_bytes(data)
            refused(lambda source=source: thresholds_stage.run_on_table(source, settings, None), str(source))
    for text in TEXTS:
        table = tmp_path / "a.csv"
        pd.DataFrame({"bleed": [0, 1, text], "prob_bleed": [0.1, 0.2, 0.3]}).to_csv(table, index=False)
        refused(lambda source=table: thresholds_stage.run_on_table(source, settings, None), "bleed")


def test_a_user_s_parquet_with_a_payload_in_its_notes_is_read_without_them(tmp_path):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"bleed": rng.integers(0, 2, 50), "prob_bleed": rng.random(50)})
    settings, source = table_thresholds(["thresholds.trials=1"]), tmp_path / "a.parquet"
    for table in with_payloads(pa.Table.from_pandas(rows)):
        pq.write_table(table, source)
        thresholds_stage.run_on_table(source, settings, None)
    for name in (b"pandas", b"ARROW:schema"):
        pq.write_table(pa.table(rows).replace_schema_metadata({name: PICKLES["pickle"]}), source)
        refused(lambda: thresholds_stage.run_on_table(source, settings, None), "not a readable table")


RECIPE = Path(__file__).parent / "tiny.yaml"


def with_payloads(table: pa.Table) -> list[pa.Table]:
    """The same columns with payloads in the notes of pandas, in unknown ones, and as an extension type's parameters."""
    column = {"name": "x", "pandas_type": "object", "numpy_type": TEXTS[2], "metadata": {"encoding": "pickle"}}
    note = {"index_columns": [TEXTS[2]], "columns": [column], "column_indexes": [column], "attributes": {"a": TEXTS[2]}}
    extension = {
        b"ARROW:extension:name": b"arrow.py_extension_type",  # unpickled its parameters once (CVE-2023-47248)
        b"ARROW:extension:metadata": PICKLES["pickle"],
    }
    fields = [field.with_metadata(extension) for field in table.schema]
    return [
        table.replace_schema_metadata({b"pandas": json.dumps(note).encode()}),
        table.replace_schema_metadata({b"x": PICKLES["pickle"]}),
        table.cast(pa.schema(fields)).replace_schema_metadata(None),
    ]


# ---- artefacts, whose records fit them


@pytest.fixture(scope="module")
def plan(finished, tmp_path_factory) -> Plan:
    root = tmp_path_factory.mktemp("hostile")
    subprocess.run(["cp", "-a", f"{finished.root}/.", str(root)], check=True)
    return Plan(load(RECIPE), root)


@pytest.fixture
def put(plan) -> Iterator[Callable[[Task, str, bytes], None]]:
    """Replace a file of a task and write its record to fit; afterwards all is as it was."""
    changed: dict[Path, tuple[bytes, tuple[int, int]]] = {}

    def replace(task: Task, name: str, content: bytes) -> None:
        for path in (task.folder / name, task.record.path):
            stamps = path.stat().st_atime_ns, path.stat().st_mtime_ns
            changed.setdefault(path, (path.read_bytes(), stamps))
        (task.folder / name).write_bytes(content)
        record = read_record(task.record.path) or {}
        record["files"][name] = sha256_file(task.folder / name)
        write_record(task.record.path, record)
        plan.forget()

    yield replace
    for path, (content, stamps) in changed.items():
        path.write_bytes(content)
        os.utime(path, ns=stamps)
    plan.forget()


def fresh(plan: Plan) -> Plan:
    return Plan(plan.recipe, plan.root)


Case = tuple[Callable[[Plan], Task], str, Callable[[Plan], object]]
CASES: dict[str, Case] = {
    "hu": (lambda p: p.prepared, "hu.npy", lambda p: cnn.run(p, model="resnet", fold=0)),
    "slices": (lambda p: p.prepared, "slices.parquet", folds.run),
    "quarantine": (lambda p: p.prepared, "quarantine.csv", submit.run),
    "embeddings": (
        lambda p: p.fold("resnet", 0),
        "valid_embeddings.npy",
        lambda p: sequence.run(p, model="bigru", fold=0),
    ),
    "training embeddings": (
        lambda p: p.training_rows("resnet", 0),
        "train_embeddings.npy",
        lambda p: sequence.run(p, model="bigru", fold=0),
    ),
    "predictions of a fold": (lambda p: p.fold("resnet", 0), "valid.parquet", stack.run),
    "predictions to smooth": (lambda p: p.fold("resnet", 1), "test.parquet", smooth.run),
    "predictions to assemble": (
        lambda p: p.fold("resnet", 0),
        "valid.parquet",
        lambda p: cnn.run(p, model="resnet", fold=0),
    ),
    "predictions of the blend": (lambda p: p.member("blend"), "oof.parquet", thresholds_stage.run),
    "predictions to submit": (lambda p: p.member("blend"), "test.parquet", thresholds_stage.run),
    "weights": (
        lambda p: p.fold("resnet", 0),
        "model.safetensors",
        lambda p: with_weights(p, "resnet", 0, lambda shape: torch.nn.Linear(1, 1)),
    ),
    "trees": (lambda p: p.fold("lgbm", 0), "model_any.txt", lambda p: scored(p)),
    "blend": (lambda p: p.fold("blend", 0), "blend.json", lambda p: scored(p)),
    "smooth": (lambda p: p.fold("gauss", 0), "smooth.json", lambda p: scored(p)),
    "thresholds to submit": (lambda p: p.thresholds, "thresholds.json", submit.run),
    "thresholds to score": (lambda p: p.thresholds, "thresholds.json", score.run),
    "thresholds to predict": (lambda p: p.thresholds, "thresholds.json", lambda p: scored(p)),
    "folds": (lambda p: p.folds, "tiny.csv", lambda p: Slices(p).table),
}


def scored(plan: Plan) -> None:
    """Score one file by the trained ensemble."""
    one = sorted(plan.raw_root.rglob("*.dcm"))[0]
    predict.run(fresh(plan), one, plan.root / "out.csv")


@pytest.mark.parametrize("case", CASES)
def test_an_artefact_that_is_a_pickle_is_one_line(plan, put, case):
    task_of, name, reader = CASES[case]
    for form in PICKLES if name.endswith(".npy") else ("pickle", "torch"):
        put(task_of(plan), name, PICKLES[form])
        refused(lambda: reader(fresh(plan)), name)


OTHER_TYPES = ["[]", "5", '"a"', "null", "{}", '{"thresholds": 3}', '{"classes": [1], "widths": "x", "thresholds": []}']
OTHER_TYPES += [
    json.dumps({key: dict.fromkeys(("any", "subdural"), text) for key in ("thresholds", "classes", "widths")})
    for text in (TEXTS[2], [], None)
]


@pytest.mark.parametrize("case", [c for c, (_, name, _) in CASES.items() if name.endswith(".json")])
def test_other_types_in_an_artefact_s_json_are_one_line(plan, put, case):
    task_of, name, reader = CASES[case]
    for text in OTHER_TYPES[:: 3 if reader is score.run else 1]:  # the scores before take their time
        put(task_of(plan), name, text.encode())
        refused(lambda: reader(fresh(plan)), name)


@pytest.mark.parametrize("case", [c for c, (_, name, _) in CASES.items() if name.endswith(".parquet")])
def test_payloads_in_the_notes_of_an_artefact_s_parquet_are_not_read(plan, put, case):
    task_of, name, _ = CASES[case]
    from ich.stages.artefacts import table_of

    path = task_of(plan).folder / name
    whole = table_of(path)
    for table in with_payloads(pq.read_table(path)):
        file = io.BytesIO()
        pq.write_table(table, file)
        put(task_of(plan), name, file.getvalue())
        pd.testing.assert_frame_equal(table_of(path), whole)


def test_a_sealed_checkpoint_is_read_as_weights_alone(tmp_path):
    for data in PICKLES.values():
        write_sealed(tmp_path / "checkpoint.bin", "fingerprint", data)
        refused(Checkpoint(tmp_path, "fingerprint").load, "checkpoint.bin")


def test_masks_that_are_objects_are_one_line(plan):
    path, slices = plan.raw_root / "masks.npz", Slices(plan)
    whole = path.read_bytes()
    with np.load(path, allow_pickle=False) as known:
        row = slices.table.index[slices.table["image_id"].isin(known.files)].to_numpy()[:1]
    objects = saved(lambda masks, file: np.savez(file, **masks), {slices.ids(row)[0]: array_with(Payload())})
    try:
        for data in (objects, *(data for data in PICKLES.values() if data[:2] != b"PK")):
            path.write_bytes(data)
            refused(lambda: maps._masks(plan, slices, row, "any"), "masks.npz")
    finally:
        path.write_bytes(whole)


def test_a_journal_that_is_a_pickle_is_begun_anew(tmp_path):
    y, p = np.array([[0.0], [1.0], [1.0]] * 20), np.linspace(0, 1, 60)[:, None]
    expected = thresholds.tune(y, p, ["a"], thresholds.Goal(1.0, "macro"), trials=5, seed=0)
    for data in (*PICKLES.values(), *(f'{{"op_code":0,"study_name":"{text}"}}\n'.encode() for text in TEXTS)):
        journal = tmp_path / "thresholds.journal"
        journal.write_bytes(data)
        found = thresholds.tune(y, p, ["a"], thresholds.Goal(1.0, "macro"), trials=5, seed=0, journal=journal)
        assert found == expected


STRANGE = [[], None, "../../x", {"../../x": "y"}, {"hu.npy": ["x"]}]


@pytest.mark.parametrize("key", ["files", "stamps", "settings", "inputs", "fingerprint", "classes", "model", "values"])
def test_a_record_with_other_types_is_a_stale_task_or_one_line(plan, put, key):
    for task in (plan.prepared, plan.fold("resnet", 0), plan.thresholds):
        record = read_record(task.record.path) or {}
        put(task, next(iter(record["files"])), (task.folder / next(iter(record["files"]))).read_bytes())
        for value in STRANGE:
            write_record(task.record.path, {**record, key: value})
            status.run(fresh(plan))
            with suppress(UserError):
                submit.run(fresh(plan))
        write_record(task.record.path, record)


@pytest.mark.parametrize("key", ["../../evil", "/etc", "..", "a/b", "", None, 5, ["x"], {"a": 1}])
def test_the_pointer_to_the_cache_leads_nowhere_else(plan, tmp_path, key):
    there = fresh(plan)
    evil = plan.root / "evil"
    evil.mkdir(exist_ok=True)
    Record(evil / "run.json").write("f", {})
    whole = there.workspace.cache_pointer.read_bytes()
    try:
        write_record(there.workspace.cache_pointer, {"key": key, "settings": there.image_settings})
        assert fresh(plan).prepared.folder.parent == there.workspace.cache_root
        write_record(there.workspace.cache_pointer, {"settings": [key]})
        assert fresh(plan).prepared.folder == there.workspace.cache("none")
    finally:
        there.workspace.cache_pointer.write_bytes(whole)


def test_folds_edited_by_hand_are_text(plan):
    path = plan.workspace.folds
    whole = path.read_bytes()
    try:
        for text in TEXTS:
            path.write_text(f'study_id,patient_id,fold\n"{text}","{text}","{text}"\n')
            refused(lambda: folds.run(fresh(plan)), path.name)
    finally:
        path.write_bytes(whole)


def test_on_the_terminal_it_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "a.pkl").write_bytes(PICKLES["pickle"])
    words = [sys.executable, "-m", "ich.cli", "thresholds", "--table", "a.pkl"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: a.pkl: not a readable table")
    assert len(done.stderr.splitlines()) == 1


# ---- the source


FORBIDDEN = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle"}
NEVER = {"eval", "exec", "__import__", "compile", "breakpoint"}
LOADERS = {  # every call that reads a file of some format, and what it has to say
    "np.load": {"allow_pickle": "False"},
    "torch.load": {"weights_only": "True"},
    "np.lib.format.open_memmap": {},  # refuses objects
    "np.lib.format.read_magic": {},
    "np.lib.format.read_array_header_1_0": {},
    "np.memmap": {},
    "np.fromfile": {"dtype": None},
    "pd.read_parquet": {},
    "pd.read_csv": {},
    "pyarrow.parquet.read_table": {},
    "pyarrow.parquet.read_schema": {},
    "json.load": {},
    "json.loads": {},
    "optuna.load_study": {},
    "yaml.load": {},
}
UNNAMED = {"load", "loads", "read_pickle", "read_hdf", "read_feather", "read_excel", "unsafe_load", "full_load"}
UNNAMED |= {"load_all", "open_memmap", "read_array", "loadtxt", "genfromtxt", "fromfile", "memmap", "load_module"}
UNNAMED |= {
    "load_state_dict_from_url",
    "hub_load",
    "unpickle",
    "Unpickler",
    "deserialize",
    "read_parquet",
    "read_table",
}
OURS = {"load", "saved.load", "checkpoint.from_bytes"}  # of safetensors and ich.recipe (see the imports); Checkpoint's


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def faults(path: Path) -> list[str]:
    found: list[str] = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    safe_load = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom):
            source = str(node.module)
            found += [source] if source.partition(".")[0] in FORBIDDEN else []
            loads = {alias.name for alias in node.names} & (UNNAMED | NEVER)
            safe_load |= source in ("safetensors.torch", "ich.recipe", "ich.recipe.loading") and loads == {"load"}
            found += [] if not loads or safe_load else [f"{source}: {loads}"]
    for name, call in calls(path):
        said = {k.arg: ast.unparse(k.value) for k in call.keywords}
        last = name.rpartition(".")[2]
        if name in NEVER or "pickle" in name.lower() or said.get("shell", "False") != "False" or name == "os.system":
            found.append(name)
        elif name in LOADERS:
            found += [f"{name} without {k}" for k, v in LOADERS[name].items() if v is not None and said.get(k) != v]
            if name == "yaml.load":
                found += [] if ast.unparse(call.args[1]) == "_Loader" else [name]
        elif last in UNNAMED and not (name == "load" and safe_load) and name not in OURS - {"load"}:
            found.append(name)
        if said.get("allow_pickle", "False") != "False" or said.get("weights_only", "True") != "True":
            found.append(name)
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_what_reads_a_file_is_known_to_run_nothing(path):
    assert faults(path) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from dill import loads",
        "import shelve",
        "joblib.load(p)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "np.lib.format.read_array(f)",
        "from numpy import load",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "yaml.load(f, yaml.Loader)",
        "yaml.unsafe_load(f)",
        "pd.read_pickle(p)",
        "eval('1')",
        "exec('1')",
        "__import__('os')",
        "subprocess.run('x', shell=True)",
        "os.system('x')",
        "marshal.loads(b'')",
        "pickle.Unpickler(f)",
        "load(p)",
    ],
)
def test_the_rule_finds_what_would_run(tmp_path, text):
    (tmp_path / "a.py").write_text(text)
    assert faults(tmp_path / "a.py")


def test_a_recipe_is_read_by_the_safe_loader_alone():
    import yaml

    from ich.recipe import loading

    assert issubclass(loading._Loader, yaml.SafeLoader)
    assert set(loading._Loader.yaml_constructors) == set(yaml.SafeLoader.yaml_constructors)

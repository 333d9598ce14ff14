"""`ich predict`: predictions of the test folder equal the submission; errors are one line."""

import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
from scipy.special import expit, logit

from conftest import CLASSES, copied, plan_of, score_scans
from conftest import make as run
from ich.ensemble.calibration import Calibrator
from ich.ensemble.hierarchy import project_any
from ich.errors import UserError
from ich.pipeline.chunks import Chunks, split
from ich.pipeline.engines import Make, Result, Step, attempt
from ich.pipeline.state import Plan
from ich.pipeline.trained import needed
from ich.stages import transfer
from ich.store.atomic import read_json
from ich.store.hashes import sha256_bytes
from ich.store.records import read_record, write_record
from pipeline.test_submit import WEIGHTS, estimate_another_prevalence, submitted

PROBABILITIES = [f"prob_{name}" for name in CLASSES]
POSITIVES = [f"positive_{name}" for name in CLASSES]
ADDED = ["sop_instance_uid", "path"]
TEST = "input/tiny/stage_2_test"
OTHER_BATCHES = 1e-4  # logits; in batches of another size, kernels may add up in another order
PLAIN = ("blend.method=logits", "blend.calibration=none")


@pytest.fixture(scope="module")
def root(trained, tmp_path_factory) -> Path:
    """A workspace in which each test makes its own blend, thresholds and submission."""
    return copied(trained, tmp_path_factory.mktemp("predict"))


def scored(plan: Plan, source: Path | None = None, fold: int | None = None) -> pd.DataFrame:
    """The table of `ich predict` for a source, or for the test folder."""
    out = plan.root / "out.csv"
    score_scans(plan, plan.root / TEST if source is None else source, out, fold=fold)
    return pd.read_csv(out, dtype={"study_id": str})


def assert_as_submitted(plan: Plan, table: pd.DataFrame) -> None:
    """Equal to the last bit, since functions and batches are the same."""
    expected, table = submitted(plan.root), table.set_index("image_id")
    assert logit(expected).std().max() > 1e-4, "equal predictions for all slices would prove nothing"
    assert sorted(table.index) == sorted(expected.index)
    np.testing.assert_array_equal(table.loc[expected.index, PROBABILITIES], expected)
    decided = submitted(plan.root, "submission_binary")
    np.testing.assert_array_equal(table.loc[expected.index, POSITIVES], decided)


def remade(root: Path, *changes: str) -> Plan:
    """The plan with these changes, its blend, thresholds and submission made."""
    plan = plan_of(root, *changes)
    run(plan, "blend", "thresholds", "submit")
    return plan


# ---- the test folder


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory) -> tuple[pd.DataFrame, str, pd.DataFrame]:
    """The table of the recipe's own test folder, what was printed, and the table of studies."""
    root = copied(trained, tmp_path_factory.mktemp("whole"))
    with redirect_stdout(io.StringIO()) as printed:
        table = scored(plan_of(root))
    return table, printed.getvalue(), pd.read_csv(root / "out.studies.csv", dtype={"study_id": str})


def test_predictions_of_the_test_folder_equal_the_submission(trained, whole):
    assert_as_submitted(plan_of(trained), whole[0])


@pytest.mark.parametrize("model", ["gauss", "lgbm"])
def test_predictions_of_each_kind_equal_the_submission(root, model):
    """lgbm reads networks of all kinds."""
    plan = remade(root, f"blend.inputs=[{model}]", *PLAIN)
    assert_as_submitted(plan, scored(plan))


@pytest.mark.parametrize(
    ("method", "calibration", "metric"),
    [
        ("auto", "auto", "log_loss"),
        ("ranks", "platt", "log_loss"),
        ("greedy", "beta", "f2"),
        ("weights", "isotonic", "f2"),
        ("probabilities", "temperature", "log_loss"),
    ],
)
def test_predictions_of_each_blend_equal_the_submission(root, method, calibration, metric):
    chosen = {"method": method, "calibration": calibration, "metric": metric, "trials": 10}
    changes = (f"blend.{key}={value}" for key, value in chosen.items())
    plan = remade(root, "blend.inputs=[joint, small, lgbm]", *changes)
    for k in plan.fold_numbers if method != "auto" else ():
        fitted = read_json(plan.workspace.fold("blend", k) / "blend.json")["classes"]["any"]
        assert (fitted["combination"]["method"], fitted["calibration"]["method"]) == (method, calibration)
    assert_as_submitted(plan, scored(plan))


@pytest.mark.parametrize(("subtypes", "any_", "transfer"), [(2.0, 2.0, "quantile"), (1.0, 0.05, "value")])
def test_predictions_with_an_applied_prevalence_equal_the_submission(root, monkeypatch, subtypes, any_, transfer):
    inputs = ("blend.inputs=[resnext, gauss]", *PLAIN)
    before = submitted(remade(root, *inputs).root)
    estimate_another_prevalence(monkeypatch, subtypes, any_)
    plan = remade(root, *inputs, "thresholds.prevalence=apply", f"thresholds.transfer={transfer}")
    assert not np.allclose(submitted(root), before)
    assert_as_submitted(plan, scored(plan))


def test_each_fold_uses_its_own_blend(root):
    plan = remade(root, "blend.inputs=[resnet, gauss]", *PLAIN)
    parts = []
    for fold, model in enumerate(["resnet", "gauss", "resnet"]):
        folder = plan.workspace.fold("blend", fold)
        blend, record = json.loads((folder / "blend.json").read_text()), read_record(folder / "run.json") or {}
        weights = [float(name == model) for name in blend["inputs"]]
        for name in CLASSES:
            blend["classes"][name] = {
                "combination": {"method": "weights", "weights": weights},
                "calibration": {"method": "temperature", "temperature": 2.0},
            }
        content = json.dumps(blend).encode()
        (folder / "blend.json").write_bytes(content)
        record["files"]["blend.json"] = sha256_bytes(content)
        write_record(folder / "run.json", record)
        test = pd.read_parquet(plan.workspace.fold(model, fold) / "test.parquet").set_index("image_id") / 2
        parts.append(pd.DataFrame(project_any(test.to_numpy(), CLASSES, WEIGHTS), test.index, columns=CLASSES))
    plan = plan_of(root, "blend.inputs=[resnet, gauss]", *PLAIN)
    found = scored(plan).set_index("image_id")
    mean = sum(part.loc[found.index] for part in parts) / 3
    np.testing.assert_allclose(found[PROBABILITIES], expit(mean), rtol=1e-6)
    found = scored(plan, fold=1).set_index("image_id")
    np.testing.assert_allclose(found[PROBABILITIES], expit(parts[1].loc[found.index]), rtol=1e-6)
    with pytest.raises(UserError, match="--fold 3: no such fold"):
        scored(plan, fold=3)
    for fold in plan.fold_numbers:
        (plan.workspace.fold("blend", fold) / "run.json").unlink()


def test_models_that_the_blend_does_not_read_are_not_needed(copy):
    plan = remade(copy, "blend.inputs=[resnext]", *PLAIN)
    for model in ("bigru", "lgbm", "joint"):
        shutil.rmtree(plan.workspace.model(model))
    plan = plan_of(copy, "blend.inputs=[resnext]", *PLAIN)
    assert needed(plan) == ["resnext", "blend"]
    assert_as_submitted(plan, scored(plan))


# ---- the table


def slice_table(root: Path) -> pd.DataFrame:
    return pd.read_parquet(plan_of(root).prepared.folder / "slices.parquet").query("split == 'test'")


def study_files(root: Path) -> list[Path]:
    """The test files of one study, in order of position."""
    slices = slice_table(root)
    return [root / "input/tiny" / path for path in slices[slices["study_id"] == slices["study_id"].iloc[0]]["path"]]


def test_the_table_has_study_and_series_ids_but_no_patient_id(trained, whole):
    table, slices = whole[0], slice_table(trained)
    assert list(table.columns) == ["image_id", "study_id", "series_id", "index", *PROBABILITIES, *POSITIVES, *ADDED]
    same = ["image_id", "study_id", "series_id", "index"]
    pd.testing.assert_frame_equal(table[same], slices[same].reset_index(drop=True), check_dtype=False)
    assert not set(slices["patient_id"]) & set(table.astype(str).to_numpy().ravel())


def test_studies_have_the_calibrated_probabilities_of_attention_pooling(trained, whole):
    folder = plan_of(trained).workspace.model("inside")
    logits = pd.read_parquet(folder / "test_studies.parquet").set_index("study_id")
    found, calibrators = whole[2].set_index("study_id"), read_json(folder / "studies.json")
    assert sorted(found.index) == sorted(logits.index)
    for name in CLASSES:
        expected = expit(Calibrator.from_dict(calibrators[name]).apply(logits.loc[found.index, f"logit_{name}"]))
        np.testing.assert_allclose(found[f"pooled_{name}"], expected, rtol=1e-6)


def test_the_maximum_per_study_is_printed(whole):
    table, printed, _ = whole
    for study, part in table.groupby("study_id"):
        row = next(line.split() for line in printed.splitlines() if line.startswith(str(study)))
        assert row == [str(study), str(len(part)), *(f"{p:.3f}" for p in part[PROBABILITIES].max())]


def test_predictions_depend_on_neither_folders_nor_file_names(copy, tmp_path_factory, capsys):
    files, source = study_files(copy), tmp_path_factory.mktemp("cd")
    (source / "A/B").mkdir(parents=True)
    # as on a hospital's disc: no suffix, dots in the names, the same name in two folders
    for number, file in enumerate(files):
        shutil.copy(file, source / ("A" if number % 2 else "A/B") / f"1.2.840.{number // 2}")
    (source / "notes.txt").write_text("nothing to see")
    (source / "A/broken.dcm").write_bytes(files[0].read_bytes()[:-500])
    table = scored(plan_of(copy, "compute.threads=2"), source)
    assert table["index"].tolist() == list(range(len(files)))
    names = [f"{'A' if number % 2 else 'A/B'}/1.2.840.{number // 2}" for number in range(len(files))]
    if len(files) % 2:  # the last name is unique
        names[-1] = f"1.2.840.{len(files) // 2}"
    assert table["image_id"].tolist() == names
    expected = submitted(copy).loc[[file.stem for file in files]]
    np.testing.assert_allclose(logit(table[PROBABILITIES]), logit(expected), atol=OTHER_BATCHES)
    said = capsys.readouterr().out
    assert "quarantined: notes.txt: this is not a DICOM file" in said
    assert "quarantined: A/broken.dcm: there are fewer pixels than the header requires" in said
    listed = pd.read_csv(copy / "out.files.csv", keep_default_na=False).set_index("path")
    assert list(listed.index) == sorted(path.relative_to(source).as_posix() for path in source.rglob("*.*"))
    assert listed["status"].value_counts().to_dict() == {"scored": len(files), "quarantined": 2}
    assert listed["reason"][["notes.txt", "A/broken.dcm"]].tolist() == ["not_dicom", "truncated"]
    assert listed["detail"]["A/broken.dcm"].startswith("there are fewer pixels than the header requires")
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    assert table["sop_instance_uid"].tolist() == [header.SOPInstanceUID for header in headers]
    scored_files = listed.loc[table["path"]]
    assert scored_files["sop_instance_uid"].tolist() == table["sop_instance_uid"].tolist()
    assert scored_files["study_id"].unique().tolist() == [headers[0].StudyInstanceUID]


def test_one_file_is_scored_like_a_folder_with_that_file(copy, tmp_path_factory, monkeypatch, capsys):
    file, between, one = study_files(copy)[0], tmp_path_factory.mktemp("between"), tmp_path_factory.mktemp("one")
    monkeypatch.setattr("tempfile.tempdir", str(between))
    shutil.copy(file, one / file.name)
    plan = plan_of(copy)
    alone = scored(plan, file)
    assert alone["image_id"].tolist() == [file.stem]
    assert f"warning: 1 series with a single slice, such as {file.name}." in capsys.readouterr().out
    pd.testing.assert_frame_equal(alone, scored(plan, one))
    assert not list(between.glob("ich-*")), "the cache in between is removed"


def test_copies_of_slices_are_a_warning(copy, tmp_path_factory, capsys):
    files, folder = study_files(copy)[:3], tmp_path_factory.mktemp("copies")
    for name, file in enumerate((*files, files[1])):
        shutil.copy(file, folder / f"{name}.dcm")
    scored(plan_of(copy), folder)
    assert "warning: 1 of 4 slices have the position of the slice before, such as " in capsys.readouterr().out


def test_scans_without_a_patient_are_scored(trained, tmp_path):
    """Anonymised: PatientID is empty or missing."""
    (tmp_path / "scans").mkdir()
    for number, file in enumerate(study_files(trained)):
        scan = pydicom.dcmread(file)
        scan.PatientID = ""
        if number % 2:
            del scan.PatientID
        scan.save_as(tmp_path / "scans" / file.name)
    found = [pd.read_csv(predicted(trained, source, tmp_path)) for source in (tmp_path / "scans", None)]
    expected = found[1][found[1]["study_id"] == found[0]["study_id"][0]].reset_index(drop=True)
    same = ["image_id", "index", "sop_instance_uid"]
    pd.testing.assert_frame_equal(found[0][same], expected[same])
    np.testing.assert_allclose(logit(found[0][PROBABILITIES]), logit(expected[PROBABILITIES]), atol=OTHER_BATCHES)


def test_without_thresholds_there_are_probabilities_alone(copy):
    (copy / "oof/parts/thresholds.run.json").unlink()
    assert list(scored(plan_of(copy), study_files(copy)[0]).columns)[4:] == [*PROBABILITIES, *ADDED]


# ---- chunks of studies


def predicted(root: Path, source: Path | None, folder: Path, **options: Any) -> Path:
    """The output of the first fold's models for a source, or for the test folder, which writes to `folder` only."""
    score_scans(plan_of(root), source or root / TEST, folder / "out.csv", fold=0, **options)
    return folder / "out.csv"


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """The names of the chunks that are made; each study is one."""
    names, make = list[str](), Chunks.make
    monkeypatch.setattr("ich.pipeline.chunks.CHUNK", 1)

    @wraps(make)
    def noted(self: Chunks, name: str, *arguments: Any) -> None:
        make(self, name, *arguments)
        names.append(name[: len(CHUNKS[0])])

    monkeypatch.setattr(Chunks, "make", noted)
    return names


CHUNKS = [f"chunk-{number:05}" for number in range(4)]  # of the test folder


def test_chunks_are_whole_studies_of_bounded_size(monkeypatch):
    lengths = [3, 2, 4, 1, 1, 9, 1]
    studies = pd.Series([f"study {k}" for k, length in enumerate(lengths) for _ in range(length)])
    for most, expected in ((5, [5, 5, 1, 9, 1]), (21, [21]), (1, lengths)):
        monkeypatch.setattr("ich.pipeline.chunks.CHUNK", most)
        chunks = split(studies, 512)
        assert [len(rows) for rows in chunks] == expected
        np.testing.assert_array_equal(np.concatenate(chunks), np.arange(21))
    monkeypatch.undo()
    many = pd.Series(np.repeat(np.arange(1000), 32))
    assert {size: max(map(len, split(many, size))) for size in (128, 256, 512)} == {128: 4096, 256: 4096, 512: 1024}


def test_a_chunk_is_scored_like_a_folder_with_its_studies(trained, whole, made, tmp_path):
    plan, expected = plan_of(trained), whole[0]
    score_scans(plan, trained / TEST, tmp_path / "all.csv")
    assert made == CHUNKS
    found, studies = (pd.read_csv(tmp_path / f"all.{kind}csv", dtype={"study_id": str}) for kind in ("", "studies."))
    same = [name for name in found if not name.startswith("prob_")]
    pd.testing.assert_frame_equal(found[same], expected[same])
    np.testing.assert_allclose(logit(found[PROBABILITIES]), logit(expected[PROBABILITIES]), atol=OTHER_BATCHES)
    pooled = [f"pooled_{name}" for name in CLASSES]
    np.testing.assert_allclose(studies[pooled], whole[2][pooled], atol=OTHER_BATCHES)
    (tmp_path / "study").mkdir()
    for file in study_files(trained):
        shutil.copy(file, tmp_path / "study")
    score_scans(plan, tmp_path / "study", tmp_path / "one.csv")
    for kind in ("", ".studies"):
        alone = (tmp_path / f"one{kind}.csv").read_text()
        assert set(alone.splitlines()) <= set((tmp_path / f"all{kind}.csv").read_text().splitlines())


def test_a_killed_run_resumes_with_the_missing_chunks(trained, made, tmp_path, monkeypatch):
    expected = predicted(trained, None, tmp_path).read_bytes()
    again, unfinished, make = tmp_path / "again", tmp_path / "again/out.csv.unfinished", Chunks.make
    again.mkdir()

    def killed(self: Chunks, name: str, *arguments: Any) -> None:
        if name.startswith(CHUNKS[2]):
            raise KeyboardInterrupt
        make(self, name, *arguments)

    def rerun(source: Path | None = None) -> list[str]:
        made.clear()
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            if not unfinished.exists() or source:
                patch.setattr(Chunks, "make", killed)
            predicted(trained, source, again)
        return made

    assert rerun() == CHUNKS[:2]
    kept = [pd.read_parquet(io.BytesIO(path.read_bytes().partition(b"\n")[2])) for path in unfinished.iterdir()]
    assert len(kept) == 6
    assert not any("patient_id" in table for table in kept)
    (part,) = unfinished.glob(f"{CHUNKS[1]}*.scores")
    part.write_bytes(part.read_bytes()[:-1])
    assert rerun() == CHUNKS[1:]
    assert (again / "out.csv").read_bytes() == expected
    assert not unfinished.exists()
    copy = copied(trained / TEST, tmp_path / "scans")
    assert rerun(copy) == CHUNKS[:2]
    assert rerun(copy) == []
    file = copy / study_files(trained)[0].name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert rerun(copy) == CHUNKS[:2], "the scans have changed"


def test_an_engine_makes_the_chunks_and_names_those_that_failed(trained, made, tmp_path, monkeypatch):
    expected = predicted(trained, None, tmp_path).read_bytes()
    again, broken = tmp_path / "again", {CHUNKS[1], CHUNKS[3]}
    again.mkdir()

    def run(steps: list[Step], make: Make, *_: Any) -> Iterator[Result]:
        make = pickle.loads(pickle.dumps(make))
        for step in sorted(steps, key=lambda step: step.name, reverse=True):
            if step.name.startswith(tuple(broken)):
                (again / f"out.csv.unfinished/{step.name}.slices").unlink()
            yield attempt(make, step.name)

    monkeypatch.setitem(sys.modules, "ich.pipeline.engines.ray", SimpleNamespace(run=run))
    made.clear()
    with pytest.raises(UserError) as error:
        predicted(trained, None, again, engine="ray")
    first, second, last = str(error.value).split("\n")
    assert first.startswith(CHUNKS[3])
    assert first.endswith(".slices is missing or damaged. Rerun `ich predict`")
    assert second.startswith(CHUNKS[1])
    assert last == "2 of 4 chunks are missing. Rerun the same command to make only these"
    assert not (again / "out.csv").exists()
    broken.clear()
    made.clear()
    assert predicted(trained, None, again, engine="ray").read_bytes() == expected
    assert made == [CHUNKS[3], CHUNKS[1]]
    with pytest.raises(UserError, match="--engine spark: unknown engine"):
        predicted(trained, None, again, engine="spark")


def test_models_are_read_from_the_store(trained, copy, tmp_path):
    expected, store = predicted(trained, None, tmp_path).read_bytes(), f"store.remote=file://{tmp_path}/store"
    transfer.push(plan_of(trained, store), model=None, raw=False)
    for path in [copy / "oof/parts/thresholds.json", *(copy / "oof/parts").glob("*/*/model*")]:
        path.unlink()
    score_scans(plan_of(copy, store), trained / TEST, tmp_path / "again.csv", fold=0)
    assert (tmp_path / "again.csv").read_bytes() == expected


# ---- archives and other formats


def zipped(path: Path, files: list[Path], **others: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, f"scan/{file.name}")
        for name, content in others.items():
            archive.writestr(f"../{name}", content)
    return path


def test_an_archive_is_scored_like_its_files(copy, tmp_path_factory):
    files, source = study_files(copy), tmp_path_factory.mktemp("zipped")
    for file in files:
        shutil.copy(file, source)
    expected = scored(plan_of(copy), source)
    whole = scored(plan_of(copy), zipped(source / "a.ZIP", files, evil=b"x"))
    pd.testing.assert_frame_equal(whole.drop(columns="path"), expected.drop(columns="path"))
    assert whole["path"].tolist() == [f"a.ZIP!/scan/{file.name}" for file in files]
    listed = pd.read_csv(copy / "out.files.csv").set_index("path")
    assert listed["status"]["a.ZIP!/../evil"] == "quarantined"
    assert "its name leads out of the archive" in listed["detail"]["a.ZIP!/../evil"]
    for file in source.glob("*.dcm"):
        file.unlink()
    (source / "b.zip").write_bytes(b"PK\x03\x04")
    pd.testing.assert_frame_equal(scored(plan_of(copy), source), whole)
    listed = pd.read_csv(copy / "out.files.csv").set_index("path")
    assert "not a whole .zip archive" in listed["detail"]["b.zip"]
    with pytest.raises(UserError, match=r"no files in this archive .*b\.zip: not a whole \.zip archive"):
        scored(plan_of(copy), source / "b.zip")


def test_the_suffix_of_the_output_is_its_format(copy, tmp_path):
    plan, file = plan_of(copy), study_files(copy)[0].parent
    out = tmp_path / "new"
    for name in ("a.csv", "b.parquet", "c.zip"):
        score_scans(plan, file, out / name)
    parts = ("", ".files", ".series", ".studies")
    names = [f"{stem}{part}.{suffix}" for stem, suffix in (("a", "csv"), ("b", "parquet")) for part in parts]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "c.zip"])
    with zipfile.ZipFile(out / "c.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"c{part}.csv" for part in parts)
        for part in parts:
            assert archive.read(f"c{part}.csv") == (out / f"a{part}.csv").read_bytes()
            parquet = pd.read_parquet(out / f"b{part}.parquet")
            assert parquet.to_csv(index=False) == (out / f"a{part}.csv").read_text()


def test_the_tables_of_studies_and_series_have_the_maximum_of_their_slices(copy):
    table = scored(plan_of(copy))
    studies, series = (pd.read_csv(copy / f"out.{kind}.csv", dtype={"study_id": str}) for kind in ("studies", "series"))
    keys = ["study_id", "series_id"]
    assert list(series.columns) == [*keys, "slices", *PROBABILITIES, *POSITIVES]
    expected = table.groupby(keys, sort=False)[[*PROBABILITIES, *POSITIVES]].max()
    pd.testing.assert_frame_equal(series.set_index(keys).drop(columns="slices"), expected)
    studies = studies.set_index("study_id")
    more = [f"{start}_{name}" for start in ("study_prob", "pooled") for name in CLASSES]
    assert list(studies.columns) == ["series", "slices", *PROBABILITIES, *POSITIVES, *more]
    assert set(studies.index) == set(table["study_id"])
    for study, part in table.groupby("study_id"):
        assert studies["slices"][study] == len(part)
        assert studies["series"][study] == part["series_id"].nunique()
        assert (
            studies.loc[study, [*PROBABILITIES, *POSITIVES]].tolist()
            == part[[*PROBABILITIES, *POSITIVES]].max().tolist()
        )


# ---- refused


@pytest.mark.parametrize(
    ("file", "stage"), [("resnet/fold0/model.safetensors", "cnn"), ("thresholds.json", "thresholds")]
)
def test_a_changed_model_is_refused(copy, file, stage):
    path = copy / "oof/parts" / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"is stale .* was changed.*Run `ich {stage}` first"):
        scored(plan_of(copy), copy / "nowhere")


def test_a_missing_fold_is_an_error_with_a_remedy(copy):
    (copy / "oof/parts/bigru/fold1/run.json").unlink()
    with pytest.raises(UserError, match=r"needs sequence/bigru/fold1, which is missing\. Run `ich sequence` first"):
        scored(plan_of(copy))
    assert not (copy / "out.csv").exists()


@pytest.mark.parametrize("out", ["", "file/out.csv", "pipe", "/dev/stdout", "out.csv.gz", "out.xlsx"])
def test_the_output_path_is_tested_before_the_work(trained, tmp_path, monkeypatch, out):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("ich.stages.predict.read_scans", lambda *_: pytest.fail("read the scans first"))
    with pytest.raises(UserError, match=r"(folder|a pipe)\. Give (the|another) path|end with \.csv, \.parquet, \.zip"):
        score_scans(plan_of(trained), trained / TEST, tmp_path / out)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (None, "no such file or folder"),
        ({}, "no files in this folder"),
        ({"a.txt": b"text", "b/c": b""}, "no readable slice in 2 files; a.txt: this is not a DICOM file"),
        ({"a.dcm": None}, "no readable slice in 1 files; a.dcm: there are fewer pixels than the header requires"),
    ],
)
def test_a_folder_without_a_readable_slice_is_an_error(root, trained, tmp_path, files, says):
    source = tmp_path / "source"
    if files is not None:
        source.mkdir()
    for name, content in (files or {}).items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(study_files(trained)[0].read_bytes()[:-500] if content is None else content)
    with pytest.raises(UserError) as error:
        score_scans(plan_of(trained), source, tmp_path / "out.csv")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.csv").exists()
    if files:
        assert f"{tmp_path / 'out.files.csv'} lists all files" in str(error.value)
        listed = pd.read_csv(tmp_path / "out.files.csv")
        assert sorted(listed["path"]) == sorted(files)
        assert set(listed["status"]) == {"quarantined"}

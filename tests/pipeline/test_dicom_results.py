"""`ich predict --dicom`: the DICOM results of a trained ensemble, and the extra that they need."""

import io
import shutil
import sys

import pandas as pd
import pydicom
import pytest
from highdicom.sr import ComprehensiveSR

from conftest import CLASSES, plan_of
from ich import cli
from ich.data.dicom.results import source_uid
from ich.errors import UserError
from ich.pipeline.trained import of_workspace
from ich.stages import dicom_out, export, predict

TEST = "input/tiny/stage_2_test"


@pytest.fixture(scope="module")
def results(trained, tmp_path_factory):
    """A folder with the tables and the DICOM results of two studies, and the bundle."""
    bundle, folder = of_workspace(plan_of(trained)), tmp_path_factory.mktemp("dicom")
    ids = {}
    for path in sorted((trained / TEST).iterdir()):
        ids.setdefault(str(pydicom.dcmread(path, specific_tags=["StudyInstanceUID"]).StudyInstanceUID), []).append(path)
    (folder / "scans").mkdir()
    for path in [path for paths in list(ids.values())[:2] for path in paths]:
        shutil.copy(path, folder / "scans")
    write = dicom_out.writer(folder / "results", bundle)
    predict.run(bundle, folder / "scans", folder / "out.csv", then=write)
    return folder, bundle


def test_reports_have_the_probabilities_of_the_tables(results):
    folder, bundle = results
    studies = pd.read_csv(folder / "out.studies.csv", index_col="study_id")
    slices = pd.read_csv(folder / "out.csv")
    assert len(list((folder / "results").iterdir())) == len(studies) == 2
    for study, row in studies.iterrows():
        content = (folder / "results" / source_uid(str(study)) / "sr.dcm").read_bytes()
        report = ComprehensiveSR.from_dataset(pydicom.dcmread(io.BytesIO(content)))
        groups = {one.tracking_identifier: one for one in report.content.get_image_measurement_groups()}
        assert list(groups) == CLASSES
        for name, group in groups.items():
            assert float(group.get_measurements()[0].value) == pytest.approx(row[f"study_prob_{name}"], abs=1e-6)
            positive = slices[(slices["study_id"] == study) & (slices[f"positive_{name}"] == 1)]
            found = [image.referenced_sop_instance_uid for image in group.source_images]
            assert sorted(found) == sorted(map(source_uid, positive["sop_instance_uid"]))
        assert f"SHA-256 of the bundle: {bundle.identity}".encode() in content


def test_a_serving_process_makes_the_same_files(results, tmp_path, trained):
    folder, _ = results
    study = pd.read_csv(folder / "out.csv")["study_id"][0]
    names = pd.read_csv(folder / "out.csv").query("study_id == @study")["path"]
    (tmp_path / "scans").mkdir()
    for name in names:
        shutil.copy(folder / "scans" / name, tmp_path / "scans")
    export.run(plan_of(trained), tmp_path / "bundle")
    (tmp_path / "out").mkdir()
    dicom_out.scorer(tmp_path / "bundle")(tmp_path / "scans", tmp_path / "out")
    whole = {path.name for path in (folder / "results" / source_uid(study)).iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == whole


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    monkeypatch.delitem(sys.modules, "ich.stages.serve", raising=False)
    with pytest.raises(UserError, match=r"`ich serve` requires pynetdicom. Install it: pip install 'ich\[dicom\]'"):
        cli._dicom("serve", "`ich serve`")

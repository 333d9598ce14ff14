"""`ich predict --submission` and `ich export --kaggle`: an offline notebook writes the submission of the workspace."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from hatchling import build

from conftest import CLASSES, RECIPE, ROOT, plan_of
from ich.errors import UserError
from ich.pipeline.trained import of_workspace
from ich.stages import export, predict

TEST, SAMPLE = "stage_2_test", "stage_2_sample_submission.csv"
EXECUTE = """
import sys
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, km=AsyncKernelManager(transport="ipc"), timeout=600).execute()
"""


@pytest.fixture(scope="module")
def dataset(finished, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kaggle") / "ich"
    export.run(plan_of(finished.root, recipe=RECIPE), folder, kaggle=True)
    return folder


def test_the_metadata_is_as_kaggle_documents_it(dataset):
    data, kernel = (json.loads((dataset / f"{name}-metadata.json").read_text()) for name in ("dataset", "kernel"))
    assert 6 <= len(data["title"]) <= 50
    assert 20 <= len(data["subtitle"]) <= 80
    assert data["licenses"] == [{"name": "other"}]
    for one in (data, kernel):
        assert one["id"] == f"INSERT_USERNAME/{one['title'].lower().replace(' ', '-')}"
    assert kernel["dataset_sources"] == [data["id"]]
    assert kernel["competition_sources"] == ["rsna-intracranial-hemorrhage-detection"]
    assert (kernel["enable_internet"], kernel["is_private"]) == ("false", "true")
    notebook = nbformat.read(dataset / kernel["code_file"], 4)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 6


def test_the_wheels_are_the_installed_versions_without_torch(dataset):
    wheels = dict(line.split("==") for line in (dataset / "wheels.txt").read_text().splitlines())
    assert wheels == {name: version(name) for name in wheels}
    assert {"ich", "pydicom", "numpy", "pydantic-core"} <= set(wheels)
    assert not {"torch", "torchvision", "triton", "pytest"} & set(wheels)


def test_the_notebook_writes_the_submission_without_network(finished, dataset, tmp_path, monkeypatch):
    """The wheel is installed into a folder of its own, since pip must not change this Python."""
    namespace = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this system permits no namespace without network")
    attached = shutil.copytree(dataset, tmp_path / "input/ich")
    (tmp_path / "input/competition").symlink_to(finished.root / "input/tiny")
    (attached / "wheels.txt").write_text(f"ich=={version('ich')}\n")
    (attached / "wheels").mkdir()
    monkeypatch.chdir(ROOT)
    build.build_wheel(str(attached / "wheels"))
    notebook = (attached / "inference.ipynb").read_text().replace("/kaggle/input", str(tmp_path / "input"))
    (tmp_path / "inference.ipynb").write_text(notebook)
    site = str(tmp_path / "site")
    environment = {**os.environ, "PIP_TARGET": site, "PYTHONPATH": site, "NO_ALBUMENTATIONS_UPDATE": "1"}
    command = [*namespace, sys.executable, "-c", EXECUTE, str(tmp_path / "inference.ipynb")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "site/ich/cli.py").is_file()
    expected = (finished.root / "submissions/tiny/submission.csv").read_bytes()
    assert (tmp_path / "submission.csv").read_bytes() == expected


def test_test_images_that_cannot_be_read_get_the_prevalence(finished, tmp_path, capsys):
    source = finished.root / "input/tiny"
    shutil.copytree(source / TEST, tmp_path / TEST)
    shutil.copy(source / SAMPLE, tmp_path)
    broken, lost = sorted((tmp_path / TEST).iterdir())[:2]
    broken.write_bytes(broken.read_bytes()[:-500])
    lost.unlink()
    bundle = of_workspace(plan_of(finished.root, recipe=RECIPE))
    predict.run(bundle, tmp_path / TEST, tmp_path / "out.csv", submission=tmp_path / "submission.csv")
    assert "2 test images could not be read" in capsys.readouterr().out
    written = pd.read_csv(tmp_path / "submission.csv").set_index("ID")["Label"]
    assert written.index.tolist() == pd.read_csv(source / SAMPLE)["ID"].tolist()
    tuned = bundle.spec.thresholds or {}
    for name in CLASSES:
        expected = tuned["positives"][name] / tuned["rows"]
        assert {written[f"{path.stem}_{name}"] for path in (broken, lost)} == {expected}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"thresholds": None}, "needs thresholds"),
        ({}, "no sample submission"),
        ({"competition": ""}, "needs the format"),
    ],
)
def test_a_submission_needs_thresholds_a_sample_and_a_format(finished, tmp_path, changes, says):
    bundle = of_workspace(plan_of(finished.root, recipe=RECIPE))
    bundle = replace(bundle, spec=bundle.spec.model_copy(update=changes))
    with pytest.raises(UserError, match=says):
        predict.run(bundle, tmp_path, tmp_path / "out.csv", submission=tmp_path / "submission.csv")


def test_kaggle_needs_a_test_set(finished, tmp_path, monkeypatch):
    plan = plan_of(finished.root, recipe=RECIPE)
    monkeypatch.setitem(plan.record_of(plan.prepared), "template", "")
    with pytest.raises(UserError, match=r"--kaggle needs a competition's test set"):
        export.run(plan, tmp_path / "kaggle", kaggle=True)
    assert not (tmp_path / "kaggle").exists()

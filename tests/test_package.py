"""The wheel: what is in it, and `ich` in an environment that has only the wheel, outside of the repository."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hatchling import build

from conftest import ROOT

RECIPE = """\
name: mine
competition: {format: rsna2019, root: input/mine}
demo: {seed: 3}
cnn: {resnet: {backbone: resnet10t}}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The folder of an unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        name = build.build_wheel(str(folder))
    with zipfile.ZipFile(folder / name) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_all_files_of_the_package_and_nothing_else(wheel):
    def files(root: Path) -> set[str]:
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    packaged = files(wheel / "ich")
    assert packaged == files(ROOT / "src/ich")
    assert {"py.typed", "report/page/templates/report.html.j2", "report/page/templates/viewer.js"} <= packaged
    assert {path.name for path in wheel.iterdir()} == {"ich", "ich-0.1.0.dist-info"}


def test_the_metadata_has_no_host_or_path_of_a_machine(wheel):
    metadata = (wheel / "ich-0.1.0.dist-info/METADATA").read_text().partition("\n\n")[0]
    assert "Requires-Dist: torch==" in metadata
    assert "://" not in metadata
    assert " @ " not in metadata


def test_the_source_archive_has_no_data_or_results(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / build.build_sdist(str(tmp_path))) as archive:
        top = {name.split("/")[1] for name in archive.getnames()}
    assert {"src", "tests", "LICENSE", "README.md", "pyproject.toml"} <= top
    assert not {"oof", "submissions", "folds", ".ci"} & top


def test_commands_work_in_any_folder_with_a_recipe(wheel, tmp_path):
    (tmp_path / "mine.yaml").write_text(RECIPE)

    def ich(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(wheel), "NO_ALBUMENTATIONS_UPDATE": "1"}
        command = [sys.executable, "-P", "-m", "ich", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert ich("--version") == "ich 0.1.0\n"
    assert "To make it:  ich run mine.yaml\n" in ich("status", "mine.yaml")

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ("demo", "prepare", "folds", "cnn", "sequence", "stack", "blend", "thresholds", "submit", "score")


class House:
    """A repository root of its own with a recipe, and the commands as a user types them."""

    def __init__(self, root: Path, recipe: Path) -> None:
        self.root, self.recipe = root, recipe

    def start(self, *arguments: str) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_ALBUMENTATIONS_UPDATE": "1"}
        command = [sys.executable, "-m", "ich.cli", arguments[0], str(self.recipe), *arguments[1:]]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.root, env=environment, **pipes)

    def ich(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, out + err
        assert "Traceback" not in err, err
        return out + err

    def run_all(self, *arguments: str) -> str:
        return "".join(self.ich(stage, *arguments) for stage in STAGES)

    def states(self) -> dict[str, str]:
        """Artefact -> state, by `ich status`."""
        lines = self.ich("status").splitlines()[2:]
        return {line.split()[0]: line.split()[1] for line in lines if line and not line[0].isdigit()}

    def files(self) -> dict[str, tuple[int, str]]:
        """Relative path -> (modification time, hash) of every artefact, run records and locks aside."""
        found = {}
        for folder in ("input", "folds", "oof", "submissions"):
            for path in sorted((self.root / folder).rglob("*")):
                if path.is_file() and path.suffix not in (".dcm", ".lock"):
                    content = hashlib.sha256(path.read_bytes()).hexdigest()
                    found[str(path.relative_to(self.root))] = (path.stat().st_mtime_ns, content)
        return found


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> House:
    """The tiny recipe, run through all stages once; tests that change it work on a copy."""
    root = tmp_path_factory.mktemp("house")
    house = House(root, ROOT / "tests" / "tiny.yaml")
    house.run_all()
    return house


@pytest.fixture
def house(finished, tmp_path) -> House:
    """A copy of the finished house that a test may break. Modification times are kept: they judge the raw data."""
    subprocess.run(["cp", "-a", f"{finished.root}/.", str(tmp_path)], check=True)
    return House(tmp_path, finished.recipe)

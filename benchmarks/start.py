"""Starting, and a run of which nothing is left to do, against an empty Python process.

Each twice: with the .pyc files that Python leaves, and without any, as in a fresh container. The run is that of
tests/tiny.yaml, with all fourteen stages, in a clone where it is finished.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.race import OURS, Race, race

ROOT = Path(__file__).parents[1]
CLONED = ("run_all.sh", "setup.sh", "pyproject.toml", "requirements.txt", "configs", "tests/tiny.yaml")
RECIPE = "tests/tiny.yaml"
EMPTY = "python -c pass"
STARTS, AGAIN = 0.7, 10.0  # seconds, wanted


def races(*, quick: bool) -> Iterator[Race]:
    """Help, status, and the whole of run_all.sh once more; without .pyc files too. Quick: help alone, with them."""
    with tempfile.TemporaryDirectory(prefix="ich-benchmark-") as folder:
        root = Path(folder, "clone")
        clone(root)
        python = [sys.executable]
        ways = {"ich --help": ([*python, "-m", "ich.cli", "--help"], STARTS)}
        # .pyc files in a folder of their own: there from the first call on, or never
        settings = {"": {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(Path(folder, "pyc"))}}
        if not quick:
            run_all = ["bash", "run_all.sh", RECIPE]
            called(run_all, root, {})()  # all of it is made
            ways["ich status"] = ([*python, "-m", "ich.cli", "status", RECIPE], STARTS)
            ways["run_all.sh once more"] = (run_all, AGAIN)
            none = str(Path(folder, "none"))
            settings[", no .pyc"] = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": none}
        for said, more in settings.items():
            for name, (command, limit) in ways.items():
                empty = called([*python, "-c", "pass"], root, more)
                timed = {OURS: called(command, root, more), EMPTY: empty}
                yield race(
                    f"{name}{said}",
                    timed,
                    unit="starts",
                    count=1,
                    rounds=1 if quick else 7 if limit == STARTS else 3,
                    warm_up=0 if quick else 1,
                    limit=limit,
                )


def clone(root: Path) -> None:
    """The repository's top level, in which nothing was run; with its packages, by a link."""
    for name in CLONED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    (root / ".venv").symlink_to(ROOT / ".venv")


def called(command: list[str], root: Path, more: Mapping[str, str]) -> Callable[[], None]:
    """Run a command in the clone; what it says is kept for the case that it fails."""

    def run() -> None:
        environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", **more}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")

    return run

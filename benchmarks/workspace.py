"""A folder in which the commands of this working tree run, as a user types them."""

import shutil
import sys
from pathlib import Path

from benchmarks.harness import ROOT, measure

COPIED = ("run_all.sh", "setup.sh", "pyproject.toml", "requirements.txt", "configs", "tests/tiny.yaml")


def clone(root: Path) -> None:
    """Copy the repository's scripts and recipes without artifacts; link the environment that runs this."""
    for name in COPIED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    (root / ".venv").symlink_to(sys.prefix)


def ich(root: Path, *words: str) -> tuple[float, float]:
    """Run `ich words...` in the folder; return its peak memory (MiB) and its seconds."""
    return measure([sys.executable, "-m", "ich.cli", *words, "--quiet"], root)

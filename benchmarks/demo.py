"""`bash run_all.sh` on the demo, stage by stage; then starting, and the same command when all is up to date."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from benchmarks.harness import Result, compare, environment, usage
from benchmarks.workspace import clone, ich


def run(*, quick: bool) -> Iterator[Result]:
    recipe = "tests/tiny.yaml" if quick else "configs/demo.yaml"
    with tempfile.TemporaryDirectory(prefix="ich-benchmark-") as folder:
        root = Path(folder)
        clone(root)
        stages = re.findall(r"^ich (\w+)", (root / "run_all.sh").read_text(), re.MULTILINE)
        measured = {stage: ich(root, stage, recipe) for stage in (stages[:3] if quick else stages)}
        slices = len(pd.read_parquet(next(root.glob("input/cache/*/slices.parquet")), columns=["image_id"]))
        for stage, one in measured.items():
            yield usage(stage, {slices: one})
        peaks, seconds = zip(*measured.values(), strict=True)
        yield usage("all stages", {slices: (max(peaks), sum(seconds))})

        empty = command(root, sys.executable, "-c", "pass")
        commands = {
            "ich --help": command(root, sys.executable, "-m", "ich.cli", "--help"),
            "ich status": command(root, sys.executable, "-m", "ich.cli", "status", recipe),
        }
        if not quick:
            commands["run_all.sh, all up to date"] = command(root, "bash", "run_all.sh", recipe)
        for name, way in commands.items():
            yield compare(name, {"ours": way, "python -c pass": empty}, unit="runs", count=1, rounds=1 if quick else 5)


def command(root: Path, *words: str) -> Callable[[], None]:
    """A function that runs a command in the folder. It raises RuntimeError with the output of a command that fails."""

    def call() -> None:
        done = subprocess.run(words, cwd=root, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} ended with exit code {done.returncode}: {done.stdout}{done.stderr}")

    return call

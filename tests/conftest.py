import hashlib
import io
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import fsspec
import pytest
from filelock import FileLock
from hypothesis import settings

from ich import cli, console, processes
from ich.models.data import FoldData
from ich.pipeline import engines
from ich.pipeline.runner import run_stage
from ich.pipeline.state import Plan
from ich.pipeline.tasks import MODEL_STAGES
from ich.pipeline.trained import of_workspace
from ich.recipe import load
from ich.stages import predict
from ich.store import hashes

settings.register_profile("any machine", deadline=None, max_examples=50)  # a busy machine is slow
settings.load_profile("any machine")
os.environ["COLUMNS"] = "120"  # width of printed tables

ROOT = Path(__file__).parents[1]
COPIED = (
    "run_all.sh",
    "setup.sh",
    "pyproject.toml",
    "requirements.txt",
    "configs",
    "tests/tiny.yaml",
    "tests/leak.yaml",
    "tests/parts.yaml",
)
RECIPE = "tests/tiny.yaml"
PARTS = "tests/parts.yaml"
CLASSES = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
LOGITS = [f"logit_{name}" for name in CLASSES]


class Clone:
    """A clone of the repository's top level, with commands as a user types them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def start(self, command: str, *arguments: str, recipe: str | None = RECIPE) -> subprocess.Popen:
        """Start `ich command recipe arguments`."""
        environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
        words = [sys.executable, "-m", "ich.cli", command, *([recipe] if recipe else []), *arguments]
        return subprocess.Popen(
            words, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ich(self, command: str, *arguments: str, code: int = 0, recipe: str | None = RECIPE) -> str:
        """Run `ich command recipe arguments` in this process, as in a new one; return its output, then its errors."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.root)
            patch.setattr(sys, "argv", ["ich", command, *([recipe] if recipe else []), *arguments])
            patch.setattr(console, "_here", console._Here())
            patch.setattr(hashes, "_HASHES", {})
            patch.setattr(processes, "interruptible", lambda _: nullcontext())
            patch.setattr(Plan, "cores", 1)
            patch.setattr("ich.stages.predict.cores", lambda: 1)
            patch.setattr("ich.stages.scans.cores", lambda: 1)
            with pytest.raises(SystemExit) as end:
                cli.main()
        said = out.getvalue() + err.getvalue()
        assert (end.value.code or 0) == code, said
        return said

    def states(self) -> dict[str, str]:
        """State by artifact, from `ich status`."""
        table = self.ich("status").partition("\n\n")[0]
        rows = [line.split() for line in table.splitlines()[2:] if line[:1].strip()]
        return {row[0]: row[1] for row in rows}

    def files(self) -> dict[str, tuple[int, str]]:
        """(modification time, SHA-256) of every artifact by relative path."""
        found = {}
        for folder in ("input", "folds", "oof", "submissions"):
            for path in sorted((self.root / folder).rglob("*")):
                if path.is_file() and path.suffix not in (".dcm", ".lock"):
                    content = hashlib.sha256(path.read_bytes()).hexdigest()
                    found[str(path.relative_to(self.root))] = (path.stat().st_mtime_ns, content)
        return found


def cloned(root: Path) -> Clone:
    for name in COPIED:
        (root / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    (root / ".venv").symlink_to(ROOT / ".venv")
    return Clone(root)


def copied(source: Path, target: Path) -> Path:
    """Copy a workspace with its modification times."""
    subprocess.run(["cp", "-a", f"{source}/.", str(target)], check=True)
    return target


def plan_of(root: Path, *changes: str, recipe: str = PARTS) -> Plan:
    return Plan(load(root / recipe, changes), root)


def fold_data(plan: Plan, model: str, fold: int | None = 0) -> FoldData:
    return FoldData.read(plan.recipe, plan.workspace, plan.prepared.folder, model, fold)


def make(plan: Plan, *stages: str, **options: Any) -> str:
    """Run stages in this process; return what they printed."""
    with redirect_stdout(io.StringIO()) as printed:
        for stage in stages:
            if stage in MODEL_STAGES:
                run_stage(plan, stage, **options)
            else:
                import_module(f"ich.stages.{stage}").run(plan, **options)
    plan.forget()
    return printed.getvalue()


def score_scans(
    plan: Plan, source: Path, out: Path, *, fold: int | None = None, engine: str | None = None, **options: Any
) -> None:
    """`ich predict RECIPE source -o out`."""
    run = None if engine is None else engines.engine(engine)
    steps = None if run is None else lambda steps, make: run(steps, make, plan.recipe, plan.root)
    predict.run(of_workspace(plan, None if fold is None else [fold]), source, out, run_steps=steps, **options)


def built(tmp_path_factory: pytest.TempPathFactory, name: str, recipe: str, *stages: str) -> Path:
    """A workspace in which these stages were run. The processes of pytest-xdist share it: do not change it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    root, done = shared / name, shared / f"{name}.done"
    with FileLock(shared / f"{name}.lock"):
        if not done.exists():
            cloned(root)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Plan, "cores", 1)
                make(plan_of(root, recipe=recipe), *stages)
            done.touch()
    return root


@pytest.fixture
def clone(tmp_path) -> Clone:
    """A fresh clone, in which nothing was run."""
    return cloned(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Clone:
    """The tiny recipe after all stages. Do not change it."""
    stages = ("demo", "prepare", "folds", *MODEL_STAGES, "thresholds", "submit", "score", "explain", "report")
    return Clone(built(tmp_path_factory, "finished", RECIPE, *stages))


@pytest.fixture
def clone_copy(finished, tmp_path) -> Clone:
    """A copy of `finished` that a test may change."""
    return Clone(copied(finished.root, tmp_path))


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URL of a bucket on an S3 server in this process."""
    from moto.server import ThreadedMotoServer  # takes seconds

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(scope="module")
def one_core() -> Iterator[None]:
    """Use one core for stages in this process: other tests run at the same time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "cores", 1)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A workspace with all kinds of models (tests/parts.yaml), run up to the submission. Do not change it."""
    return built(tmp_path_factory, "trained", PARTS, "demo", "prepare", "folds", *MODEL_STAGES, "thresholds", "submit")


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    """A copy of `trained` that a test may change."""
    return copied(trained, tmp_path)

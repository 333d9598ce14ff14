"""Workspaces of the tiny recipe, and their comparison: bytes, finished records, leftover files."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ich.pipeline.state import Plan
from ich.store.records import read_record
from tests.conftest import RECIPE, cloned
from tests.conftest import copied as copied_into
from tests.conftest import plan_of as plan_of_recipe

FOLDERS = ("input", "folds", "oof", "submissions")
MEASURED = ("seconds", "peak_memory_mib", "machine")  # record entries that differ between runs
ENVIRONMENT = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}


Stamp = tuple[str, int, int]  # hash, inode, modification time: differ if a file is rewritten with the same bytes


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def artifacts(root: Path) -> list[Path]:
    """Every file that the stages wrote, except locks."""
    found = (path for folder in FOLDERS for path in sorted((root / folder).rglob("*")))
    return [path for path in found if path.is_file() and path.suffix != ".lock"]


def contents(root: Path) -> dict[str, str]:
    """Relative path -> hash."""
    return {path.relative_to(root).as_posix(): sha256(path) for path in artifacts(root)}


def snapshot(root: Path) -> dict[str, str]:
    """As `contents`, but equal for two runs of a recipe.

    Without measured values, the page that shows them, and the modification times of the raw files.
    """
    found = {}
    for path in artifacts(root):
        name = path.relative_to(root).as_posix()
        if path.name.startswith("report.") or path.suffix == ".raw":
            continue
        record = read_record(path) if path.suffix == ".json" else None
        plain = record and json.dumps({k: v for k, v in record.items() if k not in MEASURED}, sort_keys=True)
        found[name] = plain or sha256(path)
    return found


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Return one line per file that differs between two snapshots."""
    lines = [f"{name} is missing" for name in expected.keys() - found.keys()]
    lines += [f"{name} should not exist" for name in found.keys() - expected.keys()]
    lines += [f"{name} has other bytes" for name in expected.keys() & found.keys() if expected[name] != found[name]]
    return sorted(lines)


def records(root: Path) -> dict[str, Stamp]:
    """Relative path -> stamp of every sound run record."""
    sound = [path for path in artifacts(root) if path.suffix == ".json" and read_record(path) is not None]
    return {
        path.relative_to(root).as_posix(): (sha256(path), path.stat().st_ino, path.stat().st_mtime_ns) for path in sound
    }


def rewritten(stood: Mapping[str, Stamp], root: Path) -> list[str]:
    """Return finished records that were rewritten. Those of shards and unfinished folds are removed in the end."""
    now = records(root)
    kept = {name: stamp for name, stamp in stood.items() if "/hu-" not in name and "/unfinished/" not in name}
    return [f"{name} was finished and was rewritten" for name, stamp in kept.items() if now.get(name) != stamp]


def left_behind(root: Path) -> list[str]:
    """Temporary files and folders that were not removed."""
    found = (path for folder in FOLDERS for path in (root / folder).rglob(".*"))
    return [f"{path.relative_to(root)} is left behind" for path in found if path.name != ".locks"]


def plan_of(root: Path, *overrides: str) -> Plan:
    return plan_of_recipe(root, *overrides, recipe=RECIPE)


def as_expected(root: Path, reference: "Reference") -> list[str]:
    """Return the differences from an uninterrupted run, unfinished artifacts and leftover files."""
    plan = plan_of(root)
    unfinished = [f"{task.name} is {plan.state(task).why}" for task in plan.all() if not plan.state(task).done]
    return differences(reference.snapshot, snapshot(root)) + left_behind(root) + unfinished


# ---- making and copying


def fresh(root: Path) -> Path:
    """Make a new clone at `root` without artifacts."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    return cloned(root).root


def copied(source: Path, root: Path) -> Path:
    """Replace `root` by a copy of a workspace."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    return copied_into(source, root)


def stages(root: Path) -> list[str]:
    """The commands of run_all.sh, in order."""
    return [line.split()[1] for line in (root / "run_all.sh").read_text().splitlines() if line.startswith("ich ")]


def without(source: Path, root: Path, names: Sequence[str]) -> Path:
    """Copy a finished workspace without the artifacts of these stages; its run_all.sh runs only them."""
    plan = plan_of(copied(source, root))
    for task in [task for task in plan.all() if task.stage in names]:
        for name in plan.files_of(task):
            (task.folder / name).unlink(missing_ok=True)
        task.record.path.unlink(missing_ok=True)
    script = root / "run_all.sh"
    lines = script.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("ich ") or line.split()[1] in names]
    script.write_text("\n".join(kept) + "\n")
    return root


def begin(
    random: Random, root: Path, finished: Path, length: int | None, names: Sequence[str] | None = None
) -> Sequence[str]:
    """Make a workspace for a run of the stages `names`, else of `length` random consecutive ones, else of all.

    Only a fresh clone runs `ich demo`.
    """
    if names is None:
        names = stages(finished)
        if length is None:
            fresh(root)
            return names
        first = random.randint(1, len(names) - length)
        names = names[first : first + length]
    without(finished, root, names)
    return names


# ---- running


@dataclass(frozen=True)
class Running:
    """A running `run_all.sh` in its own session, and the file with its standard error."""

    process: subprocess.Popen
    errors: Path

    def living(self) -> dict[int, int]:
        """Return process -> parent for all processes of the session (Linux only)."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent, _, leader = path.read_text().rpartition(")")[2].split()[:4]
            except (OSError, ValueError):
                continue
            if int(leader) == self.process.pid and state not in "ZX":
                found[int(path.parent.name)] = int(parent)
        return found

    def gone(self, timeout: float = 120) -> bool:
        """Wait until all processes of the session have ended. Returns False after the timeout."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.process.poll() is not None and not self.living():
                return True
            time.sleep(0.1)
        return False

    def kill(self) -> None:
        """Kill all processes at once, as a power cut does."""
        for pid in self.living():
            killed(pid)
        self.process.wait()

    def ended(self, timeout: float) -> Iterator[str]:
        """Wait for the end and yield what is wrong with it."""
        name = self.errors.name
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            yield f"{name}: hung, ended after {timeout:.0f} s"
            return
        if code:
            yield f"{name}: exit code {code}: {self.errors.read_text(errors='replace').strip()[-300:]}"
        if not self.gone():
            yield f"{name}: a process is still running"
        yield from self.tracebacks()

    def tracebacks(self) -> Iterator[str]:
        text = self.errors.read_text(errors="replace")
        if "Traceback" in text:
            yield f"{self.errors.name}: traceback, {text.splitlines()[-1]}"


def run_all(root: Path, words: Iterable[str] = (), name: str = "run", *, logs: Path | None = None) -> Running:
    """Start `bash run_all.sh tests/tiny.yaml words`, with its output in files in the root (or `logs`)."""
    errors = (logs or root) / f"{name}.err"
    with errors.with_suffix(".out").open("wb") as out, errors.open("wb") as err:
        command = ["bash", "run_all.sh", RECIPE, *words]
        process = subprocess.Popen(command, cwd=root, env=ENVIRONMENT, stdout=out, stderr=err, start_new_session=True)
    return Running(process, errors)


def ich(root: Path, *words: str, environment: Mapping[str, str] = ENVIRONMENT) -> subprocess.CompletedProcess:
    """Run `ich command tests/tiny.yaml arguments`."""
    command = [sys.executable, "-m", "ich.cli", words[0], RECIPE, *words[1:]]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600, check=False)


def killed(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run: its snapshot, and its seconds while as many runs run in parallel as trials will."""

    snapshot: dict[str, str]
    seconds: float


def reference(folder: Path, jobs: int) -> Reference:
    """Run the recipe in `jobs` fresh clones at once, which must not differ. The first is kept as `finished`."""
    started = time.monotonic()
    runs = [run_all(fresh(folder / name)) for name in ("finished", *(f"beside{i}" for i in range(1, jobs)))]
    if faults := [fault for running in runs for fault in running.ended(3600)]:
        raise RuntimeError(f"the uninterrupted run failed: {faults}")
    seconds = time.monotonic() - started
    first, *others = (snapshot(running.errors.parent) for running in runs)
    for other in others:
        if lines := differences(first, other):
            raise RuntimeError(f"two uninterrupted runs differ: {lines[:5]}")
    return Reference(first, seconds)

"""A clone in which the tiny recipe is run, and what is compared of it: bytes, records that stood, what is left."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ich.pipeline.plan import Plan
from ich.recipe import load
from ich.store.records import read_record
from tests.conftest import RECIPE, House, cloned

ARTEFACTS = ("input", "folds", "oof", "submissions")
MEASURED = ("seconds", "peak_memory_mib")  # what a record says of the run and not of what was made
PER_RUN = ("fingerprint", "settings", "key")  # of the cache: they hold the raw files' modification times
NOT_COMPARED = (".lock", ".journal")  # the journal holds times and process numbers
ALONE = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}


@dataclass(frozen=True)
class Stamp:
    """What tells a file from one of the same content that was written anew."""

    content: str
    inode: int
    modified: int


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def artefacts(root: Path) -> list[Path]:
    """Every file that the stages wrote, locks and the journal aside."""
    found = (path for folder in ARTEFACTS for path in sorted((root / folder).rglob("*")))
    return [path for path in found if path.is_file() and path.suffix not in NOT_COMPARED]


def contents(root: Path) -> dict[str, str]:
    """Relative path -> hash."""
    return {path.relative_to(root).as_posix(): sha256(path) for path in artefacts(root)}


def picture(root: Path) -> dict[str, str]:
    """As `contents`, the same for two runs of one recipe: without what a run measures, and with one name of the cache.

    The cache is named after the raw files' modification times, which the demo's are anew in each run.
    """
    pointer = read_record(root / "input/cache/tiny.json")
    key = pointer["key"] if pointer else "none"
    found = {}
    for path in artefacts(root):
        name = path.relative_to(root).as_posix()
        record = read_record(path) if path.suffix == ".json" else None
        if record is not None:
            dropped = MEASURED + (PER_RUN if name.startswith("input/cache/") else ())
            rest = {key: value for key, value in record.items() if key not in dropped}
            found[name.replace(key, "KEY")] = json.dumps(rest, sort_keys=True)
        else:
            found[name.replace(key, "KEY")] = sha256(path)
    return found


def differences(reference: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """What of `found` is not as in the reference, one line a file."""
    lines = [f"{name} is missing" for name in reference.keys() - found.keys()]
    lines += [f"{name} should not be there" for name in found.keys() - reference.keys()]
    lines += [f"{name} has other bytes" for name in reference.keys() & found.keys() if reference[name] != found[name]]
    return sorted(lines)


def records(root: Path) -> dict[str, Stamp]:
    """Relative path -> stamp of every run record that stands."""
    found = {}
    for path in artefacts(root):
        if path.suffix == ".json" and read_record(path) is not None:
            stat = path.stat()
            found[path.relative_to(root).as_posix()] = Stamp(sha256(path), stat.st_ino, stat.st_mtime_ns)
    return found


def made_again(stood: Mapping[str, Stamp], root: Path) -> list[str]:
    """The records that stood and are not the same file any more."""
    now = records(root)
    return [f"{name} stood and was made again" for name, stamp in stood.items() if now.get(name) != stamp]


def left_behind(root: Path, *, ended: bool = True) -> list[str]:
    """Temporary files and folders that nobody removed. ended: those too that an unfinished run goes on with."""
    found = (path for folder in ARTEFACTS for path in (root / folder).rglob(".*"))
    kept = (".locks",) if ended else (".locks", ".begun.part")
    return [f"{path.relative_to(root)} is left behind" for path in found if not path.name.endswith(kept)]


def plan_of(root: Path, *overrides: str) -> Plan:
    """A fresh look at the recipe's artefacts."""
    return Plan(load(root / RECIPE, list(overrides)), root)


def unfinished(root: Path) -> list[str]:
    """What `ich status` calls anything but done, and whoever lives."""
    return [f"ich status: {name} is {state}" for name, state in House(root).states().items() if state != "done"]


def tracebacks(said: Iterable[Path]) -> list[str]:
    """The standard errors that hold a traceback, with its last line."""
    texts = {path.name: path.read_text(errors="replace") for path in said}
    return [f"{name}: traceback, {text.splitlines()[-1]}" for name, text in texts.items() if "Traceback" in text]


# ---- making and copying


def fresh(root: Path) -> Path:
    """A new clone at `root`, in which nothing was run."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    return cloned(root).root


def copied(source: Path, root: Path) -> Path:
    """A copy of a house; modification times are kept, for they judge the raw data."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    subprocess.run(["cp", "-a", f"{source}/.", str(root)], check=True)
    return root


def stages(root: Path) -> list[str]:
    """The commands of run_all.sh, in order."""
    return [line.split()[1] for line in (root / "run_all.sh").read_text().splitlines() if line.startswith("ich ")]


def undone(root: Path, names: Iterable[str]) -> None:
    """Remove what these stages made."""
    plan = plan_of(root)
    for task in [task for task in plan.all() if task.stage in names]:
        for name in (task.record.read() or {"files": {}})["files"]:
            (task.folder / name).unlink()
        task.record.path.unlink(missing_ok=True)
    if "thresholds" in names:
        plan.workspace.thresholds.with_suffix(".journal").unlink(missing_ok=True)


def only_stages(root: Path, names: Iterable[str]) -> None:
    """Leave these commands alone in run_all.sh."""
    path = root / "run_all.sh"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("ich ") or line.split()[1] in names) + "\n")


# ---- running


@dataclass(frozen=True)
class Running:
    """A `run_all.sh` in a session of its own, and the file that its standard error goes to."""

    process: subprocess.Popen
    errors: Path

    def living(self) -> list[tuple[int, int]]:
        """(process, parent) of what lives in the session."""
        return session(self.process.pid)

    def gone(self, timeout: float = 120) -> bool:
        """Wait for the end of everything in the session. False: something goes on."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.process.poll() is not None and not self.living():
                return True
            time.sleep(0.1)
        return False

    def kill(self) -> None:
        """Every process at once, as when the power goes."""
        for pid, _ in self.living():
            killed(pid)
        self.process.wait()


def run_all(root: Path, words: Iterable[str] = (), name: str = "run", *, logs: Path | None = None) -> Running:
    """Begin `bash run_all.sh tests/tiny.yaml words`; what it says goes to files in the root (or `logs`), by `name`."""
    errors = (logs or root) / f"{name}.err"
    with errors.with_suffix(".out").open("wb") as out, errors.open("wb") as err:
        command = ["bash", "run_all.sh", RECIPE, *words]
        process = subprocess.Popen(command, cwd=root, env=ALONE, stdout=out, stderr=err, start_new_session=True)
    return Running(process, errors)


def ended(running: Running, timeout: float, code: int = 0) -> list[str]:
    """Wait for the end; what was wrong with it."""
    try:
        returned = running.process.wait(timeout)
    except subprocess.TimeoutExpired:
        running.kill()
        return [f"{running.errors.name}: hung, ended after {timeout:.0f} s"]
    text = running.errors.read_text(errors="replace").strip()
    faults = [] if returned == code else [f"{running.errors.name}: exit code {returned}: {text[-300:]}"]
    return faults + tracebacks([running.errors])


def ich(root: Path, *words: str, environment: Mapping[str, str] = ALONE) -> subprocess.CompletedProcess:
    """`ich command tests/tiny.yaml arguments`, to its end."""
    command = [sys.executable, "-m", "ich.cli", words[0], RECIPE, *words[1:]]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600, check=False)


def killed(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def session(leader: int) -> list[tuple[int, int]]:
    """(process, parent) of what lives in the session of `leader`; Linux only."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, of = path.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(of) == leader and state not in "ZX":
            found.append((int(path.parent.name), int(parent)))
    return found


def words_of(pid: int) -> list[str]:
    """The command line of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


@dataclass(frozen=True)
class Reference:
    """What an uninterrupted run leaves, and how long it takes with as many beside it as trials will have."""

    picture: dict[str, str]
    seconds: float


def reference(folder: Path, jobs: int) -> Reference:
    """Run the recipe in `jobs` fresh clones at once; refused where they differ. The first is left as `finished`."""
    started = time.monotonic()
    runs = [run_all(fresh(folder / name)) for name in ("finished", *(f"beside{i}" for i in range(1, jobs)))]
    for running in runs:
        faults = ended(running, 3600)
        if faults:
            raise RuntimeError(f"the uninterrupted run failed: {faults}")
    seconds = time.monotonic() - started
    first, *others = (picture(running.errors.parent) for running in runs)
    for other in others:
        if lines := differences(first, other):
            raise RuntimeError(f"two uninterrupted runs differ: {lines[:5]}")
    return Reference(first, seconds)

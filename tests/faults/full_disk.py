"""A full disk, a read-only folder, no file handles: a one-line error, and the next call resumes.

`writes` makes each write of a run fail once (see injected/sitecustomize.py). `trial` uses real ones: a tmpfs of random
size, a folder mounted read-only, a low limit of open files.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.conftest import RECIPE
from tests.faults.trials import Outcome
from tests.faults.workspaces import (
    ENVIRONMENT,
    Reference,
    as_expected,
    contents,
    copied,
    differences,
    fresh,
    ich,
    left_behind,
    plan_of,
    records,
    rewritten,
    run_all,
    snapshot,
    stages,
)

OTHER = ("--set", "demo.seed=4")  # remakes everything
FIRST = 100  # number of the first injected fault, after the real ones
REAL = 12
PASSING = "/unfinished/"  # folder of files that are moved when all are complete
INJECTED = Path(__file__).parent / "injected"


# ---- each write of a run


def writes(
    *, seed: int, folder: Path, finished: Path, other: tuple[str, ...] = OTHER, names: tuple[str, ...] | None = None
) -> Iterator[Outcome]:
    """Run commands with other settings in a finished workspace. Each write fails once, then the command is repeated.

    names: the stages; default: all.
    """
    expected, root, notes = folder / "writes_reference", folder / "writes", folder / "writes_notes"
    names = names or tuple(stages(finished))
    copied(finished, expected)
    for stage in names:
        done = ich(expected, stage, *other)
        if done.returncode:
            raise RuntimeError(f"without a fault, ich {stage} failed: {done.stderr}")
    copied(finished, root)
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir()
    injected = {"FAULTS": str(notes), "FAULTS_ROOT": str(root), "FAULTS_SEED": str(seed)}
    injected["PYTHONPATH"] = os.pathsep.join([str(INJECTED), *filter(None, [ENVIRONMENT.get("PYTHONPATH")])])
    for stage in names:
        failing = True
        while failing:
            before, known, written = contents(root), len(_lines(notes / "failed")), len(_lines(notes / "written"))
            done = ich(root, stage, *other, environment={**ENVIRONMENT, **injected})
            failing = _lines(notes / "failed")[known:]
            for number, line in enumerate(failing, FIRST + known):
                mode, _, target = line.partition(" ")
                faults = [*_one_line(done, Path(target.partition("#")[0]).name), *left_behind(root)]
                faults += _harmed(before, contents(root), _lines(notes / "written")[written:])
                yield Outcome(number, mode, f"{target} in ich {stage}", tuple(faults[:10]))
            if not failing and done.returncode:
                yield Outcome(FIRST - 1, "dead end", f"ich {stage}", (f"exit code {done.returncode}: {done.stderr}",))
                return
    faults = differences(snapshot(expected), snapshot(root)) + left_behind(root)
    plan = plan_of(root, *other[1::2])
    faults += [f"{task.name} is not done" for task in plan.all() if task.stage in names and not plan.state(task).done]
    yield Outcome(FIRST - 1, "the end", "after all of them", tuple(faults[:10]))


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _one_line(done: subprocess.CompletedProcess, name: str) -> Iterator[str]:
    """Yield deviations from a one-line error that names the file."""
    text = done.stderr.strip()
    if done.returncode != 2:
        yield f"exit code {done.returncode}: {text[-300:]}"
    if "Traceback" in text:
        yield f"traceback: {text.splitlines()[-1]}"
    elif len(text.splitlines()) != 1 or name not in text:
        yield f"not one line that names {name}: {text[-300:]}"


def _harmed(before: dict[str, str], after: dict[str, str], written: list[str]) -> Iterator[str]:
    """Yield files that changed although they were not completely written in the meantime."""
    for name in before.keys() | after.keys():
        whole = any(name == one or name.startswith(f"{one}/") for one in written)
        if before.get(name) != after.get(name) and not whole and PASSING not in name:
            yield f"{name} was {'removed' if name not in after else 'changed'}"


# ---- real faults


def trial(number: int, *, seed: int, folder: Path, finished: Path, reference: Reference) -> Outcome:
    """Run one, by number: half of them a tmpfs."""
    random = Random(f"{seed} full_disk {number}")
    which = (_tmpfs, _read_only, _tmpfs, _few_handles)[number % 4]
    root = folder / f"full_disk{number}"
    kind = which.__name__.strip("_")
    try:
        what, faults = which(random, root, finished, reference)
    except PermissionError:
        kind, what, faults = f"{kind}, skipped", "mount is not permitted", []
    return Outcome(number, kind, what, tuple(faults[:10]))


@contextlib.contextmanager
def _mounted(*words: str) -> Iterator[None]:
    """Run `mount words`, the last of which is the mount point. Raises PermissionError if refused."""
    if subprocess.run(["mount", *words], capture_output=True, check=False).returncode:
        raise PermissionError
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", words[-1]], check=True)


def _tmpfs(random: Random, root: Path, finished: Path, reference: Reference) -> tuple[str, list[str]]:
    """Run on a disk that is too small, then enlarge it."""
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in finished.rglob("*") if not path.is_dir())
    size = int(used * random.uniform(0.02, 0.9))
    root.mkdir(parents=True, exist_ok=True)
    logs = root.with_name(f"{root.name}_logs")
    logs.mkdir(exist_ok=True)
    with _mounted("-t", "tmpfs", "-o", f"size={size}", "none", str(root)):
        clone = fresh(root / "clone")
        full = run_all(clone, (), "full", logs=logs)
        code = full.process.wait(3600)
        text = full.errors.read_text(errors="replace").strip()
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        faults = [f"exit code {code}: {text[-300:]}"] if code not in (0, 2) or (code == 2) != (len(errors) == 1) else []
        faults += [f"traceback: {text.splitlines()[-1]}"] if "Traceback" in text else []
        faults += left_behind(clone)
        stood = records(clone)
        subprocess.run(["mount", "-o", "remount,size=256m", str(root)], check=True)
        faults += run_all(clone, (), "again", logs=logs).ended(3600)
        faults += rewritten(stood, clone) + as_expected(clone, reference)
    return f"{size} of {used} bytes, {len(stood)} finished records, {(errors or ['enough'])[0]}", faults


def _read_only(random: Random, root: Path, finished: Path, reference: Reference) -> tuple[str, list[str]]:
    stage, place = random.choice((("cnn", "oof/tiny"), ("folds", "folds"), ("score", "submissions/tiny")))
    before = contents(copied(finished, root))
    where = str(root / place)
    with _mounted("--bind", where, where):
        subprocess.run(["mount", "-o", "remount,bind,ro", where], check=True)
        faults = [*_one_line(ich(root, stage, "--force"), place), *_harmed(before, contents(root), [])]
    return f"{place}, ich {stage}", faults + _resumes(root, stage, reference)


def _few_handles(random: Random, root: Path, finished: Path, reference: Reference) -> tuple[str, list[str]]:
    stage, limit = random.choice(("prepare", "cnn", "sequence", "thresholds", "explain")), random.randint(5, 12)
    before = records(copied(finished, root))
    script = f'ulimit -n {limit}; exec "$0" -m ich.cli {stage} {RECIPE} --force'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable], cwd=root, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    faults = [] if done.returncode == 0 else [*_one_line(done, ""), *left_behind(root)]
    said = done.stderr.strip().splitlines() or ["enough"]
    stage_only = [line for line in rewritten(before, root) if done.returncode]
    return f"{limit} handles, ich {stage}, {said[-1][-200:]}", faults + stage_only + _resumes(root, stage, reference)


def _resumes(root: Path, stage: str, reference: Reference) -> list[str]:
    done = ich(root, stage)
    faults = [] if done.returncode == 0 else [f"the next call: exit code {done.returncode}: {done.stderr[-300:]}"]
    return faults + as_expected(root, reference)

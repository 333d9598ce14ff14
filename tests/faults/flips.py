"""A flipped bit or a truncated artifact: the error names the file, and nothing is made from it.

Some trials damage a copy of the workspace and run commands. The others read it through new plans in this process and
restore the file.
"""

import contextlib
import io
import os
import re
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ich.errors import UserError
from ich.pipeline import verify
from ich.pipeline.state import Plan
from ich.pipeline.tasks import CHECKPOINT, HEADERS, Task
from ich.store import hashes
from tests.conftest import Clone
from tests.faults.trials import Outcome
from tests.faults.workspaces import Reference, as_expected, copied, ich, plan_of

CUTS = 6  # every 6th trial truncates; the others flip a bit
COMMANDS = 3  # in the first round, commands are run for every 3rd kind
POINTER = "prepare pointer"
RESUMED = {  # kind that a killed run leaves -> the command that resumes
    "checkpoint": ("cnn", "--model", "resnet", "--fold", "0"),
    "shard": ("prepare",),
    "note of a shard": ("prepare",),
    "headers": ("prepare",),
}
Damage = Callable[[Path, Random], str]  # damages a file and says how
_READING = threading.Lock()  # one trial at a time reads the workspace in this process


@dataclass(frozen=True)
class Piece:
    """A file, and the task whose record lists it; None if a killed run wrote it."""

    path: str
    task: str | None


@dataclass(frozen=True)
class Targets:
    """The finished workspace, one workspace per killed run, and the files of each kind."""

    finished: Path
    killed: dict[str, Path]
    kinds: dict[str, list[Piece]]

    def kind_of(self, number: int, seed: int) -> str:
        """Return each kind in turn, in random order."""
        names = list(self.kinds)
        Random(f"{seed} flips").shuffle(names)
        return names[number % len(names)]


def targets(finished: Path, folder: Path) -> Targets:
    """Kill a training and a preparation in copies of the finished workspace."""
    training, preparing = copied(finished, folder / "killed_training"), copied(finished, folder / "killed_prepare")
    checkpoint = f"oof/tiny/resnet/fold0/unfinished/{CHECKPOINT}"
    (training / "oof/tiny/resnet/fold0/run.json").unlink()
    _kill_when(training, RESUMED["checkpoint"], (training / checkpoint).is_file)
    cache = plan_of(preparing).prepared.folder
    shutil.rmtree(cache)
    _kill_when(preparing, RESUMED["shard"], lambda: len([*cache.glob("hu-*.json")]) > 2)
    kinds = kinds_of(finished)
    kinds["checkpoint"] = [Piece(checkpoint, None)]
    for kind, suffix in (("shard", "npy"), ("note of a shard", "json")):
        paths = [path.with_suffix(f".{suffix}") for path in sorted(cache.glob("hu-*.json"))]
        kinds[kind] = [Piece(path.relative_to(preparing).as_posix(), None) for path in paths]
    kinds["headers"] = [Piece((cache / HEADERS).relative_to(preparing).as_posix(), None)]
    killed = {kind: training if kind == "checkpoint" else preparing for kind in RESUMED}
    return Targets(finished, killed, kinds)


def kinds_of(root: Path) -> dict[str, list[Piece]]:
    """Return kind -> its files. Models of one stage, folds, classes and shards are of one kind."""
    plan, found = plan_of(root), defaultdict[str, list[Piece]](list)
    for task in plan.all():
        stage, *rest = task.name.split("/")
        what = " ".join([stage, *({1: ["model"]}.get(len(rest), ["fold"]) if rest else []), *rest[2:]])
        for name in (task.record.path.name, *plan.files_of(task)):
            kind = re.sub(r"hu-\d+", "hu-N", re.sub(r"_[a-z]+\.txt", "_CLASS.txt", name))
            path = (task.folder / name).relative_to(root).as_posix()
            found[f"{what} {kind}"].append(Piece(path, task.name))
    found[POINTER].append(Piece(plan.workspace.cache_pointer.relative_to(root).as_posix(), "prepare"))
    return dict(sorted(found.items()))


def _kill_when(root: Path, words: tuple[str, ...], reached: Callable[[], bool]) -> None:
    process = Clone(root).start(*words)
    while not reached():
        if process.poll() is not None:
            raise RuntimeError(f"ich {' '.join(words)} ended before it could be killed: {process.communicate()[1]}")
        time.sleep(0.001)
    process.kill()
    process.communicate()


# ---- damage


def trial(
    number: int, *, seed: int, folder: Path, targets: Targets, reference: Reference, commands: bool | None = None
) -> Outcome:
    """Damage a file. commands: run commands in a copy, or read it in this process; None: by number and kind."""
    kind, random = targets.kind_of(number, seed), Random(f"{seed} flips {number}")
    piece, root = random.choice(targets.kinds[kind]), folder / f"flips{number}"
    damage = _cut if number % CUTS == CUTS - 1 else _flip
    if commands is None:
        commands = number < len(targets.kinds) and number % COMMANDS == 0
    if kind in RESUMED or commands:
        with _READING:  # another trial may have damaged it for a moment
            copied(targets.killed.get(kind, targets.finished), root)
        what = damage(root / piece.path, random)
        said = _says(root, RESUMED[kind], 0, "") if kind in RESUMED else _by_commands(kind, piece, random, root)
        faults = [*said, *as_expected(root, reference)]
    else:
        with _READING, _restored(targets.finished / piece.path):
            what = damage(targets.finished / piece.path, random)
            hashes._HASHES.clear()  # a new process has none
            faults = [*_named(kind, piece, targets.finished), *_refused(piece, targets.finished)]
    if not faults:
        shutil.rmtree(root, ignore_errors=True)
    return Outcome(number, kind, f"{piece.path}, {what}{', by commands' * commands}", tuple(faults[:10]))


def _flip(path: Path, random: Random) -> str:
    data = bytearray(path.read_bytes())
    byte, bit = random.randrange(len(data)), random.randrange(8)
    data[byte] ^= 1 << bit
    _rewrite(path, bytes(data))
    return f"bit {bit} of byte {byte} of {len(data)}"


def _cut(path: Path, random: Random) -> str:
    """Truncate, sometimes to nothing."""
    data = path.read_bytes()
    length = 0 if random.random() < 0.2 else random.randrange(len(data))
    _rewrite(path, data[:length])
    return f"{length} of {len(data)} bytes"


def _rewrite(path: Path, data: bytes) -> None:
    """Write without changing the file's times, as a faulty disk does."""
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@contextlib.contextmanager
def _restored(path: Path) -> Iterator[None]:
    data = path.read_bytes()
    try:
        yield
    finally:
        _rewrite(path, data)
        hashes._HASHES.clear()


# ---- reading it in this process


def _named(kind: str, piece: Piece, root: Path) -> Iterator[str]:
    """Check that the state of its task and `ich verify` name the file."""
    plan, name = plan_of(root), Path(piece.path).name
    if kind != POINTER:
        state = plan.state(_task(plan, piece))
        if state.done:
            yield "its task is done"
        elif name not in state.why:
            yield f"its task is {state.kind} ({state.why}), without its name"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = verify.run(plan_of(root))
    errors = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    if code != 2:
        yield f"ich verify: exit code {code}"
    if not any(line.startswith(f"error: {piece.path}: ") for line in errors):
        yield f"ich verify does not name it: {errors[:2]}"


def _refused(piece: Piece, root: Path) -> Iterator[str]:
    """Check that each task that reads the damaged one is refused and names it."""
    plan = plan_of(root)
    for task in _readers(plan, piece):
        try:
            plan.require(task)
            yield f"{task.name} would use it"
        except UserError as error:
            if str(piece.task) not in str(error):
                yield f"{task.name} is refused without the name {piece.task}: {error}"


def _task(plan: Plan, piece: Piece) -> Task:
    return next(task for task in plan.all() if task.name == piece.task)


def _readers(plan: Plan, piece: Piece) -> list[Task]:
    return [task for task in plan.all() if any(upstream.name == piece.task for upstream, _ in task.upstream)]


# ---- with commands


def _by_commands(kind: str, piece: Piece, random: Random, root: Path) -> Iterator[str]:
    """Run the commands that inspect it, one that reads it, and the one that remakes it."""
    plan, name = plan_of(root), Path(piece.path).name
    task = _task(plan, piece)
    readers = sorted({reader.stage for reader in _readers(plan, piece)} - {task.stage})
    yield from _says(root, ("verify",), 2, piece.path)
    if kind != POINTER:
        yield from _says(root, ("status",), 0, f"Out of date: {task.stage}")
    if readers:
        yield from _says(root, (random.choice(readers),), 2, task.name)
    if task.fold is not None and (name in plan.settings_of(task.model).files or name.endswith(".txt")):
        yield from _says(root, ("predict", "input/tiny/stage_2_test", "-o", "out.csv"), 2, task.name)
    if task.stage == "folds" and name.endswith(".csv"):  # it may be the user's own: replaced only by --force
        yield from _says(root, ("folds",), 2, name)
        yield from _says(root, ("folds", "--force"), 0, "")
    elif task.stage == "demo" and name == "run.json":  # without it, the files may be the user's own
        yield from _says(root, ("demo",), 2, "did not write")
        shutil.rmtree(plan.raw_root)
        yield from _says(root, ("demo",), 0, "")
    else:
        yield from _says(root, (task.stage,), 0, "")
    if task.stage == "demo":  # its files have new times, on which the name of the cache depends
        shutil.rmtree(plan_of(root).prepared.folder)
        yield from _says(root, ("prepare",), 0, "")


def _says(root: Path, words: tuple[str, ...], code: int, text: str) -> Iterator[str]:
    """Run a command and yield deviations from the expected exit code and text."""
    done = ich(root, *words)
    said = done.stderr or done.stdout
    if done.returncode != code:
        yield f"ich {' '.join(words)}: exit code {done.returncode}: {said[-300:]}"
    if "Traceback" in done.stderr:
        yield f"ich {' '.join(words)}: a traceback: {done.stderr.splitlines()[-1]}"
    elif text not in done.stdout + done.stderr:
        yield f"ich {' '.join(words)} does not say {text}: {said[-300:]}"

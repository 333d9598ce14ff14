"""A bit flipped or a tail cut off in any artefact: it is named, and refused before anything is made from it.

Each kind of artefact is damaged once with the commands as a user types them, in a copy of the house; the other trials
look through fresh plans in this process, and put the file back as it was.
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
from ich.pipeline.graph import BLEND, CHECKPOINT, SMOOTH, WEIGHTS, Task
from ich.pipeline.plan import Plan
from ich.stages import verify
from ich.store import hashes
from tests.conftest import House
from tests.faults.house import Reference, copied, differences, ich, picture, plan_of, sha256, unfinished
from tests.faults.trials import Outcome

EVERY = 6  # one trial of so many cuts off a tail; the others flip a bit
POINTER = "prepare pointer"
GOES_ON = {  # what a killed run left -> the command that goes on
    "checkpoint": ("cnn", "--model", "resnet", "--fold", "0"),
    "journal": ("thresholds", "--set", "thresholds.trials=60"),
}
PREDICTS = re.compile(rf"{WEIGHTS}|model_.*\.txt|{BLEND}|{SMOOTH}")  # what `ich predict` reads
Damage = Callable[[Path, Random], str]  # damages a file and says how
_LOOKING = threading.Lock()  # one trial at a time looks at the house in this process


@dataclass(frozen=True)
class Piece:
    """A file of the house, and the task whose record names it; None: left by a killed run."""

    path: str
    task: str | None


@dataclass(frozen=True)
class Houses:
    """The finished house, and one for each kind of file that a killed run leaves."""

    finished: Path
    killed: dict[str, Path]
    tuned: str  # hash of thresholds.json with more trials than the tiny recipe's
    kinds: dict[str, list[Piece]]


# ---- what there is to damage


def kinds(root: Path) -> dict[str, list[Piece]]:
    """Kind of artefact -> its files. Members of one stage, folds and classes are of one kind."""
    plan, found = plan_of(root), defaultdict[str, list[Piece]](list)
    for task in plan.all():
        for name in (task.record.path.name, *(task.record.read() or {})["files"]):
            path = (task.folder / name).relative_to(root).as_posix()
            found[f"{_kind(task)} {re.sub('_[a-z]+.txt', '_CLASS.txt', name)}"].append(Piece(path, task.name))
    found[POINTER].append(Piece(plan.workspace.cache_pointer.relative_to(root).as_posix(), "prepare"))
    found["checkpoint"].append(Piece(f"oof/tiny/resnet/fold0/{CHECKPOINT}", None))
    found["journal"].append(Piece("oof/tiny/thresholds.journal", None))
    return dict(sorted(found.items()))


def _kind(task: Task) -> str:
    stage, *rest = task.name.split("/")
    if len(rest) == 1:
        return "member" if stage != "pretrain" else stage
    return " ".join([stage, *(["fold"] if rest else []), *rest[2:]])


def houses(finished: Path, folder: Path) -> Houses:
    """Beside the finished house, one killed while it trained and one killed while it searched thresholds."""
    training = copied(finished, folder / "killed_checkpoint")
    (training / "oof/tiny/resnet/fold0/run.json").unlink()
    _killed_when(training, GOES_ON["checkpoint"], lambda: (training / f"oof/tiny/resnet/fold0/{CHECKPOINT}").is_file())
    tuned = copied(finished, folder / "tuned")
    journal = Path("oof/tiny/thresholds.journal")
    (tuned / journal).unlink()
    ich(tuned, *GOES_ON["journal"])
    lines = (tuned / journal).read_bytes().count(b"\n")
    searching = copied(finished, folder / "killed_journal")
    (searching / journal).unlink()

    def half_way() -> bool:
        return (searching / journal).is_file() and (searching / journal).read_bytes().count(b"\n") > lines // 2

    _killed_when(searching, GOES_ON["journal"], half_way)
    killed = {"checkpoint": training, "journal": searching}
    return Houses(finished, killed, sha256(tuned / "oof/tiny/thresholds.json"), kinds(finished))


def _killed_when(root: Path, words: tuple[str, ...], so_far: Callable[[], bool]) -> None:
    process = House(root).start(*words)
    while not so_far():
        if process.poll() is not None:
            raise RuntimeError(f"ich {' '.join(words)} ended before it could be killed: {process.communicate()[1]}")
        time.sleep(0.001)
    process.kill()
    process.communicate()


# ---- damaging it


def trial(
    number: int, *, seed: int, folder: Path, houses: Houses, reference: Reference, real: bool | None = None
) -> Outcome:
    """Damage a file. real: by commands in a copy of the house, else by a look in this process; None: each kind once."""
    kind, random = kind_of(number, seed, houses), Random(f"{seed} flips {number}")
    piece = random.choice(houses.kinds[kind])
    damage = _cut if number % EVERY == EVERY - 1 else _flip
    if kind in GOES_ON:
        what, faults = _goes_on(kind, piece, damage, random, houses, folder / f"flips{number}", reference)
    elif number < len(houses.kinds) if real is None else real:
        what, faults = _by_commands(kind, piece, damage, random, houses, folder / f"flips{number}", reference)
    else:
        what, faults = _by_a_look(kind, piece, damage, random, houses)
    return Outcome(number, kind, f"{piece.path}, {what}", tuple(faults[:10]))


def kind_of(number: int, seed: int, houses: Houses) -> str:
    """All kinds in turn."""
    names = list(houses.kinds)
    Random(f"{seed} flips").shuffle(names)
    return names[number % len(names)]


def _flip(path: Path, random: Random) -> str:
    """Flip a bit; the file keeps its times, as when a disk forgets."""
    data, stat = bytearray(path.read_bytes()), path.stat()
    byte, bit = random.randrange(len(data)), random.randrange(8)
    data[byte] ^= 1 << bit
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return f"bit {bit} of byte {byte} of {len(data)}"


def _cut(path: Path, random: Random) -> str:
    """Cut off the tail, or all; the file keeps its times."""
    data, stat = path.read_bytes(), path.stat()
    length = 0 if random.random() < 0.2 else random.randrange(len(data))
    path.write_bytes(data[:length])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return f"{length} of {len(data)} bytes"


def _by_a_look(kind: str, piece: Piece, damage: Damage, random: Random, houses: Houses) -> tuple[str, list[str]]:
    with _LOOKING, _restored(houses.finished / piece.path):
        what = damage(houses.finished / piece.path, random)
        hashes._HASHES.clear()  # a new process has none
        return what, [*_named(kind, piece, houses.finished), *_refused(kind, piece, houses.finished)]


@contextlib.contextmanager
def _restored(path: Path) -> Iterator[None]:
    data, stat = path.read_bytes(), path.stat()
    try:
        yield
    finally:
        path.write_bytes(data)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        hashes._HASHES.clear()


def _named(kind: str, piece: Piece, root: Path) -> Iterator[str]:
    """Whether the plan's look and `ich verify` name the file."""
    plan, name = plan_of(root), Path(piece.path).name
    if kind != POINTER:
        state = plan.state(_task(plan, piece))
        if state.done:
            yield "its task is called done"
        elif name not in state.why:
            yield f"its task is called {state.kind} ({state.why}), without its name"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = verify.run(plan_of(root))
    errors = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    if code != 2:
        yield f"ich verify: exit code {code}"
    if not any(line.startswith(f"error: {piece.path}: ") for line in errors):
        yield f"ich verify does not name it: {errors[:2]}"


def _refused(kind: str, piece: Piece, root: Path) -> Iterator[str]:
    """Whether every task that reads of the damaged one is refused, by its name."""
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


def _by_commands(
    kind: str, piece: Piece, damage: Damage, random: Random, houses: Houses, root: Path, reference: Reference
) -> tuple[str, list[str]]:
    copied(houses.finished, root)
    task = _task(plan_of(root), piece)
    readers = {reader.stage for reader in _readers(plan_of(root), piece)} - {task.stage}
    what, name = damage(root / piece.path, random), Path(piece.path).name
    faults = [*_said(root, ("verify",), 2, piece.path)]
    if kind != POINTER and House(root).states().get(task.name) == "done":
        faults.append(f"ich status: {task.name} is done")
    for stage in sorted(readers, key=lambda stage: random.random())[:1]:
        faults += _said(root, (stage,), 2, task.name)
    if PREDICTS.fullmatch(name):
        faults += _said(root, ("predict", "input/tiny/stage_2_test", "-o", "out.csv"), 2, task.name)
    if name == "tiny.csv":  # people make fold files too: it is not made anew unasked
        faults += _said(root, ("folds",), 2, name)
        faults += _said(root, ("folds", "--force"), 0, "")
    else:
        faults += _said(root, (task.stage,), 0, "")
    if task.stage == "demo":  # its files have other times now, and the cache is named after those
        shutil.rmtree(plan_of(root).prepared.folder)
        faults += _said(root, ("prepare",), 0, "")
    faults += differences(reference.picture, picture(root)) + unfinished(root)
    if not faults:
        shutil.rmtree(root)
    return f"{what}, by commands", faults


def _said(root: Path, words: tuple[str, ...], code: int, wanted: str) -> Iterator[str]:
    """What is wrong with the end of a command that should end so, and say this."""
    done = ich(root, *words)
    if done.returncode != code:
        yield f"ich {' '.join(words)}: exit code {done.returncode}: {(done.stderr or done.stdout)[-300:]}"
    if "Traceback" in done.stderr:
        yield f"ich {' '.join(words)}: a traceback: {done.stderr.splitlines()[-1]}"
    elif wanted not in done.stdout + done.stderr:
        yield f"ich {' '.join(words)} does not say {wanted}: {(done.stderr or done.stdout)[-300:]}"


def _goes_on(
    kind: str, piece: Piece, damage: Damage, random: Random, houses: Houses, root: Path, reference: Reference
) -> tuple[str, list[str]]:
    """What a killed run left is used where it is whole and left aside where it is not; the bytes are the same."""
    path = copied(houses.killed[kind], root) / piece.path
    whole = path.read_bytes()
    what = damage(path, random)
    foreign = set(path.read_bytes().splitlines()) - set(whole.splitlines())
    faults = [*_said(root, GOES_ON[kind], 0, "")]
    if kind == "journal":
        if sha256(root / "oof/tiny/thresholds.json") != houses.tuned:
            faults.append("thresholds.json has other bytes")
        if foreign & set(path.read_bytes().splitlines()):
            faults.append("the damaged line of the journal was used")
    else:
        faults += differences(reference.picture, picture(root)) + unfinished(root)
    if not faults:
        shutil.rmtree(root)
    return what, faults

"""`ich verify`: every file that was made, read in full and held against its record and against what it promises.

Nothing is changed. Exit code 0: sound, whatever is not made yet; 2: something is damaged or breaks a promise. Raw files
have no hashes, but for the tables that `ich demo` wrote: they are the business of `ich check`.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ich.console import progress, say
from ich.pipeline.graph import Task
from ich.pipeline.plan import Plan
from ich.stages.artefacts import FOLDS
from ich.stages.promises import broken_promises
from ich.store.records import read_record

MB = 1_000_000
DAMAGED_RECORD = "is damaged (the hash in it is not its own)"
Look = tuple[Task, str, list[tuple[str, str]]]  # a task, in what state it is, and (name, what is wrong) of its files


def run(plan: Plan) -> int:
    """Print what is wrong, a line a fault with what to type, and return the exit code."""
    tasks = _tasks(plan)
    with _reading(plan, tasks) as on_read:
        looks = [_look(plan, task, on_read) for task in tasks]
    damaged = [(task, *fault) for task, kind, faults in looks if kind == "damaged" for fault in faults]
    sound = {task.record.path: task for task, kind, _ in looks if kind == "sound"}
    broken = [(task, *fault) for task, faults in broken_promises(plan, sound) for fault in faults]
    for task, name, what in [*damaged, *broken]:
        say(f"error: {_shown(plan, task.folder / name)}: {what}; {_remedy(plan, task, name, what)}", asked=True)
    pointer = plan.workspace.cache_pointer
    lost = pointer.is_file() and read_record(pointer) is None
    if lost:
        say(f"error: {_shown(plan, pointer)}: {DAMAGED_RECORD}; run `ich prepare`", asked=True)
    for note in _notes(plan, looks):
        say(f"note: {note}", asked=True)
    unkept = {task.record.path for task, *_ in broken}
    counts = Counter("broken" if task.record.path in unkept else kind for task, kind, _ in looks)
    said = sorted(counts, key=lambda kind: kind != "sound")
    say("verify: " + ", ".join(f"{counts[kind]} {kind}" for kind in said), asked=True)
    if counts["stale"] or counts["missing"] or counts["killed"] or counts["running"]:
        say("What is not done is no fault, and was held against its hashes alone; `ich status` says why", asked=True)
    return 2 if damaged or broken or lost else 0


def _tasks(plan: Plan) -> list[Task]:
    """Those of the recipe, and the cache that the later stages use, which may be one of other raw files."""
    used = [plan.prepared] if plan.prepared.record.path.is_file() else []
    return list({task.record.path: task for task in [*plan.all(), *used]}.values())


def _shown(plan: Plan, path: Path) -> str:
    return os.path.relpath(path, plan.root)


# ---- hashes


@contextmanager
def _reading(plan: Plan, tasks: Sequence[Task]) -> Iterator[Callable[[int], None]]:
    """Yield what is told how many bytes were read; it says how far the reading is."""
    named = [task.folder / name for task in tasks for name in (plan.record_of(task.record) or {"files": ()})["files"]]
    left = 0
    with progress("verify: files", sum(p.stat().st_size for p in named if p.is_file()) // MB, "MB") as advance:

        def on_read(count: int) -> None:
            nonlocal left
            whole, left = divmod(left + count, MB)
            advance(whole)

        yield on_read


def _look(plan: Plan, task: Task, on_read: Callable[[int], None]) -> Look:
    """sound | damaged | stale | missing | running | killed, and which files are not what the record says."""
    record = plan.record_of(task.record)
    faults = {name: _damage(task, record, name, on_read) for name in (record or {"files": ()})["files"]}
    if record is None and task.record.path.is_file():
        faults[task.record.path.name] = DAMAGED_RECORD
    found = [(name, what) for name, what in faults.items() if what is not None]
    try:
        kind = plan.standing(task).kind
    except OSError:  # it cannot be read, or something that it is made from
        kind = "stale"
    if kind == "running":
        return task, kind, []
    if found and kind != "killed":  # the killed may have replaced files that the old record names
        kind = "damaged"
    return task, "sound" if kind == "done" else kind, found


def _damage(task: Task, record: dict[str, Any] | None, name: str, on_read: Callable[[int], None]) -> str | None:
    try:
        return task.record.damage(record or {}, name, on_read)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _remedy(plan: Plan, task: Task, name: str, what: str) -> str:
    """What to type. Many a fault is not seen by its stage, to which large files' stamps or the record say done."""
    if name == plan.workspace.folds.name:
        return FOLDS
    gone = what in ("is missing", DAMAGED_RECORD)
    return f"{'' if gone else 'delete it, then '}run `ich {task.stage}`, which makes it anew"


def _notes(plan: Plan, looks: Sequence[Look]) -> Iterator[str]:
    """What was left by killed processes, and files beside the artefacts that no record names."""
    for task, kind, faults in looks:
        if kind == "killed" and faults:
            said = ", ".join(f"{name} {what}" for name, what in faults)
            yield f"{task.name} was killed while it was made anew: {said}; run `ich {task.stage}`"
    if any(kind == "running" for _, kind, _ in looks):
        return
    left: set[Path] = set()
    for task, kind, _ in looks:
        folder, own = task.folder, task.record.path.name == "run.json"
        left |= set(task.record.left())
        if own and folder.is_dir():
            known = {task.record.path.name, *(plan.record_of(task.record) or {"files": ()})["files"]}
            strays = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name not in known and p not in left)
            if strays and kind == "sound" and task.stage != "demo":
                yield f"{_shown(plan, folder)}: its record does not name {', '.join(strays)}; nothing reads it"
    for path in sorted(left):
        yield f"{_shown(plan, path)}: left by a process that was killed; nothing reads it"

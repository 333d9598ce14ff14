"""Whether the artefacts of a recipe are done, and making them: one process each, the record last. A look is cheap."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from ich import ranks
from ich.console import detail, duration, say
from ich.errors import UserError
from ich.pipeline.graph import CHECKPOINT, PROGRESS, VERSIONS, Task, Tasks
from ich.recipe import Recipe
from ich.store.atomic import part_of
from ich.store.hashes import digest, sha256_file
from ich.store.locks import held, hold, owner
from ich.store.records import Stopwatch, read_record, write_record

NVIDIA = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU; asking torch would cost seconds
LIBRARIES = (
    "torch",
    "timm",
    "albumentations",
    "lightgbm",
    "optuna",
    "numpy",
    "pandas",
    "scikit-learn",
    "pydicom",
)

SHARED = ("cnn", "end_to_end")  # all processes of an `accelerate launch` make a fold together
# Not removed before the record is there, for a kill in between would cost all that they know.
PASSING = (CHECKPOINT, PROGRESS)
Made = tuple[Mapping[str, Path], Mapping[str, Any]]  # files by name, and what else the record should say


class Busy(UserError):
    """Another process is making the task, and the recipe says not to wait for it."""


@dataclass(frozen=True)
class State:
    kind: Literal["done", "stale", "missing", "running", "killed"]
    why: str = ""

    @property
    def done(self) -> bool:
        return self.kind == "done"


class Plan(Tasks):
    """The tasks of a recipe, the state of each, and the making of it."""

    def __init__(self, recipe: Recipe, root: Path) -> None:
        super().__init__(recipe, root)
        self._states: dict[Path, State] = {}

    # ---- their states

    def inputs(self, task: Task) -> dict[str, str]:
        """Hashes of what the task reads, by the records of those who wrote it."""
        hashes = {name: sha256_file(path) if path.is_file() else "" for name, path in task.sources.items()}
        for upstream, files in task.upstream:
            written = (self.record_of(upstream.record) or {"files": {}})["files"]
            hashes |= {f"{upstream.name}/{file}": written.get(file, "") for file in files}
        return hashes

    def _fingerprint(self, task: Task, inputs: Mapping[str, str]) -> str:
        return digest([VERSIONS[task.stage], task.settings, inputs])

    def state(self, task: Task) -> State:
        path = task.record.path
        if path not in self._states:
            self._states[path] = self._state(task)
        return self._states[path]

    def _state(self, task: Task) -> State:
        record = self.record_of(task.record)
        if record is None:
            if task.record.path.is_file():
                return State("stale", f"its record {task.record.path.name} is damaged, or of an earlier version")
            if task.stage == "prepare" and self.workspace.cache_pointer.is_file():
                return State("stale", "the raw files or the image settings have changed")
            return State("missing")
        for upstream, _ in task.upstream:
            if not self.state(upstream).done:
                return State("stale", f"{upstream.name} is {self.state(upstream).kind}")
        inputs = self.inputs(task)
        if record.get("fingerprint") != self._fingerprint(task, inputs):
            return State("stale", self._difference(task, record, inputs))
        damaged = task.record.damaged(record)
        return State("stale", damaged) if damaged else State("done")

    def _difference(self, task: Task, record: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
        was, now = record.get("settings", {}), task.settings
        for key in sorted({*was, *now}):
            if was.get(key) != now.get(key):
                return f"{key} was {was.get(key)}, is {now.get(key)}"
        was = record.get("inputs", {})
        for name in sorted({*was, *inputs}):
            if was.get(name) != inputs.get(name):
                return f"{name} is {'gone' if name not in inputs else 'another one'}"
        return "made by another version of this program"

    def running(self, task: Task) -> bool:
        """Whether a process is making the task right now. A dead process holds no lock."""
        return task.record.lock.exists() and held(task.record.lock)

    def standing(self, task: Task) -> State:
        """As `state`, with what processes do: running, or killed while they were making it."""
        who = owner(task.record.lock)
        if self.running(task):
            return State("running", who or "")
        state = self.state(task)
        if state.done or who is None:
            return state
        after = "begins anew"
        if (task.folder / CHECKPOINT).is_file():
            after = "goes on from the last finished epoch"
        elif any((folder / PROGRESS).is_file() for folder in (part_of(task.folder), task.folder)):
            after = "goes on from the last slices kept"
        return State("killed", f"{who}; {after}")

    def forget(self) -> None:
        """Look again: other processes have worked."""
        self._records.clear()
        self._states.clear()

    # ---- making them

    def finished(self, task: Task) -> bool:
        """Whether the task is done, and a kill has left nothing there of its making."""
        return self.state(task).done and not any((task.folder / name).is_file() for name in PASSING)

    def require(self, task: Task) -> None:
        """Raise UserError unless everything that `task` reads is done; it names what has to be made first of all."""
        for upstream, _ in task.upstream:
            state = self.state(upstream)
            if not state.done:
                self.require(upstream)
                why = f" ({state.why})" if state.why else ""
                if self.running(upstream):
                    raise UserError(f"{task.name} needs {upstream.name}, which another process is making; wait for it")
                raise UserError(
                    f"{task.name} needs {upstream.name}, which is {state.kind}{why}; run `ich {upstream.stage}` first,"
                    " with the same recipe and --set"
                )

    def make(self, task: Task, function: Callable[[str], Made], *, force: bool = False) -> bool:
        """Call `function(fingerprint)` unless the task is done, and write its record last. True: it was made.

        One process makes a task; another waits, and finds it done, or raises Busy with compute.busy: leave.
        """
        if not force and self.finished(task):
            return False
        self.require(task)

        def wait_or_leave(who: str) -> None:
            if self.recipe.compute.busy == "leave":
                raise Busy(f"{task.name} is being made by {who}; compute.busy: wait would wait for it")
            say(f"{task.name}: waiting for {who}, which is making it")

        with hold(task.record.lock, on_wait=wait_or_leave):
            self.forget()
            making = force or not self.state(task).done
            if making:
                detail(f"{task.name}: {self._reason(task)}, so it is made")
                self._made(task, function)
            for name in PASSING:
                (task.folder / name).unlink(missing_ok=True)
        self.forget()
        return making

    def _reason(self, task: Task) -> str:
        state = self.state(task)
        return "--force" if state.done else f"{state.kind}{f' ({state.why})' if state.why else ''}"

    def _made(self, task: Task, function: Callable[[str], Made]) -> None:
        self.require(task)
        task.record.sweep()
        watch, inputs = Stopwatch(), self.inputs(task)
        fingerprint = self._fingerprint(task, inputs)
        files, more = function(fingerprint)
        task.record.write(
            fingerprint,
            files,
            task=task.name,
            settings=dict(task.settings),
            inputs=inputs,
            **more,
            **watch.measured(),
            versions={name: version(name) for name in LIBRARIES},
        )
        written = ", ".join(str(path) for path in [*files.values(), task.record.path])
        detail(f"{task.name}: made in {duration(watch.measured()['seconds'])}: {written}")

    def point_to(self, prepared: Task) -> None:
        """Let the later stages of this recipe use this cache."""
        pointer = {"key": prepared.folder.name, "settings": self.image_settings}
        if read_record(self.workspace.cache_pointer) != pointer:
            write_record(self.workspace.cache_pointer, pointer)
        self.__dict__.pop("prepared", None)

    @property
    def cores(self) -> int:
        """CPU cores that this process may use."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    @property
    def processes(self) -> int:
        """How many folds run side by side: as the recipe says, else one where a GPU trains them, else one a core.

        One where several processes make a fold together.
        """
        if ranks.joined():
            return 1
        alone = 1 if NVIDIA.is_dir() and any(NVIDIA.iterdir()) else max(1, self.cores // self.recipe.compute.threads)
        return self.recipe.compute.processes or alone


def seed_of(seed: int, *names: object) -> int:
    """A seed of 31 bits of its own for each fold of each member, stable between machines."""
    return int(digest([seed, *map(str, names)])[:8], 16) >> 1

"""State of the artifacts of a recipe, and how they are made: by one process at a time, with the record last."""

import os
import platform
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from ich.console import detail, duration, say
from ich.errors import UserError
from ich.pipeline.graph import Graph
from ich.pipeline.tasks import CHECKPOINT, HEADERS, VERSIONS, Task, Upstream
from ich.processes import cores
from ich.recipe import Recipe
from ich.store import raw
from ich.store.hashes import digest, sha256_file
from ich.store.locks import held, hold, owner
from ich.store.records import read_record, write_record
from ich.store.remote import OnBytes, Remote

IN_STORE = "in the store"  # why a task is done although not all of its files are here
CPUS = Path("/proc/cpuinfo")
NVIDIA = Path("/proc/driver/nvidia/gpus")  # one folder per GPU; importing torch takes seconds
LIBRARIES = ("torch", "timm", "albumentations", "lightgbm", "optuna", "numpy", "pandas", "scikit-learn", "pydicom")
Made = tuple[Mapping[str, Path], Mapping[str, Any]]  # files by name, and further entries of the record


Change = tuple[str, Any, Any]  # dotted key of a setting, its old value and its new one


class Busy(UserError):
    """Another process is making the task, and compute.busy is leave."""


@dataclass(frozen=True)
class State:
    kind: Literal["done", "stale", "missing", "running", "killed"]
    why: str = ""

    @property
    def done(self) -> bool:
        return self.kind == "done"


class Plan(Graph):
    """The task graph with the state of each task; makes tasks that are out of date."""

    def __init__(self, recipe: Recipe, root: Path) -> None:
        super().__init__(recipe, root)
        self._states: dict[Path, State] = {}

    # ---- states

    def inputs(self, task: Task) -> dict[str, str]:
        """Return the SHA-256 of all inputs of a task, as recorded by the tasks that wrote them."""
        hashes = {name: sha256_file(path) if path.is_file() else "" for name, path in task.sources.items()}
        for upstream, files in task.upstream:
            written = self.files_of(upstream)
            for file in files:
                several = {name: sha for name, sha in written.items() if "*" in file and fnmatch(name, file)}
                hashes[f"{upstream.name}/{file}"] = digest(several) if several else written.get(file, "")
        return hashes

    def fingerprint(self, task: Task, inputs: Mapping[str, str]) -> str:
        return digest([VERSIONS[task.stage], task.settings, inputs])

    def state(self, task: Task) -> State:
        path = task.record.path
        if path not in self._states:
            self._states[path] = self._state(task)
        return self._states[path]

    def _state(self, task: Task) -> State:
        here, remote = self._state_here(task), self._remote_of(task)
        if here.done or remote is None or not all(self.state(one).done for one, _ in task.upstream):
            return here
        record = remote.read_record(self.relative(task.record.path), self.fingerprint(task, self.inputs(task)))
        if record is None:
            return here
        mine = self.record_of(task)
        if (record["fingerprint"], record["files"]) != (mine.get("fingerprint"), mine.get("files")):
            self._records[task.record.path] = record  # `pull` writes it
        return State("done", IN_STORE)

    def _state_here(self, task: Task) -> State:
        """Return the state by the files of this workspace."""
        record = self.record_of(task)
        if not record:
            if task.record.path.is_file():
                return State("stale", f"{task.record.path.name} is damaged or of an earlier version")
            if task.stage == "prepare" and self.workspace.cache_pointer.is_file():
                return State("stale", self._raw_difference())
            return State("missing")
        for upstream, _ in task.upstream:
            if not self.state(upstream).done:
                return State("stale", f"{upstream.name} is {self.state(upstream).kind}")
        inputs = self.inputs(task)
        if record.get("fingerprint") != self.fingerprint(task, inputs):
            return State("stale", self._difference(task, record, inputs))
        damaged = task.record.damaged(record)
        return State("stale", damaged) if damaged else State("done")

    def _difference(self, task: Task, record: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
        for key, was, now in differences(record.get("settings", {}), task.settings):
            return f"{key} was {was}, is {now}"
        was = record.get("inputs", {})
        for name in sorted({*was, *inputs}):
            if was.get(name) != inputs.get(name):
                return f"{name} was {'removed' if name not in inputs else 'changed'}"
        return "made by another version of ich"

    def _raw_difference(self) -> str:
        """Say what has changed since the latest `ich prepare`."""
        pointer = read_record(self.workspace.cache_pointer) or {}
        for key, was, now in differences(pointer.get("settings", {}), self.image_settings):
            return f"{key} was {was}, is {now}"
        was, now = raw.identity(self.known_raw_files()), raw.identity(self.raw_files)
        for path in sorted({*was, *now}) if was and now else ():
            if was.get(path) != now.get(path):
                return f"{path} {'is new' if path not in was else 'was changed' if path in now else 'was removed'}"
        return "the raw files have changed, or the cache is missing"

    def changed_settings(self, task: Task) -> list[Change]:
        """Return the changed settings of a task that would be up to date with the old ones."""
        record, now = self.record_of(task), self.inputs(task)
        was, inputs = record.get("settings", {}), record.get("inputs", {})
        kept = record.get("fingerprint") == digest([VERSIONS[task.stage], was, inputs])
        kept &= was.get("fold") == task.settings.get("fold")  # else the folder of another fold was moved here
        kept &= all(now.get(name, sha256) == sha256 for name, sha256 in inputs.items())
        return [*differences(was, task.settings)] if kept else []

    def running(self, task: Task) -> bool:
        """Return whether a process is making the task now. A dead process holds no lock."""
        return held(task.record.lock)

    def standing(self, task: Task) -> State:
        """Return `state`, or running or killed if a process is or was making the task."""
        who = owner(task.record.lock)
        if self.running(task):
            return State("running", who or "")
        state = self.state(task)
        if state.done or who is None:
            return state
        after = "will restart"
        if (task.record.work / CHECKPOINT).is_file():
            after = "will resume after the last finished epoch"
        elif any(task.folder.glob("hu-*.json")):
            after = "will resume after the finished shards"
        elif (task.folder / HEADERS).is_file():
            after = "will resume after the headers"
        return State("killed", f"{who}; {after}")

    def forget(self) -> None:
        """Drop cached records and states, which other processes may have changed."""
        self._records.clear()
        self._states.clear()

    def finished(self, task: Task) -> bool:
        """Return whether the task is done, here and in the store, with no unfinished files or old stamps to tidy."""
        left = (task.record.staged and task.record.work.exists()) or any(task.folder.glob("hu-*.json"))
        here = self.state(task) == State("done") and not left
        return here and not task.record.outdated_stamps(self.record_of(task)) and self.pushed(task)

    # ---- the store

    @property
    def remote(self) -> Remote | None:
        """The object store of the recipe, if there is one."""
        url = self.recipe.store.remote
        return None if url is None else _opened(url)

    def _remote_of(self, task: Task) -> Remote | None:
        """The store of a task. Each machine writes the demo itself: its record does not list the DICOM files."""
        return None if task.stage == "demo" else self.remote

    def pull(self, parts: Upstream, on_bytes: OnBytes | None = None) -> None:
        """Copy those files of finished tasks that are missing here from the store. Patterns are as in Task.upstream."""
        if self.remote is None:
            return
        for task, patterns in parts:
            stored = self.state(task).why == IN_STORE
            record, missing = self.record_of(task), self.missing(task, patterns)
            if stored and task.record.read() != record:
                write_record(task.record.path, record)
            if missing:
                detail(f"{task.name}: reading {len(missing)} files from {self.recipe.store.remote}")
                self.remote.pull(missing, on_bytes)
                if not task.record.damaged(record) and task.record.outdated_stamps(record):
                    task.record.restamp()
                    self.forget()

    def missing(self, task: Task, patterns: Sequence[str] = ("*",)) -> dict[Path, str]:
        """Return path and SHA-256 of those recorded files that are missing or damaged here."""
        record = self.record_of(task)
        names = [name for name in record["files"] if any(fnmatch(name, pattern) for pattern in patterns)]
        return {task.folder / name: record["files"][name] for name in names if task.record.damage(record, name)}

    def push(self, task: Task) -> None:
        """Write the files of a task that is done here to the store, the record last."""
        remote = self._remote_of(task)
        if remote is not None and not self.pushed(task):
            record = self.record_of(task)
            remote.push(self.relative(task.record.path), record, {name: task.folder / name for name in record["files"]})

    def pushed(self, task: Task) -> bool:
        """Return whether the store has this task, or there is no store."""
        remote = self._remote_of(task)
        name = self.relative(task.record.path)
        return remote is None or remote.read_record(name, self.record_of(task)["fingerprint"]) is not None

    # ---- making

    def all_finished(self, tasks: list[Task]) -> bool:
        """Return whether the tasks of a stage are finished and their tables are assembled."""
        assembled = {task.model: self.assembled(task.model) for task in tasks if task.fold is not None}
        return all(map(self.finished, [*tasks, *assembled.values()]))

    def require(self, task: Task) -> None:
        """Raise UserError, naming the stage to run first, unless all inputs of `task` are done."""
        for upstream, _ in task.upstream:
            state = self.state(upstream)
            if not state.done:
                if upstream.recipe is None:
                    self.require(upstream)
                if self.running(upstream):
                    raise UserError(f"{task.name} needs {upstream.name}, which another process is making. Wait for it")
                command = f"{upstream.stage}` first, with the same recipe and --set"
                if upstream.recipe is not None:
                    command = f"run {upstream.recipe}` first"
                raise UserError(f"{task.name} needs {upstream.name}, which is {_reason(state)}. Run `ich {command}")

    def make(self, task: Task, function: Callable[[str], Made], *, force: bool = False) -> bool:
        """Call `function(fingerprint)` unless the task is done, then write its record. Returns whether it was called.

        A second process waits and then reuses the result, or raises Busy with compute.busy: leave.
        """
        if not force and self.finished(task):
            return False
        self.require(task)

        def wait_or_leave(who: str) -> None:
            if self.recipe.compute.busy == "leave":
                raise Busy(f"{task.name} is being made by {who}. Set compute.busy=wait to wait for it")
            say(f"{task.name}: waiting for {who}")

        with hold(task.record.lock, on_wait=wait_or_leave):
            task.record.publish()  # a kill may have come in between
            self.forget()
            state = self.state(task)
            making = force or not state.done
            if making:
                detail(f"{task.name}: started, {'--force' if state.done else _reason(state)}")
                self._make(task, function)
            elif state.why != IN_STORE and task.record.outdated_stamps(self.record_of(task)):
                task.record.restamp()
            task.record.discard()  # of a killed run with other settings, or with --force
            self.forget()
            self.pull(((task, ("*",)),))
            self.push(task)
        self.forget()
        return making

    def _make(self, task: Task, function: Callable[[str], Made]) -> None:
        self.require(task)
        self.pull(task.upstream)
        task.record.sweep()
        started, inputs = time.perf_counter(), self.inputs(task)
        fingerprint = self.fingerprint(task, inputs)
        files, more = function(fingerprint)
        seconds = round(time.perf_counter() - started, 2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        task.record.write(
            fingerprint,
            files,
            task=task.name,
            settings=dict(task.settings),
            inputs=inputs,
            **more,
            seconds=seconds,
            peak_memory_mib=round(peak, 1),
            versions={name: version(name) for name in LIBRARIES},
            machine=self.machine,
        )
        written = ", ".join(str(task.folder / name) for name in [*files, task.record.path.name])
        detail(f"{task.name}: finished in {duration(seconds)}: {written}")

    def point_to(self, prepared: Task) -> None:
        """Make later stages of this recipe use this cache."""
        pointer = {"key": prepared.folder.name, "settings": self.image_settings}
        if read_record(self.workspace.cache_pointer) != pointer:
            write_record(self.workspace.cache_pointer, pointer)
        self.remember_raw_files()
        self.__dict__.pop("prepared", None)

    def remember_raw_files(self) -> None:
        """Keep the samples of the raw files, so that the next `prepare` reads new files only."""
        if self.raw_files and self.known_raw_files() != self.raw_files:
            root = self.recipe.competition.root
            raw.write_files(self.workspace.raw_files(root), root, self.raw_files)

    # ---- this machine

    @property
    def cores(self) -> int:
        """CPU cores that this process may use."""
        return cores()

    @property
    def gpus(self) -> list[str]:
        """Ids of the GPUs that this process may use."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            return [gpu for gpu in visible.split(",") if gpu.strip()]
        return [str(number) for number, _ in enumerate(NVIDIA.iterdir())] if NVIDIA.is_dir() else []

    @property
    def machine(self) -> str:
        """Processor, cores and GPUs that this process may use, for the records."""
        found = f"{_value(CPUS, 'model name') or platform.machine()}, {self.cores} cores"
        names = [_value(path / "information", "Model") for path in sorted(NVIDIA.glob("*"))] if self.gpus else []
        return f"{found}, {len(self.gpus)} x {names[0]}" if names else found

    @property
    def processes(self) -> int:
        """Number of parallel folds: compute.processes, else one per GPU, or one per core without GPUs."""
        default = len(self.gpus) or max(1, self.cores // self.recipe.compute.threads)
        return self.recipe.compute.processes or default


@cache
def _opened(url: str) -> Remote:
    """Return the store at `url`, opened once per process."""
    return Remote(url)


def differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[Change]:
    """Yield the changes of settings, in the order of their keys. A key that is missing has the value None."""
    for key in sorted({*was, *now}):
        old, new = was.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new


def _value(path: Path, key: str) -> str:
    """Return the first value of a key in a file of /proc; empty if there is none."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _reason(state: State) -> str:
    return f"{state.kind} ({state.why})" if state.why else state.kind

"""Where this comes from: the recipe, the versions, the seeds, the hashes of what was made, and what that took."""

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from ich.console import duration
from ich.pipeline.graph import VERSIONS, Task
from ich.report.page import Code, Details, Notes, Section, Table
from ich.stages.reporting.evidence import Evidence

MEMBER = ("oof.parquet", "test.parquet")
RECORDS = "The run.json in each folder below input/cache, oof and submissions has the hashes of all its files."


def section(evidence: Evidence) -> Section:
    tasks = [evidence.plan.demo] if evidence.plan.recipe.demo is not None else []
    tasks += sorted(_below(evidence.plan.report, set()), key=lambda task: list(VERSIONS).index(task.stage))
    settings = _here(evidence.plan.recipe.model_dump(mode="json"))
    recipe = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=100)
    lead = (
        "The same recipe, versions and machine make the same files to the last byte, so whoever has these can tell"
        " whether they look at the same run. Times and memory are those of the runs that made the files."
    )
    blocks = [
        _effort(evidence, tasks),
        Details("The recipe, with all that it leaves to defaults", [Code(recipe)]),
        Details("Hashes of the files", [_files(evidence, tasks), Notes([RECORDS])]),
        Details("Seeds", [_seeds(evidence)]),
        Details("Versions", [_versions(evidence, tasks)]),
    ]
    return Section("provenance", "Where this comes from", blocks, lead)


def _below(task: Task, seen: set[str]) -> Iterator[Task]:
    """All that the task is made from, however far below."""
    for upstream, _ in task.upstream:
        if upstream.name not in seen:
            seen.add(upstream.name)
            yield from _below(upstream, seen)
            yield upstream


def _here(value: Any) -> Any:
    """Settings without the folders of the machine they were used on: of an absolute path, its last name."""
    if isinstance(value, Mapping):
        return {key: _here(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_here(inner) for inner in value]
    for kind in (PurePosixPath, PureWindowsPath):
        if isinstance(value, str) and kind(value).is_absolute():
            return f".../{kind(value).name}"
    return value


def _files(evidence: Evidence, tasks: list[Task]) -> Table:
    """SHA-256 of what a reader may want to compare, the submission first; members as a whole, not their folds."""
    plan = evidence.plan
    wanted = {task.name: MEMBER for task in map(plan.member, plan.members)}
    rows: list[list[str]] = []
    for task in reversed(tasks):
        if task.stage in ("demo", "explain", "score") or ("/" in task.name and task.name not in wanted):
            continue
        files = evidence.recorded(task)["files"]
        names = wanted.get(task.name, tuple(files))
        of = f"cache {task.folder.name}" if task.name == "prepare" else task.name
        rows += [[of, name, files[name]] for name in names if name in files]
    return Table(["of", "file", "SHA-256"], rows, "SHA-256 of the files of this run")


def _effort(evidence: Evidence, tasks: list[Task]) -> Table:
    """What each stage took, and all of them together."""
    stages: dict[str, list[Task]] = {}
    for task in tasks:
        stages.setdefault(task.stage, []).append(task)
    rows: list[list[str]] = []
    for stage, parts in [*stages.items(), ("all", tasks)]:
        seconds = sum(evidence.recorded(task).get("seconds", 0.0) for task in parts)
        memory = max(evidence.recorded(task).get("peak_memory_mib", 0.0) for task in parts)
        rows.append([stage, f"{len(parts)}", _duration(seconds), f"{memory:,.0f}"])
    title = "What it took: the times of all processes together, and the memory of the largest"
    return Table(["stage", "tasks", "time", "peak memory in MiB"], rows, title)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def _versions(evidence: Evidence, tasks: list[Task]) -> Table:
    """Of this program, and of the libraries as the records name them: of several stages maybe several."""
    found: dict[str, dict[str, None]] = {"ich": {version("ich"): None}}
    for task in tasks:
        for library, number in evidence.recorded(task).get("versions", {}).items():
            found.setdefault(library, {})[number] = None
    return Table(["library", "version"], [[library, ", ".join(numbers)] for library, numbers in found.items()])


def _seeds(evidence: Evidence) -> Table:
    settings = evidence.plan.recipe.model_dump(mode="json", exclude={"ablation"})
    return Table(["setting", "seed"], list(_named_seeds(settings, "")))


def _named_seeds(settings: Mapping[str, Any], where: str) -> Iterator[list[str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _named_seeds(value, f"{where}{key}.")
        elif key == "seed":
            yield [f"{where}{key}", str(value)]

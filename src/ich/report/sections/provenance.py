"""Provenance: the recipe, versions, seeds, hashes, and the time and memory that each stage took."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from ich.console import duration
from ich.report.evidence import Artifact, Evidence
from ich.report.page.blocks import Code, Details, Notes, Section, Table


def section(evidence: Evidence) -> Section:
    lead = (
        "The same recipe, versions and machine make the same files to the last byte: compare the hashes to tell whether"
        " two runs are the same. Times and memory are those of the processes that made the files."
    )
    recipe = yaml.safe_dump(without_folders(evidence.settings), sort_keys=False, default_flow_style=None, width=100)
    files = [[one.name, name, digest] for one in reversed(evidence.artifacts) for name, digest in one.files.items()]
    records = "run.json in each folder below input/cache, oof and submissions has the hashes of all files."
    libraries: dict[str, dict[str, None]] = {"ich": {version("ich"): None}}
    for one in evidence.artifacts:
        for library, number in one.versions.items():
            libraries.setdefault(library, {})[number] = None
    versions = [[library, ", ".join(numbers)] for library, numbers in libraries.items()]
    settings = {key: value for key, value in evidence.settings.items() if key != "ablation"}
    blocks = [
        _effort(evidence.artifacts),
        Details("Recipe, with all defaults", [Code(recipe)]),
        Details("Hashes", [Table(["of", "file", "SHA-256"], files, "SHA-256 of the files"), Notes([records])]),
        Details("Seeds", [Table(["setting", "seed"], list(_seeds(settings, "")))]),
        Details("Versions", [Table(["library", "version"], versions)]),
    ]
    return Section("provenance", "Provenance", blocks, lead)


def _effort(artifacts: Sequence[Artifact]) -> Table:
    stages: dict[str, list[Artifact]] = {}
    for one in artifacts:
        stages.setdefault(one.stage, []).append(one)
    rows: list[list[str]] = []
    for stage, parts in [*stages.items(), ("all", artifacts)]:
        memory = max((one.peak_memory_mib for one in parts), default=0)
        rows.append([stage, f"{len(parts)}", _time(sum(one.seconds for one in parts)), f"{memory:,.0f}"])
    title = "Time, summed over processes, and peak memory of the largest process"
    return Table(["stage", "tasks", "time", "peak memory in MiB"], rows, title)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def without_folders(value: Any) -> Any:
    """Settings without the folders of this machine: only the last name of an absolute path is kept."""
    if isinstance(value, Mapping):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    for kind in (PurePosixPath, PureWindowsPath):
        if isinstance(value, str) and kind(value).is_absolute():
            return f".../{kind(value).name}"
    return value


def _seeds(settings: Mapping[str, Any], where: str) -> Iterator[list[str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _seeds(value, f"{where}{key}.")
        elif key == "seed":
            yield [f"{where}{key}", str(value)]

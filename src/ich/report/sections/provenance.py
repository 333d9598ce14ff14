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
        "The same recipe, versions and machine give the same bytes. Compare the hashes to check that two runs are"
        " identical."
    )
    recipe = yaml.safe_dump(without_folders(evidence.settings), sort_keys=False, default_flow_style=None, width=100)
    files = [[one.name, name, digest] for one in reversed(evidence.artifacts) for name, digest in one.files.items()]
    records = "The run.json of each artifact holds the hashes of all its files."
    settings = {key: value for key, value in evidence.settings.items() if key != "ablation"}
    blocks = [
        *([Notes(list(evidence.privacy))] if evidence.privacy else []),
        effort(evidence.artifacts),
        Details("Recipe, with all defaults", [Code(recipe)]),
        Details("Hashes", [Table("SHA-256 of the files", ["artifact", "file", "SHA-256"], files), Notes([records])]),
        Details("Seeds", [Table("", ["setting", "seed"], list(_seeds(settings, "")))]),
        Details("Versions", [Table("", ["library", "version"], versions(evidence.artifacts))]),
    ]
    return Section("provenance", "Provenance", blocks, lead)


def versions(artifacts: Sequence[Artifact]) -> list[list[str]]:
    """Return each library with its versions."""
    libraries: dict[str, dict[str, None]] = {"ich": {version("ich"): None}}
    for one in artifacts:
        for library, number in one.versions.items():
            libraries.setdefault(library, {})[number] = None
    return [[library, ", ".join(numbers)] for library, numbers in libraries.items()]


def effort(artifacts: Sequence[Artifact]) -> Table:
    """Return the tasks, time and memory of each stage."""
    stages: dict[str, list[Artifact]] = {}
    for one in artifacts:
        stages.setdefault(one.stage, []).append(one)
    rows: list[list[str]] = []
    for stage, parts in [*stages.items(), ("all", artifacts)]:
        memory = max((one.peak_memory_mib for one in parts), default=0)
        seconds = sum(one.seconds for one in parts)
        time = f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
        rows.append([stage, f"{len(parts)}", time, f"{memory:,.0f}"])
    title = "Time, summed over processes, and peak memory of the largest process"
    return Table(title, ["stage", "tasks", "time", "peak memory in MiB"], rows)


def without_folders(value: Any) -> Any:
    """Settings with absolute paths cut to their last name, to hide the folders of the machine."""
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

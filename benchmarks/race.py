"""Ours against others, turn by turn in one run, so that a machine whose speed drifts is fair to both."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "timm", "albumentations", "lightgbm", "optuna", "numpy", "pandas", "scikit-learn", "pydicom")
OURS = "ours"


@dataclass(frozen=True)
class Race:
    """What several ways to do the same took, in each of several rounds."""

    name: str
    unit: str  # of what each way does: slices, studies, rows
    count: int  # of them in one round
    seconds: Mapping[str, list[float]]  # by way, one of them "ours"
    wanted: Mapping[str, float] = field(default_factory=dict)  # by way: how many times its rate ours should be
    notes: Mapping[str, Any] = field(default_factory=dict)  # further figures

    def ratios(self, other: str) -> list[float]:
        """How many times the other's rate ours was, round by round."""
        return [theirs / ours for ours, theirs in zip(self.seconds[OURS], self.seconds[other], strict=True)]

    @property
    def others(self) -> list[str]:
        return [way for way in self.seconds if way != OURS]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: medians first, then each round."""
        found = {}
        for other in self.others:
            ratios = self.ratios(other)
            found[other] = {
                "median": round(statistics.median(ratios), 4),
                "least": round(min(ratios), 4),
                "most": round(max(ratios), 4),
                "wanted": self.wanted.get(other),
            }
        rates = {way: round(self.count / statistics.median(times), 2) for way, times in self.seconds.items()}
        rounds = {way: [round(one, 5) for one in times] for way, times in self.seconds.items()}
        return {**asdict(self), "seconds": rounds, "rate": rates, "ours_against": found}


def race(
    name: str,
    ways: Mapping[str, Callable[[], object]],
    *,
    unit: str,
    count: int,
    rounds: int = 5,
    warm_up: int = 1,
    wanted: Mapping[str, float] | None = None,
    notes: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Race:
    """Time the ways in turn, `rounds` times after `warm_up` rounds that do not count; every other round backwards."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(-warm_up, rounds):
        for way in list(ways)[:: 1 if number % 2 == 0 else -1]:
            started = clock()
            ways[way]()
            if number >= 0:
                seconds[way].append(clock() - started)
    return Race(name, unit, count, seconds, wanted or {}, notes or {})


def table(races: Iterable[Race]) -> str:
    """The races as text, a line a comparison: rates, the median ratio with its range, and what was wanted."""
    lines = [f"{'':44} {'ours':>12} {'other':>12}   ratio (range)"]
    for one in races:
        found = one.as_dict()
        for other, ratio in found["ours_against"].items():
            wanted = "" if ratio["wanted"] is None else f"  wanted {ratio['wanted']:g}"
            lines.append(
                f"{one.name + ' / ' + other:44} {found['rate'][OURS]:>12,.0f} {found['rate'][other]:>12,.0f}"
                f"   {ratio['median']:.3g} ({ratio['least']:.3g} to {ratio['most']:.3g}){wanted}   {one.unit}/s"
            )
        lines += [f"  {key}: {value}" for key, value in one.notes.items()]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures depend on, and nothing that names the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": gpu(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def gpu() -> str | None:
    """The name of the GPU that torch would use, None where there is none."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def save(folder: Path, topic: str, races: Iterable[Race]) -> Path:
    """Write <topic>.json, on a GPU <topic>_gpu.json, with the machine and the day."""
    path = folder / f"{topic}{'_gpu' if gpu() else ''}.json"
    folder.mkdir(parents=True, exist_ok=True)
    found = {"measured": time.strftime("%Y-%m-%d"), "races": [one.as_dict() for one in races], "machine": machine()}
    path.write_text(json.dumps(found, indent=2) + "\n")
    return path

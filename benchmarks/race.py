"""What is measured: ours against others, turn by turn, so that a drifting machine is fair to both; and peak memory."""

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
    limit: float | None = None  # seconds that a round of ours should stay below, where that is what is wanted

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
                "median": rounded(statistics.median(ratios)),
                "least": rounded(min(ratios)),
                "most": rounded(max(ratios)),
                "wanted": self.wanted.get(other),
            }
        rates = {way: rounded(self.count / statistics.median(times)) for way, times in self.seconds.items()}
        rounds = {way: [rounded(one) for one in times] for way, times in self.seconds.items()}
        return {**asdict(self), "seconds": rounds, "rate": rates, "ours_against": found}

    def lines(self) -> list[str]:
        """A line a comparison: rates, the median ratio with its range, and what was wanted; then the notes."""
        found, lines = self.as_dict(), []
        for other, ratio in found["ours_against"].items():
            wanted = "" if ratio["wanted"] is None else f"  wanted {ratio['wanted']:g}"
            lines.append(
                f"{self.name + ' / ' + other:60} {shown(found['rate'][OURS]):>12} {shown(found['rate'][other]):>12}"
                f"   {ratio['median']:.3g} ({ratio['least']:.3g} to {ratio['most']:.3g}){wanted}   {self.unit}/s"
            )
        if self.limit is not None:
            lines.append(f"  {statistics.median(self.seconds[OURS]):.3g} s, wanted below {self.limit:g}")
        return [*lines, *(f"  {key}: {value}" for key, value in self.notes.items())]


@dataclass(frozen=True)
class Peak:
    """The most memory that something held, by how much it worked on: once each, in processes of their own."""

    name: str
    unit: str  # of how much: slices
    own: Mapping[int, float]  # MiB by how much: what the processes hold alone, sampled
    largest: Mapping[int, float]  # MiB by how much: the largest process with all the files that it maps
    seconds: Mapping[int, float]
    limit: float  # MiB, at the most
    notes: Mapping[str, Any] = field(default_factory=dict)  # further figures

    @property
    def growth(self) -> float | None:
        """Bytes that one more takes, between the least and the most; None where there is one measurement."""
        least, most = min(self.own), max(self.own)
        return None if least == most else (self.own[most] - self.own[least]) * 2**20 / (most - least)

    def as_dict(self) -> dict[str, Any]:
        by_count = {
            str(n): {"own_mib": round(self.own[n], 1), "largest_mib": round(self.largest[n], 1)} for n in self.own
        }
        return {
            "name": self.name,
            "unit": self.unit,
            "memory": {n: {**row, "seconds": round(self.seconds[int(n)], 1)} for n, row in by_count.items()},
            "bytes_each": None if self.growth is None else round(self.growth, 1),
            "limit_mib": self.limit,
            "notes": dict(self.notes),
        }

    def lines(self) -> list[str]:
        """One line: MiB by how much, and what one more takes."""
        peaks = "  ".join(f"{n:,}: {self.own[n]:,.0f} ({self.largest[n]:,.0f})" for n in sorted(self.own))
        each = "" if self.growth is None else f"   {self.growth:,.0f} bytes a {self.unit.removesuffix('s')}"
        line = f"{self.name:20} MiB (with mapped files)  {peaks}{each}   wanted below {self.limit:,.0f}"
        return [line, *(f"  {key}: {value}" for key, value in self.notes.items())]


Result = Race | Peak


def rounded(value: float) -> float:
    """To five digits that count: a ratio of 0.0001 is none of 0."""
    return float(f"{value:.5g}")


def shown(rate: float) -> str:
    """Rates of all sizes in few characters."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


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
    limit: float | None = None,
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
    return Race(name, unit, count, seconds, wanted or {}, notes or {}, limit)


def table(results: Iterable[Result]) -> str:
    """The results as text."""
    head = f"{'':60} {'ours':>12} {'other':>12}   ratio (range)"
    kept = list(results)
    lines = [line for one in kept for line in one.lines()]
    return "\n".join([head, *lines] if any(isinstance(one, Race) for one in kept) else lines)


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


def save(folder: Path, topic: str, results: Iterable[Result]) -> Path:
    """Write <topic>.json, on a GPU <topic>_gpu.json, with the machine and the day."""
    path = folder / f"{topic}{'_gpu' if gpu() else ''}.json"
    folder.mkdir(parents=True, exist_ok=True)
    found = {"measured": time.strftime("%Y-%m-%d"), "races": [one.as_dict() for one in results], "machine": machine()}
    path.write_text(json.dumps(found, indent=2) + "\n")
    return path

"""Time several ways to do the same in turn, measure peak memory, and write the results as JSON and Markdown tables."""

import json
import os
import platform
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("torch", "timm", "albumentations", "lightgbm", "optuna", "numpy", "pandas", "scikit-learn", "pydicom")
ROOT = Path(__file__).parents[1]
RSNA_SLICES = 752_803  # training slices of RSNA 2019
SAMPLE_SECONDS = 0.02
TABLES = re.compile(r"(<!-- results -->\n).*(<!-- end -->)", re.DOTALL)

Result = dict[str, Any]  # what `compare` or `usage` returns, as it is saved


# ---- measuring


def compare(
    name: str,
    ways: Mapping[str, Callable[[], object]],
    *,
    unit: str,
    count: int,
    rounds: int = 5,
    warm_up: int = 1,
    before: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Time the ways in turn, so that a drifting machine is fair to all of them; the first way is ours.

    Every other round runs backwards. The `warm_up` rounds are not recorded, and `before`, called before each way, is
    not timed. count: how many units (slices, studies, rows) one call of a way processes.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(-warm_up, rounds):
        for way in in_turn(ways, number):
            before()
            started = clock()
            ways[way]()
            if number >= 0:
                seconds[way].append(rounded(clock() - started))
    return {"name": name, "unit": unit, "count": count, "seconds": seconds}


def in_turn(ways: Iterable[str], number: int) -> list[str]:
    """The order of the ways in a round."""
    return list(ways)[:: 1 if number % 2 == 0 else -1]


def rounded(value: float) -> float:
    """Five significant digits."""
    return float(f"{value:.5g}")


def usage(name: str, measured: Mapping[int, tuple[float, float]]) -> Result:
    """Peak memory in MiB and seconds, by number of slices."""
    return {
        "name": name,
        "slices": {str(n): {"mib": round(mib, 1), "seconds": round(s, 1)} for n, (mib, s) in measured.items()},
    }


def measure(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """Run a command; return the peak memory of all its processes together (MiB) and its seconds.

    The memory is anonymous and shared memory, sampled every 20 ms. Pages of mapped files do not count, because the
    system takes them back when it needs them. Raises RuntimeError with the output of a command that fails.
    """
    started, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=output, stderr=output)
        while process.poll() is None:
            peak = max(peak, sum(held_memory(process.pid)))
            time.sleep(SAMPLE_SECONDS)
        if process.returncode:
            output.seek(0)
            text = output.read().decode()
            raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}: {text}")
    return peak, time.perf_counter() - started


def held_memory(pid: int) -> Iterator[float]:
    """MiB that a process and each of its descendants hold.

    Not by getrusage: its high-water mark starts at that of the parent process.
    """
    waiting = [pid]
    while waiting:
        process = Path("/proc", str(waiting.pop()))
        try:
            status = (process / "status").read_text()
            for thread in (process / "task").iterdir():
                waiting += [int(child) for child in (thread / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):  # it has ended in the meantime
            continue
        yield sum(int(kib) for kib in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+)", status, re.MULTILINE)) / 1024


def environment() -> dict[str, str]:
    """Environment variables for a command that runs this working tree."""
    path = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    return {**os.environ, "PYTHONPATH": path, "NO_ALBUMENTATIONS_UPDATE": "1"}


# ---- writing


def machine() -> dict[str, Any]:
    """Hardware and versions, on which the results depend, but nothing that identifies the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    installed = {one.name: one.version for one in distributions()}
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: installed[name] for name in LIBRARIES if name in installed},
    }


def save(path: Path, results: Sequence[Result], **more: Any) -> None:
    """Write the results with the date and the machine."""
    found = {"measured": time.strftime("%Y-%m-%d"), "results": list(results), "machine": machine(), **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")


def document(folder: Path, topics: Mapping[str, str]) -> str:
    """One table per saved topic as Markdown, then the machines they were measured on."""
    found = {t: json.loads((folder / f"{t}.json").read_text()) for t in topics if (folder / f"{t}.json").is_file()}
    parts = [f"**{topic}**: {topics[topic]}\n\n{table(one['results'])}" for topic, one in found.items()]
    machines: dict[str, list[str]] = {}
    for topic, one in found.items():
        about = one["machine"]
        versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        hardware = f"{about['cpu']}, {about['cores']} cores{', ' + about['gpu'] if about['gpu'] else ''}"
        where = f"{one['measured']}: {hardware}; Python {about['python']}, {versions}"
        machines.setdefault(where, []).append(topic)
    parts += [f"Measured on {where} ({', '.join(measured)})." for where, measured in machines.items()]
    return "".join(f"{part}\n\n" for part in parts) or "\n"


def update(path: Path, text: str) -> None:
    """Put the tables between the two markers of a Markdown file."""
    path.write_text(TABLES.sub(lambda match: match[1] + text + match[2], path.read_text()))


def table(results: Iterable[Result]) -> str:
    """The results of one topic as a Markdown table."""
    comparisons = [one for one in results if "slices" not in one]
    usages = [one for one in results if "slices" in one]
    lines: list[str] = []
    if comparisons:
        lines += ["| | ours | the other | ratio: median, range |", "|---|--:|--:|--:|"]
        lines += [row for one in comparisons for row in _ratios(one)]
    if usages:
        lines += ["", *_usage(usages)] if lines else _usage(usages)
    return "\n".join(lines)


def _ratios(one: Result) -> Iterator[str]:
    """One row per other way: both medians, and the ratio of our rate to the other's, or of its memory to ours."""
    (_, ours), *others = one["mib" if "mib" in one else "seconds"].items()
    for other, theirs in others:
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        a, b = (_amount(one, statistics.median(values)) for values in (ours, theirs))
        range_ = f"{statistics.median(ratios):.3g}, {min(ratios):.3g} to {max(ratios):.3g}"
        yield f"| {one['name']} / {other} | {a} | {b} | {range_} |"


def _amount(one: Result, median: float) -> str:
    """MiB, a rate, or the seconds of a single run."""
    if "mib" in one:
        return f"{median:,.0f} MiB"
    return f"{median:.2g} s" if one["count"] == 1 else f"{shown(one['count'] / median)} {one['unit']}/s"


def shown(rate: float) -> str:
    """Three significant digits."""
    return f"{float(f'{rate:.3g}'):,g}" if rate < 1e6 else f"{rate / 1e6:.3g} million"


def _usage(results: Sequence[Result]) -> Iterator[str]:
    """One row per command: seconds and memory, or memory at several sizes and extrapolated to RSNA 2019."""
    counts = [int(n) for n in results[0]["slices"]]
    if len(counts) == 1:
        yield from (f"| {counts[0]:,} slices | seconds | peak MiB |", "|---|--:|--:|")
        for one in results:
            (found,) = one["slices"].values()
            yield f"| {one['name']} | {found['seconds']:,.1f} | {found['mib']:,.0f} |"
        return
    heads = [f"{n:,}" for n in counts]
    if beyond := counts[-1] < RSNA_SLICES:
        heads.append(f"{RSNA_SLICES:,} (extrapolated)")
    yield from (f"| peak MiB at slices | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads))
    for one in results:
        values = [row["mib"] for row in one["slices"].values()]
        if beyond:
            slope = (values[-1] - values[-2]) / (counts[-1] - counts[-2])
            values.append(values[-1] + slope * (RSNA_SLICES - counts[-1]))
        yield f"| {one['name']} | {' | '.join(f'{mib:,.0f}' for mib in values)} |"

"""The tables of docs/performance.md out of benchmarks/results: `python -m benchmarks.report` writes them there."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.__main__ import TOPICS
from benchmarks.race import OURS, shown

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
GPU = "_gpu"  # after the topic, where a GPU was measured
PLACE = re.compile(r"(<!-- results -->\n).*(<!-- end -->)", re.DOTALL)


def markdown() -> str:
    """A table a topic, and below them on which machine they were measured; of the results that are there."""
    found = {path.stem: json.loads(path.read_text()) for path in _paths()}
    tables = [f"**{stem}**: {TOPICS[stem.removesuffix(GPU)]}\n\n{_table(one)}" for stem, one in found.items()]
    machines: dict[str, list[str]] = {}
    for stem, one in found.items():
        machines.setdefault(_machine(one), []).append(stem)
    where = [f"Measured on {machine} ({', '.join(stems)})." for machine, stems in machines.items()]
    return "".join(f"{part}\n\n" for part in [*tables, *where]) or "\n"


def _paths() -> Iterator[Path]:
    names = [f"{topic}{device}.json" for topic in TOPICS for device in ("", GPU)]
    return (RESULTS / name for name in names if (RESULTS / name).is_file())


def _table(result: dict[str, Any]) -> str:
    peaks = [one for one in result["races"] if "memory" in one]
    if peaks:
        counts = " | ".join(f"{int(n):,}" for n in peaks[0]["memory"])
        head = [f"| peak MiB at slices | {counts} | bytes a slice |", "|---|" + "--:|" * (len(peaks[0]["memory"]) + 1)]
        return "\n".join([*head, *map(_peak, peaks)])
    head = ["| | ours | the other | ratio: median, range | wanted |", "|---|--:|--:|--:|--:|"]
    return "\n".join([*head, *(row for one in result["races"] for row in _pairs(one))])


def _pairs(one: dict[str, Any]) -> Iterator[str]:
    for other, ratio in one["ours_against"].items():
        rates = f"{shown(one['rate'][OURS])} {one['unit']}/s | {shown(one['rate'][other])}"
        wanted = "" if ratio["wanted"] is None else f"{ratio['wanted']:g}"
        if one.get("limit") is not None:
            times = sorted(one["seconds"][OURS])
            wanted = f"{times[len(times) // 2]:.2g} s of {one['limit']:g} s"
        range_ = f"{ratio['median']:.3g}, {ratio['least']:.3g} to {ratio['most']:.3g}"
        yield f"| {one['name']} / {other} | {rates} | {range_} | {wanted} |"


def _peak(one: dict[str, Any]) -> str:
    cells = " | ".join(f"{row['own_mib']:,.0f}" for row in one["memory"].values())
    return f"| {one['name']} | {cells} | {one['bytes_each']:,.0f} |"


def _machine(result: dict[str, Any]) -> str:
    about = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    gpu = f", {about['gpu']}" if about["gpu"] else ""
    return f"{result['measured']}: {about['cpu']}, {about['cores']} cores{gpu}; Python {about['python']}, {versions}"


def main() -> None:
    text = DOCUMENT.read_text()
    DOCUMENT.write_text(PLACE.sub(lambda match: match[1] + markdown() + match[2], text))


if __name__ == "__main__":
    main()

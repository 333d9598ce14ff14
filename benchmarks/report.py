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
PLACE = re.compile(r"(<!-- results -->\n).*(<!-- end -->)", re.DOTALL)


def markdown() -> str:
    """A table of pairs, one of peak memory, and on which machine; of the results that are there."""
    found = [json.loads(path.read_text()) for path in _paths()]
    pairs = [row for result in found for one in result["races"] if "rate" in one for row in _pairs(one)]
    peaks = [_peak(one) for result in found for one in result["races"] if "memory" in one]
    parts = []
    if pairs:
        head = ["| | ours | the other | ratio: median, range | wanted |", "|---|--:|--:|--:|--:|"]
        parts.append("\n".join([*head, *pairs]))
    if peaks:
        counts = next([*one["memory"]] for result in found for one in result["races"] if "memory" in one)
        head = [f"| peak MiB at slices | {' | '.join(f'{int(n):,}' for n in counts)} | bytes a slice |"]
        parts.append("\n".join([*head, "|---|" + "--:|" * (len(counts) + 1), *peaks]))
    machines = dict.fromkeys(_machine(result) for result in found)
    return "".join(f"{part}\n\n" for part in [*parts, *machines]) or "\n"


def _paths() -> Iterator[Path]:
    names = [f"{topic}{device}.json" for topic in TOPICS for device in ("", "_gpu")]
    return (RESULTS / name for name in names if (RESULTS / name).is_file())


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
    return f"{result['measured']}: {about['cpu']}, {about['cores']} cores{gpu}; Python {about['python']}, {versions}."


def main() -> None:
    text = DOCUMENT.read_text()
    DOCUMENT.write_text(PLACE.sub(lambda match: match[1] + markdown() + match[2], text))


if __name__ == "__main__":
    main()

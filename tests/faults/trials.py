"""Numbered trials: run in parallel, counted, and recorded so that each can be repeated alone."""

import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import machine


@dataclass(frozen=True)
class Outcome:
    """What a trial did (`what`) and what went wrong (`faults`). kind: the group in which it is counted."""

    trial: int
    kind: str
    what: str
    faults: tuple[str, ...] = ()


def run_parallel(trial: Callable[[int], Outcome], numbers: Iterable[int], jobs: int) -> Iterator[Outcome]:
    """Yield the outcomes of trials as they end. A trial that raises has failed."""

    def tried(number: int) -> Outcome:
        try:
            return trial(number)
        except Exception as error:  # of the harness itself: reported and counted; the other trials continue
            traceback.print_exc()
            return Outcome(number, "the harness", "raised", (f"{type(error).__name__}: {error}",))

    with ThreadPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(tried, number) for number in numbers]):
            yield future.result()


def conducted(topic: str, outcomes: Iterable[Outcome], seed: int, folder: Path) -> dict[str, Any]:
    """Print each outcome and return the topic's part of the results, without paths of this machine."""

    def portable(text: str) -> str:
        return text.replace(f"{folder}/", "").replace(f"{Path.cwd()}/", "")

    started, done, failed = time.monotonic(), list[Outcome](), list[Outcome]()
    for outcome in outcomes:
        done.append(outcome)
        said = "; ".join(outcome.faults) or "passed"
        print(f"{topic} {outcome.trial}: {outcome.kind}, {outcome.what}: {said}", flush=True)
        if outcome.faults:
            failed.append(outcome)
    tried, passed = Counter(o.kind for o in done), Counter(o.kind for o in done if not o.faults)
    return {
        "passed": len(done) - len(failed),
        "tried": len(done),
        "seed": seed,
        "seconds": round(time.monotonic() - started),
        "by_kind": {kind: f"{passed[kind]} of {count}" for kind, count in sorted(tried.items())},
        "failures": [
            {
                "trial": o.trial,
                "kind": o.kind,
                "what": portable(o.what),
                "faults": list(map(portable, o.faults)),
                "again": f"python -m tests.faults {topic} --seed {seed} --only {o.trial}",
            }
            for o in sorted(failed, key=lambda o: o.trial)
        ],
        "machine": machine(),
    }


def write(out: Path, parts: dict[str, dict[str, Any]]) -> None:
    """Write these topics into the file and keep the others."""
    before = json.loads(out.read_text()) if out.is_file() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(dict(sorted({**before, **parts}.items())), indent=2) + "\n")

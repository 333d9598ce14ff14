"""`python -m tests.faults [kills|flips|full_disk|two_runs ...]`: faults injected into runs of the tiny recipe.

Default: all topics. Their results are written to one JSON file; those of other topics in it are kept. Exit code 1 if
anything failed. The workspace of a failed trial is kept.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path

from tests.faults import flips, full_disk, kills, trials, two_runs
from tests.faults.trials import Outcome, conducted, run_parallel
from tests.faults.workspaces import Reference, reference

COUNTS = {"kills": 100, "flips": 600, "full_disk": full_disk.REAL, "two_runs": 20}

TRIALS = {module.__name__.rpartition(".")[2]: module.trial for module in (kills, flips, full_disk, two_runs)}


def outcomes(topic: str, given: argparse.Namespace, folder: Path, whole: Reference) -> Iterable[Outcome]:
    """Yield the outcomes of a topic."""
    numbers = range(given.count or COUNTS[topic]) if given.only is None else [given.only]
    finished = folder / "finished"
    shared = {"folder": folder, "reference": whole, "seed": given.seed}
    shared |= {"targets": flips.targets(finished, folder)} if topic == "flips" else {"finished": finished}
    found = run_parallel(partial(TRIALS[topic], **shared), numbers, given.jobs)
    if topic != "full_disk" or (given.only is not None and given.only < full_disk.FIRST):
        return found
    injected = full_disk.writes(seed=given.seed, folder=folder, finished=finished)
    if given.only is not None:  # of the run in which each write fails once
        return (one for one in injected if one.trial == given.only)
    return chain(found, injected)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").splitlines()[2])
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=", ".join(COUNTS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, help="trials per topic; default: the long form")
    parser.add_argument("--jobs", type=int, default=2, help="parallel trials")
    parser.add_argument("--only", type=int, metavar="TRIAL", help="run this trial alone and write no results")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/faults.json"))
    given = parser.parse_args()
    if unknown := set(given.topics) - set(COUNTS):
        parser.error(f"no such topic: {', '.join(unknown)}")

    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    print(f"in {folder}: {given.jobs} uninterrupted runs, for comparison", flush=True)
    whole, failed = reference(folder, given.jobs), False
    print(f"{whole.seconds:.0f} s", flush=True)
    for topic in given.topics or COUNTS:
        found = conducted(topic, outcomes(topic, given, folder, whole), given.seed, folder)
        print(f"{topic}: {found['passed']} of {found['tried']} in {found['seconds']} s", flush=True)
        failed |= bool(found["failures"])
        if given.only is None:
            trials.write(given.out, {topic: found})
    if not failed:
        shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

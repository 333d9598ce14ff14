"""`python -m tests.faults [kills|flips|full_disk|two_runs|one_fold ...]`: faults injected into runs of the tiny recipe.

Without a name, all of them. Results of topics go to one JSON file, beside those of other topics there. Exit code 1 if
anything failed. A failed trial's house is left where it is said.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path

from tests.faults import flips, full_disk, kills, one_fold, trials, two_runs
from tests.faults.house import Reference, reference
from tests.faults.trials import Outcome, conducted, side_by_side

COUNTS = {"kills": 100, "flips": 600, "full_disk": full_disk.REAL, "two_runs": 20, "one_fold": one_fold.CASES}

WRITES = 250  # of a run, about: for the time left


def outcomes(topic: str, given: argparse.Namespace, folder: Path, whole: Reference) -> tuple[Iterable[Outcome], int]:
    """The outcomes of a topic as they come, and how many there will be, about."""
    count = given.count or COUNTS[topic]
    numbers = range(count) if given.only is None else [given.only]
    common = {"folder": folder, "reference": whole}
    seeded, done = {**common, "seed": given.seed}, {"finished": folder / "finished"}
    if topic == "flips":
        found = partial(flips.trial, **seeded, houses=flips.houses(folder / "finished", folder))
    elif topic == "full_disk":
        found = partial(full_disk.trial, **seeded, **done)
        real = side_by_side(found, [n for n in numbers if n < full_disk.FIRST], given.jobs)
        if given.only is not None and given.only < full_disk.FIRST:
            return real, 1
        return chain(real, full_disk.writes(seed=given.seed, folder=folder, **done, only=given.only)), count + WRITES
    elif topic == "one_fold":
        found = partial(one_fold.trial, **common, **done)
    else:
        found = partial({"kills": kills.trial, "two_runs": two_runs.trial}[topic], **seeded)
    return side_by_side(found, numbers, given.jobs), len(numbers)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").splitlines()[2])
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=", ".join(COUNTS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, help="trials a topic, instead of the long form's")
    parser.add_argument("--jobs", type=int, default=2, help="trials side by side")
    parser.add_argument("--only", type=int, metavar="TRIAL", help="this trial alone, and no results written")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/faults.json"))
    given = parser.parse_args()
    if unknown := set(given.topics) - set(COUNTS):
        parser.error(f"no such topic: {', '.join(unknown)}")

    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    print(f"in {folder}: {given.jobs} uninterrupted runs, for comparison", flush=True)
    whole, failed = reference(folder, given.jobs), False
    print(f"{whole.seconds:.0f} s", flush=True)
    for topic in given.topics or COUNTS:
        found = conducted(topic, *outcomes(topic, given, folder, whole), given.seed, folder)
        print(f"{topic}: {found['passed']} of {found['tried']} in {found['seconds']} s", flush=True)
        failed |= bool(found["failures"])
        if given.only is None:
            trials.write(given.out, {topic: found})
    if not failed:
        shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Two runs of one recipe at once in one workspace: the same bytes as one run."""

import shutil
import time
from pathlib import Path
from random import Random

from tests.faults.trials import Outcome
from tests.faults.workspaces import Reference, as_expected, begin, run_all

PATIENCE = 10  # timeout, in multiples of the reference's seconds
WHOLE = 10  # every 10th trial runs all stages in a fresh clone; the others run five stages
HEAD_START = 5.0  # maximum, seconds


def trial(
    number: int, *, seed: int, folder: Path, finished: Path, reference: Reference, names: tuple[str, ...] | None = None
) -> Outcome:
    """Start two runs, one shortly after the other. names: their stages; default: random."""
    random, root = Random(f"{seed} two_runs {number}"), folder / f"two_runs{number}"
    begin(random, root, finished, None if number % WHOLE == 0 else 5, names)
    words, head_start = ("--set", f"compute.processes={random.choice((1, 2))}"), random.uniform(0, HEAD_START)
    first = run_all(root, words, "first")
    time.sleep(head_start)
    second = run_all(root, words, "second")
    faults = [fault for one in (first, second) for fault in one.ended(PATIENCE * reference.seconds)]
    faults += as_expected(root, reference)
    if not faults:
        shutil.rmtree(root)
    return Outcome(number, words[1], f"{head_start:.1f} s apart", tuple(faults[:10]))

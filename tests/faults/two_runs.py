"""Two runs of one recipe at once in one house: the bytes of one run, and no dead end."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.faults.house import Reference, differences, ended, fresh, left_behind, picture, run_all, unfinished
from tests.faults.trials import Outcome

PATIENCE = 10  # times the reference's seconds: a run that takes longer hangs
HEAD_START = 5.0  # seconds at most


def trial(
    number: int, *, seed: int, folder: Path, reference: Reference, begin: Callable[[Path], object] = fresh
) -> Outcome:
    """Begin a run, and another a moment later; let both end. begin(root) makes the house."""
    random, root = Random(f"{seed} two_runs {number}"), folder / f"two_runs{number}"
    begin(root)
    processes, head_start = random.choice((1, 2)), random.uniform(0, HEAD_START)
    words = ("--set", f"compute.processes={processes}")
    first = run_all(root, words, "first")
    time.sleep(head_start)
    second = run_all(root, words, "second")
    faults = [fault for one in (first, second) for fault in ended(one, PATIENCE * reference.seconds)]
    faults += [f"{one.errors.name}: goes on without end" for one in (first, second) if not one.gone()]
    faults += differences(reference.picture, picture(root)) + left_behind(root) + unfinished(root)
    if not faults:
        shutil.rmtree(root)
    return Outcome(number, f"processes={processes}", f"{head_start:.1f} s apart", tuple(faults[:10]))

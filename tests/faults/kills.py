"""SIGKILL at a random moment of a run, then a rerun: same bytes, and no finished work is repeated."""

import shutil
import subprocess
from pathlib import Path
from random import Random

from tests.faults.trials import Outcome
from tests.faults.workspaces import Reference, Running, as_expected, begin, killed, records, rewritten, run_all

MODES = (
    "all",  # every process at once, as in a power cut
    "deepest",  # the Python process that was started last, often a worker, as the out-of-memory killer does
    "shell",  # the shell alone: its stage continues, in parallel with the rerun
)
PATIENCE = 10  # timeout, in multiples of the reference's seconds
WHOLE = 20  # every 20th trial is a whole run in a fresh clone; the others run two stages
STAGES = 15.0  # in a whole run


def trial(
    number: int,
    *,
    seed: int,
    folder: Path,
    finished: Path,
    reference: Reference,
    names: tuple[str, ...] | None = None,
    kills: int = 1,
) -> Outcome:
    """Kill a run and its reruns `kills` times in all, then rerun to the end. names: the stages; default: random.

    A run that ends before it is killed starts the trial again.
    """
    random, root = Random(f"{seed} kills {number}"), folder / f"kills{number}"
    words = ("--set", f"compute.processes={random.choice((1, 2))}")
    stood, what, ran, modes = {}, [], [], set()
    while len(what) < kills:
        if not what:
            stood, ran = {}, []
            run = begin(random, root, finished, None if number % WHOLE == 0 else 2, names)
        ran.append(run_all(root, words, f"run{len(ran)}"))
        mode = random.choice(MODES)  # later kills come later, after the finished work
        seconds = reference.seconds * len(run) / STAGES
        moment = (random.random() + len(what) / 4) * seconds / kills
        try:
            ran[-1].process.wait(moment)
            what.clear()
        except subprocess.TimeoutExpired:
            stood |= records(root)
            what.append(f"{mode} after {moment:.1f} s, {len(stood)} finished records")
            modes.add(mode)
            _kill(ran[-1], mode)
    last = run_all(root, words, "last")
    faults = [*last.ended(PATIENCE * reference.seconds)]
    faults += [f"{one.errors.name}: a process of it still runs" for one in ran if not one.gone()]
    faults += [fault for one in ran for fault in one.tracebacks()]
    faults += rewritten(stood, root) + as_expected(root, reference)
    if not faults:
        shutil.rmtree(root)
    return Outcome(number, " ".join(sorted(modes)), f"{words[1]}, {', '.join(what)}", tuple(faults[:10]))


def _kill(running: Running, mode: str) -> None:
    if mode == "all":
        running.kill()
        return
    pythons = [pid for pid in running.living() if pid != running.process.pid and not _is_tracker(pid)]
    if mode == "shell" or not pythons:
        killed(running.process.pid)
        running.process.wait()
    else:
        killed(max(pythons))
        running.gone()


def _is_tracker(pid: int) -> bool:
    """Return True for the helper process that removes loky's semaphores."""
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False

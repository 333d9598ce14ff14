"""SIGKILL at a random moment of a run, then a plain rerun: the same bytes, and nothing made twice."""

import shutil
import subprocess
from pathlib import Path
from random import Random

from tests.faults.house import Reference, Running, as_expected, begin, killed, made_again, records, run_all
from tests.faults.trials import Outcome

MODES = (
    "all",  # every process at once, as in a power cut
    "deepest",  # the Python process that was started last, often a worker, as when memory runs out
    "shell",  # the shell alone: the stage that it started goes on, and the rerun meets it
)
PATIENCE = 10  # times the reference's seconds: a run that takes longer hangs
WHOLE = 20  # one trial of so many is of a whole run in a fresh clone; the others run two stages
STAGES = 15.0  # of a whole run


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
    """Kill a run, and its reruns, so many times in all; the last rerun ends. names: its stages, drawn where None.

    A run that is faster than the moment drawn is no kill: the trial begins again.
    """
    random, root = Random(f"{seed} kills {number}"), folder / f"kills{number}"
    words = ("--set", f"compute.processes={random.choice((1, 2))}")
    stood, what, ran, modes = {}, [], [], set()
    while len(what) < kills:
        if not what:
            stood, ran = {}, []
            run = begin(random, root, finished, None if number % WHOLE == 0 else 2, names)
        ran.append(run_all(root, words, f"run{len(ran)}"))
        mode = random.choice(MODES)  # later kills come later: a rerun has to get past what is done
        seconds = reference.seconds * len(run) / STAGES
        moment = (random.random() + len(what) / 4) * seconds / kills
        try:
            ran[-1].process.wait(moment)
            what.clear()
        except subprocess.TimeoutExpired:
            stood |= records(root)
            what.append(f"{mode} after {moment:.1f} s, {len(stood)} records stood")
            modes.add(mode)
            _kill(ran[-1], mode)
    last = run_all(root, words, "last")
    faults = [*last.ended(PATIENCE * reference.seconds)]
    faults += [f"{one.errors.name}: a process of it still runs" for one in ran if not one.gone()]
    faults += [fault for one in ran for fault in one.tracebacks()]
    faults += made_again(stood, root) + as_expected(root, reference)
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
    """Whether this is the small process that removes loky's semaphores."""
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False

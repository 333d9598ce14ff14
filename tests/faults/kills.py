"""SIGKILL at a random moment of a run, then a plain re-run: the same bytes, and nothing made twice."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.faults.house import (
    Reference,
    Running,
    differences,
    ended,
    fresh,
    killed,
    left_behind,
    made_again,
    picture,
    records,
    run_all,
    tracebacks,
    unfinished,
    words_of,
)
from tests.faults.trials import Outcome

MODES = (
    "all",  # every process at once, as when the power goes
    "deepest",  # the deepest Python that works, as when memory runs out
    "shell",  # the shell alone: what it started goes on, and the re-run meets it
)
PATIENCE = 10  # times the reference's seconds: a run that takes longer hangs


def trial(
    number: int,
    *,
    seed: int,
    folder: Path,
    reference: Reference,
    kills: int = 1,
    begin: Callable[[Path], object] = fresh,
) -> Outcome:
    """Kill a run, and its re-runs, so many times in all; let the last re-run end. begin(root) makes the house.

    A run that was quicker than the moment drawn is no kill: the trial begins anew.
    """
    random, root = Random(f"{seed} kills {number}"), folder / f"kills{number}"
    processes = random.choice((1, 2))
    words = ("--set", f"compute.processes={processes}")
    stood, what, ran = {}, [], []
    modes = set()
    while len(what) < kills:
        if not what:
            begin(root)
            stood, ran = {}, []
        ran.append(run_all(root, words, f"run{len(ran)}"))
        mode = random.choice(MODES)  # the later ones come later: a re-run has to get past what is done
        moment = (random.random() + len(what) / 4) * reference.seconds / kills
        try:
            ran[-1].process.wait(moment)
            what.clear()
        except subprocess.TimeoutExpired:
            stood |= records(root)
            what.append(f"{mode} after {moment:.1f} s in {_stage(ran[-1])}, {len(stood)} records stood")
            modes.add(mode)
            _kill(ran[-1], mode)
    ran.append(run_all(root, words, "last"))
    faults = ended(ran[-1], PATIENCE * reference.seconds)
    faults += [f"{one.errors.name}: goes on without end" for one in ran if not one.gone()]
    faults += tracebacks(one.errors for one in ran[:-1])
    faults += made_again(stood, root) + differences(reference.picture, picture(root))
    faults += left_behind(root) + unfinished(root)
    if not faults:
        shutil.rmtree(root)
    return Outcome(number, " ".join(sorted(modes)), f"processes={processes}, {', '.join(what)}", tuple(faults[:10]))


def _stage(running: Running) -> str:
    """The `ich` command that runs."""
    words = [words_of(pid) for pid, _ in running.living()]
    commands = (line[line.index(script) + 1] for line in words for script in line if script.endswith("/ich"))
    return next(commands, "the shell")


def _kill(running: Running, mode: str) -> None:
    living = dict(running.living())
    if mode == "shell":
        killed(running.process.pid)
        running.process.wait()
    elif mode == "deepest":
        pythons = [pid for pid in living if pid != running.process.pid and not _keeps_count(pid)]
        if pythons:
            killed(max(pythons, key=lambda pid: (_depth(pid, living), _memory(pid))))
        else:
            killed(running.process.pid)
        running.gone()
    else:
        running.kill()


def _keeps_count(pid: int) -> bool:
    """Whether this is the little process that removes loky's semaphores; it has no memory worth taking."""
    return any("resource_tracker" in word for word in words_of(pid))


def _depth(pid: int, parents: dict[int, int]) -> int:
    return 0 if pid not in parents else 1 + _depth(parents[pid], parents)


def _memory(pid: int) -> int:
    """Pages in use."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0

"""Optuna's search for the best of many operating points: one-dimensional TPE studies, resumable, in any number.

A study's trials are kept in memory and, where there is a journal, written there one by one as they finish. Trial i is
drawn with a generator of its own, from the seed, i and the finished trials before it. So a search that was killed goes
on with the trials that it would have made anyway, more trials later continue the fewer ones, and which process
runs a study makes no difference. Each line of the journal ends with its own hash, for trials that a flipped bit has
changed would lead the search elsewhere.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from ich.ensemble.thresholds.surfaces import Surface
from ich.processes import side_by_side

optuna.logging.set_verbosity(optuna.logging.WARNING)

NAME = "position"  # the parameter, 0 to 1: among the operating points, in the order of falling thresholds
LADDER = 32  # trials of an even ladder that every study begins with
PAYS = 6000  # trials, in all, from which on further processes pay for their start: a trial takes about 2 ms


def search(
    surfaces: Sequence[Surface],
    *,
    trials: int,
    seed: int,
    journal: Path | None = None,
    processes: int = 1,
    advance: Callable[[int], object] | None = None,
) -> list[int]:
    """The best operating point that a study of so many trials finds on each surface.

    journal: a file of Optuna's JournalStorage that holds the trials (see `mend`); studies have the surfaces' names.
    processes: whole studies are shared out to so many fresh processes, where there is enough to do. advance: told how
    many more trials are done.
    """
    jobs = min(processes, len(surfaces)) if trials * len(surfaces) >= PAYS else 1
    found = []
    for best in side_by_side(_study, ((surface, trials, seed, journal) for surface in surfaces), jobs):
        found.append(best)
        if advance is not None:
            advance(trials)
    return found


def best(
    objective: Callable[[Mapping[str, float]], float],
    names: Sequence[str],
    *,
    trials: int,
    seed: int,
    starts: Sequence[Mapping[str, float]],
) -> dict[str, float]:
    """Of so many points of the cube [0, 1]^names, the one of the highest value that TPE finds; `starts` come first."""
    sampler = optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=10, n_ei_candidates=24, multivariate=True, group=False, constant_liar=False
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for start in starts:
        study.enqueue_trial(dict(start))
    study.optimize(lambda trial: objective({n: trial.suggest_float(n, 0.0, 1.0) for n in names}), n_trials=trials)
    return study.best_params


def mend(journal: Path, tag: str) -> None:
    """Make a journal fit to go on with: cut it off before the first line that a kill has torn, that is damaged or was
    not written here; empty it where nothing in it is ours.

    tag: what the names of the studies begin with that belong to the present data and goal.
    """
    with _lock(journal):
        if not journal.is_file():
            return
        content, whole = journal.read_bytes(), 0
        ours = False
        for line in content.splitlines(keepends=True):
            log = _opened(line)
            if log is None:
                break
            whole += len(line)
            ours |= str(log.get("study_name")).startswith(tag)
        if not ours:
            whole = 0
        if whole < len(content):
            with journal.open("r+b") as file:
                file.truncate(whole)


_SEALED = re.compile(rb'(\{.+),"sha256":"([0-9a-f]{64})"\}\n')


def _sealed(log: dict[str, Any]) -> bytes:
    """A line of the journal: the log, and as its last key, of which Optuna takes no notice, the hash of the others."""
    text = json.dumps(log, separators=(",", ":")).encode()
    return b'%b,"sha256":"%b"}\n' % (text[:-1], sha256(text).hexdigest().encode())


def _opened(line: bytes) -> dict[str, Any] | None:
    """The log of a line that is as `_sealed` made it, else None."""
    found = _SEALED.fullmatch(line)
    if found is None or sha256(found[1] + b"}").hexdigest().encode() != found[2]:
        return None
    return json.loads(line)


def _study(surface: Surface, trials: int, seed: int, journal: Path | None) -> int:
    if len(surface.values) == 1:
        return 0
    kept = None if journal is None else _kept(journal, surface.name)
    # trials that another process left running are none
    known = [] if kept is None else kept.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))[:trials]
    points, space = len(surface.values), FloatDistribution(0.0, 1.0)  # whole numbers take TPE three times as long
    study, first = optuna.create_study(direction="maximize"), _first(surface)
    study.add_trials(known)
    for i in range(len(known), trials):
        if i < len(first):
            value = float(surface.values[first[i]])
            params = {NAME: (first[i] + 0.5) / points}
            study.add_trial(create_trial(params=params, distributions={NAME: space}, value=value))
        else:
            study.sampler = _sampler(seed, i)
            trial = study.ask()
            study.tell(trial, float(surface.values[_at(trial.suggest_float(NAME, space.low, space.high), points)]))
        if kept is not None:
            kept.add_trial(study.get_trials(deepcopy=False)[-1])
    return _at(study.best_params[NAME], points)


def _at(position: float, points: int) -> int:
    return min(int(position * points), points - 1)


def _first(surface: Surface) -> list[int]:
    """The numbers that are tried first: the starts, and a ladder over all, any part of which is nearly even."""
    top, bits = len(surface.values) - 1, LADDER.bit_length() - 1
    shares = [int(f"{i:0{bits}b}"[::-1], 2) / (LADDER - 1) for i in range(LADDER)]
    return [min(max(number, 0), top) for number in (*surface.starts, *(round(share * top) for share in shares))]


def _sampler(seed: int, i: int) -> optuna.samplers.TPESampler:
    """TPE for trial i, every argument named whose default was another one in some version of Optuna."""
    return optuna.samplers.TPESampler(
        seed=int(np.random.SeedSequence([seed, i]).generate_state(1)[0]),
        n_startup_trials=10,
        n_ei_candidates=24,
        multivariate=False,
        group=False,
        constant_liar=False,
    )


def _kept(journal: Path, name: str) -> optuna.Study:
    """The study of that name in the journal, made where there is none."""
    storage = JournalStorage(_Backend(journal))
    if name in {study.study_name for study in storage.get_all_studies()}:
        return optuna.load_study(study_name=name, storage=storage)
    return optuna.create_study(study_name=name, storage=storage, direction="maximize")


class _Backend(JournalFileBackend):
    """Optuna's journal, written without waiting for the disk after every trial, and under another lock.

    The operating system's, which dies with its owner; after a kill, Optuna's own would make others wait for 30 s.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self.journal, self.lock = journal, _lock(journal)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = b"".join(map(_sealed, logs))
        try:
            with self.lock, self.journal.open("ab") as file:
                file.write(lines)
        except OSError as error:  # a full disk does not say which file was to grow
            raise OSError(error.errno, error.strerror, str(self.journal)) from error


def _lock(journal: Path) -> FileLock:
    folder = journal.parent / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{journal.name}.lock")

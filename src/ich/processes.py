"""Parallel work in processes that end with their parent, and the end of a run by Ctrl-C or SIGTERM.

A terminal sends Ctrl-C to all processes. Workers ignore it: the parent decides.
"""

import fcntl
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import IO, Any

from ich import console
from ich.errors import UserError

GRACE = 1.0  # seconds between an interruption and the end, in which half-written files are removed
HANDLED = (signal.SIGINT, signal.SIGTERM)
IDLE = 300  # seconds after which an idle worker ends
LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
SHARED = 64  # processes per GPU
_taken: list[IO[str]] = []  # locks of the GPUs of this process
POLL = 0.25  # seconds between two checks that the parent is running


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM. Not a KeyboardInterrupt, which libraries catch and print."""


def run_parallel(
    function: Callable[..., Any],
    tasks: Iterable[tuple],
    jobs: int,
    *,
    ordered: bool = True,
    threads: int | None = None,
    gpus: Sequence[str] = (),
    advice: str = "with fewer processes",
) -> Iterator[Any]:
    """Yield the results of `function(*task)` from `jobs` worker processes; from this process if `jobs` is 1.

    Without a writable /dev/shm, processes cannot share locks: then all work is done in this process, with a warning.
    ordered: in the order of the tasks, else as they finish. Raises the errors of `function`, and those of `workers`.
    """
    if jobs <= 1 or not can_share_locks():
        for task in tasks:
            yield function(*task)
        return
    running: list[Future] = []

    def result() -> Any:
        first = running[0] if ordered else next(iter(wait(running, return_when=FIRST_COMPLETED).done))
        running.remove(first)
        found = first.result()
        console.catch_up()
        return found

    with workers(jobs, threads=threads, gpus=gpus, advice=advice) as submit:
        try:
            for task in tasks:
                running.append(submit(function, *task))
                if len(running) == 2 * jobs:
                    yield result()
            while running:
                yield result()
        finally:
            if running:  # an error, or an interruption
                _end_workers()


@contextmanager
def workers(
    jobs: int, *, threads: int | None = None, gpus: Sequence[str] = (), advice: str = "with fewer processes"
) -> Iterator[Callable[..., Future]]:
    """Yield a function that calls another one in one of `jobs` worker processes, as `submit` of an executor.

    Workers are new processes (loky), because a fork after OpenMP work hangs. They are kept for the next call. Their
    console output appears when `console.catch_up` is called.
    threads: of the libraries in each worker. gpus: ids of which each worker takes one. Raises UserError with `advice`
    if a worker is killed.
    """
    # After a kill, joblib's helper process removes its temporary files and would print two lines about leaks.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    from joblib.externals.loky import get_reusable_executor  # imports numpy, which `ich status` does without
    from joblib.externals.loky.process_executor import BrokenProcessPool

    limits = dict.fromkeys(LIMITS, str(threads or max(1, (os.cpu_count() or 1) // jobs)))
    arguments = (os.getpid(), *console.for_workers(), tuple(gpus))
    try:
        # Workers inherit the mask and so ignore Ctrl-C while they start. A tracker that starts later unblocks it.
        resource_tracker.ensure_running()

        def submit(function: Callable[..., Any], *given: Any) -> Future:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:  # the executor may be broken, or meanwhile be that of another call
                executor = get_reusable_executor(jobs, timeout=IDLE, env=limits, initializer=_begin, initargs=arguments)
                return executor.submit(function, *given)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

        yield submit
    except BrokenProcessPool:
        raise UserError(
            f"one of {jobs} processes was killed, perhaps because memory ran out. Finished work is kept: rerun {advice}"
        ) from None
    finally:
        console.workers_ended()


def can_share_locks() -> bool:
    """Return whether worker processes are possible, and warn once if not."""
    try:
        multiprocessing.Lock()
    except OSError as error:
        console.warn(f"/dev/shm is not writable ({error.strerror}): working in one process", once=True)
        return False
    return True


def _begin(parent: int, output: socket.socket, level: console.Level, gpus: Sequence[str]) -> None:
    from joblib.externals.loky import process_executor

    process_executor._USE_PSUTIL = False  # else loky takes the import of torch for a leak and replaces the worker
    end_with_parent(parent)
    console.speak_to(output, level)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = _take(gpus)


def _take(gpus: Sequence[str]) -> str:
    """Return a GPU that as few processes of this user as possible take, and lock it until this process ends."""
    for number in range(SHARED * len(gpus)):
        gpu, place = gpus[number % len(gpus)], number // len(gpus)
        name = f"ich-{os.getuid()}-gpu-{gpu.replace(os.sep, '_')}-{place}.lock"
        with suppress(OSError):
            file = Path(tempfile.gettempdir(), name).open("a")  # noqa: SIM115 (open until this process ends)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _taken.append(file)
            return gpu
    return gpus[0]


def end_with_parent(parent: int) -> None:
    """End this process soon after the process `parent`, and ignore Ctrl-C.

    So no orphan continues to work or keeps locks and files of its parent. Forked processes also inherit the handlers
    and the wakeup pipe of `interruptible`, which are removed here.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def _end_workers() -> None:
    """Kill the kept workers. loky itself asks them to exit, and waits forever if one is killed at that moment."""
    if loky := sys.modules.get("joblib.externals.loky"):
        loky.get_reusable_executor(reuse=True).shutdown(kill_workers=True)


@contextmanager
def interruptible(parting: str) -> Iterator[None]:
    """Let Ctrl-C or SIGTERM in this block end the process within two seconds, with `parting` as its last line.

    The signal raises Interrupted, so that half-written files are removed. But a long call of a library may return to
    Python late: so a thread also waits for the signal, and ends the process after GRACE seconds.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    ending = threading.Lock()

    def end(number: int) -> None:
        ending.acquire()  # for good: the second thread waits here for the end
        try:
            console.show_cursor()
            print(f"\n{parting}", file=sys.stderr, flush=True)
        finally:  # even if stderr is closed
            os._exit(128 + number)

    def wait() -> None:
        number = 0
        while number not in HANDLED:  # libraries handle other signals, such as SIGCHLD
            (number,) = os.read(read, 1)
        time.sleep(GRACE)
        end(number)

    def interrupt(number: int, _frame: Any) -> None:
        for each in HANDLED:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    for each in HANDLED:
        signal.signal(each, interrupt)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=wait, name="interruption", daemon=True).start()
    try:
        try:
            yield
        finally:
            _end_workers()
    except Interrupted as interruption:
        end(*interruption.args)
    finally:
        signal.set_wakeup_fd(-1)
        for each in HANDLED:  # nothing is at stake while the interpreter shuts down
            signal.signal(each, signal.SIG_DFL)

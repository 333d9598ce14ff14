"""Work side by side in fresh processes, which end with the one that started them; and how a run is interrupted.

What is started here is deaf to Ctrl-C, which a terminal sends to every process: the first process decides.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ich import console
from ich.errors import UserError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

GRACE = 1.0  # seconds between an interruption and the end, in which half-written files are removed
HEEDED = (signal.SIGINT, signal.SIGTERM)
POLL = 0.25  # seconds between two looks at whether the parent is still there


class Interrupted(BaseException):
    """Ctrl-C or a request to end. No KeyboardInterrupt, which libraries catch and print in ways of their own."""


def side_by_side(
    function: Callable[..., Any],
    tasks: Iterable[tuple],
    jobs: int,
    *,
    ordered: bool = True,
    threads: int | None = None,
    again: str = "with less beside it",
) -> Iterator[Any]:
    """Results of `function(*task)`, from `jobs` processes; in this one where jobs is 1.

    The processes are fresh ones (loky), for a fork after OpenMP work hangs, and are kept for the next call. What they
    say by `ich.console` is printed by this one, before the result that it led to.
    ordered: in the order of the tasks, else as they are finished. threads: of the libraries in each process. Raises
    UserError where a process was killed, which says how to try it `again`; and what `function` raises.
    """
    if jobs <= 1:
        for task in tasks:
            yield function(*task)
        return
    # After a kill joblib's own helper removes what was left, and would say so in two lines about leaks.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    import joblib
    from joblib.externals.loky.process_executor import BrokenProcessPool

    order = "generator" if ordered else "generator_unordered"
    backend = {"backend": "loky", "inner_max_num_threads": threads}
    try:
        # no file of joblib's is written and read, however large the arguments: max_nbytes
        begin = (os.getpid(), *console.for_others())
        with joblib.parallel_config(**backend, initializer=_begin, initargs=begin), _started_deaf():
            runner = joblib.Parallel(n_jobs=jobs, return_as=order, batch_size=1, max_nbytes=None)  # pyright: ignore
            results = runner(joblib.delayed(function)(*task) for task in tasks)
        for result in results:  # pyright: ignore[reportGeneralTypeIssues]
            console.catch_up()
            yield result
    except BrokenProcessPool:
        raise UserError(
            f"one of {jobs} processes was killed, as a machine does that runs out of memory. What was finished is"
            f" kept: run the same again, {again}"
        ) from None
    finally:
        console.others_ended()


def _begin(parent: int, writer: "Connection", level: console.Level) -> None:
    end_with_parent(parent)
    console.speak_through(writer, level)


def end_with_parent(parent: int) -> None:
    """Let this process, begun by `parent`, end soon after it, and let `parent` alone heed Ctrl-C.

    So no orphan goes on working or holding what was its parent's. For processes that were forked too, which have
    their parent's handlers, and with them the pipe by which it waits for its own signals.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_after(parent)


def end_after(parent: int) -> None:
    """Let this process, begun by `parent`, end soon after it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


@contextmanager
def _started_deaf() -> Iterator[None]:
    """What is started in this block ignores Ctrl-C from its first instruction on: it inherits that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def interruptible(parting: str, heard: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Ctrl-C or SIGTERM in this block ends the process within two seconds, with `parting` as its last line if `heard`.

    It raises Interrupted first, so that half-written files are removed. A library's long call returns to Python when it
    likes, though: a thread waits for the signal too, and ends the process after GRACE seconds.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    ending = threading.Lock()

    def end(number: int) -> None:
        ending.acquire()  # for good: whoever comes second waits for the end
        try:
            console.show_cursor()
            if heard():
                print(f"\n{parting}", file=sys.stderr, flush=True)
        finally:  # nobody may listen any more
            os._exit(128 + number)

    def wait() -> None:
        number = 0
        while number not in HEEDED:  # libraries have handlers too: torch, of SIGCHLD
            (number,) = os.read(read, 1)
        time.sleep(GRACE)
        end(number)

    def interrupt(number: int, _frame: Any) -> None:
        for each in HEEDED:
            signal.signal(each, signal.SIG_IGN)  # once is enough: the end is under way
        raise Interrupted(number)

    for each in HEEDED:
        signal.signal(each, interrupt)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=wait, name="interruption", daemon=True).start()
    try:
        yield
    except Interrupted as interruption:
        end(*interruption.args)
    finally:
        signal.set_wakeup_fd(-1)
        for each in HEEDED:  # nothing is at stake while the interpreter takes itself apart
            signal.signal(each, signal.SIG_DFL)

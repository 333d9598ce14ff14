"""Console output: lines, tables and progress. Bars on a terminal, plain lines in a file.

Level `quiet` prints only warnings and results; `verbose` also prints decisions and their reasons. Worker processes
(`ich.processes`) send their output to the parent process, which prints it.
"""

import io
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, Literal

from rich.box import Box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from ich.console.estimate import Estimate, Overall, duration

__all__ = ["Level", "Work", "detail", "duration", "progress", "say", "table", "time_left", "visible", "warn", "whole"]

Level = Literal["quiet", "normal", "verbose"]
BRIEF = 0.5  # seconds after which an inner operation is shown
LIVE_EVERY = 0.1  # seconds between two updates of a bar
LONGEST = 1 << 16  # bytes of a message
LONGEST_CELL, LONGEST_LINE = 200, 2000  # characters
LONG_WORD = re.compile(r"\S{161,}")  # longer than any path or UID that a user would type
UNDERLINED = Box("    \n    \n -- \n" + 5 * "    \n", ascii=True)
SHOW_CURSOR = b"\x1b[?25h"


class _Here:
    """Console state of this process."""

    def __init__(self) -> None:
        self.level: Level = "normal"
        self.lock = threading.RLock()
        self.warned: set[str] = set()
        self.overall: Overall | None = None
        self.shown: dict[str, float] = {}  # when each running operation was last shown
        self.bars: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.parent: socket.socket | None = None  # in a worker
        self.workers: tuple[socket.socket, socket.socket] | None = None  # in the parent: receiver, sender


_here = _Here()


# ---- lines


def set_level(level: Level) -> None:
    _here.level = level


def visible(text: str) -> str:
    """Escape unprintable characters, and shorten long words and lines: hostile ids contain them."""
    text = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    text = LONG_WORD.sub(lambda match: _shortened(match[0], 64), text)
    return "\n".join(_shortened(line, LONGEST_LINE) for line in text.split("\n"))


def _shortened(text: str, width: int) -> str:
    """Cut the middle of a text, since ids often differ at their ends."""
    end = width // 3
    return text if len(text) <= width else f"{text[: width - end - 1]}…{text[-end:]}"


def say(text: str, *, always: bool = False) -> None:
    """Print a line. always: it is a result of the command, so print it at level `quiet` too."""
    if always or _here.level != "quiet":
        _print(text)


def warn(text: str, *, once: bool = False) -> None:
    """Print a warning at any level. once: only the first time in all processes."""
    if once and _send("warn", text):
        return
    if not once or text not in _here.warned:
        _print(f"warning: {text}")
    if once:
        _here.warned.add(text)


def detail(text: str) -> None:
    """Print a line at level `verbose` only."""
    if _here.level == "verbose":
        _print(text)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", *, always: bool = False) -> None:
    """Print a table that fits the terminal: long cells wrap, numbers align to the right. always: see `say`."""
    grid = Table(box=UNDERLINED, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(columns):
        numeric = all(_is_number(row[i]) for row in rows)
        grid.add_column(Text(visible(name)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_shortened(visible(cell).replace("\n", "\\n"), LONGEST_CELL)) for cell in row))
    text = io.StringIO()
    Console(width=shutil.get_terminal_size((120, 24)).columns, file=text, color_system=None).print(grid)
    if title:
        say(f"\n{title}", always=always)
    for line in text.getvalue().splitlines():
        say(line.rstrip(), always=always)


def _is_number(cell: str) -> bool:
    return cell.strip("-").replace(".", "", 1).replace(",", "").isdigit() or cell in ("", "-")


def _print(text: str) -> None:
    text = visible(text)
    if _send("say", text):
        return
    with _here.lock:
        if _here.bars is None:
            print(f"{text}\n", end="", flush=True)  # one write, which other processes cannot split
        else:
            _here.bars.console.print(text, soft_wrap=True)


# ---- progress


class Work(Estimate):
    """A running operation. Call it with the number of items finished since the last call."""

    def __call__(self, count: int) -> None:
        self.at(int(self.done) + count)

    def at(self, done: int, note: str | None = None) -> None:
        """Set the number of finished items and a note."""
        self.done = min(done, self.total)
        self.note = self.note if note is None else note
        _show(self)

    def begin(self, done: int) -> None:
        """Restart the clock, with items that were finished in an earlier run."""
        self.first, self.done, self.started = done, done, time.monotonic()


@contextmanager
def progress(what: str, total: int, unit: str = "slices", *, inner: bool = False) -> Iterator[Work]:
    """Show the progress of an operation.

    inner: part of another operation; shown only after half a second, and without a closing line.
    """
    work = Work(what, total, unit, inner)
    _show(work)
    try:
        yield work
    finally:
        _end(what)
    if total and not inner:
        say(work.closing())


@contextmanager
def whole(what: str, times: Mapping[str, float], unit: str = "folds") -> Iterator[Callable[[str], None]]:
    """Show the progress of all parts together. Yields a function to call with the name of each finished part.

    times: expected time of each part, on any scale. The progress of a running part is that of the operation of the same
    name in any process.
    """
    overall = Overall(what, times, unit)

    def finished(part: str) -> None:
        with _here.lock:
            overall.finish(part)
            _show(overall)

    _here.overall = overall
    _show(overall)
    try:
        yield finished
    finally:
        _here.overall = None
        _end(what)


def time_left() -> str:
    """Return `, 25 min left in total` while the parts of a `whole` are running, if known."""
    overall = _here.overall
    return overall.pace() if overall is not None and len(overall.finished) < len(overall.parts) else ""


def _show(work: Estimate) -> None:
    """Draw a bar on a terminal, print a line at growing intervals in a file, or send the state to the parent."""
    with _here.lock:
        if _here.overall is not None and work is not _here.overall:
            _here.overall.update(work)
            _show(_here.overall)
        now, of_all = time.monotonic(), isinstance(work, Overall)
        if (
            _here.level == "quiet"
            or (isinstance(work, Overall) and len(work.parts) < 2)
            or (work.inner and now - work.started < BRIEF)
        ):
            return
        live = _here.parent is not None or _terminal()
        pause = LIVE_EVERY if live else min(300.0, max(60.0 if of_all else 15.0, (now - work.started) / 40))
        if now - _here.shown.get(work.what, 0.0 if live else work.started) < pause:
            return
        _here.shown[work.what] = now
        if _here.parent is not None:
            _send("work", asdict(work))
        elif live:
            _draw(work)
        else:
            _print(f"{'  ' if work.inner else ''}{work.what}: {work.state()}")


def _draw(work: Estimate) -> None:
    if _here.bars is None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[state]}", markup=False),
        )
        console = Console(markup=False, emoji=False, highlight=False)
        # no refresh thread: a process that is forked meanwhile would inherit its locks
        _here.bars = Progress(*columns, console=console, auto_refresh=False, transient=True, expand=True)
        _here.bars.start()
    if work.what not in _here.tasks:
        _here.tasks[work.what] = _here.bars.add_task(visible(work.what), total=1.0, state="")
    task = _here.tasks[work.what]
    _here.bars.update(task, completed=work.share, state=visible(work.state()), refresh=True)


def _end(what: str) -> None:
    """Remove the bar of an operation."""
    with _here.lock:
        if _here.shown.pop(what, None) is not None:
            _send("end", what)
        if _here.bars is not None and what in _here.tasks:
            _here.bars.remove_task(_here.tasks.pop(what))
            _here.bars.refresh()
            if not _here.tasks:
                _here.bars.stop()
                _here.bars = None


def _terminal() -> bool:
    """Return whether bars can be drawn."""
    return sys.stdout.isatty() and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")


def show_cursor() -> None:
    """Restore the cursor that bars hide, before the process ends."""
    if _here.bars is not None:
        os.write(sys.stdout.fileno(), SHOW_CURSOR)


# ---- workers: datagrams arrive whole or not at all, and without locks, whenever a worker is killed


def for_workers() -> tuple[socket.socket, Level]:
    """Return the arguments of `speak_to` for worker processes, and start to print what they send."""
    if _here.workers is None:
        _here.workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        threading.Thread(target=_listen, args=_here.workers[:1], name="console", daemon=True).start()
    return _here.workers[1], _here.level


def speak_to(parent: socket.socket, level: Level) -> None:
    """Send the output of this process to its parent."""
    _here.parent, _here.level = parent, level


def _send(kind: str, content: Any) -> bool:
    """Send a message to the parent. Returns False if there is none or the message cannot be sent."""
    if _here.parent is None:
        return False
    data = json.dumps([kind, content]).encode()
    if len(data) > LONGEST:
        return False
    try:
        _here.parent.send(data, socket.MSG_DONTWAIT if kind == "work" else 0)
    except OSError:  # the buffer is full, which only progress does not wait for, or the parent has ended
        return False
    return True


def _listen(receiver: socket.socket) -> None:
    while True:
        receiver.recv(1, socket.MSG_PEEK)  # waits for a message, and leaves it to `catch_up`
        with suppress(Exception):  # such as a closed stdout, which also fails in the main thread
            catch_up()


def catch_up() -> None:
    """Print what workers have sent so far."""
    with _here.lock, suppress(BlockingIOError):
        while _here.workers is not None:
            kind, content = json.loads(_here.workers[0].recv(LONGEST, socket.MSG_DONTWAIT))
            match kind:
                case "say":
                    _print(content)
                case "warn":
                    warn(content, once=True)
                case "work":
                    _show(Estimate(**content))
                case "end":
                    _end(content)


def workers_ended() -> None:
    """Print what workers have sent and remove all bars. Running operations of this process draw theirs again."""
    catch_up()
    for what in list(_here.shown):
        _end(what)

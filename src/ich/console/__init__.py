"""What the stages say: lines, tables, and how far long work is. Bars on a terminal, plain lines in a file.

`quiet` keeps back everything but warnings and what was asked for; `verbose` adds what is decided and why. What is said
in a process that was started by `ich.processes` is printed by the one that started it.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from ich.console import work as working
from ich.console.bars import Bars
from ich.console.relay import PATIENCE, Ear, Message, Mouth
from ich.console.work import Whole, Work, duration

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["Level", "Work", "detail", "duration", "progress", "say", "table", "warn", "whole"]

Level = Literal["quiet", "normal", "verbose"]
BRIEF = 0.5  # seconds that a part has lasted before it is shown
BETWEEN_MESSAGES = 0.2  # seconds
SHOW_CURSOR = b"\x1b[?25h"
CONTROL = {i: f"\\x{i:02x}" for i in (*range(32), *range(127, 160)) if i != ord("\n")}


def between_lines(elapsed: float, *, all_parts: bool = False) -> float:
    """Seconds between two lines of one work in a file: the longer it takes, the fewer."""
    return min(300.0, max(60.0 if all_parts else 15.0, elapsed / 40))


@dataclass
class _State:
    """Of this process."""

    level: Level = "normal"
    lock: threading.RLock = field(default_factory=threading.RLock)
    bars: Bars | None = None
    works: dict[str, float] = field(default_factory=dict)
    """The works that are shown, and when the last line was said of each."""
    whole: Whole | None = None
    ear: Ear | None = None
    mouth: Mouth | None = None
    of_others: set[str] = field(default_factory=set)
    """The works of other processes."""
    warned: set[str] = field(default_factory=set)


_here = _State()


# ---- lines


def set_level(level: Level) -> None:
    _here.level = level


def visible(text: str) -> str:
    """The text without control characters, which a file name or an id may hold: as \\x1b."""
    return text.encode("utf-8", "backslashreplace").decode().translate(CONTROL)


def say(text: str, *, asked: bool = False) -> None:
    """What happens. asked: it is what the command is for, so that `quiet` keeps it too."""
    if asked or _here.level != "quiet":
        _print(visible(text))


def warn(text: str, *, once: bool = False) -> None:
    """What the user should know, whatever the level. once: however often it is said, also by other processes."""
    if once and _here.mouth is not None and _here.mouth.send("warn", text, patience=PATIENCE):
        return
    if not once or text not in _here.warned:
        _print(f"warning: {visible(text)}")
    _here.warned |= {text} if once else set()


def detail(text: str) -> None:
    """What is decided, and why."""
    if _here.level == "verbose":
        _print(visible(text))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", *, asked: bool = False) -> None:
    """Print a table; every column but the first is aligned to the right if its cells are numbers. asked: as of say."""
    widths = [max(len(str(row[i])) for row in [columns, *rows]) for i in range(len(columns))]
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    if title:
        say(f"\n{title}", asked=asked)
    for row in [columns, ["-" * width for width in widths], *rows]:
        cells = [str(c).rjust(w) if n else str(c).ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        say("  ".join(cells).rstrip(), asked=asked)


def _is_number(cell: str) -> bool:
    return cell.strip("-").replace(".", "", 1).replace(",", "").isdigit() or cell in ("", "-")


def _print(text: str) -> None:
    if _here.mouth is not None and _here.mouth.send("say", text, patience=PATIENCE):
        return
    with _here.lock:
        if _here.bars is None:
            print(f"{text}\n", end="", flush=True)  # written as a whole
        else:
            _here.bars.say(text)


# ---- long work


class _Told(Work):
    """Work of this process."""

    sent = 0.0

    def changed(self) -> None:
        if _here.mouth is None:
            _show(self)
        elif _here.level != "quiet" and working.clock() - self.sent >= BETWEEN_MESSAGES:
            self.sent = working.clock()
            _here.mouth.send("work", asdict(self))


@contextmanager
def progress(what: str, total: int, unit: str = "slices", *, inner: bool = False) -> Iterator[Work]:
    """Yield what is to be called with how many more are done.

    inner: a part of something else, which says itself when it ends; it is shown once it has lasted for a moment.
    """
    work = _Told(what, total, unit, inner)
    work.changed()
    try:
        yield work
    except BaseException:
        _end(what)
        raise
    _end(what)
    if total and not inner:
        say(work.closing())


@contextmanager
def whole(what: str, parts: Sequence[str], at_once: int) -> Iterator[Callable[[str], None]]:
    """Show how far all parts are together, each a work of that name; yield what is called with each that is finished.

    at_once: how many of them are worked on side by side.
    """
    _here.whole = made = Whole(what, parts, at_once)

    def finished(part: str) -> None:
        with _here.lock:
            made.finished(part)
            _show(made)

    _show(made)
    try:
        yield finished
    finally:
        _here.whole = None
        _end(what)


def begin(part: str) -> None:
    """A part of what is whole is begun."""
    if _here.mouth is not None:
        _here.mouth.send("begin", part)
    elif _here.whole is not None:
        _here.whole.begun(part)


def left_in_all() -> str:
    """`, 25 min left in all`, where something whole is under way and it is known."""
    return _here.whole.pace() if _here.whole is not None and _here.whole.done < _here.whole.total else ""


def _show(work: Work) -> None:
    with _here.lock:
        if _here.whole is not None and work is not _here.whole:
            _here.whole.heard(work)
            _show(_here.whole)
        now = working.clock()
        alone = isinstance(work, Whole) and work.total < 2
        if _here.level == "quiet" or alone or (work.inner and now - work.started < BRIEF):
            return
        said = _here.works.setdefault(work.what, work.started)
        if _terminal():
            _here.bars = _here.bars or Bars()
            _here.bars.show(work)
        elif now - said >= between_lines(now - work.started, all_parts=isinstance(work, Whole)):
            _here.works[work.what] = now
            _print(work.line())


def _end(what: str) -> None:
    """The work is not shown any more."""
    if _here.mouth is not None:
        _here.mouth.send("end", what)
        return
    with _here.lock:
        _here.works.pop(what, None)
        if _here.bars is not None:
            _here.bars.end(what)
            if not _here.works:
                _here.bars.stop()
                _here.bars = None


def _terminal() -> bool:
    """Whether bars can be drawn."""
    return sys.stdout.isatty() and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")


def show_cursor() -> None:
    """Before a sudden end: bars hide the cursor."""
    if _here.bars is not None:
        os.write(sys.stdout.fileno(), SHOW_CURSOR)


# ---- what other processes say


def for_others() -> "tuple[Connection, Level]":
    """What a process that is started by this one needs for `speak_through`."""
    if _here.ear is None:
        _here.ear = Ear(_heard, _here.lock)
    return _here.ear.writer, _here.level


def speak_through(writer: "Connection", level: Level) -> None:
    """Let what is said in this process be printed by the one that started it."""
    _here.mouth, _here.level = Mouth(writer), level


def catch_up() -> None:
    """Print what others have said until now."""
    if _here.ear is not None:
        _here.ear.catch_up()


def others_ended() -> None:
    """Whatever others were at."""
    catch_up()
    for what in list(_here.of_others):
        _end(what)
    _here.of_others.clear()


def _heard(message: Message) -> None:
    if _here.mouth is not None:
        _here.mouth.send(*message)
        return
    match message:
        case ["say", text]:
            _print(text)
        case ["warn", text]:
            warn(text, once=True)
        case ["begin", part]:
            begin(part)
        case ["end", what]:
            _here.of_others.discard(what)
            _end(what)
        case ["work", state]:
            _here.of_others.add(state["what"])
            _show(Work(**state))

"""How far long work is, and how long it will take: figures of what was done in this run, for a line or a bar."""

import heapq
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

clock = time.monotonic  # the same for all processes of a machine


def duration(seconds: float) -> str:
    """As a person says it: 45 s, 3 min 20 s, 25 min, 3 h 05 min, 2 d 4 h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 3600:
        return f"{round(whole / 60)} min"
    minutes = round(whole / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _number(value: float) -> str:
    """A rate: three digits where they say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@dataclass
class Work:
    """Something long: `done` of `total`. Told by calls how many more are done, or by `at` how many are."""

    what: str
    total: int
    unit: str
    inner: bool = False
    """A part of something that says itself when it ends."""
    done: int = 0
    note: str = ""
    first: int = 0
    """What was done before this run."""
    started: float = field(default_factory=lambda: clock())

    def __call__(self, count: int) -> None:
        self.at(self.done + count)

    def at(self, done: int, note: str | None = None) -> None:
        self.done = min(done, self.total)
        self.note = self.note if note is None else note
        self.changed()

    def begin(self, done: int) -> None:
        """So many are done already, and nothing of them in this run."""
        self.first, self.done, self.started = done, done, clock()

    def changed(self) -> None:
        """Called when there is something new to show."""

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 0.0

    @property
    def rate(self) -> float | None:
        """So many a second; None where nothing is known yet."""
        seconds, done = clock() - self.started, self.done - self.first
        return done / seconds if seconds > 0 and done > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds."""
        rate = self.rate
        return None if rate is None else (self.total - self.done) / rate

    def pace(self) -> str:
        """`, 210 slices/s, 40 s left`, as far as it is known."""
        rate, left = self.rate, self.left
        said = "" if rate is None else f", {_number(rate)} {self.unit}/s"
        return said if left is None else f"{said}, {duration(left)} left"

    def figures(self) -> str:
        note = f"{self.note}, " if self.note else ""
        return f"{note}{self.done:,} of {self.total:,} {self.unit}{self.pace()}"

    def short(self) -> str:
        """The most important first, for beside a bar the rest may be cut off."""
        return f"{self.share:.0%}{self.pace()}, {self.note or f'{self.done:,} of {self.total:,} {self.unit}'}"

    def line(self) -> str:
        return f"{'  ' if self.inner else ''}{self.what}: {self.figures()}"

    def closing(self) -> str:
        rate = self.rate
        said = "" if rate is None else f" ({_number(rate)} {self.unit}/s)"
        return f"{self.what}: {self.done:,} {self.unit} in {duration(clock() - self.started)}{said}"


@dataclass
class _Part:
    started: float | None = None
    ended: float | None = None
    first: float = 0.0
    share: float = 0.0


class Whole(Work):
    """Parts that are worked on, a few at a time, each of which says how far it is by a Work of its name."""

    def __init__(self, what: str, parts: Iterable[str], at_once: int) -> None:
        self.parts = {name: _Part() for name in parts}
        self.at_once = max(1, at_once)
        super().__init__(what, len(self.parts), "folds")

    def begun(self, name: str) -> None:
        if name in self.parts:
            self.parts[name].started = clock()

    def heard(self, work: Work) -> None:
        part = self.parts.get(work.what)
        if part is not None and part.ended is None and work.total:
            part.started = work.started  # how long the process took to start says nothing of the next part
            part.first, part.share = work.first / work.total, work.share

    def finished(self, name: str) -> None:
        part = self.parts[name]
        part.ended, part.share = clock(), 1.0
        self.at(self.done + 1)

    @property
    def share(self) -> float:
        return sum(part.share for part in self.parts.values()) / len(self.parts) if self.parts else 0.0

    @property
    def left(self) -> float | None:
        """Seconds, where every part takes as long as those of this run and the next free place takes the next part."""
        now, begun = clock(), [part for part in self.parts.values() if part.started is not None]
        made = sum(part.share - part.first for part in begun)
        if made <= 0:
            return None
        each = sum((part.ended or now) - (part.started or now) for part in begun) / made
        running = sorted((1 - part.share) * each for part in begun if part.ended is None)
        places = running + [0.0] * (self.at_once - len(running))
        heapq.heapify(places)
        waiting = [part for part in self.parts.values() if part.started is None and part.ended is None]
        for _ in waiting:
            heapq.heapreplace(places, places[0] + each)
        return max(places)

    def pace(self) -> str:
        left = self.left
        return "" if left is None else f", {duration(left)} left in all"

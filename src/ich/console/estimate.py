"""Rate and remaining time of long operations."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field


def duration(seconds: float) -> str:
    """Format seconds as 45 s, 3 min 20 s, 25 min, 3 h 05 min or 2 d 4 h."""
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


@dataclass
class Estimate:
    """Progress of an operation: `done` of `total` items, `first` of them in earlier runs."""

    what: str
    total: float
    unit: str
    inner: bool = False  # part of another operation
    done: float = 0
    note: str = ""
    first: float = 0
    started: float = field(default_factory=lambda: time.monotonic())

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 0.0

    @property
    def rate(self) -> float | None:
        """Items per second; None if none were done in this run."""
        seconds, done = time.monotonic() - self.started, self.done - self.first
        return done / seconds if seconds > 0 and done > 0 else None

    @property
    def left(self) -> float | None:
        """Remaining seconds."""
        rate = self.rate
        return None if rate is None else (self.total - self.done) / rate

    def pace(self) -> str:
        """Return `, 210 slices/s, 40 s left`, or nothing if the rate is unknown."""
        rate, left = self.rate, self.left
        return "" if rate is None or left is None else f", {_number(rate)} {self.unit}/s, {duration(left)} left"

    def count(self) -> str:
        return f"{self.done:,} of {self.total:,} {self.unit}"

    def state(self) -> str:
        """Return `45%, 210 slices/s, 40 s left, epoch 2 of 5`: most important first, since narrow terminals cut it."""
        return f"{self.share:.0%}{self.pace()}, {self.note or self.count()}"

    def closing(self) -> str:
        rate = self.rate
        speed = "" if rate is None else f" ({_number(rate)} {self.unit}/s)"
        return f"{self.what}: {self.done:,} {self.unit} in {duration(time.monotonic() - self.started)}{speed}"


class Overall(Estimate):
    """Progress of several parts, such as folds. times: expected time of each, on any scale."""

    def __init__(self, what: str, times: Mapping[str, float], unit: str = "folds") -> None:
        super().__init__(what, sum(times.values()), unit)
        self.times, self.parts = times, {name: Estimate(name, 1, what) for name in times}
        self.finished: set[str] = set()

    def update(self, part: Estimate) -> None:
        """Update a running part. Other operations are ignored."""
        if part.what in self.parts and part.what not in self.finished and part.total:
            self.parts[part.what] = part
            self._sum()

    def finish(self, name: str) -> None:
        self.parts[name].done = self.parts[name].total
        self.finished.add(name)
        self._sum()

    def _sum(self) -> None:
        self.done = sum(self.times[name] * part.share for name, part in self.parts.items())
        self.first = sum(self.times[name] * part.first / part.total for name, part in self.parts.items())

    @property
    def left(self) -> float | None:
        """Remaining seconds at the rate so far, but at least those of the slowest running part."""
        running = [part.left for name, part in self.parts.items() if name not in self.finished]
        left = [super().left, *running]
        return None if left[0] is None else max(seconds for seconds in left if seconds is not None)

    def pace(self) -> str:
        left = self.left
        return "" if left is None else f", {duration(left)} left in total"

    def count(self) -> str:
        return f"{len(self.finished)} of {len(self.parts)} {self.unit}"


def _number(rate: float) -> str:
    """Format a rate with three significant digits."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"

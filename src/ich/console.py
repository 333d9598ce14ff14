"""What the stages say: plain lines, a progress bar with rate and time left, tables. Readable in a log file too."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 15  # where the output is a file, progress is a line now and then


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def progress(what: str, total: int, unit: str = "slices") -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many more are done."""
    if sys.stdout.isatty():
        with _bar(what, total, unit) as advance:
            yield advance
        return
    started = last = time.monotonic()
    done = 0

    def advance_quietly(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES:
            last = now
            rate = done / (now - started)
            say(f"{what}: {done} of {total} {unit}, {rate:.0f}/s, {(total - done) / rate:.0f} s left")

    yield advance_quietly
    seconds = time.monotonic() - started
    say(f"{what}: {done} {unit} in {seconds:.0f} s ({done / max(seconds, 1e-9):.0f}/s)")


@contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:.0f} {unit}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table; every column but the first is aligned to the right if its cells are numbers."""
    widths = [max(len(str(row[i])) for row in [columns, *rows]) for i in range(len(columns))]
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    if title:
        say(f"\n{title}")
    for row in [columns, ["-" * width for width in widths], *rows]:
        cells = [str(c).rjust(w) if n else str(c).ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        say("  ".join(cells).rstrip())


def _is_number(cell: str) -> bool:
    return cell.strip("-").replace(".", "", 1).replace(",", "").isdigit() or cell in ("", "-")

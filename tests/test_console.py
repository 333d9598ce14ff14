"""Console output: estimates, lines in a file, levels, and what worker processes print."""

import os
import re
import shlex
import signal
import time
from types import SimpleNamespace

import pytest

from ich import console
from ich.cli import app
from ich.console.estimate import Estimate, Overall, duration
from ich.errors import UserError
from ich.processes import run_parallel


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock that a test sets by `now`."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture(autouse=True)
def _restore():
    yield
    console.set_level("normal")
    console._here.warned.clear()


# ---- rate and remaining time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (599.4, "9 min 59 s"), (600, "10 min"), (11100, "3 h 05 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_rate_and_remaining_time_ignore_items_of_an_earlier_run(clock, capsys):
    with console.progress("net fold 0", 1000, inner=True) as work:
        work.begin(600)
        assert work.state() == "60%, 600 of 1,000 slices"
        clock.now += 10
        work.at(700, "epoch 2 of 3")
        assert (work.rate, work.left) == (10, 30)
        assert work.state() == "70%, 10 slices/s, 30 s left, epoch 2 of 3"
        work(400)
        assert (work.done, work.left) == (1000, 0), "never more than the total"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("total", "first", "done"), [(0, 0, 0), (3, 0, 0), (3, 3, 3), (1, 1, 6)])
@pytest.mark.parametrize("seconds", [0.0, 1e-9])
def test_estimates_never_divide_by_zero(total, first, done, seconds):
    work = Estimate("work", total, "files", done=min(done, total), first=first, started=time.monotonic() - seconds)
    overall = Overall("all", {"work": 1})
    overall.update(work)
    assert work.state() + work.closing() + overall.state()


def test_overall_remaining_time(clock):
    overall = Overall("cnn", {"a": 1, "b": 1, "c": 1})
    assert overall.pace() == ""
    started = clock.now
    clock.now += 60
    overall.update(Estimate("a", 100, "slices", done=75, first=25, started=started))  # resumed
    overall.update(Estimate("b", 100, "slices", done=50, started=started))
    overall.update(Estimate("something else", 100, "slices", done=50, started=started))
    assert overall.share == pytest.approx((0.75 + 0.5) / 3)
    assert overall.left == pytest.approx(1.75 * 60)  # one fold per minute
    clock.now += 60
    overall.finish("a")
    overall.finish("b")
    overall.update(Estimate("a", 100, "slices", done=50, started=started))  # comes too late
    assert overall.left == pytest.approx(1 / 1.75 * 120)
    overall.update(Estimate("c", 100, "slices", done=10, started=clock.now - 30))
    assert overall.left == pytest.approx(270), "not less than what the running fold needs"
    assert overall.state() == "70%, 4 min 30 s left in total, 2 of 3 folds"


def test_overall_remaining_time_with_parts_that_take_less_time(clock):
    overall = Overall("run", {"long": 2, "short": 0.5, "other": 0.5})
    clock.now += 60
    overall.finish("long")
    assert overall.left == pytest.approx(30)
    assert overall.state() == "67%, 30 s left in total, 1 of 3 folds"


# ---- lines in a file


def test_progress_lines_in_a_file_have_growing_intervals(clock, capsys):
    with console.progress("prepare: headers", 86_400, "files") as advance:
        for _ in range(0, 86_400, 5):
            clock.now += 5
            advance(5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "prepare: headers: 0%, 1 files/s, 24 h 00 min left, 30 of 86,400 files"
    assert 300 < len(lines) < 500
    assert lines[-1] == "prepare: headers: 86,400 files in 24 h 00 min (1 files/s)"
    with pytest.raises(ValueError, match="no"), console.progress("prepare", 10):
        raise ValueError("no")
    assert (capsys.readouterr().out, console._here.shown) == ("", {})


def test_short_inner_operations_have_no_bar(clock, monkeypatch):
    drawn = []
    monkeypatch.setattr(console, "_terminal", lambda: True)
    monkeypatch.setattr(console, "_draw", lambda work: drawn.append((work.what, work.done)))
    for seconds in (0.4, 0.6):
        with console.progress(f"{seconds} s", 2, inner=True) as advance:
            clock.now += seconds
            advance(1)
    assert drawn == [("0.6 s", 1)]


def test_each_fold_and_all_folds_have_lines(clock, capsys):
    with console.whole("cnn", {"a": 1, "b": 1}) as finished:
        for name in ("a", "b"):
            with console.progress(name, 100, inner=True) as advance:
                for _ in range(100):
                    clock.now += 1
                    advance(1)
            finished(name)
            console.say(f"{name} finished{console.time_left()}")
    lines = capsys.readouterr().out.splitlines()
    assert "cnn: 30%, 2 min 20 s left in total, 0 of 2 folds" in lines  # after 60 s
    assert "  a: 15%, 1 slices/s, 1 min 25 s left, 15 of 100 slices" in lines
    assert [line for line in lines if "finished" in line] == ["a finished, 1 min 40 s left in total", "b finished"]
    assert len(lines) == 2 * 6 + 2 + 3


# ---- levels


@pytest.mark.parametrize(
    ("level", "printed"),
    [
        ("quiet", "asked\nwarning: careful\nx\n-\n"),
        ("normal", "said\nasked\nwarning: careful\nx\n-\ny\n-\nwork: 1 slices"),
        ("verbose", "said\nasked\nwhy\nwarning: careful\nx\n-\ny\n-\nwork: 1 slices"),
    ],
)
def test_each_level_prints_its_lines(level, printed, capsys):
    console.set_level(level)
    console.say("said")
    console.say("asked", always=True)
    console.detail("why")
    console.warn("careful")
    console.table(["x"], [], always=True)
    console.table(["y"], [])
    with console.whole("cnn", {"a": 1, "b": 1}), console.progress("work", 1) as advance:
        advance(1)
    assert capsys.readouterr().out.partition(" in 0 s")[0] == printed


def test_a_table_fits_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    classes = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
    rows = [["ID_0123456789", "32", *["0.123"] * 6], [f"1.2.{'3' * 2000}", "1", *["0.1"] * 6]]
    console.table(["study", "slices", *classes], rows, "Title")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 20
    console.table(["artifact", "why"], [["cnn/resnet/fold0", "the settings have changed " * 5]])
    head, _, row, *more = capsys.readouterr().out.splitlines()
    assert head.split() == ["artifact", "why"]
    assert row.startswith("cnn/resnet/fold0  the settings")
    assert all(line.startswith(" " * len("cnn/resnet/fold0  ")) for line in more), "long cells wrap"


@pytest.mark.parametrize("command", [command.name or command.callback.__name__ for command in app.registered_commands])
def test_quiet_and_verbose_exclude_each_other(command):
    required = {"thresholds": [], "clean": [], "serve": shlex.split("--bundle b --queue q --send-to A@b:1 --allow C")}
    words = [command, *required.get(command, ["none.yaml"]), "--quiet", "--verbose"]
    with pytest.raises(UserError, match=r"^--quiet and --verbose exclude each other"):
        app(words, standalone_mode=False)


# ---- worker processes


@pytest.fixture
def _late_listener(monkeypatch):
    """Print output of workers by `catch_up` only, not by the listening thread."""
    monkeypatch.setattr(console, "_listen", lambda _: None)
    monkeypatch.setattr(console._here, "workers", None)


def speak(k: int) -> int:
    console.say(f"net fold {k} says \x1b[31msomething")
    console.detail("why")
    console.warn("the same", once=True)
    console.say("more than fits into a message\n" * 10_000)
    return k


@pytest.mark.usefixtures("_late_listener")
def test_output_of_a_worker_is_printed_before_its_result(capfd):
    console.set_level("verbose")
    printed = ""
    for k in run_parallel(speak, [(k,) for k in range(4)], 2):
        printed += capfd.readouterr().out
        assert f"net fold {k} says \\x1b[31msomething\n" in printed
    lines = printed.splitlines()
    assert (lines.count("why"), lines.count("more than fits into a message")) == (4, 40_000)
    assert lines.count("warning: the same") == 1


def die(seconds: float) -> None:
    time.sleep(seconds)
    console.say("last words")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("_late_listener")
def test_the_last_line_of_a_killed_worker_is_printed(capfd):
    with pytest.raises(UserError, match="was killed"):
        list(run_parallel(die, [(0.1,), (60,)], 2))
    assert capfd.readouterr().out == "last words\n"


def talk(k: int) -> None:
    if k == 0:
        die(0.5)
    for i in range(100_000):
        console.say(f"{k} {i} " + "z" * 100)


def test_killed_workers_lose_no_lines(capfd):
    with pytest.raises(UserError, match="was killed"):
        list(run_parallel(talk, [(1,), (2,), (0,)], 3))
    lines = capfd.readouterr().out.splitlines()
    lines.remove("last words")
    assert len(lines) > 100
    assert all(re.fullmatch(r"[12] \d+ z{100}", line) for line in lines)
    for k in "12":
        numbers = [int(line.split()[1]) for line in lines if line[0] == k]
        assert numbers == list(range(len(numbers))), "all of them, in order"

"""What is said: how far long work is, in a file now and then; more or less of it; and by processes side by side."""

import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich import console
from ich.cli import app
from ich.console import work as working
from ich.console.relay import Ear, Mouth
from ich.console.work import Whole, Work, duration
from ich.processes import side_by_side


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(working, "clock", clock)
    return clock


@pytest.fixture(autouse=True)
def _as_before():
    yield
    console.set_level("normal")
    console._here.warned.clear()


def controls(text: str) -> set[str]:
    return {character for character in text if ord(character) < 32 or ord(character) in range(127, 160)} - {"\n"}


# ---- how far, how fast, how long


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        *[(0, "0 s"), (-1, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (200, "3 min 20 s"), (599.4, "9 min 59 s")],
        *[(600, "10 min"), (3569, "59 min"), (3600, "1 h 00 min"), (11100, "3 h 05 min"), (187200, "2 d 4 h")],
    ],
)
def test_a_duration_is_said_as_a_person_would(seconds, said):
    assert duration(seconds) == said


def test_rate_and_time_left_are_of_what_was_done_in_this_run(clock):
    work = Work("net fold 0", 1000, "slices")
    work.begin(600)
    assert work.line() == "net fold 0: 600 of 1,000 slices"
    clock.now += 10
    work.at(700, "epoch 2 of 3")
    assert (work.rate, work.left) == (10, 30)
    assert work.line() == "net fold 0: epoch 2 of 3, 700 of 1,000 slices, 10 slices/s, 30 s left"
    work(400)
    assert (work.done, work.left) == (1000, 0), "never more than there is"


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 5), st.sampled_from([0.0, 1e-9, 1.0]))
def test_nothing_is_divided_by_zero(total, first, count, seconds):
    work = Work("work", total, "files")
    work.begin(min(first, total))
    work.started -= seconds
    work(count)
    whole = Whole("all", ["work"], 1)
    whole.heard(work)
    assert not controls(work.line() + work.short() + work.closing() + whole.line())


def test_the_time_left_in_all_counts_what_waits_and_who_is_free(clock):
    whole = Whole("cnn", ["a", "b", "c"], 2)
    for name in ("a", "b"):
        whole.begun(name)
    clock.now += 60
    for name, done in (("a", 50), ("b", 25)):  # 120 s for 3/4 of a fold: each takes 160 s
        whole.heard(Work(name, 100, "slices", done=done, started=clock.now - 60))
    assert whole.share == pytest.approx(0.25)
    assert whole.left == pytest.approx(80 + 160)  # a ends after 80 s, and then c takes its place; b ends after 120 s
    clock.now += 100
    whole.finished("a")
    whole.finished("b")
    assert whole.left == pytest.approx(160)
    assert whole.line() == "cnn: 2 of 3 folds, 2 min 40 s left in all"


def test_the_time_left_in_all_counts_no_epochs_of_an_earlier_run(clock):
    whole = Whole("cnn", ["a", "b"], 1)
    whole.begun("a")
    clock.now += 30
    whole.heard(Work("a", 100, "slices", done=90, first=80, started=clock.now - 30))
    assert whole.left == pytest.approx(30 + 300)  # a tenth takes 30 s


# ---- in a file


def test_a_file_gets_a_line_now_and_then(clock, capsys):
    with console.progress("prepare: headers", 200, "files") as advance:
        for _ in range(200):
            clock.now += 1
            advance(1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "prepare: headers: 15 of 200 files, 1 files/s, 3 min 05 s left"
    assert len(lines) == 200 // 15 + 1
    assert lines[-1] == "prepare: headers: 200 files in 3 min 20 s (1 files/s)"


def test_the_longer_it_takes_the_fewer_lines(clock, capsys):
    with console.progress("prepare: headers", 86_400, "files") as advance:
        for _ in range(0, 86_400, 5):  # a day
            clock.now += 5
            advance(5)
    assert 300 < len(capsys.readouterr().out.splitlines()) < 500


def test_short_parts_say_nothing_and_what_fails_has_no_last_line(clock, capsys):
    with console.progress("net fold 0, predicting valid", 10, inner=True) as advance:
        advance(10)
    with pytest.raises(ValueError, match="no"), console.progress("prepare", 10) as advance:
        raise ValueError("no")
    assert capsys.readouterr().out == ""
    assert not console._here.works


def test_a_whole_and_its_parts_each_have_their_lines(clock, capsys):
    with console.whole("cnn", ["a", "b"], 1) as finished:
        for name in ("a", "b"):
            console.begin(name)
            with console.progress(name, 100, inner=True) as advance:
                for _ in range(100):
                    clock.now += 1
                    advance(1)
            finished(name)
            console.say(f"{name} finished{console.left_in_all()}")
    lines = capsys.readouterr().out.splitlines()
    assert "cnn: 0 of 2 folds, 2 min 20 s left in all" in lines  # after 60 s
    assert "  a: 15 of 100 slices, 1 slices/s, 1 min 25 s left" in lines
    assert [line for line in lines if "finished" in line] == [
        "a finished, 1 min 40 s left in all",
        "b finished",
    ]
    assert len(lines) == 2 * 6 + 2 + 3


# ---- how much


@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("quiet", "asked\nwarning: careful\nx\n-\n"),
        ("normal", "said\nasked\nwarning: careful\nx\n-\ny\n-\n"),
        ("verbose", "said\nasked\nwhy\nwarning: careful\nx\n-\ny\n-\n"),
    ],
)
def test_each_level_says_what_it_should(level, said, capsys):
    console.set_level(level)
    console.say("said")
    console.say("asked", asked=True)
    console.detail("why")
    console.warn("careful")
    console.table(["x"], [], asked=True)
    console.table(["y"], [])
    with console.progress("work", 1) as advance:
        advance(1)
    lines = [line for line in capsys.readouterr().out.splitlines(keepends=True) if not line.startswith("work: ")]
    assert "".join(lines) == said


def test_quiet_work_says_nothing(clock, capsys):
    console.set_level("quiet")
    with console.whole("cnn", ["a", "b"], 1) as finished, console.progress("a", 10) as advance:
        clock.now += 100
        advance(10)
        finished("a")
    assert capsys.readouterr().out == ""


def test_a_warning_may_be_given_once(capsys):
    for _ in range(3):
        console.warn("tracker x: gone", once=True)
    assert capsys.readouterr().out == "warning: tracker x: gone\n"


def test_no_control_character_of_a_name_reaches_the_terminal(capsys):
    console.say("quarantined: \x1b[2Ja\rb\x9b\udc80.dcm")
    assert capsys.readouterr().out == "quarantined: \\x1b[2Ja\\x0db\\x9b\\udc80.dcm\n"


@pytest.mark.parametrize("command", [command.callback.__name__ for command in app.registered_commands])
def test_every_command_can_be_quiet_or_verbose_but_not_both(command, capsys):
    words = [command, *([] if command == "thresholds" else ["none.yaml"]), "--quiet", "--verbose"]
    with pytest.raises(Exception, match=r"^--quiet and --verbose: give one of the two$"):
        app(words, standalone_mode=False)


# ---- processes side by side


def speak(k: int) -> int:
    console.begin(f"net fold {k}")
    console.say(f"net fold {k} says \x1b[31msomething")
    console.detail("why")
    console.warn("the same", once=True)
    console.say("long " + "y" * 5000)
    return k


def test_what_processes_say_is_said_by_the_first_before_their_results(capsys, monkeypatch):
    monkeypatch.setattr(Ear, "_listen", lambda _: None)  # the thread may come late
    monkeypatch.setattr(console._here, "ear", None)
    console.set_level("verbose")
    said = []
    for k in side_by_side(speak, [(k,) for k in range(4)], 2):
        said.append(capsys.readouterr().out)
        assert f"net fold {k} says \\x1b[31msomething\n" in "".join(said)
    lines = "".join(said).splitlines()
    assert lines.count("why") == 4
    assert lines.count("warning: the same") == 1


def test_a_level_reaches_processes_that_wait_for_work(capsys):
    list(side_by_side(speak, [(0,), (1,)], 2))
    console.set_level("quiet")
    capsys.readouterr()
    list(side_by_side(speak, [(0,), (1,)], 2))
    assert "says" not in capsys.readouterr().out


TALKERS = """
import os, signal, sys, time
from ich.console import progress, say, table
from ich.processes import side_by_side
def talk(k):
    if k == 0:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    for i in range(20000):
        say(f"{k} {i} " + "z" * 100)
if __name__ == "__main__":
    try:
        list(side_by_side(talk, [(1,), (2,), (0,)], 3))
    except Exception as error:
        say("ended")
"""


def test_a_killed_process_leaves_no_half_of_a_line(tmp_path):
    (tmp_path / "program.py").write_text(TALKERS)
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines.pop() == "ended", done.stderr
    assert len(lines) > 100
    assert all(re.fullmatch(r"[12] \d+ z{100}", line) for line in lines)
    for k in "12":
        numbers = [int(line.split()[1]) for line in lines if line[0] == k]
        assert numbers == list(range(len(numbers))), "all of them, in their order"


def test_nobody_waits_for_a_first_process_that_does_not_listen():
    read, write = os.pipe()
    os.set_blocking(write, False)

    class End:
        fileno = staticmethod(lambda: write)

    mouth = Mouth(End())  # pyright: ignore[reportArgumentType]
    sent = sum(mouth.send("say", "x" * 1000) for _ in range(1000))
    lines = os.read(read, 1 << 20)
    assert 10 < sent < 1000
    assert all(json.loads(line) == ["say", "x" * 1000] for line in lines.splitlines())
    os.close(read)
    assert not mouth.send("say", "after its end")
    os.close(write)

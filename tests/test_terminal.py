"""What the commands write: bars on a terminal, plain lines in a file; more with --verbose, and nothing with --quiet."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest

from conftest import RECIPE, House
from ich import console
from ich.cli import app


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    console.set_level("normal")


def controls(text: str) -> set[str]:
    return {character for character in text if ord(character) < 32 or ord(character) in range(127, 160)} - {"\n"}


# ---- on a terminal


def on_terminal(words: list[str | Path], where: Path, **environment: str) -> str:
    """All that a program writes to a terminal of 100 columns."""
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "NO_ALBUMENTATIONS_UPDATE": "1", **environment}
    leader, follower = pty.openpty()
    process = subprocess.Popen(words, cwd=where, env=env, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    found = b""
    while True:
        try:
            part = os.read(leader, 1 << 16)
        except OSError:  # so Linux says that nobody writes any more
            break
        if not part:
            break
        found += part
    os.close(leader)
    assert process.wait(timeout=60) == 0, found.decode()
    return found.decode()


FOLDS = """
import sys, time
from ich.console import begin, progress, say, whole
from ich.processes import side_by_side
def fold(k):
    begin(f"net fold {k}")
    with progress(f"net fold {k}", 100, inner=True) as work:
        work.begin(20)
        for i in range(20, 101, 2):
            work.at(i, f"epoch {1 + i // 51} of 2")
            time.sleep(0.03)
    say(f"  net fold {k}: loss")
    return k
if __name__ == "__main__":
    n, jobs = map(int, sys.argv[1:])
    with whole("cnn", [f"net fold {k}" for k in range(n)], jobs) as finished:
        for k in side_by_side(fold, [(k,) for k in range(n)], jobs, ordered=False):
            finished(f"net fold {k}")
            say(f"cnn: net fold {k} finished")
"""


def drawn(found: str) -> list[str]:
    """The lines that were drawn at some time, without colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", found)
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", plain).splitlines()]


@pytest.fixture(scope="module")
def folds(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("program") / "program.py"
    path.write_text(FOLDS)
    return path


def test_a_terminal_shows_a_bar_for_each_fold_and_one_for_all(folds):
    found = on_terminal([sys.executable, folds, "3", "2"], folds.parent)
    lines = drawn(found)
    for k in range(3):
        bar = rf"net fold {k} [━╸╺ ]+ \d+%, \S+ slices/s, \d+ s left, epoch [12] of 2"
        assert any(re.fullmatch(bar, line) for line in lines), found
    after = drawn(found.rpartition("net fold 0: loss")[2])
    assert not any(line.startswith("net fold 0 ") for line in after), "what has ended has no bar"
    assert any(re.fullmatch(r"cnn +[━╸╺ ]+ \d+%, \d+ s left in all, [012] of 3 folds", line) for line in lines)
    assert {f"  net fold {k}: loss" for k in range(3)} <= set(lines)
    assert found.rindex("\x1b[?25h") > found.rindex("\x1b[?25l"), "the cursor is there again"
    after = found[found.rindex("\x1b[?25h") :]
    assert "━" not in after, "no bar is left"


def test_a_terminal_without_colours_or_without_movement_gets_neither(folds):
    found = on_terminal([sys.executable, folds, "2", "1"], folds.parent, NO_COLOR="1")
    assert "━" in found
    assert not re.search(r"\x1b\[[0-9;]*3[0-9][0-9;]*m", found)
    found = on_terminal([sys.executable, folds, "2", "1"], folds.parent, TERM="dumb")
    assert controls(found) == {"\r"}, "with which a terminal ends each line"
    assert found.count("\r") == found.count("\r\n")


def test_a_stage_on_a_terminal_shows_bar_rate_and_time_left(house):
    words = [sys.executable, "-m", "ich.cli", "prepare", RECIPE, "--force"]
    found = on_terminal(words, house.root)
    bar = r"prepare: headers [━╸╺ ]+ \d+%, \S+ files/s, \d+ s left, \d+ of \d+ files"
    assert any(re.fullmatch(bar, line) for line in drawn(found)), found


# ---- commands in a file


def test_a_finished_stage_says_nothing_when_quiet_and_no_command_writes_control_characters(house: House):
    for stage in ("demo", "prepare", "cnn", "blend", "submit"):
        said = house.ich(stage)
        assert "done" in said
        assert not controls(said)
        assert house.ich(stage, "--quiet") == ""
    said = house.ich("status", "--quiet")
    assert "cnn/resnet/fold0" in said
    assert not controls(said)


def test_training_says_more_or_nothing(house: House, capfd, monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    monkeypatch.setattr("ich.pipeline.plan.Plan.cores", 1)
    said = {}
    words = ["cnn", RECIPE, "--model", "resnet", "--fold", "1", "--force"]
    with chdir(house.root):
        for level in ("--quiet", "", "--verbose"):
            app([*words, *([level] if level else [])], standalone_mode=False)
            out, err = capfd.readouterr()
            assert not controls(out + err)
            said[level] = out
    assert said["--quiet"] == ""
    assert "resnet fold 1: epoch 2 of 2, loss " in said[""]
    more = said["--verbose"]
    assert set(re.sub(r"[\d.,]+", "", said[""]).splitlines()) <= set(re.sub(r"[\d.,]+", "", more).splitlines())
    for what in ("--force, so it is made", "parameters to train on cpu in ", "s a step", "fold1/model.safetensors"):
        assert what in more
        assert what not in said[""]


def test_verbose_says_why_a_stale_artefact_is_made_again(house: House):
    said = house.ich("thresholds", "--verbose", "--set", "thresholds.trials=21")
    assert "thresholds: stale (trials was 20, is 21), so it is made\n" in said

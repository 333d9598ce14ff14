"""Output of the commands: bars on a terminal, plain lines in a file, and the effect of --quiet and --verbose."""

import os
import pty
import re
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest

from conftest import RECIPE, Clone
from ich import console
from ich.cli import app


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
    try:
        while part := os.read(leader, 1 << 16):
            found += part
    except OSError:  # on Linux, the end
        pass
    os.close(leader)
    assert process.wait(timeout=60) == 0, found.decode()
    return found.decode()


def drawn(found: str) -> list[str]:
    """All lines that were drawn at some time, without colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", found)
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", plain).splitlines()]


FOLDS = """
import sys, time
from ich.console import progress, say, whole
from ich.processes import run_parallel
def fold(k):
    with progress(f"net [b]fold {k}", 100, inner=True) as work:
        work.begin(20)
        for i in range(20, 101, 2):
            work.at(i, f"epoch {1 + i // 51} of 2")
            time.sleep(0.03)
    say(f"  net fold {k}: [red]loss[/] :warning: \\x1b[5m")
    return k
if __name__ == "__main__":
    n, jobs = map(int, sys.argv[1:])
    with whole("cnn", {f"net [b]fold {k}": 1 for k in range(n)}) as finished:
        for k in run_parallel(fold, [(k,) for k in range(n)], jobs, ordered=False):
            finished(f"net [b]fold {k}")
            say(f"cnn: net fold {k} finished")
"""


@pytest.fixture(scope="module")
def folds(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("program") / "program.py"
    path.write_text(FOLDS)
    return path


def test_a_terminal_has_one_bar_per_fold_and_one_for_all(folds):
    found = on_terminal([sys.executable, folds, "3", "2"], folds.parent)
    lines = drawn(found)
    for k in range(3):
        bar = rf"net \[b\]fold {k} [━╸╺ ]+ \d+%, \S+ slices/s, \d+ s left, epoch [12] of 2"
        assert any(re.fullmatch(bar, line) for line in lines), found
        assert f"  net fold {k}: [red]loss[/] :warning: \\x1b[5m" in lines, "no markup, no control characters"
    assert any(re.fullmatch(r"cnn +[━╸╺ ]+ \d+%, \d+ s left in total, [012] of 3 folds", line) for line in lines)
    after = drawn(found.rpartition("net fold 0: [red]loss")[2])
    assert not any(line.startswith("net [b]fold 0 ") for line in after), "a finished fold has no bar"
    assert found.rindex("\x1b[?25h") > found.rindex("\x1b[?25l"), "the cursor is back"
    assert "━" not in found[found.rindex("\x1b[?25h") :], "no bar remains"


def test_terminals_without_colours_or_cursor_movement(folds):
    found = on_terminal([sys.executable, folds, "2", "1"], folds.parent, NO_COLOR="1")
    assert "━" in found
    assert not re.search(r"\x1b\[[0-9;]*3[0-9][0-9;]*m", found)
    found = on_terminal([sys.executable, folds, "2", "1"], folds.parent, TERM="dumb")
    assert controls(found) == {"\r"}, "with which a terminal ends each line"
    assert found.count("\r") == found.count("\r\n")


# ---- commands in a file


def test_levels_of_the_output_of_training(clone_copy: Clone, capfd, monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    monkeypatch.setattr("ich.pipeline.state.Plan.cores", 1)
    monkeypatch.setattr(console._here, "level", "normal")  # the command's level ends with the test
    output = []
    for words in (["--force"], ["--force", "--verbose"], ["--force", "--quiet"], [], ["--quiet"]):
        with chdir(clone_copy.root):
            app(["cnn", RECIPE, "--model", "resnet", "--fold", "1", *words], standalone_mode=False)
        output.append("".join(capfd.readouterr()))
    normal, verbose, quiet, again, quiet_again = output
    assert quiet == quiet_again == ""
    assert "up to date" in again
    assert not controls(normal + verbose + again)
    assert "resnet fold 1: epoch 2 of 2, loss " in normal
    for detail in ("started, --force", "parameters", " s per step", "fold1/model.safetensors"):
        assert detail in verbose
        assert detail not in normal

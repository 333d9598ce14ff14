"""The short form of `python -m tests.faults.serve`: three studies, and a server that is killed once."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_killed_server_answers_each_study_exactly_once():
    words = [sys.executable, "-m", "tests.faults.serve", "3", "1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 studies were answered exactly once; 1 kills" in done.stdout

"""`python -m tests.faults.nodes` once: a small run on nodes that are killed.

tests/stages/test_run.py has a short form without Ray, S3 and kills.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ONE_MODEL = ["cnn.resnext=null", "sequence=null", "smooth=null", "stack=null", "blend.inputs=[resnet]"]


@pytest.mark.slow
def test_killed_nodes_with_disks_of_their_own_make_the_bytes_of_one_machine():
    words = [sys.executable, "-m", "tests.faults.nodes", "1", "tests/tiny.yaml", "--kill", *ONE_MODEL]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 runs are byte-identical to one machine" in done.stdout

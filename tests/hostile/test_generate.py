"""A few generated hostile inputs. `python -m tests.hostile.generate` is the long form."""

import os
import signal

import pytest

from tests.hostile import generate

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")


def test_each_input_is_read_quarantined_or_refused_with_one_line():
    found = generate.summary(generate.run(200, seed=3), seed=3)
    assert found["failed"] == []
    assert set(found["strategies"]) == set(generate.STRATEGIES)


def hang() -> None:
    while True:
        pass


def exhaust() -> None:
    bytearray(2 * generate.MEMORY)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAILING = {"hangs": (hang, "Slow"), "exhausts memory": (exhaust, "MemoryError"), "crashes": (kill, "crashed")}


@pytest.mark.parametrize("case", FAILING)
def test_a_reader_that_fails_is_found(monkeypatch, case):
    read, detail = FAILING[case]
    monkeypatch.setattr(generate, "SECONDS", 0.1)
    monkeypatch.setattr(generate, "STRATEGIES", {case: lambda random, root: read})
    (outcome,) = generate.run(1, seed=1)
    assert outcome.kind == "failed"
    assert detail in outcome.detail


def test_two_lines_are_a_failure():
    def read() -> None:
        raise generate.UserError("one\ntwo")

    assert generate.classified(read)[0] == "failed"

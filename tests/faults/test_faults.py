"""Short form of the fault injection, on the finished tiny recipe; `python -m tests.faults` is the long form."""

from typing import Any

import pytest

from tests.faults import flips, full_disk, kills, two_runs
from tests.faults.workspaces import Reference, copied, snapshot

SEED = 1
KILLED = ("blend", "thresholds", "submit")
AT_ONCE = ("prepare", "submit")


@pytest.fixture(scope="module")
def reference(finished) -> Reference:
    return Reference(snapshot(finished.root), seconds=30.0)


@pytest.fixture
def common(finished, reference, tmp_path) -> dict[str, Any]:
    return {"folder": tmp_path, "finished": finished.root, "reference": reference}


def test_a_run_killed_twice_ends_with_the_same_bytes_and_repeats_no_finished_work(common):
    outcome = kills.trial(0, seed=SEED, kills=2, names=KILLED, **common)
    assert not outcome.faults, outcome


def test_two_runs_at_once_write_the_same_bytes_as_one(common):
    outcome = two_runs.trial(0, seed=SEED, names=AT_ONCE, **common)
    assert not outcome.faults, outcome


def test_a_damaged_file_is_named_and_refused(finished, reference, tmp_path):
    copy = copied(finished.root, tmp_path / "finished")
    targets = flips.Targets(copy, {}, flips.kinds_of(copy))
    for number in range(flips.CUTS):  # the last one truncates
        outcome = flips.trial(number, seed=SEED, folder=tmp_path, targets=targets, reference=reference, commands=False)
        assert not outcome.faults, outcome
    assert snapshot(copy) == reference.snapshot, "the files were not restored"


def test_a_full_disk_damages_nothing_and_the_next_call_resumes(finished, tmp_path):
    other, names = ("--set", "thresholds.shrink=5"), ("thresholds",)
    outcomes = [*full_disk.writes(seed=SEED, folder=tmp_path, finished=finished.root, other=other, names=names)]
    assert len(outcomes) > 3
    assert not [outcome for outcome in outcomes if outcome.faults]

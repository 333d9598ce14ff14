"""Short form of the fault injection, on the finished tiny recipe; `python -m tests.faults` is the long form."""

from typing import Any

import pytest

from tests.faults import flips, full_disk, kills, one_fold, two_runs
from tests.faults.workspaces import Reference, copied, snapshot

SEED = 1
KILLED = ("smooth", "stack", "blend", "thresholds", "submit")
AT_ONCE = ("thresholds", "submit")


@pytest.fixture(scope="module")
def reference(finished) -> Reference:
    return Reference(snapshot(finished.root), seconds=30.0)


@pytest.fixture(scope="module")
def targets(finished, tmp_path_factory) -> flips.Targets:
    """In a copy, which is damaged and restored."""
    folder = tmp_path_factory.mktemp("flips")
    return flips.targets(copied(finished.root, folder / "finished"), folder)


@pytest.fixture
def common(finished, reference, tmp_path) -> dict[str, Any]:
    return {"folder": tmp_path, "finished": finished.root, "reference": reference}


def test_a_run_killed_three_times_ends_with_the_same_bytes_and_repeats_no_finished_work(common):
    outcome = kills.trial(0, seed=SEED, kills=3, names=KILLED, **common)
    assert not outcome.faults, outcome


def test_two_runs_at_once_write_the_same_bytes_as_one(common):
    outcome = two_runs.trial(0, seed=SEED, names=AT_ONCE, **common)
    assert not outcome.faults, outcome


def test_a_damaged_file_of_each_kind_is_named_and_refused(targets, reference, tmp_path):
    numbers = [n for n in range(1000, 1100) if targets.kind_of(n, SEED) not in flips.RESUMED]
    cut = [n for n in numbers if n % flips.CUTS == flips.CUTS - 1][:6]
    flipped = [n for n in numbers if n not in cut][:24]
    for number in flipped + cut:
        outcome = flips.trial(number, seed=SEED, folder=tmp_path, targets=targets, reference=reference, commands=False)
        assert not outcome.faults, outcome
    assert snapshot(targets.finished) == reference.snapshot, "the files were not restored"


@pytest.mark.parametrize("kind", [*flips.RESUMED, "thresholds thresholds.json"])
def test_a_damaged_file_is_remade_with_the_same_bytes(targets, reference, tmp_path, kind):
    number = next(n for n in range(1000) if targets.kind_of(n, SEED) == kind)
    outcome = flips.trial(number, seed=SEED, folder=tmp_path, targets=targets, reference=reference, commands=True)
    assert not outcome.faults, outcome


def test_a_full_disk_damages_nothing_and_the_next_call_resumes(finished, tmp_path):
    other, names = ("--set", "thresholds.shrink=5"), ("thresholds",)
    outcomes = [*full_disk.writes(seed=SEED, folder=tmp_path, finished=finished.root, other=other, names=names)]
    assert len(outcomes) > 3
    assert not [outcome for outcome in outcomes if outcome.faults]


@pytest.mark.parametrize("number", [0, 1])
def test_a_retrained_fold_changes_only_what_depends_on_it(common, number):
    outcome = one_fold.trial(number, thorough=False, **common)
    assert not outcome.faults, outcome

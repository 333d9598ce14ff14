"""The short form of the fault injection, on the finished tiny recipe; `python -m tests.faults` is the long one."""

from pathlib import Path

import pytest

from tests.faults import flips, full_disk, kills, one_fold, two_runs
from tests.faults.house import Reference, copied, only_stages, picture, undone

SEED = 1
KILLED = ("sequence", "smooth", "stack", "blend", "thresholds", "submit")
AT_ONCE = ("stack", "blend", "thresholds", "submit")
SECONDS = 12.0  # about what the stages above take


@pytest.fixture(scope="module")
def reference(finished) -> Reference:
    return Reference(picture(finished.root), SECONDS)


@pytest.fixture(scope="module")
def houses(finished, tmp_path_factory) -> flips.Houses:
    """A copy of its own, for it is damaged and put back."""
    folder = tmp_path_factory.mktemp("flips")
    return flips.houses(copied(finished.root, folder / "finished"), folder)


def without(finished, names: tuple[str, ...]):
    """Makes a copy of the finished house in which these stages are still to be run, and others are not."""

    def begin(root: Path) -> None:
        copied(finished.root, root)
        undone(root, names)
        only_stages(root, names)

    return begin


def test_a_run_killed_four_times_ends_with_the_same_bytes_and_makes_nothing_twice(finished, reference, tmp_path):
    begin = without(finished, KILLED)
    outcome = kills.trial(0, seed=SEED, folder=tmp_path, reference=reference, kills=4, begin=begin)
    assert not outcome.faults, outcome


def test_two_runs_at_once_end_with_the_bytes_of_one(finished, reference, tmp_path):
    begin = without(finished, AT_ONCE)
    outcome = two_runs.trial(0, seed=SEED, folder=tmp_path, reference=reference, begin=begin)
    assert not outcome.faults, outcome


def test_a_damaged_file_of_any_kind_is_named_and_refused(houses, reference, tmp_path):
    numbers = [n for n in range(1000, 1100) if flips.kind_of(n, SEED, houses) not in flips.GOES_ON]
    cut = [n for n in numbers if n % flips.EVERY == flips.EVERY - 1][:10]
    flipped = [n for n in numbers if n not in cut][:40]
    for number in flipped + cut:
        outcome = flips.trial(number, seed=SEED, folder=tmp_path, houses=houses, reference=reference, real=False)
        assert not outcome.faults, outcome
    assert picture(houses.finished) == reference.picture, "all was put back"


@pytest.mark.parametrize("kind", ["checkpoint", "journal", "sequence fold model.safetensors"])
def test_a_damaged_file_is_made_again_to_the_same_bytes(houses, reference, tmp_path, kind):
    number = next(n for n in range(1000) if flips.kind_of(n, SEED, houses) == kind)
    outcome = flips.trial(number, seed=SEED, folder=tmp_path, houses=houses, reference=reference, real=True)
    assert not outcome.faults, outcome


def test_a_write_that_finds_the_disk_full_harms_nothing_and_the_next_call_goes_on(finished, tmp_path):
    found = full_disk.writes(
        seed=SEED,
        folder=tmp_path,
        finished=finished.root,
        other=("--set", "thresholds.shrink=5"),
        names=("thresholds", "submit"),
    )
    outcomes = list(found)
    assert len(outcomes) > 5
    assert not [outcome for outcome in outcomes if outcome.faults]


@pytest.mark.parametrize("number", [0, 1])
def test_a_fold_trained_again_changes_nothing_that_does_not_depend_on_it(finished, reference, tmp_path, number):
    outcome = one_fold.trial(number, folder=tmp_path, finished=finished.root, reference=reference, thorough=False)
    assert not outcome.faults, outcome

"""A search that was killed, and shared out, is the search that was not."""

import json

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from ich.ensemble.thresholds import Goal, search, tune
from ich.ensemble.thresholds.surfaces import Surface

random = np.random.default_rng(0)
SURFACES = [Surface(f"ours {name}", np.cumsum(random.normal(size=3000)), (7,)) for name in ("a", "b", "c")]


def trials(journal, name="ours a"):
    """Parameters and values of the finished trials of a study, as anybody with Optuna's tools sees them."""
    study = optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(journal))))
    return [(t.params, t.value) for t in study.trials if t.state == TrialState.COMPLETE]


def run(journal, n, surfaces=SURFACES[:1], **more):
    return search.search(surfaces, trials=n, seed=5, journal=journal, **more)


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    journal = tmp_path_factory.mktemp("at_once") / "thresholds.journal"
    return trials(journal) if run(journal, 80) else []


def test_a_search_without_a_journal_finds_the_same(at_once, tmp_path):
    found = run(None, 80)
    assert found == run(tmp_path / "journal", 80)
    assert SURFACES[0].values[found[0]] == max(value for _, value in at_once)


def test_more_trials_go_on_with_the_fewer_ones(at_once, tmp_path):
    run(tmp_path / "journal", 45)
    assert trials(tmp_path / "journal") == at_once[:45]
    run(tmp_path / "journal", 80)
    assert trials(tmp_path / "journal") == at_once


def test_fewer_trials_than_the_journal_holds_find_what_they_would_have_found(tmp_path):
    run(tmp_path / "journal", 80)
    for n in (1, 20, 50):
        assert run(tmp_path / "journal", n) == run(None, n)


@pytest.mark.parametrize("killed_after", [3, 37, 60])
def test_a_killed_search_goes_on_with_the_trials_that_it_would_have_made(at_once, tmp_path, killed_after):
    journal = tmp_path / "journal"
    run(journal, killed_after)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    optuna.load_study(study_name="ours a", storage=storage).ask()  # a trial that a dead process left running
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"x","study_id":0,"state":1,"val')  # a line torn by the kill
    search.mend(journal, "ours")
    run(journal, 80)
    assert trials(journal) == at_once


def test_a_lock_that_a_killed_optuna_left_makes_nobody_wait(at_once, tmp_path):
    (tmp_path / "journal.lock").symlink_to(tmp_path / "journal")  # Optuna's own lock would be waited for for 30 s
    run(tmp_path / "journal", 80)
    (tmp_path / "journal.lock").unlink()
    assert trials(tmp_path / "journal") == at_once


def test_two_processes_find_what_one_finds(tmp_path, monkeypatch):
    alone = run(tmp_path / "one", 45, SURFACES)
    monkeypatch.setattr(search, "PAYS", 0)
    assert run(tmp_path / "two", 45, SURFACES, processes=2) == alone
    for surface in SURFACES:
        assert trials(tmp_path / "two", surface.name) == trials(tmp_path / "one", surface.name)


def test_a_journal_of_other_data_is_not_gone_on_with(tmp_path):
    journal = tmp_path / "journal"
    run(journal, 5, [Surface("theirs a", SURFACES[0].values, ())])
    search.mend(journal, "ours")
    assert journal.read_bytes() == b""
    run(journal, 5)
    before = journal.read_bytes()
    search.mend(journal, "ours")
    assert journal.read_bytes() == before


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"no JSON\n", b"[]\n", b"{}\n", b'{"op'])
def test_what_follows_a_damaged_line_is_cut_off(at_once, tmp_path, damage):
    journal = tmp_path / "journal"
    run(journal, 10)
    whole = journal.read_bytes()
    journal.write_bytes(whole + damage + b'{"op_code":0,"study_name":"ours b"}\n')
    search.mend(journal, "ours")
    if damage.endswith(b"\n"):
        assert journal.read_bytes() == whole
    run(journal, 80)
    assert trials(journal) == at_once


@pytest.mark.parametrize("content", [b"{}\n", b'{"op_code":99}\n'])
def test_a_journal_that_optuna_did_not_write_is_begun_anew(tmp_path, content):
    (tmp_path / "journal").write_bytes(content)
    search.mend(tmp_path / "journal", "ours")
    assert (tmp_path / "journal").read_bytes() == b""


def test_a_finished_trial_is_one_line_of_the_journal(tmp_path):
    run(tmp_path / "journal", 40)
    lines = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
    assert len(lines) == 41  # the study, and its trials


@pytest.mark.parametrize("average", ["macro", "micro", "samples"])
def test_thresholds_are_resumed_on_the_same_data_and_begun_anew_on_others(tmp_path, average):
    random = np.random.default_rng(1)
    y, p, journal = (random.random((300, 2)) < 0.2).astype(float), random.random((300, 2)), tmp_path / "journal"
    settings = {"goal": Goal(2.0, average), "seed": 3, "trials": 40}
    first = tune(y, p, ["a", "b"], journal=journal, **settings)
    size = journal.stat().st_size
    assert tune(y, p, ["a", "b"], journal=journal, **settings) == first == tune(y, p, ["a", "b"], **settings)
    assert journal.stat().st_size == size  # nothing is made twice
    names = {study.study_name for study in JournalStorage(JournalFileBackend(str(journal))).get_all_studies()}
    other = np.random.default_rng(4).permutation(y)
    assert tune(other, p, ["a", "b"], journal=journal, **settings) == tune(other, p, ["a", "b"], **settings)
    assert names.isdisjoint(
        study.study_name for study in JournalStorage(JournalFileBackend(str(journal))).get_all_studies()
    )

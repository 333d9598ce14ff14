"""A search that was killed, damaged or shared out is the search that was not."""

import json

import numpy as np
import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
    optuna.load_study(study_name="ours a", storage=storage).ask()  # somebody else's line
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The journal of three searches, one after the other, and what they found."""
    journal = tmp_path_factory.mktemp("whole") / "journal"
    found = run(journal, 45, SURFACES)
    return journal.read_bytes(), found, [trials(journal, surface.name) for surface in SURFACES]


@given(st.data())
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_bit_of_the_journal_was_flipped_the_search_ends_as_if_none_had_been(whole, tmp_path, data):
    content, found, made = whole
    damaged = bytearray(content)
    at = data.draw(st.integers(0, 8 * len(content) - 1))
    damaged[at // 8] ^= 1 << at % 8
    journal = tmp_path / "journal"
    journal.write_bytes(damaged)
    search.mend(journal, "ours")
    kept = journal.read_bytes()
    assert content.startswith(kept)
    assert kept == content[: content.rfind(b"\n", 0, at // 8) + 1]  # the lines before the damaged one, all of them
    assert run(journal, 45, SURFACES) == found
    assert [trials(journal, surface.name) for surface in SURFACES] == made


@pytest.mark.parametrize("wrong", [b"", b"0" * 64])
def test_a_line_without_its_own_hash_is_not_gone_on_with(whole, tmp_path, wrong):
    lines = whole[0].splitlines(keepends=True)
    log = json.loads(lines[9])
    log.pop("sha256")
    text = json.dumps(log, separators=(",", ":")).encode()
    lines[9] = text + b"\n" if not wrong else text[:-1] + b',"sha256":"' + wrong + b'"}\n'
    journal = tmp_path / "journal"
    journal.write_bytes(b"".join(lines))
    search.mend(journal, "ours")
    assert journal.read_bytes() == b"".join(lines[:9])


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
    options = {"goal": Goal(2.0, average), "seed": 3, "trials": 40}
    first = tune(y, p, ["a", "b"], journal=journal, **options)
    size = journal.stat().st_size
    assert tune(y, p, ["a", "b"], journal=journal, **options) == first == tune(y, p, ["a", "b"], **options)
    assert journal.stat().st_size == size  # nothing is made twice
    names = {study.study_name for study in JournalStorage(JournalFileBackend(str(journal))).get_all_studies()}
    other = np.random.default_rng(4).permutation(y)
    assert tune(other, p, ["a", "b"], journal=journal, **options) == tune(other, p, ["a", "b"], **options)
    assert names.isdisjoint(
        study.study_name for study in JournalStorage(JournalFileBackend(str(journal))).get_all_studies()
    )

"""The plan of the competition: patients, studies and subtypes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.phantom.competition import plan_competition
from ich.phantom.study import CLASSES, identifier, make_study

# Prevalence in RSNA 2019: 3,145, 36,118, 26,205, 35,675 and 47,166 of 752,803 slices.
RSNA = (0.0042, 0.0480, 0.0348, 0.0474, 0.0627)


@settings(max_examples=25)
@given(train=st.integers(1, 120), test=st.integers(1, 60), seed=st.integers(0, 2**31))
def test_a_plan_has_the_requested_studies_and_each_patient_in_one_split(train, test, seed):
    plan = plan_competition(train_studies=train, test_studies=test, seed=seed)
    assert Counter(p.split for p in plan) == {"train": train, "test": test}
    assert len({(p.patient, p.study) for p in plan}) == train + test
    assert len({(p.patient, p.split) for p in plan}) == len({p.patient for p in plan})


@pytest.mark.parametrize("seed", range(5))
def test_the_demo_has_enough_patients_of_every_class_for_three_folds(seed):
    plan = plan_competition(train_studies=84, test_studies=40, seed=seed)
    for split, least in (("train", 9), ("test", 3)):
        for kind in range(5):
            assert len({p.patient for p in plan if p.split == split and kind in p.kinds}) >= least, CLASSES[kind]
    assert len({p.patient for p in plan if p.split == "train" and 0 in p.kinds}) < 20
    assert sum(not p.kinds for p in plan) >= 20


def test_an_eighth_of_the_patients_have_two_studies():
    counts = Counter(p.patient for p in plan_competition(train_studies=2000, test_studies=200, seed=1))
    assert 0.10 < np.mean([n == 2 for n in counts.values()]) < 0.15
    assert max(counts.values()) == 2


def test_a_competition_can_have_the_prevalence_of_rsna_2019():
    plan = plan_competition(train_studies=4000, test_studies=1, seed=3, prevalence="rsna2019")[:4000]
    assert 0.36 < np.mean([bool(p.kinds) for p in plan]) < 0.46
    prevalence = np.zeros(5)
    for kind in range(5):
        labels = [make_study(3, p, 0, slices=6, size=48, kinds=[kind]).labels[:, kind] for p in range(12)]
        prevalence[kind] = np.mean([kind in p.kinds for p in plan]) * np.concatenate(labels).mean()
    np.testing.assert_allclose(prevalence, RSNA, rtol=0.5)
    assert np.argmin(prevalence) == 0
    assert np.argmax(prevalence) == 4


@settings(max_examples=50)
@given(seed=st.integers(0, 99), start=st.integers(0, 10**9))
def test_identifiers_are_unique(seed, start):
    made = {identifier(seed, start + k, 9) for k in range(50)}
    assert len(made) == 50
    assert all(len(i) == 12 and i.startswith("ID_") and int(i[3:], 16) >= 0 for i in made)


def test_a_split_without_studies_is_rejected():
    with pytest.raises(ValueError, match="at least 1"):
        plan_competition(train_studies=0, test_studies=3, seed=0)

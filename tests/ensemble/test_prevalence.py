import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from ich.ensemble import prevalence
from ich.ensemble.final import prevalence_factors, shift_all
from ich.ensemble.intervals import Bootstrap
from ich.ensemble.prevalence import HIGHEST, LOWEST


def binormal(rng, n, share, prior, distance=2.0):
    """Labels of n rows, a share of them positive, and their posterior probabilities for the prevalence `prior`."""
    y = rng.random(n) < share
    x = rng.normal(np.where(y, distance / 2, -distance / 2))
    return y, expit(distance * x + logit(prior))


def likelihood(p, prior, q):
    return float(np.log(q * p / prior + (1 - q) * (1 - p) / (1 - prior)).sum())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=12), st.floats(0.05, 0.95))
def test_no_prevalence_has_a_higher_likelihood(values, prior):
    p = np.array(values)
    best = likelihood(p, prior, prevalence.estimate(p, prior)[0])
    assert all(best >= likelihood(p, prior, q) - 1e-9 for q in np.linspace(LOWEST, HIGHEST, 201))


def test_certain_rows_are_counted():
    # two rows in five are certain positives, three certain negatives, whatever the training prevalence
    assert prevalence.estimate([1.0, 1.0, 0.0, 0.0, 0.0], 0.1) == (pytest.approx(0.4), "")
    assert prevalence.estimate([0.1, 0.1], 0.1) == (0.1, ""), "rows without information"


@pytest.mark.parametrize(
    ("p", "expected"), [([0.0, 0.0], LOWEST), ([0.05, 0.02], LOWEST), ([1.0], HIGHEST), ([0.5], HIGHEST)]
)
def test_an_estimate_at_a_bound_warns(p, expected):
    found, warning = prevalence.estimate(p, 0.1)
    assert found == expected
    assert "runs to" in warning


@pytest.mark.parametrize(("p", "prior"), [([], 0.3), ([0.2], 0.0), ([0.2], 1.0)])
def test_the_prior_is_returned_with_a_warning_if_nothing_can_be_estimated(p, prior):
    found, warning = prevalence.estimate(p, prior)
    assert found == prior
    assert warning


def test_draws_are_estimates_of_the_patients_drawn():
    rng = np.random.default_rng(3)
    _, p = binormal(rng, 600, 0.2, 0.1)
    patients = rng.integers(0, 60, 600)
    bootstrap = Bootstrap(patients, resamples=8)
    draws = prevalence.estimate_draws(p, 0.1, bootstrap)
    for counts, draw in zip(bootstrap.counts, draws, strict=True):
        rows = np.repeat(p, counts[bootstrap.owner].astype(int))
        assert draw == pytest.approx(prevalence.estimate(rows, 0.1)[0], rel=1e-3)
    assert np.array_equal(prevalence.estimate_draws(p, 0.1, bootstrap), draws)


def test_a_shift_moves_the_odds_by_the_ratio_of_the_prevalences():
    # prevalence 0.2 -> 0.5: odds 1/4 -> 1, so a probability of 0.2 becomes 0.5
    assert expit(shift_all(logit([[0.2]]), ["a"], [1], [(0.2, 0.5)])) == pytest.approx(np.array([[0.5]]))
    assert shift_all(np.array([[1.5, -2.0]]), ["a", "b"], [1, 1], [(0.0, 0.0), (0.1, 0.1)]).tolist() == [[1.5, -2.0]]
    assert prevalence_factors(0.2, 0.6) == pytest.approx((3.0, 0.5))  # weights of positives and negatives


def test_classes_are_shifted_separately_and_any_stays_the_largest():
    logits = np.array([[0.0, 1.0], [-2.0, 3.0]])
    commoner = shift_all(logits, ["subdural", "any"], [1, 2], [(0.1, 0.2), (0.2, 0.4)])
    moves = np.array([logit(0.2) - logit(0.1), logit(0.4) - logit(0.2)])
    np.testing.assert_allclose(commoner, logits + moves)
    rarer = shift_all(np.array([[1.0, 1.0]]), ["subdural", "any"], [1, 2], [(0.4, 0.1), (0.8, 0.2)])
    pooled = 1 + (logit(0.1) - logit(0.4) + 2 * (logit(0.2) - logit(0.8))) / 3
    np.testing.assert_allclose(rarer, [[pooled, pooled]])


def test_subtypes_change_in_proportion_to_any():
    classes = ("epidural", "any", "subdural")
    assert prevalence.scaled_by_any([0.02, 0.2, 0.1], classes, 0.1) == pytest.approx([0.01, 0.1, 0.05])
    assert prevalence.scaled_by_any([0.0, 0.0, 0.0], classes, 0.1).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("prior", "new"), [(0.0, 0.1), (0.1, 0.0), (1.0, 0.5), (0.5, 1.0), (0.5, float("nan"))])
def test_prevalences_of_0_and_1_cannot_be_shifted(prior, new):
    with pytest.raises(ValueError, match="between 0 and 1"):
        prevalence_factors(prior, new)

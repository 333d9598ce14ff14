from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from ich.ensemble import prevalence
from ich.ensemble.intervals import Bootstrap
from ich.ensemble.prevalence import LEAST, MOST


def binormal(rng, n, share, prior, distance=2.0):
    """Scores of n rows, a share of them positive, as exact posteriors of a world where the share is `prior`."""
    y = rng.random(n) < share
    x = rng.normal(np.where(y, distance / 2, -distance / 2))
    return y, expit(distance * x + logit(prior))


def em(p, prior, steps):
    """Saerens et al., equations 2.7 to 2.9, row by row; every step's prevalence."""
    found = [prior]
    for _ in range(steps):
        total = 0.0
        for value in p:
            positive = found[-1] / prior * value
            negative = (1 - found[-1]) / (1 - prior) * (1 - value)
            total += positive / (positive + negative)
        found.append(total / len(p))
    return found


def likelihood(p, prior, q):
    return float(np.log(q * p / prior + (1 - q) * (1 - p) / (1 - prior)).sum())


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6])
def test_a_shifted_prevalence_is_found_within_its_sampling_error(share):
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(20):
        _, p = binormal(rng, 4000, share, 0.1)
        errors.append(prevalence.estimate(p, 0.1).prevalence - share)
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(20)
    assert np.std(errors) < 0.02


def test_without_a_shift_the_estimate_is_about_the_prior():
    _, p = binormal(np.random.default_rng(1), 50_000, 0.05, 0.05)
    assert prevalence.estimate(p, 0.05).prevalence == pytest.approx(0.05, abs=0.005)


def test_the_estimate_is_where_expectation_maximisation_ends():
    _, p = binormal(np.random.default_rng(2), 150, 0.4, 0.1, distance=3.0)
    assert prevalence.estimate(p, 0.1).prevalence == pytest.approx(em(p, 0.1, 400)[-1], abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=12), st.floats(0.05, 0.95))
def test_no_prevalence_is_more_likely_and_em_climbs_towards_it(values, prior):
    p = np.array(values)
    found = prevalence.estimate(p, prior).prevalence
    best = likelihood(p, prior, found)
    assert all(best >= likelihood(p, prior, q) - 1e-9 for q in np.linspace(LEAST, MOST, 201))
    climb = [likelihood(p, prior, q) for q in em(p, prior, 5)]
    assert all(b >= a - 1e-12 for a, b in pairwise(climb))
    assert climb[-1] <= best + 1e-4  # EM itself may go beyond the bounds of the estimate


def test_certain_rows_are_counted():
    # two rows in five are certain positives, three certain negatives, whatever the training prevalence
    found = prevalence.estimate([1.0, 1.0, 0.0, 0.0, 0.0], 0.1)
    assert found.prevalence == pytest.approx(0.4)
    assert found.warning == ""


@pytest.mark.parametrize(("p", "expected"), [([0.0, 0.0], LEAST), ([0.05, 0.02], LEAST), ([1.0], MOST), ([0.5], MOST)])
def test_an_estimate_that_runs_to_an_end_is_bounded_and_warns(p, expected):
    found = prevalence.estimate(p, 0.1)
    assert found.prevalence == expected
    assert "runs to" in found.warning


@pytest.mark.parametrize(("p", "prior"), [([], 0.3), ([0.2], 0.0), ([0.2], 1.0)])
def test_where_nothing_can_be_estimated_the_prior_stays_and_the_warning_says_why(p, prior):
    found = prevalence.estimate(p, prior)
    assert found.prevalence == prior
    assert found.warning
    owners = np.arange(max(len(p), 1))[: len(p)] if p else np.arange(1)
    assert (prevalence.estimate_draws(p, prior, Bootstrap(owners, resamples=3)) == prior).all()


def test_rows_that_say_nothing_leave_the_prior():
    assert prevalence.estimate([0.1, 0.1], 0.1) == prevalence.Estimate(0.1)


def test_draws_are_estimates_of_the_patients_drawn():
    rng = np.random.default_rng(3)
    _, p = binormal(rng, 600, 0.2, 0.1)
    patients = rng.integers(0, 60, 600)
    bootstrap = Bootstrap(patients, resamples=8)
    draws = prevalence.estimate_draws(p, 0.1, bootstrap)
    for counts, draw in zip(bootstrap.counts, draws, strict=True):
        rows = np.repeat(p, counts[bootstrap.owner].astype(int))
        assert draw == pytest.approx(prevalence.estimate(rows, 0.1).prevalence, rel=1e-3)
    assert np.array_equal(prevalence.estimate_draws(p, 0.1, bootstrap), draws)


def test_the_draws_spread_as_the_estimates_of_new_patients_do():
    rng = np.random.default_rng(4)
    estimates = [prevalence.estimate(binormal(rng, 1000, 0.2, 0.1)[1], 0.1).prevalence for _ in range(200)]
    _, p = binormal(rng, 1000, 0.2, 0.1)
    draws = prevalence.estimate_draws(p, 0.1, Bootstrap(np.arange(1000), resamples=400))
    assert draws.std() == pytest.approx(np.std(estimates), rel=0.2)


def test_a_shift_moves_the_odds_by_the_ratio_of_the_prevalences():
    # prevalence 0.2 -> 0.5: odds 1/4 -> 1, so a probability of 0.2 becomes 0.5
    assert expit(prevalence.shift(logit([0.2]), 0.2, 0.5)) == pytest.approx([0.5])
    assert prevalence.shift([[1.5, -2.0]], 0.0, 0.0).tolist() == [[1.5, -2.0]]


def test_a_table_is_shifted_a_class_at_a_time_and_any_stays_the_largest():
    logits = np.array([[0.0, 1.0], [-2.0, 3.0]])
    commoner = prevalence.shift_all(logits, ["subdural", "any"], [1, 2], [(0.1, 0.2), (0.2, 0.4)])
    moves = np.array([logit(0.2) - logit(0.1), logit(0.4) - logit(0.2)])
    np.testing.assert_allclose(commoner, logits + moves)
    rarer = prevalence.shift_all(np.array([[1.0, 1.0]]), ["subdural", "any"], [1, 2], [(0.4, 0.1), (0.8, 0.2)])
    pooled = 1 + (logit(0.1) - logit(0.4) + 2 * (logit(0.2) - logit(0.8))) / 3
    np.testing.assert_allclose(rarer, [[pooled, pooled]])


def test_subtypes_change_in_proportion_to_any():
    classes = ("epidural", "any", "subdural")
    assert prevalence.scaled_by_any([0.02, 0.2, 0.1], classes, 0.1) == pytest.approx([0.01, 0.1, 0.05])
    assert prevalence.scaled_by_any([0.0, 0.0, 0.0], classes, 0.1).tolist() == [0.0, 0.0, 0.0]


def test_where_bleeds_get_rare_any_tells_the_prevalence_of_a_subtype_better_than_the_subtype_itself():
    rng = np.random.default_rng(6)

    def world(n, share):
        bleed = rng.random(n) < share
        subtype = bleed & (rng.random(n) < 0.3)
        return bleed, subtype, rng.normal(2 * bleed), rng.normal(1.0 * bleed + 1.0 * subtype)

    # posteriors of each class given its own score, worked out by counting in a large training world
    bleed, subtype, x, z = world(400_000, 0.3)
    edges = np.linspace(-2, 4, 61)

    def posterior(score, label, new):
        cells = [np.searchsorted(edges, s) for s in (score, new)]
        return (np.bincount(cells[0], weights=label) / np.bincount(cells[0]))[cells[1]]

    _, rare, test_x, test_z = world(40_000, 0.1)
    new_any = prevalence.estimate(posterior(x, bleed, test_x), bleed.mean()).prevalence
    through = prevalence.scaled_by_any([subtype.mean(), bleed.mean()], ("subtype", "any"), new_any)[0]
    own = prevalence.estimate(posterior(z, subtype, test_z), subtype.mean()).prevalence
    assert through == pytest.approx(rare.mean(), rel=0.1)
    assert own < rare.mean() / 2


def test_shifted_posteriors_are_those_of_the_new_world():
    rng = np.random.default_rng(5)
    x = rng.normal(0, 2, 100)
    assert prevalence.shift(2 * x + logit(0.1), 0.1, 0.3) == pytest.approx(2 * x + logit(0.3))


def test_weighted_rows_stand_for_the_new_prevalence():
    positive, negative = prevalence.factors(0.2, 0.6)
    assert (positive, negative) == pytest.approx((3.0, 0.5))
    y = np.array([1, 0, 0, 0, 0])
    weight = np.where(y == 1, positive, negative)
    assert (weight * y).sum() / weight.sum() == pytest.approx(0.6)
    assert weight.sum() == pytest.approx(5)


@pytest.mark.parametrize(("prior", "new"), [(0.0, 0.1), (0.1, 0.0), (1.0, 0.5), (0.5, 1.0), (0.5, float("nan"))])
def test_no_weights_lead_from_or_to_an_end(prior, new):
    with pytest.raises(ValueError, match="between 0 and 1"):
        prevalence.factors(prior, new)
    with pytest.raises(ValueError, match="between 0 and 1"):
        prevalence.shift([0.0], prior, new)


@pytest.mark.parametrize(("p", "prior"), [([1.2], 0.1), ([np.nan], 0.1), ([[0.1]], 0.1), ([0.1], 1.1), ([0.1], np.nan)])
def test_what_is_no_probability_is_refused(p, prior):
    with pytest.raises(ValueError, match=r"in 0\.\.1"):
        prevalence.estimate(p, prior)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from ich.ensemble import intervals
from ich.ensemble.intervals import Bootstrap, auc_interval, interval, simplest
from ich.ensemble.metrics import class_auc, f_from_counts

CUT = 0.8  # the threshold for F


def competition(random, patients: int, rows: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and patients: half of the patients bleed, and scores differ between patients."""
    owner = np.repeat(np.arange(patients), rows)
    bleeds = random.random(patients) < 0.5
    y = (bleeds[owner] & (random.random(len(owner)) < 0.6)).astype(float)
    return y, 1.5 * y + random.normal(size=patients)[owner] + random.normal(0, 0.5, len(owner)), owner


def drawn_rows(bootstrap: Bootstrap, draw: int) -> np.ndarray:
    """Row numbers of a draw."""
    return np.repeat(np.arange(len(bootstrap.owner)), bootstrap.counts[draw][bootstrap.owner].astype(int))


def f2(true, predicted, actual):
    return f_from_counts(true, predicted, actual, 2.0)


@st.composite
def tables(draw):
    """Labels, scores from few or many values, and patients."""
    n = draw(st.integers(2, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y = (random.random(n) < draw(st.sampled_from([0.1, 0.5]))).astype(float)
    return y, random.integers(0, draw(st.sampled_from([3, 1000])), n) / 1000, random.integers(0, 6, n)


def test_a_draw_has_the_number_of_patients_and_all_their_rows():
    patients = ["b", "a", "b", "c"]
    bootstrap = Bootstrap(patients, resamples=50, seed=1)
    assert (bootstrap.counts.sum(axis=1) == 3).all()
    assert (bootstrap.counts == Bootstrap(patients, resamples=50, seed=1).counts).all()
    assert (bootstrap.counts != Bootstrap(patients, resamples=50, seed=8).counts).any()
    weights = np.array([1.0, 10, 100, 1000])
    for draw in range(50):
        rows = drawn_rows(bootstrap, draw)
        assert set(rows) & {0, 2} in (set(), {0, 2}), "both rows of b, or none"
        assert bootstrap.sums(weights)[draw] == weights[rows].sum()
        assert bootstrap.means(weights)[draw] == pytest.approx(weights[rows].mean())


@settings(max_examples=20)
@given(tables())
def test_auc_and_average_precision_of_a_draw_equal_scikit_learns(table):
    y, p, patients = table
    bootstrap = Bootstrap(patients, resamples=8)
    auc, precision = bootstrap.ranks(y, p)
    for draw in range(8):
        rows = drawn_rows(bootstrap, draw)
        if len(np.unique(y[rows])) == 1:
            assert np.isnan(auc[draw])
            assert np.isnan(precision[draw])
        else:
            assert auc[draw] == pytest.approx(roc_auc_score(y[rows], p[rows]), abs=1e-12)
            assert precision[draw] == pytest.approx(average_precision_score(y[rows], p[rows]), abs=1e-12)


@pytest.mark.parametrize(
    ("bins", "positive", "atol"),
    [(16, 0.1, 1 / 16), (256, 0.1, 1 / 256), (256, 5e-4, 1e-12)],  # exact where few scores are of positives
)
def test_binned_scores_change_an_auc_by_less_than_documented(monkeypatch, bins, positive, atol):
    monkeypatch.setattr(intervals, "BINS", bins)
    random = np.random.default_rng(0)
    y = (random.random(20_000) < positive).astype(float)
    p = (1.5 * y + random.normal(size=20_000)).round(3)
    one_draw = Bootstrap(np.arange(20_000), resamples=1)
    one_draw.counts[:] = 1
    auc, precision = one_draw.ranks(y, p)
    assert auc[0] == pytest.approx(roc_auc_score(y, p), abs=atol / 5)
    assert precision[0] == pytest.approx(average_precision_score(y, p), abs=atol)
    assert intervals._bins(y, p).max() <= bins


def test_nan_draws_are_ignored():
    draws = np.append(np.arange(101.0), [np.nan] * 50)
    assert interval(draws) == pytest.approx((2.5, 97.5))
    assert np.isnan(interval(np.full(10, np.nan))).all()
    assert np.isnan(auc_interval([1, 1], [0.2, 0.3], [0, 1])).all()
    assert auc_interval([0, 1, 1, 0], [0.1, 0.4, 0.2, 0.3], ["a"] * 4, resamples=20) == (0.75, 0.75, 0.75)


def test_a_later_candidate_must_be_significantly_better():
    random = np.random.default_rng(0)
    noise = random.normal(0, 1, 1000)
    losses = {"simple": noise, "lucky": noise + random.normal(-0.1, 1, 1000), "better": noise - 0.01}
    assert simplest(losses) == "better", "draws are paired"
    assert simplest({name: losses[name] for name in ("simple", "lucky")}) == "simple"
    assert simplest({"simple": noise, "same": noise}) == "simple"


def test_intervals_over_patients_have_95_percent_coverage_and_those_over_rows_do_not():
    random = np.random.default_rng(3)
    y, p, _ = competition(random, 50_000)
    truth = {"auc": class_auc(y[:, None], p[:, None])[0], "f2": f2((y * (p > CUT)).sum(), (p > CUT).sum(), y.sum())}
    covered = {(unit, score): 0 for unit in ("patients", "rows") for score in truth}
    for seed in range(100):
        y, p, owner = competition(random, 60)
        for unit, drawn in (("patients", owner), ("rows", np.arange(len(y)))):
            bootstrap = Bootstrap(drawn, resamples=150, seed=seed)
            decided = p > CUT
            draws = {
                "auc": bootstrap.ranks(y, p)[0],
                "f2": f2(bootstrap.sums(y * decided), bootstrap.sums(decided), bootstrap.sums(y)),
            }
            for score, values in draws.items():
                low, high = interval(values)
                covered[unit, score] += low <= truth[score] <= high
    assert all(86 <= covered["patients", score] <= 100 for score in truth), covered
    assert all(covered["rows", score] < 80 for score in truth), covered

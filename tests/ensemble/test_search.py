import numpy as np

from ich.ensemble.thresholds import search

VALUES = np.cumsum(np.random.default_rng(0).normal(size=3000))


def test_more_trials_never_find_worse():
    found = [VALUES[search.search(VALUES, [7], trials, seed=5)] for trials in (1, 20, 34, 80)]
    assert found[0] == VALUES[7], "the start is tried first"
    assert found == sorted(found), "a longer search begins with the trials of a shorter one"
    assert found[-1] > np.quantile(VALUES, 0.99)


def test_the_first_trials_are_the_starts_and_an_even_grid():
    rising, falling = np.arange(3000.0), -np.arange(3000.0)
    trials = 1 + search.GRID
    assert search.search(rising, [7], trials, seed=5) == 2999
    assert search.search(falling, [7], trials, seed=5) == 0
    gap = np.abs(np.arange(3000) - 1500.0)  # the grid's nearest point is at most half a step of it away
    assert gap[search.search(-gap, [7], trials, seed=5)] <= 3000 / (search.GRID - 1) / 2


def test_the_trials_of_a_seed_are_pinned():
    values = -np.abs(np.arange(3000.0) - 1234)
    assert [search.search(values, [7], 45, seed) for seed in range(4)] == [1238, 1229, 1220, 1251]

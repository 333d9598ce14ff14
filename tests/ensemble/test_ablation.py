import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ich.ensemble.ablation import Row, markdown, order, summary

scores = st.lists(st.floats(-10, 10).map(lambda value: round(value, 3)), min_size=2, max_size=8)


@given(scores)
def test_an_interval_equals_scipys(values):
    mean, half_width = summary(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-12)
    if np.std(values) > 0:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert (mean - half_width, mean + half_width) == pytest.approx((low, high), abs=1e-9)
    else:
        assert half_width == pytest.approx(0, abs=1e-12)
    assert summary(values[:1]) == pytest.approx((values[0], math.nan), nan_ok=True)


@pytest.mark.parametrize("values", [[], [0.1, math.nan], [math.inf]])
def test_missing_and_infinite_scores_raise(values):
    with pytest.raises(ValueError, match="one finite score per seed"):
        summary(values)


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [
        ([0.71, 0.82, 0.93], [0.61, 0.71, 0.81], "reproduced"),  # 0.11 +- 0.025, though the systems overlap
        ([0.61, 0.71, 0.81], [0.71, 0.82, 0.93], "reversed"),
        ([0.7, 0.7, 0.7], [0.6, 0.7, 0.6], "undecided, as claimed"),  # 0.067 +- 0.143
        ([0.6, 0.7, 0.6], [0.7, 0.7, 0.7], "undecided, opposite"),
        ([0.9], [0.1], "undecided, as claimed"),  # a single seed
        ([0.1], [0.9], "undecided, opposite"),
        ([0.5, 0.75], [0.5, 0.75], "undecided"),
    ],
)
def test_verdicts_by_hand(better, worse, verdict):
    assert order(better, worse)[2] == verdict
    assert order(worse, better, larger_is_better=False)[2] == verdict


def test_markup_in_names_is_escaped():
    text = markdown("Losses", [Row("a|b\n<c>*", [0.5], [], {"d|": 0.5})], [])
    assert r"| system | document, d\| | out of fold | hidden test |" in text
    assert r"| a\|b \<c>\* | 0.5000 | 0.5000 | - |" in text


def test_a_section_by_hand():
    # two scores d apart have the half width 12.7062 * d / 2
    rows = [
        Row("plain", [0.60, 0.62], [0.50, 0.52], {"validation": 0.741, "test": 0.721}),
        Row("asymmetric", [0.61, 0.63], [0.49, 0.53], {"test": 0.745}),
        Row("ours", [0.7, 0.72], []),
    ]
    lines = markdown("Losses", rows, [("asymmetric", "plain"), ("ours", "plain")]).splitlines()
    assert [line for line in lines if line.startswith(("| ", "Claims"))] == [
        "| system | document, validation | document, test | out of fold | hidden test |",
        "| plain | 0.7410 | 0.7210 | 0.6100 ± 0.1271 | 0.5100 ± 0.1271 |",
        "| asymmetric | - | 0.7450 | 0.6200 ± 0.1271 | 0.5100 ± 0.2541 |",
        "| ours | - | - | 0.7100 ± 0.1271 | - |",
        "| claim | document, validation | document, test | out of fold | hidden test |",
        "| asymmetric over plain | - | +0.0240 | +0.0100 ± 0.0000: reproduced | +0.0000 ± 0.1271: undecided |",
        "| ours over plain | - | - | +0.1000 ± 0.0000: reproduced | - |",
        "Claims out of fold: 2 reproduced, 0 undecided, 0 reversed.",
        "Claims on the hidden test: 0 reproduced, 1 undecided, 0 reversed.",
    ]

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from ich.ensemble import metrics
from ich.ensemble.members import sigmoid
from ich.ensemble.smoothing import REACH, choose_widths, smooth, smooth_each


def series_of(seed, counts=(5, 1, 4), classes=3):
    """Logits, series and position, sorted; gaps between 0 (two slices at one position) and 12 mm."""
    rng = np.random.default_rng(seed)
    series = np.repeat(np.arange(len(counts)) * 2 + 1, counts)
    gaps = [rng.choice([0.0, 0.6, 5.0, 12.0], n) for n in counts]
    return rng.normal(0, 3, (len(series), classes)), series, np.concatenate([np.cumsum(g) - 40 for g in gaps])


def by_loops(logits, series, position, width):
    out = np.zeros_like(logits)
    for i in range(len(logits)):
        total = 0.0
        for j in range(len(logits)):
            far = abs(position[i] - position[j])
            if series[i] == series[j] and far <= REACH * width:
                weight = np.exp(-(far**2) / (2 * width**2))
                total += weight
                out[i] += weight * logits[j]
        out[i] /= total
    return out


@pytest.mark.parametrize("width", [0.5, 2.5, 7.5, 40.0])
def test_smoothing_is_that_of_a_plain_double_loop(width):
    table = series_of(0)
    np.testing.assert_allclose(smooth(*table, width), by_loops(*table, width), rtol=1e-12)


def test_three_slices_by_hand():
    found = smooth([[0.0], [1.0], [0.0]], [7, 7, 7], [0.0, 5.0, 10.0], 5.0)
    near, far = np.exp(-0.5), np.exp(-2.0)
    np.testing.assert_allclose(found[:, 0], [near / (1 + near + far), 1 / (1 + 2 * near), near / (1 + near + far)])


def test_width_0_leaves_every_bit_as_it_is():
    table = series_of(1)
    np.testing.assert_array_equal(smooth(*table, 0), table[0])


def test_two_slices_at_one_position_become_their_mean_and_a_slice_alone_stays():
    found = smooth([[1.0], [3.0], [8.0]], [0, 0, 1], [5.0, 5.0, 5.0], 2.5)
    np.testing.assert_allclose(found[:, 0], [2, 2, 8])


def test_a_slice_beyond_a_gap_keeps_its_logit_whatever_the_others_say():
    found = smooth([[-3.0], [-3.0], [9.0]], [0, 0, 0], [0.0, 5.0, 5.0 + REACH * 5.0 + 0.1], 5.0)
    np.testing.assert_array_equal(found[2], [9.0])


@settings(max_examples=40)
@given(st.integers(0, 1000), st.lists(st.integers(1, 6), min_size=1, max_size=5), st.randoms(), st.floats(0, 30))
def test_permuting_the_rows_permutes_the_result(seed, counts, random, width):
    logits, series, position = series_of(seed, counts)
    order = list(range(len(series)))
    random.shuffle(order)
    shuffled = smooth(logits[order], series[order], position[order], width)
    np.testing.assert_allclose(shuffled, smooth(logits, series, position, width)[order], rtol=1e-9, atol=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-9, 9), st.floats(-1000, 1000))
def test_constants_stay_and_the_direction_and_origin_of_the_positions_do_not_matter(seed, width, value, origin):
    logits, series, position = series_of(seed)
    np.testing.assert_allclose(smooth(np.full_like(logits, value), series, position, width), value, rtol=1e-12)
    turned = smooth(logits, series, origin - position, width)
    np.testing.assert_allclose(turned, smooth(logits, series, position, width), rtol=1e-6, atol=1e-9)


def test_a_series_sees_nothing_of_another():
    logits, series, position = series_of(2)
    changed = logits + 100.0 * (series == series[0])[:, None]
    others = series != series[0]
    np.testing.assert_array_equal(
        smooth(changed, series, position, 5)[others], smooth(logits, series, position, 5)[others]
    )


def test_each_class_has_its_own_width():
    table = series_of(3)
    found = smooth_each(*table, [5.0, 0, 5.0])
    np.testing.assert_array_equal(found[:, 1], table[0][:, 1])
    np.testing.assert_array_equal(found[:, [0, 2]], smooth(*table, 5)[:, [0, 2]])


def test_no_slices_are_no_fault():
    assert smooth_each(np.empty((0, 2)), [], [], [5.0, 0.0]).shape == (0, 2)


# ---- choosing the widths


def competition(seed, studies=40, length=24):
    """Two classes, the first in runs of eight slices, the second anywhere; logits are calibrated noisy views."""
    rng = np.random.default_rng(seed)
    y = np.zeros((studies, length, 2))
    for study in y[::2]:
        start = rng.integers(0, length - 8)
        study[start : start + 8, 0] = 1
    y[..., 1] = rng.random((studies, length)) < 0.3
    y = y.reshape(-1, 2)
    seen = 3 * (y - 0.5) + rng.normal(0, 2, y.shape)
    logits = 0.75 * seen + np.log([1 / 5, 3 / 7])  # of the likelihoods' ratio and the prior odds
    return logits, y, np.repeat(np.arange(studies), length), np.tile(5.0 * np.arange(length), studies)


WIDTHS = (0, 2.5, 5, 10, 20)


def test_smoothing_helps_where_neighbours_are_alike_and_is_left_where_they_are_not():
    logits, y, series, position = competition(0)
    widths = choose_widths(logits, y, series, position, WIDTHS)
    assert widths[0] >= 5
    assert widths[1] == 0
    new, truth, series, position = competition(1)
    before, after = (metrics.class_auc(truth, z)[0] for z in (new, smooth_each(new, series, position, widths)))
    assert after > before + 0.05


def test_the_chosen_width_has_the_lowest_log_loss():
    logits, y, series, position = competition(2)
    widths = choose_widths(logits, y, series, position, WIDTHS)
    for c in range(2):
        losses = [sklearn_metrics.log_loss(y[:, c], sigmoid(smooth(logits, series, position, w)[:, c])) for w in WIDTHS]
        assert widths[c] == WIDTHS[int(np.argmin(losses))]


def test_of_equal_widths_the_smallest_is_taken():
    rng = np.random.default_rng(0)
    alone = np.arange(20)  # a slice a series: no width changes anything
    assert choose_widths(rng.normal(size=(20, 1)), rng.integers(0, 2, (20, 1)), alone, alone, (10, 0, 5)) == [0]


def test_a_class_without_positives_gets_a_width():
    logits, y, series, position = competition(3)
    assert choose_widths(logits, np.zeros_like(y), series, position, WIDTHS)[0] in WIDTHS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"logits": [[np.nan], [0.0]]}, "finite"),
        ({"position": [0.0, np.inf]}, "finite"),
        ({"series": [0]}, r"must be \[n, c\]"),
        ({"logits": [0.0, 1.0]}, r"must be \[n, c\]"),
        ({"y": [[0.5], [1.0]]}, "0 or 1"),
        ({"y": [[np.nan], [1.0]]}, "0 or 1"),
        ({"y": [[0.0, 1.0]]}, "shape of the logits"),
        ({"widths": [-1.0]}, "the width is -1"),
        ({"widths": [float("nan")]}, "the width is nan"),
        ({"widths": []}, "no width"),
    ],
)
def test_what_cannot_be_smoothed_is_refused(change, says):
    table = {"logits": [[0.0], [1.0]], "y": [[0], [1]], "series": [0, 0], "position": [0.0, 5.0], "widths": [5.0]}
    with pytest.raises(ValueError, match=says):
        choose_widths(**{**table, **change})


def test_a_width_for_every_class_is_asked_for():
    with pytest.raises(ValueError, match="2 widths for 3 classes"):
        smooth_each(*series_of(0), [5.0, 0.0])

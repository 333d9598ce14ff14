import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from ich.ensemble.predictions import sigmoid
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
def test_smoothing_equals_a_plain_double_loop(width):
    table = series_of(0)
    np.testing.assert_allclose(smooth(*table, width), by_loops(*table, width), rtol=1e-12)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.lists(st.integers(1, 6), min_size=1, max_size=5), st.randoms(), st.floats(0, 30))
def test_permuting_the_rows_permutes_the_result(seed, counts, random, width):
    logits, series, position = series_of(seed, counts)
    order = list(range(len(series)))
    random.shuffle(order)
    shuffled = smooth(logits[order], series[order], position[order], width)
    np.testing.assert_allclose(shuffled, smooth(logits, series, position, width)[order], rtol=1e-9, atol=1e-12)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-9, 9), st.floats(-1000, 1000))
def test_constants_stay_and_the_direction_and_origin_of_the_positions_do_not_matter(seed, width, value, origin):
    logits, series, position = series_of(seed)
    np.testing.assert_allclose(smooth(np.full_like(logits, value), series, position, width), value, rtol=1e-12)
    turned = smooth(logits, series, origin - position, width)
    np.testing.assert_allclose(turned, smooth(logits, series, position, width), rtol=1e-6, atol=1e-9)


def test_each_class_has_its_own_width():
    table = series_of(3)
    found = smooth_each(*table, [5.0, 0, 5.0])
    np.testing.assert_array_equal(found[:, 1], table[0][:, 1])
    np.testing.assert_array_equal(found[:, [0, 2]], smooth(*table, 5)[:, [0, 2]])
    assert smooth_each(np.empty((0, 2)), [], [], [5.0, 0.0]).shape == (0, 2)


# ---- choosing the widths


WIDTHS = (0, 2.5, 5, 10, 20)


def test_the_chosen_width_has_the_lowest_log_loss():
    rng = np.random.default_rng(2)  # the first class comes in runs of eight slices, the second anywhere
    y = np.stack([np.repeat(rng.random(120) < 0.3, 8), rng.random(960) < 0.3], axis=1).astype(float)
    logits = 2.25 * (y - 0.5) + rng.normal(0, 1.5, y.shape) - 1
    series, position = np.repeat(np.arange(40), 24), np.tile(5.0 * np.arange(24), 40)
    widths = choose_widths(logits, y, series, position, WIDTHS)
    assert widths[0] >= 5
    assert widths[1] == 0, "neighbours are independent"
    for c in range(2):
        losses = [log_loss(y[:, c], sigmoid(smooth(logits, series, position, w)[:, c])) for w in WIDTHS]
        assert widths[c] == WIDTHS[int(np.argmin(losses))]
    alone = np.arange(len(y))  # one slice per series: no width changes anything, and the smallest is taken
    assert choose_widths(logits, np.zeros_like(y), alone, alone, (10, 0, 5)) == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": [[np.nan], [0.0]]}, "finite"),
        ({"position": [0.0, np.inf]}, "finite"),
        ({"y": [[np.nan], [1.0]]}, "0 or 1"),
        ({"y": [[0.0, 1.0]]}, r"\(1, 2\)"),
    ],
)
def test_invalid_logits_positions_and_labels_raise(change, message):
    table = {"logits": [[0.0], [1.0]], "y": [[0], [1]], "series": [0, 0], "position": [0.0, 5.0], "widths": [5.0]}
    with pytest.raises(ValueError, match=message):
        choose_widths(**{**table, **change})

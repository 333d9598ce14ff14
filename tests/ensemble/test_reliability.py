import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.ensemble.reliability import expected_calibration_error, reliability

pairs = st.lists(st.tuples(st.sampled_from([0, 1]), st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.7, 1.0])), min_size=1)


def bins_by_loop(y, p, bins):
    """Rows by rank of their probability; ties are in the bin of the first of them."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    rows = {}
    for rank, i in enumerate(order):
        first = next(r for r in range(rank + 1) if p[order[r]] == p[i])
        rows.setdefault(first * bins // len(p), []).append(i)
    return [rows[b] for b in sorted(rows)]


def test_invalid_labels_and_probabilities_raise():
    for y, p, message in (([0, 2], [0, 1], "0 or 1"), ([0, 1], [0, 1.2], r"0\.\.1")):
        with pytest.raises(ValueError, match=message):
            reliability(y, p)


def test_wilsons_interval_of_the_literature():
    # 8 of 10: 0.490 to 0.943; 0 of 10: 0 to 0.278 (Brown, Cai and DasGupta, Statistical Science 16, 2001)
    table = reliability([1] * 8 + [0] * 2, [0.5] * 10)
    assert table[["observed_low", "observed_high"]].to_numpy()[0] == pytest.approx([0.490, 0.943], abs=5e-4)
    table = reliability([0] * 10, [0.5] * 10)
    assert table[["observed_low", "observed_high"]].to_numpy()[0] == pytest.approx([0, 0.2775], abs=5e-4)


def test_repeated_rows_of_a_patient_do_not_narrow_the_interval():
    y, p = np.tile([1, 0, 0, 1, 0], 4), np.full(20, 0.4)
    patients = np.tile(np.arange(5), 4)
    once, copied = reliability(y[:5], p[:5]), reliability(y, p, patients=patients)
    for column in ("observed_low", "observed_high"):
        assert copied[column].to_numpy() == pytest.approx(once[column].to_numpy())
    assert reliability(y, p)["observed_low"][0] > copied["observed_low"][0]
    # the design effect is at least 1
    balanced = reliability([1, 0, 1, 0], [0.5] * 4, patients=[0, 0, 1, 1])
    assert balanced["observed_low"][0] == reliability([1, 0, 1, 0], [0.5] * 4)["observed_low"][0]


@settings(max_examples=50, deadline=None)
@given(pairs, st.integers(1, 8))
def test_bins_and_error_equal_a_plain_loop(rows, bins):
    y, p = np.array([a for a, _ in rows]), np.array([b for _, b in rows])
    table, groups = reliability(y, p, bins), bins_by_loop(y, p, bins)
    assert table["count"].tolist() == [len(group) for group in groups]
    error = 0.0
    for k, group in enumerate(groups):
        mean, share = sum(p[i] for i in group) / len(group), sum(y[i] for i in group) / len(group)
        assert table["probability"][k] == pytest.approx(mean)
        assert table["observed"][k] == pytest.approx(share)
        assert table["low"][k] == min(p[i] for i in group)
        assert table["high"][k] == max(p[i] for i in group)
        assert 0 <= table["observed_low"][k] <= share <= table["observed_high"][k] <= 1
        error += len(group) / len(y) * abs(mean - share)
    assert expected_calibration_error(y, p, bins) == pytest.approx(error, abs=1e-12)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from ich.ensemble.hierarchy import project_any
from ich.ensemble.metrics import LIMIT, weighted_log_loss

CLASSES = ("epidural", "subdural", "subarachnoid", "any")
WEIGHTS = (1, 1, 1, 2)
LABELS = np.array([[a, b, c, max(a, b, c)] for a in (0, 1) for b in (0, 1) for c in (0, 1)], dtype=float)

numbers = st.floats(-40, 40, allow_subnormal=False) | st.sampled_from([0.0, 1.0, -1.0, 1e4, -1e4])
tables = st.lists(st.lists(numbers, min_size=4, max_size=4), min_size=1, max_size=8).map(np.array)
weights = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]), min_size=4, max_size=4).filter(any)


def row_loss(labels, logits, share):
    return weighted_log_loss(labels[None], expit(logits)[None], share)


def test_any_is_pooled_with_the_subtypes_above_it_at_the_weighted_mean():
    # any 0 (weight 2), subtypes 3 and 2: (2 * 0 + 3) / 3 = 1, 2 is above it, (0 + 3 + 2) / 4 = 1.25; 1.1 is not above
    projected = project_any([[2.0, 1.1, 3.0, 0.0]], CLASSES, WEIGHTS)
    assert projected.tolist() == [[1.25, 1.1, 1.25, 1.25]]
    turned = project_any([[0.0, 3.0, 2.0, 1.1]], ["any", *CLASSES[:3]], (2, 1, 1, 1))
    assert turned.tolist() == [[1.25, 1.25, 1.25, 1.1]], "any may be in any column"
    # (2 * 0 + 3) / 3 = 1; 0.5 is above "any", but not above the pool
    assert project_any([[3.0, 0.5, -1.0, 0.0]], CLASSES, WEIGHTS).tolist() == [[1.0, 0.5, -1.0, 1.0]]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        ((1, 1, 1, 0), [3.0, 2.0, 0.0, 3.0]),  # "any" costs nothing: it is raised
        ((0, 1, 1, 1), [1.0, 1.0, 0.0, 1.0]),  # the largest costs nothing: it is lowered to the pool of the others
        ((0, 1, 0, 0), [3.0, 2.0, 0.0, 3.0]),  # neither costs anything
    ],
)
def test_classes_without_weight_move(share, expected):
    assert project_any([[3.0, 2.0, 0.0, 0.0]], CLASSES, share).tolist() == [expected]


def test_tables_without_any_and_rows_in_order_are_unchanged():
    random = np.random.default_rng(0)
    table = random.normal(0, 3, (200, 4))
    assert np.array_equal(project_any(table, ("a", "b", "c", "d"), WEIGHTS), table)
    right = table[:, 3] >= table[:, :3].max(axis=1)
    projected = project_any(table, CLASSES, WEIGHTS)
    assert 0 < right.sum() < 200
    assert np.array_equal(projected[right], table[right])
    assert (projected[~right] != table[~right]).any(axis=1).all()
    assert np.array_equal(project_any([[1.0], [2.0]], ["any"], [1]), [[1.0], [2.0]])


@settings(max_examples=100, deadline=None)
@given(tables, weights)
def test_no_loss_rises_and_the_projection_is_idempotent(table, share):
    projected = project_any(table, CLASSES, share)
    for before, after in zip(table, projected, strict=True):
        for labels in LABELS:
            assert row_loss(labels, after, share) <= row_loss(labels, before, share) + 1e-9
    assert (projected[:, 3:] >= projected[:, :3]).all()
    assert np.array_equal(project_any(projected, CLASSES, share), projected)
    assert np.array_equal(project_any(projected.astype(np.float32), CLASSES, share), projected.astype(np.float32))


def test_logits_are_clipped_as_in_the_metric():
    # without clipping, the pool of 10 and -100 would lie at -63 and a slice with a bleed would pay for the subtype too
    table = np.array([[10.0, -100.0, -100.0, -100.0]])
    projected = project_any(table, CLASSES, WEIGHTS)
    assert projected[0, 3] == pytest.approx((10 - 2 * LIMIT) / 3)
    labels = np.array([1.0, 0.0, 0.0, 1.0])
    assert row_loss(labels, projected[0], WEIGHTS) < row_loss(labels, table[0], WEIGHTS)
    assert pytest.approx(logit(1 - 1e-7)) == LIMIT


@pytest.mark.parametrize(
    ("table", "share", "message"),
    [
        *((bad, WEIGHTS, r"must be \[n, 4\]") for bad in (np.zeros(4), np.zeros((2, 3)), [[0, 0, 0, np.nan]])),
        (np.zeros((1, 4)), (1, 1), "class weights"),
    ],
)
def test_other_shapes_and_weights_raise(table, share, message):
    with pytest.raises(ValueError, match=message):
        project_any(table, CLASSES, share)

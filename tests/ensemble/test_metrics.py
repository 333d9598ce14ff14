import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    fbeta_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from ich.ensemble import metrics


@st.composite
def tables(draw):
    """Labels and probabilities [n, 3]; probabilities from few values, so that ties are common."""
    n = draw(st.integers(2, 30))
    values = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y = (values.random((n, 3)) < draw(st.sampled_from([0.1, 0.5, 0.9]))).astype(float)
    return y, values.integers(0, draw(st.sampled_from([3, 10, 1000])), (n, 3)) / 1000


def test_weighted_log_loss_by_hand():
    y, p = [[1, 0], [0, 1]], [[0.5, 0.5], [0.25, 0.8]]
    # rows: (1*ln2 + 2*ln2)/3 and (-1*ln.75 - 2*ln.8)/3
    expected = (np.log(2) + (-np.log(0.75) - 2 * np.log(0.8)) / 3) / 2
    assert metrics.weighted_log_loss(y, p, [1, 2]) == pytest.approx(expected, rel=1e-12)
    losses = [log_loss(*columns) for columns in zip(np.transpose(y), np.transpose(p), strict=True)]
    assert metrics.weighted_log_loss(y, p, [1, 2]) == pytest.approx(np.average(losses, weights=[1, 2]))
    assert metrics.weighted_log_loss([[1.0]], [[0.0]], [1]) == pytest.approx(-np.log(1e-7)), "clipped"
    assert metrics.weighted_log_loss([[0.0]], [[1.0]], [1]) == pytest.approx(-np.log(1e-7), rel=1e-6)


@settings(max_examples=30)
@given(tables())
def test_auc_and_average_precision_equal_scikit_learns(table):
    y, p = table
    auc, precision = metrics.class_auc(y, p), metrics.class_average_precision(y, p)
    assert metrics.macro(auc) == pytest.approx(pd.Series(auc).mean(), nan_ok=True), "NaN left out"
    for c in range(3):
        if len(np.unique(y[:, c])) == 1:
            assert np.isnan(auc[c])
            assert np.isnan(precision[c])
        else:
            assert auc[c] == pytest.approx(roc_auc_score(y[:, c], p[:, c]))
            assert precision[c] == pytest.approx(average_precision_score(y[:, c], p[:, c]))


@settings(max_examples=50)
@given(
    tables(), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from(["macro", "micro", "samples"]), st.sampled_from([0, 1])
)
def test_f_beta_equals_scikit_learns(table, beta, average, zero_division):
    y, p = table
    positive = p >= 0.005
    expected = fbeta_score(y, positive, beta=beta, average=average, zero_division=zero_division)
    assert metrics.f_beta(y, positive, beta, average, zero_division) == pytest.approx(expected)
    assert metrics.f_from_counts(3, 5, 4, 2) == pytest.approx(15 / 21)  # TP 3, FN 1, FP 2: 5*3 / (5*3 + 4*1 + 2)


@settings(max_examples=20)
@given(tables())
def test_a_confusion_matrix_equals_scikit_learns(table):
    y, p = table
    positive = p >= 0.005
    found = metrics.confusion(y, positive)
    for c in range(3):
        of = y[:, c], positive[:, c].astype(float)
        counts = [found[name][c] for name in ("tn", "fp", "fn", "tp")]
        assert counts == confusion_matrix(*of, labels=[0, 1]).ravel().tolist()
        assert found["accuracy"][c] == pytest.approx(accuracy_score(*of))
        for name, score in [("precision", precision_score), ("recall", recall_score), ("f1", f1_score)]:
            assert found[name][c] == pytest.approx(score(*of, zero_division=0))


@pytest.mark.parametrize(
    ("score", "y", "p", "message"),
    [
        (metrics.class_auc, [[0.0], [np.nan], [1.0]], [[0.1], [0.2], [0.3]], "1 row: 1"),
        (metrics.row_losses, [[1.0], [0.0]], [[3.0], [-1.0]], r"0\.\.1"),
        (lambda y, p: metrics.f_beta(y, p, 1, "macro"), [[1.0]], [[0.3]], "decisions"),
        (metrics.confusion, [[1.0]], [[0.3]], "decisions"),
    ],
)
def test_invalid_labels_probabilities_and_decisions_raise(score, y, p, message):
    with pytest.raises(ValueError, match=message):
        score(y, p)

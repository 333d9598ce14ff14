import numpy as np
import pytest
from sklearn.metrics import fbeta_score

from ich.ensemble import metrics, scoring
from ich.ensemble.intervals import Bootstrap
from ich.ensemble.scoring import Decisions, all_scores

WEIGHTS = [1, 1, 2]


def simulated() -> tuple[np.ndarray, np.ndarray, Bootstrap]:
    random = np.random.default_rng(0)
    owner = random.integers(0, 12, 90)
    y = (random.random((90, 3)) < 0.3).astype(float)
    p = 1 / (1 + np.exp(-(2 * y + random.normal(size=y.shape) - 1)))
    return y, p, Bootstrap(owner, resamples=20)


def scored(y, p, bootstrap):
    return all_scores(bootstrap, y, p, {"f2": Decisions(2, p > 0.4), "f1_half": Decisions(1, p > 0.5)}, WEIGHTS)


def test_values_equal_the_metrics():
    y, p, bootstrap = simulated()
    found = scored(y, p, bootstrap)
    assert found["log_loss"].values[-1] == metrics.weighted_log_loss(y, p, WEIGHTS)
    assert found["log_loss"].values[1] == pytest.approx(metrics.weighted_log_loss(y[:, [1]], p[:, [1]], [1]))
    assert found["auc"].values[:3].tolist() == metrics.class_auc(y, p).tolist()
    assert found["auc"].values[-1] == metrics.macro(metrics.class_auc(y, p))
    assert found["ap"].values[-1] == metrics.macro(metrics.class_average_precision(y, p))
    assert found["f2"].values[-1] == metrics.f_beta(y, p > 0.4, 2, "macro")
    assert found["f1_half"].values[2] == pytest.approx(fbeta_score(y[:, 2], p[:, 2] > 0.5, beta=1))


def test_scores_of_a_draw_equal_those_of_its_rows():
    y, p, bootstrap = simulated()
    found = scored(y, p, bootstrap)
    for draw in range(20):
        rows = np.repeat(np.arange(90), bootstrap.counts[draw][bootstrap.owner].astype(int))
        of_rows = scored(y[rows], p[rows], Bootstrap([0] * len(rows), resamples=1))
        for name, score in found.items():
            np.testing.assert_allclose(score.draws[draw], of_rows[name].values, atol=1e-12, err_msg=name)
    other = scored(y, np.clip(p + 0.02, 0, 1), bootstrap)["log_loss"]  # differences are paired by draw
    low, high = np.percentile(found["log_loss"].draws[:, -1] - other.draws[:, -1], [2.5, 97.5])
    difference = found["log_loss"].minus(other)
    assert (difference["low"], difference["high"]) == pytest.approx((low, high), abs=10.0**-scoring.DIGITS)


def test_a_class_with_one_label_is_left_out_of_the_macro_auc():
    y, p, bootstrap = simulated()
    y[:, 0] = 0
    found = scored(y, p, bootstrap)
    assert found["auc"].cell(0) == {"value": None, "low": None, "high": None}
    assert found["auc"].values[-1] == pytest.approx(found["auc"].values[1:3].mean())
    np.testing.assert_allclose(found["ap"].draws[:, -1], found["ap"].draws[:, 1:3].mean(axis=1))
    assert found["f2"].values[-1] == pytest.approx(found["f2"].values[:3].mean()), "its F is 0, and counts"
    assert (found["f2"].draws[:, 0] == 0).all()
    y[:] = 0
    found = scored(y, p, bootstrap)
    assert found["auc"].cell() == {"value": None, "low": None, "high": None}
    assert found["log_loss"].cell()["low"] is not None


def test_a_draw_without_positives_of_a_class_has_no_f():
    y, p, bootstrap = simulated()
    y[:, 0] = bootstrap.owner == 3
    found, held = scored(y, p, bootstrap), bootstrap.counts[:, 3] > 0
    assert 0 < held.sum() < 20
    for name in ("f2", "auc", "ap"):
        assert (np.isnan(found[name].draws[:, 0]) == ~held).all()
    np.testing.assert_allclose(found["f2"].draws[~held, -1], found["f2"].draws[~held, 1:3].mean(axis=1))


def test_scores_within_folds_do_not_see_their_scales_and_a_warning_does():
    y, p, _ = simulated()
    fold = np.arange(90) % 3
    y[fold == 2, 0] = 0  # no positive: the class counts in the other folds
    p = p * np.array([1, 0.1, 0.01])[fold][:, None]
    of_folds = [fold == k for k in range(3)]
    auc = np.stack([metrics.class_auc(y[k], p[k]) for k in of_folds])
    decisions = {"f2": Decisions(2, p > 0.4)}
    found = scoring.scores_by_fold(y, p, fold, decisions, WEIGHTS)
    mean, deviation = found["auc"]
    assert mean == pytest.approx(np.nanmean(auc, axis=0).mean())
    assert deviation == pytest.approx(np.nanmean(auc, axis=1).std(ddof=1))
    f2 = np.stack([fbeta_score(y[k], p[k] > 0.4, beta=2, average=None, zero_division=0) for k in of_folds])
    f2[2, 0] = np.nan
    assert found["f2"][0] == pytest.approx(np.nanmean(f2, axis=0).mean())
    losses = [metrics.weighted_log_loss(y[k], p[k], WEIGHTS) for k in of_folds]
    assert found["log_loss"] == pytest.approx((np.mean(losses), np.std(losses, ddof=1)))
    pooled = metrics.macro(metrics.class_auc(y, p))
    assert pooled < mean - 0.1
    (warning,) = scoring.fold_warnings({"resnet": (pooled, mean), "lgbm": (mean - 0.019, mean), "none": (np.nan, mean)})
    assert warning.startswith(
        f"resnet: the macro AUC is {pooled:.4f} over all rows, but {mean:.4f} on average within a"
    )
    with np.errstate(all="raise"):
        found = scoring.scores_by_fold(np.zeros((4, 1)), np.ones((4, 1)), np.arange(4) % 2, {}, [1])
    assert np.isnan(found["auc"]).all()

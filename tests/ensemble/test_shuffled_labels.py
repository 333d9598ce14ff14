"""With shuffled labels, blend and thresholds are at chance level on rows that they were not fitted on."""

import numpy as np
import pytest

from ich.ensemble import blend, calibration, metrics, thresholds
from ich.ensemble.intervals import Bootstrap
from ich.ensemble.predictions import sigmoid

STUDIES, SLICES, MODELS, FOLDS = 240, 12, 4, 3
SHARE = (0.05, 0.2)  # of positive slices per class
CLASSES = ["rare", "common"]


@pytest.fixture(scope="module")
def shuffled():
    """Correlated logits [n, m, c], independent labels [n, c] by study, studies and folds."""
    random = np.random.default_rng(4)
    study = np.repeat(np.arange(STUDIES), SLICES)
    shared = random.normal(size=(STUDIES, 1, len(CLASSES)))[study] + random.normal(size=(len(study), 1, len(CLASSES)))
    logits = shared + random.normal(size=(len(study), MODELS, len(CLASSES)))
    bleeds = random.random((STUDIES, len(CLASSES))) < np.array(SHARE) * 2
    labels = (bleeds[study] & (random.random((len(study), len(CLASSES))) < 0.5)).astype(float)
    return logits, labels, study, study % FOLDS


def test_a_calibrated_blend_has_the_auc_of_chance_and_the_loss_of_the_prevalence(shuffled):
    logits, labels, study, fold = shuffled
    found = np.empty(labels.shape)
    for k in range(FOLDS):
        train = fold != k
        patients = Bootstrap(study[train], resamples=200)
        for c in range(len(CLASSES)):
            z, y = logits[train][:, :, c], labels[train, c]
            made = blend.choose_combination(z, y, fold[train], patients)
            calibrated = calibration.choose_calibrator(made.out_of_fold, y, fold[train], patients)
            found[~train, c] = calibrated.calibrator.apply(made.combination.apply(logits[~train][:, :, c]))
    found, draws = sigmoid(found), Bootstrap(study, resamples=300)
    for c in range(len(CLASSES)):
        auc, _ = draws.ranks(labels[:, c], found[:, c])
        assert metrics.class_auc(labels[:, [c]], found[:, [c]])[0] == pytest.approx(0.5, abs=3.5 * auc.std())
    prevalence = np.stack([labels[fold != k].mean(axis=0) for k in range(FOLDS)])[fold]
    loss, least = (metrics.weighted_log_loss(labels, p, [1, 1]) for p in (found, prevalence))
    assert loss < least + 0.01


@pytest.mark.parametrize("beta", [1, 2])
def test_cross_fitted_f_is_that_of_predicting_every_slice(shuffled, beta):
    logits, labels, _, fold = shuffled
    goal = thresholds.Goal(beta, "macro")
    tuned = thresholds.tune(labels, sigmoid(logits.mean(axis=1)), CLASSES, goal, fold=fold)
    trivial = metrics.f_beta(labels, np.ones(labels.shape), beta, "macro")
    assert tuned.score > trivial
    assert tuned.score_cross_fitted is not None
    assert tuned.score_cross_fitted < trivial + 0.01
    assert tuned.score_cross_fitted < tuned.score

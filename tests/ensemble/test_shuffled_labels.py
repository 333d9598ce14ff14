"""With labels that mean nothing, blend and thresholds are at chance on rows that they were not fitted on."""

import numpy as np
import pytest

from ich.ensemble import blend, calibration, metrics, thresholds
from ich.ensemble.intervals import Bootstrap
from ich.ensemble.predictions import sigmoid

STUDIES, SLICES, MEMBERS, FOLDS = 240, 12, 4, 3
SHARE = (0.05, 0.2)  # of positive slices a class
CLASSES = ["rare", "common"]


@pytest.fixture(scope="module")
def shuffled():
    """Logits [n, m, c] that agree with each other, labels [n, c] in runs that have nothing to do with them."""
    random = np.random.default_rng(4)
    study = np.repeat(np.arange(STUDIES), SLICES)
    shared = random.normal(size=(STUDIES, 1, len(CLASSES)))[study] + random.normal(size=(len(study), 1, len(CLASSES)))
    logits = shared + random.normal(size=(len(study), MEMBERS, len(CLASSES)))
    bleeds = random.random((STUDIES, len(CLASSES))) < np.array(SHARE) * 2
    labels = (bleeds[study] & (random.random((len(study), len(CLASSES))) < 0.5)).astype(float)
    return logits, labels, study, study % FOLDS


def test_a_calibrated_blend_is_at_chance_and_its_loss_is_that_of_the_prevalence(shuffled):
    logits, labels, study, fold = shuffled
    found = np.empty(labels.shape)
    for k in range(FOLDS):
        train = fold != k
        patients = Bootstrap(study[train], resamples=200)
        for c in range(len(CLASSES)):
            z, y = logits[train][:, :, c], labels[train, c]
            made = blend.choose(z, y, fold[train], patients)
            calibrated = calibration.choose(made.out_of_fold, y, fold[train], patients)
            found[~train, c] = calibrated.calibrator.apply(made.combination.apply(logits[~train][:, :, c]))
    found, draws = sigmoid(found), Bootstrap(study, resamples=300)
    for c in range(len(CLASSES)):
        auc, _ = draws.ranks(labels[:, c], found[:, c])
        assert metrics.class_auc(labels[:, [c]], found[:, [c]])[0] == pytest.approx(0.5, abs=3.5 * auc.std())
    prevalence = np.stack([labels[fold != k].mean(axis=0) for k in range(FOLDS)])[fold]
    loss, least = (metrics.weighted_log_loss(labels, p, [1, 1]) for p in (found, prevalence))
    assert loss < least + 0.01


@pytest.mark.parametrize("beta", [1, 2])
def test_thresholds_of_other_folds_are_worth_no_more_than_calling_everything_positive(shuffled, beta):
    logits, labels, _, fold = shuffled
    goal = thresholds.Goal(beta, "macro")
    tuned = thresholds.tune(labels, sigmoid(logits.mean(axis=1)), CLASSES, goal, trials=0, seed=0, fold=fold)
    trivial = metrics.f_beta(labels, np.ones(labels.shape), beta, "macro")
    assert tuned.score > trivial
    assert tuned.score_cross_fitted is not None
    assert tuned.score_cross_fitted < trivial + 0.01
    assert tuned.score_cross_fitted < tuned.score

"""The search for wrong labels, against a double loop and numbers worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from ich.report.label_audit import disagreement, judge_ranking, judge_set, patterns, ranked, suspicion

NAN = math.nan


def flags(run: list[float]) -> list[int]:
    """Flagged places of one study of consecutive slices with one class."""
    labels = np.array(run, dtype=float)[:, None]
    found = patterns(labels, np.zeros(len(run), int), np.arange(len(run)))
    return np.flatnonzero(found[:, 0]).tolist()


@pytest.mark.parametrize(
    ("run", "flagged"),
    [
        ([1, 1, 0, 1, 1], [2]),
        ([0, 0, 1, 0, 0], [2]),
        ([1, 0, 1, 0, 1], [1, 2, 3]),
        ([1, 0, 0, 1], []),
        ([0, 1, 1, 0], []),
        ([1, 0, 0, 0], []),  # an end of the study
        ([0, 0, 0, 1], []),
        ([1, 0], []),
        ([1], []),
        ([1, NAN, 1], []),
        ([1, 0, NAN], []),
        ([0, 1, 0, NAN, 0, 1, 0], [1, 5]),
    ],
)
def test_the_inner_labels_of_101_and_010_are_flagged(run, flagged):
    assert flags(run) == flagged


def test_slices_around_a_gap_are_no_neighbours():
    labels = np.array([[1.0], [0.0], [1.0]])
    assert patterns(labels, np.zeros(3, int), np.array([4, 5, 6]))[1, 0]
    assert not patterns(labels, np.zeros(3, int), np.array([4, 6, 7])).any()
    assert not patterns(labels, np.array([0, 0, 1]), np.array([4, 5, 6])).any()


tables = st.integers(0, 2**32 - 1)


def random_table(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels with unknown ones, series with holes, in any order; probabilities."""
    rng = np.random.default_rng(seed)
    series, index = np.mgrid[0:4, 0:15].reshape(2, 60)[:, rng.permutation(60)[:n]]
    labels = (rng.random((n, 3)) < 0.4).astype(float)
    labels[rng.random((n, 3)) < 0.1] = NAN
    return labels, series, index, rng.random((n, 3))


def looked_up(labels: np.ndarray, series: np.ndarray, index: np.ndarray) -> dict[tuple[int, int, int], float]:
    return {
        (int(s), int(i), c): float(labels[row, c])
        for row, (s, i) in enumerate(zip(series, index, strict=True))
        for c in range(labels.shape[1])
    }


@settings(max_examples=40)
@given(tables)
def test_patterns_are_those_of_a_plain_search(seed):
    labels, series, index, _ = random_table(seed)
    known = looked_up(labels, series, index)
    found = patterns(labels, series, index)
    for (s, i, c), label in known.items():
        row = int(np.flatnonzero((series == s) & (index == i))[0])
        beside = {known.get((s, i - 1, c), NAN), known.get((s, i + 1, c), NAN)}
        assert found[row, c] == (beside == {1 - label})


@settings(max_examples=20)
@given(tables)
def test_suspicion_is_the_product_of_two_witnesses(seed):
    labels, series, index, probability = random_table(seed)
    known = looked_up(labels, series, index)

    def beside(s, i, c):
        near = [x for x in (known.get((s, i - 1, c), NAN), known.get((s, i + 1, c), NAN)) if not math.isnan(x)]
        return len(near), sum(near)

    found = suspicion(labels, probability, series, index)
    for (s, i, c), label in known.items():
        row = int(np.flatnonzero((series == s) & (index == i))[0])
        if math.isnan(label):
            assert math.isnan(found[row, c])
            continue
        alike = [
            y
            for (t, j, d), y in known.items()
            if d == c and (t, j) != (s, i) and not math.isnan(y) and beside(t, j, d) == beside(s, i, c)
        ]
        all_of_class = [y for (_, _, d), y in known.items() if d == c and not math.isnan(y)]
        neighbours = (sum(alike) + 1) / (len(alike) + 2)
        share = (sum(all_of_class) + 1) / (len(all_of_class) + 2)
        p = probability[row, c]
        one = p * neighbours / share
        zero = (1 - p) * (1 - neighbours) / (1 - share)
        wrong = zero if label == 1 else one
        assert found[row, c] == pytest.approx(math.log(wrong / (one + zero - wrong)), abs=1e-9)


def test_disagreement_is_the_log_loss_of_the_label():
    labels = np.array([[1, 0, NAN, 1]])
    found = disagreement(labels, np.array([[0.25, 0.25, 0.5, 0.0]]))
    np.testing.assert_allclose(found, [[math.log(4), -math.log(0.75), NAN, -math.log(1e-7)]])


def study_table(runs: list[list[int]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"image_id": f"i{s}_{k}", "study_id": f"s{s}", "series": s, "index": k, "bleed": float(label)}
            for s, run in enumerate(runs)
            for k, label in enumerate(run)
        ]
    )


def test_the_list_holds_pattern_breaks_and_the_most_suspicious_worst_first():
    runs = [[0, 0, 1, 1, 1, 1, 0, 0]] * 10 + [[0, 1, 1, 0, 1, 1, 0, 0]] + [[0, 0, 0, 0, 0, 0, 0, 0]] * 4
    slices = study_table(runs)
    probability = np.where(slices[["bleed"]] == 1, 0.8, 0.1)
    probability[83] = 0.8  # the picture, too, says that the 0 between the 1s is wrong
    probability[100] = 0.9  # of a healthy study, whose labels are all 0
    shuffled = np.random.default_rng(0).permutation(len(slices))
    found = ranked(slices.iloc[shuffled], ["bleed"], probability[shuffled], most=2)
    assert found["rank"].tolist() == list(range(1, len(found) + 1))
    assert found["image_id"].tolist()[0] == "i10_3"
    assert found["suspicion"].is_monotonic_decreasing
    first = found.iloc[0]
    assert (first["study_id"], first["index"], first["class"]) == ("s10", 3, "bleed")
    assert (first["label"], first["probability"], first["pattern"]) == (0, 0.8, 1)
    assert first["disagreement"] == pytest.approx(math.log(5))
    assert len(found) == 2
    assert ranked(slices, ["bleed"], probability, most=0)["image_id"].tolist() == ["i10_3"]


def test_unknown_labels_are_never_listed():
    slices = study_table([[0, 1, 0, 1], [0, 0, 0, 0]])
    slices.loc[2:, "bleed"] = NAN
    found = ranked(slices, ["bleed"], np.full((8, 1), 0.5), most=100)
    assert set(found["image_id"]) == {"i0_0", "i0_1"}


def test_a_rule_is_judged_by_hand_made_counts():
    wrong = np.array([[True, False], [True, False], [False, True]])
    flagged = np.array([[True, True], [False, False], [False, True]])
    found = judge_set(wrong, flagged)
    assert (found.flagged, found.precision, found.recall) == (3, 2 / 3, 2 / 3)
    assert math.isnan(found.average_precision)
    score = np.array([[0.9, 0.8], [0.1, NAN], [0.2, 0.7]])
    ranking = judge_ranking(wrong, score)
    # 0.9 wrong, 0.8 right, 0.7 wrong, 0.2 right, 0.1 wrong: three are flagged
    assert (ranking.flagged, ranking.precision, ranking.recall) == (3, 2 / 3, 2 / 3)
    assert ranking.average_precision == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


@settings(max_examples=30)
@given(tables)
def test_average_precision_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    wrong, score = rng.random((20, 2)) < 0.2, rng.random((20, 2)).round(1)
    wrong[0, 0] = True
    expected = average_precision_score(wrong.ravel(), score.ravel())
    assert judge_ranking(wrong, score).average_precision == pytest.approx(expected)


def test_without_errors_there_is_no_recall():
    nothing = np.zeros((3, 1), bool)
    assert math.isnan(judge_set(nothing, nothing).precision)
    found = judge_ranking(nothing, np.ones((3, 1)))
    assert found.flagged == 0
    assert math.isnan(found.recall)
    assert math.isnan(found.average_precision)


def test_planted_errors_are_found_better_by_both_witnesses_than_by_either():
    """Lesions of 1 to 9 slices, pictures that are read with noise, 2 % wrong labels at the lesions and their ends."""
    rng = np.random.default_rng(4)
    n, truth = 400, []
    for _ in range(n):
        run = np.zeros(24)
        if rng.random() < 0.5:
            first, length = int(rng.integers(1, 14)), int(rng.integers(1, 10))
            run[first : first + length] = 1
        truth.append(run)
    true = np.concatenate(truth)[:, None]
    series, index = np.repeat(np.arange(n), 24), np.tile(np.arange(24), n)
    near = np.convolve(true[:, 0], np.ones(3), "same") > 0
    wrong = (near & (rng.random(len(true)) < 0.02))[:, None]
    written = np.where(wrong, 1 - true, true)
    logit = np.where(true == 1, 1.2, -2.8) + 1.4 * rng.normal(size=true.shape)
    probability = 1 / (1 + np.exp(-logit))
    both = judge_ranking(wrong, suspicion(written, probability, series, index)).average_precision
    picture = judge_ranking(wrong, disagreement(written, probability)).average_precision
    blind = np.full_like(probability, written.mean())
    neighbours = judge_ranking(wrong, suspicion(written, blind, series, index)).average_precision
    assert both > 1.2 * max(picture, neighbours)

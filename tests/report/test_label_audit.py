"""Suspicious labels, against a double loop and values computed by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.report.label_audit import disagreement, evaluate_flags, evaluate_ranking, patterns, rank_labels, suspicion

NAN = math.nan


@pytest.mark.parametrize(
    ("run", "flagged"),
    [
        ([1, 1, 0, 1, 1], [2]),
        ([0, 0, 1, 0, 0], [2]),
        ([1, 0, 1, 0, 1], [1, 2, 3]),
        ([1, 0, 0, 1], []),
        ([0, 1, 1, 0], []),
        ([1, 0, 0, 0], []),  # an end of the study
        ([1], []),
        ([1, NAN, 1], []),
        ([1, 0, NAN], []),
        ([0, 1, 0, NAN, 0, 1, 0], [1, 5]),
    ],
)
def test_the_inner_labels_of_101_and_010_are_flagged(run, flagged):
    labels = np.array(run, dtype=float)[:, None]
    found = patterns(labels, np.zeros(len(run), int), np.arange(len(run)))
    assert np.flatnonzero(found[:, 0]).tolist() == flagged


class Table:
    """Labels of 40 slices in 4 series with holes and unknown labels, in any order; probabilities."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.series, self.index = np.mgrid[0:4, 0:15].reshape(2, 60)[:, rng.permutation(60)[:40]]
        self.labels = (rng.random((40, 3)) < 0.4).astype(float)
        self.labels[rng.random((40, 3)) < 0.1] = NAN
        self.probability = rng.random((40, 3))
        places = list(zip(self.series.tolist(), self.index.tolist(), strict=True))
        self.label = {(*place, c): self.labels[row, c] for row, place in enumerate(places) for c in range(3)}
        self.row = {place: row for row, place in enumerate(places)}

    def neighbours(self, s: int, i: int, c: int) -> list[float]:
        return [self.label.get((s, i + step, c), NAN) for step in (-1, 1)]


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_suspicion_matches_a_double_loop(seed):
    table = Table(seed)
    found = suspicion(table.labels, table.probability, table.series, table.index)

    def beside(place):
        near = [x for x in table.neighbours(*place) if not math.isnan(x)]
        return len(near), sum(near)

    def rate(labels):
        return (sum(labels) + 1) / (len(labels) + 2)

    for place, label in table.label.items():
        s, i, c = place
        value = found[table.row[s, i], c]
        if math.isnan(label):
            assert math.isnan(value)
            continue
        known = {other: y for other, y in table.label.items() if other[2] == c and not math.isnan(y)}
        alike = rate([y for other, y in known.items() if other != place and beside(other) == beside(place)])
        share, p = rate(known.values()), table.probability[table.row[s, i], c]
        one, zero = p * alike / share, (1 - p) * (1 - alike) / (1 - share)
        assert value == pytest.approx(math.log(zero / one if label == 1 else one / zero), abs=1e-9)


def test_disagreement_is_the_log_loss_of_the_label():
    labels = np.array([[1, 0, NAN, 1]])
    found = disagreement(labels, np.array([[0.25, 0.25, 0.5, 0.0]]))
    np.testing.assert_allclose(found, [[math.log(4), -math.log(0.75), NAN, -math.log(1e-7)]])


def study_table(runs: list[list[int]]) -> pd.DataFrame:
    rows = [(f"i{s}_{k}", f"s{s}", s, k, float(label)) for s, run in enumerate(runs) for k, label in enumerate(run)]
    return pd.DataFrame(rows, columns=["image_id", "study_id", "series", "index", "bleed"])


def test_the_list_holds_pattern_breaks_and_the_most_suspicious_worst_first():
    runs = [[0, 0, 1, 1, 1, 1, 0, 0]] * 10 + [[0, 1, 1, 0, 1, 1, 0, 0]] + [[0, 0, 0, 0, 0, 0, 0, 0]] * 4
    slices = study_table(runs)
    probability = np.where(slices[["bleed"]] == 1, 0.8, 0.1)
    probability[83] = 0.8  # contradicts the 0 between the 1s
    probability[100] = 0.9  # in a study without bleeds
    shuffled = np.random.default_rng(0).permutation(len(slices))
    found = rank_labels(slices.iloc[shuffled], ["bleed"], probability[shuffled], most=2)
    assert found["rank"].tolist() == [1, 2]
    assert found["image_id"].tolist()[0] == "i10_3"
    assert found["suspicion"].is_monotonic_decreasing
    first = found.iloc[0]
    assert (first["study_id"], first["index"], first["class"]) == ("s10", 3, "bleed")
    assert (first["label"], first["probability"], first["pattern"]) == (0, 0.8, 1)
    assert first["disagreement"] == pytest.approx(math.log(5))
    assert rank_labels(slices, ["bleed"], probability, most=0)["image_id"].tolist() == ["i10_3"]


def test_unknown_labels_are_never_listed():
    slices = study_table([[0, 1, 0, 1], [0, 0, 0, 0]])
    slices.loc[2:, "bleed"] = NAN
    found = rank_labels(slices, ["bleed"], np.full((8, 1), 0.5), most=100)
    assert set(found["image_id"]) == {"i0_0", "i0_1"}


def test_rules_are_evaluated_as_by_hand():
    wrong = np.array([[True, False], [True, False], [False, True]])
    flagged = np.array([[True, True], [False, False], [False, True]])
    expected = {"flagged": 3, "precision": 2 / 3, "recall": 2 / 3, "average_precision": NAN}
    assert evaluate_flags(wrong, flagged) == pytest.approx(expected, nan_ok=True)
    # 0.9 wrong, 0.8 right, 0.7 wrong, 0.2 right, 0.1 wrong: three are flagged
    score = np.array([[0.9, 0.8], [0.1, NAN], [0.2, 0.7]])
    expected["average_precision"] = (1 + 2 / 3 + 3 / 5) / 3
    assert evaluate_ranking(wrong, score) == pytest.approx(expected)
    nothing = {"flagged": 0, "precision": NAN, "recall": NAN, "average_precision": NAN}
    assert evaluate_ranking(np.zeros((3, 1), bool), np.ones((3, 1))) == pytest.approx(nothing, nan_ok=True)

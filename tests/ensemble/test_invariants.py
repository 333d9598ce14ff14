"""Invariants of predictions, thresholds and submissions; more of them are broken in tests/pipeline/test_verify.py."""

import numpy as np
import pandas as pd
import pytest

from ich.ensemble import invariants

CLASSES = ["subdural", "any"]
IDS = pd.Index(["a", "b", "c"])
FOLDS = pd.Series([0, 1, 0], index=IDS)


def rows(ids="abc", **columns) -> pd.DataFrame:
    frame = pd.DataFrame({"image_id": list(ids), "fold": [int(FOLDS.get(i, 0)) for i in ids]})
    return frame.assign(logit_subdural=np.arange(len(ids)) / 8, logit_any=-1.0).assign(**columns)


def broken(check) -> list[list[str]]:
    return [list(names) for names, _ in check if len(names)]


@pytest.mark.parametrize(
    ("table", "expected"),
    [(rows("bca"), []), (rows("abcx"), [["x"]]), (rows("ab").assign(logit_any=[np.inf, np.nan]), [["c"], ["a", "b"]])],
)
def test_each_image_has_one_row_of_finite_logits(table, expected):
    assert broken(invariants.predictions(table, IDS, CLASSES, FOLDS)) == expected
    assert broken(invariants.predictions(table.drop(columns="fold"), IDS, CLASSES)) == expected
    with pytest.raises(ValueError, match="expected image_id, fold, logit_subdural, logit_any"):
        list(invariants.predictions(table.rename(columns={"logit_any": "any"}), IDS, CLASSES, FOLDS))


def test_embeddings_have_one_finite_row_per_image(monkeypatch):
    monkeypatch.setattr(invariants, "CHUNK", 2)
    array, ids = np.zeros((3, 4), dtype=np.float16), rows()["image_id"]
    assert broken(invariants.embeddings(array, ids)) == []
    array[2, 1] = np.inf
    assert broken(invariants.embeddings(array, ids)) == [["c"]]
    for other in (np.zeros((3, 4), np.float32), array[:2], array[:, 0]):
        with pytest.raises(ValueError, match=r"float16 \[3, d\]"):
            list(invariants.embeddings(other, ids))


@pytest.mark.parametrize(
    ("moved", "cuts", "expected"),
    [
        ({}, {"subdural": 0.0, "any": 2.0}, []),  # 2: never predicted
        ({}, {"subdural": -0.1, "any": 1.0}, [["subdural"]]),
        ({"subdural": 0.5, "any": 1.2}, {"subdural": 0.0, "any": 1.0}, [["any"]]),
    ],
)
def test_thresholds_lie_in_0_to_1(moved, cuts, expected):
    shifts = {name: {"threshold": cut} for name, cut in moved.items()}
    found = {"thresholds": cuts, "prevalence": {"applied": False, "classes": shifts}}
    assert broken(invariants.thresholds(found, CLASSES)) == expected


def submission(*values: float) -> pd.DataFrame:
    return pd.DataFrame({"ID": ["1", "2", "3"], "Label": values})


def test_a_submission_has_the_expected_probabilities_and_their_decisions():
    expected, limits = submission(0.1, 0.2, np.nan), submission(0.2, 0.2, 0.2)
    for values, wrong in (((0.1, 0.2, 0.9), []), ((0.1, 0.21, 0.9), [["2"]]), ((0.1, 0.2, 1.1), [["3"]])):
        assert broken(invariants.probabilities(submission(*values), expected)) == wrong
    for values, wrong in (((0, 1, 1), []), ((0, 0, 1), [["2"]]), ((0, 1, 0.9), [["3"]])):
        assert broken(invariants.decisions(submission(*values), submission(0.1, 0.2, 0.3), limits)) == wrong

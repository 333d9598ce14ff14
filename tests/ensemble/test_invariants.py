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


def broken(check) -> list[tuple[list[str], str]]:
    return [(list(names), what) for names, what in check if len(names)]


def test_a_whole_table_keeps_its_promises_in_any_order():
    assert broken(invariants.predictions(rows("bca"), IDS, CLASSES, FOLDS)) == []
    assert broken(invariants.predictions(rows("bca").drop(columns="fold"), IDS, CLASSES)) == []


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (rows("ab"), [(["c"], "is not in it")]),
        (rows("abcb"), [(["b"], "stands in it twice")]),
        (rows("abcx"), [(["x"], "does not belong in it")]),
        (rows(fold=[0, 0, 0]), [(["b"], "names another fold than its own")]),
        (rows(logit_any=[0, np.inf, np.nan]), [(["b", "c"], "has a logit that is no finite number")]),
    ],
)
def test_a_row_that_breaks_one_is_named(table, expected):
    assert broken(invariants.predictions(table, IDS, CLASSES, FOLDS)) == expected


def test_other_columns_are_refused():
    with pytest.raises(ValueError, match="expected image_id, fold, logit_subdural, logit_any"):
        list(invariants.predictions(rows().rename(columns={"logit_any": "any"}), IDS, CLASSES, FOLDS))


def test_out_of_fold_logits_are_the_folds_to_the_bit():
    parts = [rows("ac"), rows("b")]
    oof = pd.concat(parts[::-1])
    assert broken(invariants.as_in(oof, parts, CLASSES)) == []
    other = oof.assign(logit_any=np.where(oof["image_id"] == "c", np.nextafter(-1.0, 0), -1.0))
    assert [names for names, _ in broken(invariants.as_in(other, parts, CLASSES))] == [["c"]]


def test_test_logits_are_the_mean_of_the_folds_joined_by_id():
    parts = [rows("abc", logit_any=[1.0, 2, 3]), rows("cab", logit_any=[5.0, 1, 4])]
    mean = rows("abc", logit_any=[1.0, 3, 4], logit_subdural=[1 / 16, 3 / 16, 1 / 8])
    assert broken(invariants.mean_of(mean, parts, CLASSES)) == []
    mean.loc[1, "logit_any"] = 3.001
    assert [names for names, _ in broken(invariants.mean_of(mean, parts, CLASSES))] == [["b"]]


def test_embeddings_that_are_not_finite_are_named(monkeypatch):
    monkeypatch.setattr(invariants, "CHUNK", 2)
    array = np.zeros((3, 4), dtype=np.float16)
    assert broken(invariants.embeddings(array, rows()["image_id"])) == []
    array[2, 1] = np.inf
    assert [names for names, _ in broken(invariants.embeddings(array, rows()["image_id"]))] == [["c"]]
    assert broken(invariants.embeddings(array[:0], rows("")["image_id"])) == []


@pytest.mark.parametrize("array", [np.zeros((3, 4), np.float32), np.zeros((2, 4), np.float16), np.zeros(3, np.float16)])
def test_embeddings_of_another_shape_are_refused(array):
    with pytest.raises(ValueError, match=r"float16 \[3, d\] belongs"):
        list(invariants.embeddings(array, rows()["image_id"]))


def tuned(moved=None, **cuts):
    shifts = {name: {"threshold": cut} for name, cut in (moved or {}).items()}
    return {"thresholds": cuts, "prevalence": {"applied": False, "classes": shifts}}


def test_thresholds_lie_in_0_to_1_or_where_nothing_reaches_them():
    assert broken(invariants.thresholds(tuned(subdural=0.0, any=2.0), CLASSES)) == []
    ((names, _),) = broken(invariants.thresholds(tuned(subdural=-0.1, any=1.0), CLASSES))
    assert names == ["subdural"]
    ((names, _),) = broken(invariants.thresholds(tuned({"subdural": 0.5, "any": 1.2}, subdural=0, any=1), CLASSES))
    assert names == ["any"]
    with pytest.raises(ValueError, match="expected subdural, any"):
        list(invariants.thresholds(tuned(any=0.5), CLASSES))


def submission(*values: float) -> pd.DataFrame:
    return pd.DataFrame({"ID": ["1", "2", "3"], "Label": values})


def test_a_submission_s_probabilities_are_those_that_are_expected():
    expected = submission(0.1, 0.2, np.nan)
    assert broken(invariants.probabilities(submission(0.1, 0.2, 0.9), expected)) == []
    ((names, what),) = broken(invariants.probabilities(submission(0.1, 0.21, 0.9), expected))
    assert (names, what) == (["2"], "has another probability than the blend's")
    ((names, what),) = broken(invariants.probabilities(submission(0.1, 0.2, 1.1), expected))
    assert (names, what) == (["3"], "has a value outside 0..1")
    with pytest.raises(ValueError, match="in their order"):
        list(invariants.probabilities(submission(0.1, 0.2, 0.9)[::-1], expected))


def test_a_submission_s_decisions_are_1_from_the_threshold_on():
    given, limits = submission(0.1, 0.2, 0.3), submission(0.2, 0.2, 0.2)
    assert broken(invariants.decisions(submission(0, 1, 1), given, limits)) == []
    assert [names for names, _ in broken(invariants.decisions(submission(0, 0, 1), given, limits))] == [["2"]]
    assert [names for names, _ in broken(invariants.decisions(submission(0, 1, 0.9), given, limits))] == [["3"]]

import numpy as np
import pandas as pd
import pytest

from ich.ensemble import predictions

CLASSES = ["subdural", "any"]


def table(ids, values, fold=None):
    frame = pd.DataFrame({"image_id": ids, "logit_subdural": values, "logit_any": [v + 10.0 for v in values]})
    return frame if fold is None else frame.assign(fold=fold)


def parts():
    return {0: table(["d", "a"], [4.0, 1.0], 0), 1: table(["c", "b"], [3.0, 2.0], 1)}


LABELLED = {0: ["a", "d"], 1: ["b", "c"]}


def test_out_of_fold_rows_are_sorted_by_image_id():
    oof = predictions.assemble_oof(parts(), LABELLED, CLASSES)
    assert list(oof.columns) == ["image_id", "fold", "logit_subdural", "logit_any"]
    assert oof["image_id"].tolist() == ["a", "b", "c", "d"]
    assert oof["fold"].tolist() == [0, 1, 1, 0]
    assert oof["logit_subdural"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert list(oof.index) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("broken", "labelled", "message"),
    [
        (table(["d"], [4.0], 0), LABELLED, r"missing \(1\): a\."),
        (table(["d", "a", "a"], [4.0, 1.0, 1.0], 0), LABELLED, r"more than once \(1\): a\."),
        (table(["d", "a", "z"], [4.0, 1.0, 1.0], 0), LABELLED, r"not labelled slices of this fold \(1\): z\."),
        (table(["d", "a"], [4.0, 1.0], [0, 1]), LABELLED, r"of another fold \(1\): a\."),
        (table(["d", "a"], [np.nan, -np.inf], 0), LABELLED, r"NaN or infinite \(2\): d, a\."),
        (table(["d", "a"], [4.0, 1.0]), LABELLED, "columns fold are missing"),
        (table(["d", "b"], [4.0, 1.0], 0), {0: ["b", "d"], 1: ["b", "c"]}, r"more than one fold \(1\): b\."),
        (table(["d", "a"], [4.0, 1.0], 0), {0: ["a", "d"]}, "folds"),
    ],
)
def test_out_of_fold_tables_must_have_every_labelled_slice_once(broken, labelled, message):
    with pytest.raises(ValueError, match=message):
        predictions.assemble_oof({**parts(), 0: broken}, labelled, CLASSES)


def test_tables_of_studies_must_have_every_study_once():
    studies = {k: part.rename(columns={"image_id": "study_id"}) for k, part in parts().items()}
    oof = predictions.assemble_oof(studies, LABELLED, CLASSES, "study_id")
    assert oof["study_id"].tolist() == ["a", "b", "c", "d"]
    twice = pd.concat([studies[0], studies[0][:1]])
    with pytest.raises(ValueError, match=r"fold 0: studies that occur more than once \(1\): d\."):
        predictions.assemble_oof({**studies, 0: twice}, LABELLED, CLASSES, "study_id")
    with pytest.raises(ValueError, match=r"test table 1: studies that test table 0 does not have"):
        predictions.mean_test([studies[0], studies[1]], CLASSES, "study_id")


def test_the_test_mean_is_joined_by_id():
    mean = predictions.mean_test([table(["b", "a"], [1.0, 2.0]), table(["a", "b"], [4.0, 5.0])], CLASSES)
    assert mean["image_id"].tolist() == ["a", "b"]
    assert mean["logit_subdural"].tolist() == [3.0, 3.0]
    assert mean["logit_any"].tolist() == [13.0, 13.0]


@pytest.mark.parametrize("ids", [["a"], ["a", "b", "c"], ["a", "c"]])
def test_the_test_mean_requires_the_same_slices_in_all_folds(ids):
    with pytest.raises(ValueError, match=r": [bc]\.$"):
        predictions.mean_test([table(["a", "b"], [1.0, 2.0]), table(ids, [0.0] * len(ids))], CLASSES)


def test_aligned_logits_are_in_the_order_of_ids_and_classes():
    frame = table(["a", "b", "c"], [1.0, 2.0, 3.0])
    assert predictions.aligned(frame, ["c", "a"], CLASSES).tolist() == [[3.0, 13.0], [1.0, 11.0]]
    assert predictions.aligned(frame, ["b"], CLASSES[::-1]).tolist() == [[12.0, 2.0]]


@pytest.mark.parametrize(
    ("there", "wanted", "message"),
    [("a", "ax", r"missing \(1\): x"), ("aa", "a", r"more than once \(1\): a"), ("a", "aa", r"twice \(1\): a")],
)
def test_missing_and_repeated_ids_raise(there, wanted, message):
    with pytest.raises(ValueError, match=message):
        predictions.aligned(table(list(there), [1.0] * len(there)), list(wanted), CLASSES)

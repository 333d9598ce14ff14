import pytest

from ich.report.thresholds import parts

FOUND = {
    "metric": "f2",
    "average": "macro",
    "shrink": 0,
    "thresholds": {"bleed": 0.25, "any": 2.0},
    "positives": {"bleed": 9, "any": 0},
    "score": 0.5,
    "interval": [0.4, 0.6],
    "recall": {"bleed": 0.875, "any": None},
    "score_cross_fitted": None,
    "interval_cross_fitted": None,
    "recall_cross_fitted": None,
    "gap": 0.0,
    "warnings": ["any: no positive row."],
}
SHIFT = {"train": 0.1, "test": 0.2, "estimated": 0.2, "low": 0.15, "high": 0.25, "threshold": 0.5, "warning": ""}


def shifted(applied=False, average="macro", **change):
    shift = {"applied": applied, "classes": {"bleed": SHIFT | change}}
    return list(parts(FOUND | {"average": average, "prevalence": shift}))[1]


def test_the_classes_stand_in_a_table_with_the_score_as_its_title():
    [(table, said)] = parts(FOUND)
    assert table.title == "macro F2 0.5000 (0.4000 to 0.6000) tuned on its own rows"
    assert table.rows == [["bleed", "0.2500", "9", "0.875", "-"], ["any", "2.0000", "0", "-", "-"]]
    assert said == ["Optuna reached the exact optimum", "warning: any: no positive row."]


def test_what_other_folds_thresholds_are_worth_stands_beside_it():
    crossed = {"score_cross_fitted": 0.45, "interval_cross_fitted": [0.3, 0.55]}
    [(table, _)] = parts(FOUND | crossed | {"recall_cross_fitted": {"bleed": 0.5, "any": None}})
    assert table.title.endswith(", 0.4500 (0.3000 to 0.5500) with thresholds from other folds")
    assert table.rows[0][-1] == "0.500"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gap": 2e-3}, "Optuna is 2.0e-03 below the exact optimum"),
        ({"gap": -1e-9, "average": "samples"}, "Optuna is 1.0e-09 above what coordinate ascent reaches"),
        ({"shrink": 10}, "Optuna reached the exact optimum of the shrunk goal"),
    ],
)
def test_how_far_the_search_ended_from_the_optimum_is_said(change, says):
    [(_, said)] = parts(FOUND | change)
    assert said[0] == says


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"test": 0.1}, "nothing in the predictions tells"),
        ({"applied": True}, "the submission is shifted"),
        ({"average": "samples"}, "neither the thresholds nor the submission are shifted"),
        ({}, "the submission is not shifted; thresholds.prevalence: apply"),
    ],
)
def test_what_becomes_of_the_test_set_s_prevalence_is_said(change, says):
    table, [said] = shifted(**change)
    assert table.rows == [["bleed", "0.1000", "0.2000", "0.1500 to 0.2500", "0.5000"]]
    assert said.startswith(says)


def test_why_an_estimate_is_not_to_be_trusted_is_said_where_the_tuning_has_not_warned():
    assert shifted(warning="it runs to 0")[1][0] == "warning: bleed: it runs to 0"
    assert len(shifted(warning="it runs to 0", train=0.0)[1]) == 1

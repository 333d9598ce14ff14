"""The printed tables of tuned thresholds and of the test prevalence."""

import pytest

from ich.report.thresholds import parts

FOUND = {
    "metric": "f2",
    "average": "macro",
    "shrink": 0,
    "thresholds": {"bleed": 0.25, "any": 2.0},
    "positives": {"bleed": 9, "any": 0},
    "score": 0.5,
    "averages": {"macro": 0.5, "micro": 0.75},
    "interval": [0.4, 0.6],
    "recall": {"bleed": 0.875, "any": None},
    "score_cross_fitted": None,
    "interval_cross_fitted": None,
    "recall_cross_fitted": None,
    "gap": 0.0,
    "warnings": ["any: no positive row."],
}
SHIFT = {"train": 0.1, "test": 0.2, "estimated": 0.2, "low": 0.15, "high": 0.25, "threshold": 0.5, "warning": ""}
BOTH = "In-sample: macro F2 0.5000, micro F2 0.7500."


def test_one_row_per_class_below_the_in_sample_and_the_cross_fitted_score():
    [(table, said)] = parts(FOUND)
    assert table.title == "macro F2 0.5000 (0.4000 to 0.6000) in-sample"
    assert table.rows == [["bleed", "0.2500", "9", "0.875", "-"], ["any", "2.0000", "0", "-", "-"]]
    assert said == ["Optuna reached the exact optimum.", BOTH, "warning: any: no positive row."]
    crossed = {"score_cross_fitted": 0.45, "interval_cross_fitted": [0.3, 0.55]}
    [(table, _)] = parts(FOUND | crossed | {"recall_cross_fitted": {"bleed": 0.5, "any": None}})
    assert table.title.endswith(", 0.4500 (0.3000 to 0.5500) with thresholds from other folds")
    assert table.rows[0][-1] == "0.500"
    [(_, said)] = parts(FOUND | {"transferred": {"bleed": 0.2, "any": 2.0}})
    assert said[-1] == "The submission is the mean of the folds; its thresholds are bleed 0.2000, any 2.0000."


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gap": 2e-3}, "Optuna is 2.0e-03 below the exact optimum."),
        ({"gap": -1e-9, "average": "samples"}, "Optuna is 1.0e-09 above the optimum of coordinate ascent."),
        ({"shrink": 10}, "Optuna reached the exact optimum of the shrunk objective."),
    ],
)
def test_the_gap_to_the_optimum_is_reported(change, says):
    [(_, said)] = parts(FOUND | change)
    assert said[0] == says


@pytest.mark.parametrize(
    ("applied", "average", "change", "says"),
    [
        (False, "macro", {"test": 0.1}, "The predictions show no difference"),
        (True, "macro", {}, "Thresholds and probabilities of the submission are adjusted"),
        (False, "samples", {}, "The submission is not adjusted: an average over samples"),
        (False, "macro", {}, "The submission is not adjusted. Set thresholds.prevalence"),
        (False, "macro", {"warning": "it runs to 0"}, "warning: bleed: it runs to 0"),
        (False, "macro", {"warning": "it runs to 0", "train": 0.0}, "The submission is not adjusted"),
    ],
)
def test_a_prevalence_shift_is_reported_with_its_effect_on_the_submission(applied, average, change, says):
    shift = {"applied": applied, "classes": {"bleed": SHIFT | change}}
    _, (table, said) = parts(FOUND | {"average": average, "prevalence": shift})
    assert table.rows == [
        ["bleed", f"{shift['classes']['bleed']['train']:.4f}", "0.2000", "0.1500 to 0.2500", "0.5000"]
    ]
    assert said[0].startswith(says)

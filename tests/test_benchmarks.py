"""The benchmarks measure what they say: run small, their figures other than times are looked at."""

import pytest

from benchmarks import folds, thresholds


def test_optuna_ends_near_the_exact_optimum_on_the_table_that_is_timed():
    found = thresholds.measure(thresholds.table(20_000), repeats=1, averages=("macro",))
    assert set(found) == {"macro F1", "macro F2"}
    for row in found.values():
        assert row["gap"] <= 5e-4
        assert min(row["exact"], row["cross_fitted"], row["optuna"]) >= 0


@pytest.mark.filterwarnings("ignore:The least populated class")  # scikit-learn's, of label sets that occur once
def test_every_way_to_make_folds_is_judged_by_the_worst_class():
    table = folds.rsna_sized()
    table = table[table["patient_id"].isin(table["patient_id"].unique()[:600])].reset_index(drop=True)
    classes = [*folds.POSITIVES, "any"]
    for name, assign in folds.compared().items():
        worst = folds.worst_deviation(table, assign(table, classes), classes)
        assert set(worst) == set(classes), name
        assert min(worst.values()) >= 0

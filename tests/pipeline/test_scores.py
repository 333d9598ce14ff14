"""The scores of all kinds of models: counts that add up, and warnings of the folds."""

from pathlib import Path

import pandas as pd
import pytest

from conftest import CLASSES, copied, make, plan_of
from ich.store.atomic import read_json


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory) -> Path:
    root = copied(trained, tmp_path_factory.mktemp("scored"))
    make(plan_of(root), "score")
    return root


def test_a_best_epoch_chosen_on_the_fold_itself_is_warned_of_for_all_that_read_it(scored):
    warnings = read_json(scored / "submissions/parts/scores.json")["warnings"]
    for k in range(3):
        assert f"joint: the best epoch was chosen by f2 on fold {k} itself: its score is optimistic" in warnings
    assert "lgbm, blend: scores are optimistic, since those of their inputs are" in warnings
    assert not [line for line in warnings if line.startswith(("resnet", "bigru")) and "optimistic" in line]


def test_the_confusion_table_adds_up(scored):
    table = pd.read_csv(scored / "submissions/parts/confusion.csv", dtype={"thresholds": str})
    assert not table.duplicated(["model", "rows", "thresholds", "class"]).any()
    assert len(table) == len(plan_of(scored).models) * 2 * 3 * len(CLASSES)
    for where, rows in table.groupby("rows"):
        slices = len(pd.read_parquet(scored / f"oof/parts/joint/{where}.parquet"))
        assert (rows[["tp", "fp", "fn", "tn"]].sum(axis=1) == slices).all()

"""The scores of all kinds of models: counts that add up, and warnings of the folds."""

from pathlib import Path

import pandas as pd
import pytest
from sklearn import metrics

from conftest import CLASSES, LOGITS, copied, make, plan_of
from ich.store.atomic import read_json


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory) -> Path:
    root = copied(trained, tmp_path_factory.mktemp("scored"))
    make(plan_of(root), "score")
    return root


def labels(root: Path, name: str) -> pd.DataFrame:
    """0 and 1 of each class by image id."""
    table = pd.read_csv(root / "input/tiny" / name)[["ID", "Label"]].drop_duplicates()
    table[["image_id", "class"]] = table["ID"].str.rsplit("_", n=1, expand=True)
    return table.pivot(index="image_id", columns="class", values="Label")[CLASSES]


def test_a_best_epoch_chosen_on_the_fold_itself_is_warned_of_for_all_that_read_it(scored):
    warnings = read_json(scored / "submissions/parts/scores.json")["warnings"]
    for k in range(3):
        assert f"joint: the best epoch was chosen by f2 on fold {k} itself: its score is optimistic" in warnings
    assert "lgbm, blend: scores are optimistic, since those of their inputs are" in warnings
    assert not [line for line in warnings if line.startswith(("resnet", "bigru")) and "optimistic" in line]


def test_the_confusion_table_adds_up(scored):
    table = pd.read_csv(scored / "submissions/parts/confusion.csv", dtype={"thresholds": str})
    truths = {"oof": labels(scored, "stage_2_train.csv"), "test": labels(scored, "solution.csv")}
    keys = ["model", "rows", "thresholds", "class"]
    assert not table.duplicated(keys).any()
    assert len(table) == len(plan_of(scored).models) * 2 * 3 * len(CLASSES)
    for where, truth in truths.items():
        rows = table[table["rows"] == where]
        assert (rows[["tp", "fp", "fn", "tn"]].sum(axis=1) == len(truth)).all()
        logits = (
            pd.read_parquet(scored / f"oof/parts/joint/{where}.parquet").set_index("image_id").loc[truth.index, LOGITS]
        )
        for name in CLASSES:
            y, guess = truth[name], logits[f"logit_{name}"] >= 0
            found = table.set_index(keys).loc[("joint", where, "0.5", name)]
            tn, fp, fn, tp = metrics.confusion_matrix(y, guess, labels=[0, 1]).ravel()
            assert found[["tp", "fp", "fn", "tn"]].tolist() == [tp, fp, fn, tn]
            expected = {
                "accuracy": metrics.accuracy_score(y, guess),
                "precision": metrics.precision_score(y, guess, zero_division=0),
                "recall": metrics.recall_score(y, guess, zero_division=0),
                "f1": metrics.f1_score(y, guess, zero_division=0),
            }
            assert found[list(expected)].tolist() == pytest.approx(list(expected.values()), abs=5e-5)

"""With shuffled labels, every model must score at chance; a higher score means that labels leak."""

import numpy as np
import pandas as pd
import pytest

from ich.models.table import SliceTable
from ich.pipeline.state import Plan
from ich.recipe import load

TOLERANCE = 0.08  # of macro AUC, about three standard errors with 90 studies


def shuffle_labels(clone_copy, recipe: str) -> None:
    """Give each study the labels of another patient's, turned by a random number of slices.

    The turn matters: bleeds sit more often in middle slices, and an image tells whether it is one. Labels that were
    only passed from patient to patient would keep that, and a model that learns it leaks nothing.
    """
    plan = Plan(load(clone_copy.root / recipe), clone_copy.root)
    classes = SliceTable.read(plan.workspace, plan.prepared.folder).classes
    train = pd.read_parquet(plan.prepared.folder / "slices.parquet").query("split == 'train'")
    random = np.random.default_rng(0)
    studies = [part for _, part in train.groupby("study_id")]
    order = random.permutation(len(studies))
    rows = []
    for place, study in enumerate(studies):
        giver = studies[order[(np.flatnonzero(order == place)[0] + 1) % len(order)]]
        labels = giver[classes].to_numpy()[np.arange(len(study)) % len(giver)]
        labels = np.roll(labels, random.integers(len(study)), axis=0)
        for image, row in zip(study["image_id"], labels, strict=True):
            rows += [(f"{image}_{name}", int(v)) for name, v in zip(classes, row, strict=True)]
    table = pd.DataFrame(rows, columns=pd.Index(["ID", "Label"]))
    table.to_csv(plan.raw_root / "stage_2_train.csv", index=False)


@pytest.mark.slow
def test_on_shuffled_labels_every_model_is_at_chance(clone):
    def run(*stages: str) -> None:
        for stage in stages:
            process = clone.start(stage, recipe="tests/leak.yaml")
            said = process.communicate()
            assert process.returncode == 0, said

    run("demo", "prepare")
    shuffle_labels(clone, "tests/leak.yaml")
    run("prepare", "folds", "cnn", "sequence", "smooth", "stack", "blend", "thresholds", "submit", "score")
    scores = pd.read_csv(clone.root / "submissions/leak/scores.csv")
    auc = scores[scores["rows"] == "oof"].set_index("model")["auc"]
    assert set(auc.index) == {"resnet", "densenet", "bigru", "gauss", "lgbm", "blend"}
    assert (auc - 0.5).abs().max() < TOLERANCE, auc.to_dict()

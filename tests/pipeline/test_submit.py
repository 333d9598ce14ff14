"""Thresholds and submission: format, order, prevalence, and the score on the tuning rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.metrics import fbeta_score

from conftest import CLASSES, LOGITS, copied, make, plan_of
from ich.ensemble import prevalence
from ich.ensemble.hierarchy import project_any
from ich.pipeline.state import Plan
from ich.store.atomic import read_json

WEIGHTS = [1, 1, 1, 1, 1, 2]  # of the classes in the log loss of RSNA 2019
UNSHRUNK = "thresholds.shrink=0"


@pytest.fixture(scope="module")
def root(trained, tmp_path_factory) -> Path:
    """A workspace in which each test makes its own thresholds and submission."""
    return copied(trained, tmp_path_factory.mktemp("submit"))


def submitted(root: Path, name: str = "submission") -> pd.DataFrame:
    """A submission with one row per image and one column per class."""
    table = pd.read_csv(root / f"submissions/parts/{name}.csv")
    table[["image_id", "class"]] = table["ID"].str.rsplit("_", n=1, expand=True)
    return table.pivot(index="image_id", columns="class", values="Label")[CLASSES]


def out_of_fold(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Labels and the blend's logits [n, c] of the labelled slices."""
    table = pd.read_parquet(plan.prepared.folder / "slices.parquet").set_index("image_id")
    oof = pd.read_parquet(plan.workspace.model("blend") / "oof.parquet").set_index("image_id")
    return table.loc[oof.index, CLASSES].to_numpy(), oof[LOGITS].to_numpy("float64")


# ---- the submission


def test_the_submission_has_the_ids_and_order_of_the_sample(trained, root):
    plan = plan_of(trained)
    sample = pd.read_csv(plan.raw_root / "stage_2_sample_submission.csv")
    cuts = read_json(plan.workspace.thresholds)["thresholds"]
    probabilities = pd.read_csv(trained / "submissions/parts/submission.csv")
    binary = pd.read_csv(trained / "submissions/parts/submission_binary.csv")
    assert probabilities["ID"].tolist() == sample["ID"].tolist() == binary["ID"].tolist()
    assert probabilities["Label"].between(0, 1).all()
    cut = probabilities["ID"].str.rsplit("_", n=1).str[1].map(cuts)
    assert ((probabilities["Label"] >= cut).astype(int) == binary["Label"]).all()


def test_a_new_sample_and_an_unreadable_test_file_change_the_submission(copy):
    """The order is the sample's; the file is quarantined and gets the training prevalence; folds stay as they are."""
    plan, path = plan_of(copy), copy / "input/tiny/stage_2_sample_submission.csv"
    slices = pd.read_parquet(plan.prepared.folder / "slices.parquet")
    sample, folds = pd.read_csv(path), (copy / "folds/parts.csv").read_bytes()
    sample.iloc[::-1].to_csv(path, index=False)
    victim = slices.loc[slices["split"] == "test", "image_id"].iloc[0]
    broken = copy / f"input/tiny/stage_2_test/{victim}.dcm"
    broken.write_bytes(broken.read_bytes()[:-500])

    sections = ("pretrain", "cnn", "end_to_end", "sequence", "smooth", "stack")
    changes = ("name=other", "ablation=null", *(f"{section}={{}}" for section in sections))
    small = "cnn.net={backbone: resnet10t, kwargs: {channels: [4, 8, 8, 8], stem_width: 4}, epochs: 1}"
    plan = plan_of(copy, *changes, small, "blend={method: logits, calibration: none}")
    said = make(plan, "prepare", "folds", "cnn", "blend", "thresholds", "submit")
    assert "1 test images could not be read" in said
    assert (copy / "folds/other.csv").read_bytes() == folds
    quarantine = pd.read_csv(plan.prepared.folder / "quarantine.csv")
    assert quarantine[["image_id", "split", "reason"]].values.tolist() == [[victim, "test", "truncated"]]
    submission = pd.read_csv(copy / "submissions/other/submission.csv")
    assert submission["ID"].tolist() == sample["ID"].tolist()[::-1]
    train = slices[slices["split"] == "train"]
    for name in CLASSES:
        found = submission.set_index("ID")["Label"][f"{victim}_{name}"]
        assert found == pytest.approx(train[name].mean(), rel=1e-5)


# ---- another prevalence in the test set


def estimate_another_prevalence(patch: pytest.MonkeyPatch, subtypes: float, any_: float) -> None:
    """The test set seems to have so many times as many positives as the training set."""

    def shifts(_z, y, _z_test, classes: Sequence[str], _patients) -> dict[str, prevalence.Shift]:
        found = {}
        for name, train in zip(classes, y.mean(axis=0, dtype=np.float64).tolist(), strict=True):
            test = train * (any_ if name == "any" else subtypes)
            found[name] = prevalence.Shift(train, test, test, 0.9 * test, 1.1 * test)
        return found

    patch.setattr(prevalence, "shifts", shifts)


@pytest.mark.parametrize(("subtypes", "any_"), [(2.0, 2.0), (1.0, 0.05)])  # the latter puts any below its subtypes
def test_an_applied_prevalence_shifts_probabilities_and_thresholds(root, monkeypatch, subtypes, any_):
    make(plan_of(root, UNSHRUNK), "thresholds", "submit", force=True)
    before = logit(submitted(root))
    estimate_another_prevalence(monkeypatch, subtypes, any_)
    plan = plan_of(root, UNSHRUNK, "thresholds.prevalence=apply")
    make(plan, "thresholds", "submit", force=True)
    found = read_json(plan.workspace.thresholds)["prevalence"]
    assert found["applied"]
    rates = {name: (one["train"], one["test"]) for name, one in found["classes"].items()}
    assert [test / train for train, test in rates.values()] == pytest.approx([subtypes] * 5 + [any_])
    steps = np.array([logit(test) - logit(train) for train, test in rates.values()])
    moved = project_any(before[list(rates)].to_numpy() + steps, list(rates), WEIGHTS)
    after = submitted(root)
    np.testing.assert_allclose(after, expit(moved), atol=1e-6)
    cuts = [found["classes"][name]["threshold"] for name in CLASSES]
    assert (submitted(root, "submission_binary").to_numpy() == (after >= cuts).to_numpy()).all()

    # the threshold is the best one for rows as they would be in the test set
    y, z = out_of_fold(plan)
    shifted = expit(project_any(z + steps, list(rates), WEIGHTS))
    for c, name in list(enumerate(CLASSES))[-2:]:
        train, test = rates[name]
        weight = np.where(y[:, c] == 1, test / train, (1 - test) / (1 - train))
        f2 = [
            fbeta_score(y[:, c], shifted[:, c] >= cut, beta=2, sample_weight=weight)
            for cut in (cuts[c], *np.unique(shifted[:, c]))
        ]
        assert f2[0] == pytest.approx(max(f2), abs=1e-12)


def test_a_reported_prevalence_does_not_change_the_submission(root, monkeypatch):
    names = ("submission.csv", "submission_binary.csv")
    make(plan_of(root), "thresholds", "submit", force=True)
    before = [(root / "submissions/parts" / name).read_bytes() for name in names]
    estimate_another_prevalence(monkeypatch, 2, 2)
    plan = plan_of(root)
    make(plan, "thresholds", "submit", force=True)
    found = read_json(plan.workspace.thresholds)
    assert not found["prevalence"]["applied"]
    assert found["prevalence"]["classes"]["any"]["threshold"] != found["thresholds"]["any"]
    assert [(root / "submissions/parts" / name).read_bytes() for name in names] == before


# ---- thresholds


def test_transferred_thresholds_keep_the_positives_of_single_folds(root):
    make(plan_of(root), "thresholds", force=True)
    path = plan_of(root).workspace.thresholds
    by_value = read_json(path)
    plan = plan_of(root, "thresholds.transfer=quantile")
    make(plan, "thresholds", "submit", force=True)
    found = read_json(path)
    moved = found.pop("transferred")
    assert found == by_value, "the scores are those of single folds"
    folds = [pd.read_parquet(plan.workspace.fold("blend", k) / "test.parquet") for k in plan.fold_numbers]
    decided = submitted(root, "submission_binary")
    single = [
        (expit(fold[LOGITS].to_numpy("float64")) >= list(found["thresholds"].values())).sum(axis=0) for fold in folds
    ]
    expected = np.rint(np.mean(single, axis=0))
    assert decided.sum().tolist() == expected.tolist()
    assert 0 < expected.max() < len(decided)
    assert (decided.to_numpy() == (submitted(root) >= pd.Series(moved)).to_numpy()).all()


@pytest.mark.parametrize(
    ("average", "metric", "recall"), [("macro", "f2", 0.0), ("micro", "f0.5", 0.9), ("samples", "f1", 0.9)]
)
def test_the_recorded_score_is_that_of_the_tuning_rows(root, average, metric, recall):
    values = {"metric": metric, "average": average, "min_recall": recall or "null", "trials": 30}
    plan = plan_of(root, UNSHRUNK, *(f"thresholds.{key}={value}" for key, value in values.items()))
    make(plan, "thresholds")
    found = read_json(plan.workspace.thresholds)
    assert (found["metric"], found["average"]) == (metric, average)
    y, z = out_of_fold(plan)
    decided = expit(z) >= [found["thresholds"][name] for name in CLASSES]
    beta = float(metric[1:])
    assert found["score"] == pytest.approx(fbeta_score(y, decided, beta=beta, average=average, zero_division=0))
    for c, name in enumerate(CLASSES):
        if y[:, c].any():
            assert found["recall"][name] == pytest.approx(decided[y[:, c] == 1, c].mean())
            assert found["recall"][name] >= recall, name
    assert found["interval_cross_fitted"][0] <= found["score_cross_fitted"] <= found["interval_cross_fitted"][1]

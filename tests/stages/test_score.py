"""`ich score` on models with made-up predictions."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import fbeta_score, log_loss, recall_score, roc_auc_score

from ich.ensemble import thresholds
from ich.ensemble.calibration import choose_calibrator
from ich.ensemble.hierarchy import project_any
from ich.ensemble.predictions import logit_columns, sigmoid
from ich.phantom.study import CLASSES
from ich.pipeline.state import Plan
from ich.recipe import Recipe
from ich.report import evaluation, study_evaluation
from ich.stages import score
from ich.store.atomic import write_json
from report.made import slice_table

NETWORK = {"backbone": "resnet10t"}
RECIPE = {
    "name": "made",
    "competition": {"format": "rsna2019", "root": "input/made"},
    "folds": {"n": 3},
    "cnn": {"resnet": NETWORK, "densenet": NETWORK},
    "stack": {"lgbm": {}},
    "thresholds": {"metric": "f2"},
}


def write(path: Path, table: pd.DataFrame) -> dict[str, Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)
    return {path.name: path}


def made(root: Path, *, solution: str = "whole", never: Sequence[str] = (), test_set: bool = True, **sections) -> Plan:
    """A plan with finished models that predict the labels plus noise, which decreases with every model."""
    plan = Plan(Recipe.model_validate({**RECIPE, **sections}), root)
    plan.raw_root.mkdir(parents=True)
    table = slice_table(never, CLASSES).drop(columns=["fold", "series"])
    table = table if test_set else table.assign(split="train")
    test = table["split"] == "test"
    if solution != "none":
        known = {"whole": table[test], "part": table[test & (table.index % 4 != 0)], "others": table[~test]}[solution]
        long = known.melt("image_id", list(CLASSES), "class", "Label").astype({"Label": int})
        long.insert(0, "ID", long["image_id"] + "_" + long["class"])
        long[["ID", "Label"]].to_csv(plan.raw_root / "solution.csv", index=False)
    hidden = table.copy()
    hidden.loc[test, list(CLASSES)] = np.nan
    prepared = plan.prepare()
    weights = {"class_weights": [1, 1, 1, 1, 1, 2], "classes": list(CLASSES), "values": "hu"}
    plan.make(prepared, lambda _: (write(prepared.folder / "slices.parquet", hidden), weights))
    plan.point_to(prepared)
    key = "image_id" if plan.recipe.folds.by == "slice" else "study_id"
    train = table.loc[~test, [key]].drop_duplicates().reset_index(drop=True)
    train["fold"] = train.index % 3
    plan.make(plan.folds, lambda _: (write(plan.workspace.folds, train), {}))
    fold = table[key].map(train.set_index(key)["fold"])
    for number, model in enumerate(plan.models):
        noise = np.random.default_rng(number).normal(size=(300, 6)) * (2 - 0.4 * number)
        scale = 2 * fold.fillna(0).to_numpy()[:, None] * (number == 0)  # the folds of the first model differ
        logits = pd.DataFrame(3 * table[list(CLASSES)].to_numpy() - 2 + noise + scale, columns=logit_columns(CLASSES))
        logits.insert(0, "image_id", table["image_id"])
        record = {"in_sample": {"weighted_log_loss": 0.1, "macro_auc": 0.99}} if number > 1 else {}
        record["warnings"] = ["its epochs were chosen on the fold"] * (number == 0)
        for k in plan.fold_numbers:
            shifted = logits[test].set_index("image_id") + (k - 1)  # the mean over folds stays the same
            folder = plan.workspace.fold(model, k)
            files = write(folder / "valid.parquet", logits[fold == k])
            files |= write(folder / "test.parquet", shifted.reset_index())
            plan.make(plan.fold(model, k), lambda _, f=files, r=record: (f, r))
        folder = plan.workspace.model(model)
        files = write(folder / "oof.parquet", logits[~test]) | write(folder / "test.parquet", logits[test])
        plan.make(plan.assembled(model), lambda _, f=files: (f, {}))
    tune(plan, applied=False, classes={})
    return plan


def tune(plan: Plan, **prevalence) -> None:
    tuned = {"beta": 2.0, "average": "micro", "zero_division": 0, "thresholds": dict.fromkeys(CLASSES, 0.4)}
    write_json(plan.workspace.thresholds, {**tuned, "prevalence": prevalence})
    plan.make(plan.thresholds, lambda _: ({"thresholds.json": plan.workspace.thresholds}, {}), force=True)


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    plan = made(tmp_path_factory.mktemp("made"))
    score.run(plan)
    return plan


def read(plan: Plan, name: str = "scores.json"):
    path = plan.workspace.submissions / name
    return json.loads(path.read_text()) if path.suffix == ".json" else pd.read_csv(path)


def truth_and_probability(plan: Plan, model: str, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and folds (-1 on the test set) of the rows of a model."""
    table = slice_table((), CLASSES).set_index("image_id")
    logits = pd.read_parquet(plan.workspace.model(model) / f"{where}.parquet").set_index("image_id")
    folds = table["study_id"].map(pd.read_csv(plan.workspace.folds).set_index("study_id")["fold"]).fillna(-1)
    return table.loc[logits.index, list(CLASSES)].to_numpy(), sigmoid(logits), folds[logits.index].to_numpy()


def test_scores_equal_those_of_scikit_learn(plan):
    scores = read(plan, "scores.csv").set_index(["model", "rows"])
    assert set(scores.index) == {(m, r) for m in ("resnet", "densenet", "lgbm", "blend") for r in ("oof", "test")}
    for (model, where), row in scores.iterrows():
        y, p, _ = truth_and_probability(plan, model, where)
        assert row["auc"] == pytest.approx(roc_auc_score(y, p, average="macro"), abs=6e-5)
        assert row["f2_half"] == pytest.approx(fbeta_score(y, p >= 0.5, beta=2, average="macro"), abs=6e-5)
        assert row["f2_half_micro"] == pytest.approx(fbeta_score(y, p >= 0.5, beta=2, average="micro"), abs=6e-5)


def decisions(plan: Plan, model: str, where: str) -> np.ndarray:
    """Decisions by the thresholds of the other folds; on the test set, by those of all folds."""
    y, p, folds = truth_and_probability(plan, model, "oof")

    def tuned(rows: np.ndarray) -> list[float]:
        found = thresholds.tune(y[rows], p[rows], CLASSES, thresholds.Goal(2.0)).thresholds
        return [found[name] for name in CLASSES]

    if where == "test":
        return thresholds.apply(truth_and_probability(plan, model, where)[1], tuned(folds >= 0))
    decided = np.zeros(y.shape, dtype=bool)
    for k in range(3):
        decided[folds == k] = thresholds.apply(p[folds == k], tuned(folds != k))
    return decided


def test_thresholds_are_cross_fitted_and_use_all_folds_on_the_test_set(plan):
    scores = read(plan, "scores.csv").set_index(["model", "rows"])
    for where in ("test", "oof"):
        y, p, _ = truth_and_probability(plan, "resnet", where)
        f2 = fbeta_score(y, decisions(plan, "resnet", where), beta=2, average="macro")
        assert scores["f2"]["resnet", where] == pytest.approx(f2, abs=6e-5)
    in_sample = scores["f2_in_sample"]["resnet", "oof"]
    assert in_sample == pytest.approx(thresholds.tune(y, p, CLASSES, thresholds.Goal(2.0)).score, abs=6e-5)
    assert in_sample > f2, "in-sample scores are optimistic"


def test_in_sample_scores_and_warnings_of_folds_are_listed(plan):
    scores = read(plan, "scores.csv").set_index(["rows", "model"]).filter(like="_in_sample")
    mean = ["log_loss_in_sample", "auc_in_sample"]
    assert scores.loc["oof"].loc[["lgbm", "blend"], mean].eq([0.1, 0.99]).all(axis=None)
    assert scores.loc["oof"].loc[["resnet", "densenet"], mean].isna().all(axis=None)
    assert scores.loc["oof"][["f1_in_sample", "f2_in_sample"]].notna().all(axis=None)
    assert scores.loc["test"].isna().all(axis=None)
    *warnings, scales = read(plan)["warnings"]
    assert warnings == [
        *["resnet: its epochs were chosen on the fold"] * 3,
        "lgbm, blend: scores are optimistic, since those of their inputs are",
    ]
    auc = read(plan)["models"]["resnet"]["oof"]["auc"]
    assert auc["fold_mean"] > auc["value"] + 0.02
    assert scales.startswith(
        f"resnet: the macro AUC is {auc['value']:.4f} over all rows, but {auc['fold_mean']:.4f} on"
    )


def test_files_have_the_printed_scores_and_a_second_run_the_same_bytes(plan, capsys):
    names = [path.name for path in plan.workspace.submissions.glob("*.[cj]s*") if "run" not in path.name]
    assert len(names) == 6
    before = {name: (plan.workspace.submissions / name).read_bytes() for name in names}
    score.run(Plan(plan.recipe, plan.root))
    printed = capsys.readouterr().out
    score.run(Plan(plan.recipe, plan.root), force=True)
    assert before == {name: (plan.workspace.submissions / name).read_bytes() for name in names}
    scores = pd.read_csv(plan.workspace.submissions / "scores.csv", dtype=str)
    for row in scores.to_dict("records"):
        lines = [line for line in printed.splitlines() if line.split()[:1] == [row["model"]]]
        for metric in ("log_loss", "auc", "f2"):
            span = f"{row[metric]} {row[f'{metric}_low']}-{row[f'{metric}_high']}"
            assert any(span in line for line in lines), (row["model"], span)
        if row["rows"] == "oof":
            assert any(f"  {row['f2_in_sample']}" in line for line in lines)
    by_class = pd.read_csv(plan.workspace.submissions / "scores_by_class.csv", dtype=str)
    models = read(plan)["models"]
    for row in by_class.to_dict("records"):
        cells = models[row["model"]][row["rows"]]["classes"][row["class"]]
        assert row["f2_low"] == f"{cells['f2']['low']:.4f}"
        assert row["f2_threshold"] == f"{cells['thresholds']['f2']:.4f}"


def test_study_logits_are_calibrated_and_thresholded_on_the_other_folds():
    table = slice_table((), CLASSES)
    train = table["split"] == "train"
    rows = {"oof": evaluation.Rows(table[train], CLASSES), "test": evaluation.Rows(table[~train], CLASSES)}
    codes, _ = pd.factorize(table.loc[train, "study_id"])
    fold, goal, draws = codes % 3, thresholds.Goal(2.0), np.random.default_rng(0)
    labels = {where: some.per_study(some.labels) for where, some in rows.items()}
    logits = {where: 3 * y - 2 + draws.normal(size=y.shape) for where, y in labels.items()}
    sharp = {where: 5 * values for where, values in logits.items()}  # overconfident
    arguments = (fold, CLASSES, [1.0] * 6, goal)
    scores, calibrated = (study_evaluation.evaluate_studies(rows, one, *arguments) for one in (logits, sharp))
    for where, y in labels.items():
        assert calibrated[where]["log_loss"].values[-1] < log_loss_of(y, sigmoid(sharp[where]))
    oof = rows["oof"]
    columns = zip(sharp["oof"].T, labels["oof"].T, strict=True)
    chosen = [choose_calibrator(z, y, fold[oof.first], oof.study_bootstrap, "platt").logits for z, y in columns]
    expected = log_loss_of(labels["oof"], sigmoid(np.column_stack(chosen)))
    assert calibrated["oof"]["log_loss"].values[-1] == pytest.approx(expected)
    cells = study_evaluation.pooled_cells(scores["oof"], calibrated["oof"], CLASSES)
    values = [cells[way]["log_loss"]["value"] for way in ("pooled", "maximum")]
    assert cells["pooled"]["log_loss"]["minus_maximum"]["value"] == pytest.approx(values[0] - values[1], abs=2e-6)


def log_loss_of(y: np.ndarray, p: np.ndarray) -> float:
    return float(np.mean([log_loss(a, b, labels=[0, 1]) for a, b in zip(y.T, p.T, strict=True)]))


def test_the_baseline_predicts_the_prevalence(plan, capsys):
    found, table = read(plan), slice_table((), CLASSES)
    prevalence = table.loc[table["split"] == "train", list(CLASSES)].mean()
    score.run(Plan(plan.recipe, plan.root))
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    for where, split in (("oof", "train"), ("test", "test")):
        y, cells = table.loc[table["split"] == split, list(CLASSES)], found["baseline"][where]
        losses = [log_loss(y[name], np.full(len(y), prevalence[name]), labels=[0, 1]) for name in CLASSES]
        assert cells["log_loss"]["value"] == pytest.approx(np.average(losses, weights=[1, 1, 1, 1, 1, 2]), abs=1e-6)
        folds = {"fold_mean": 0.5, "fold_std": 0.0} if where == "oof" else {}
        assert cells["auc"] == {"value": 0.5, "low": 0.5, "high": 0.5, **folds}
        every = fbeta_score(y, np.ones(y.shape), beta=2, average="macro")
        assert cells["f2"]["value"] == pytest.approx(every, abs=1e-6), "the best decision without a model"
        assert any(line[:2] == ["prevalence", f"{cells['log_loss']['value']:.4f}"] for line in printed)
        by_class = read(plan, "scores_by_class.csv").query("rows == @where and model == 'lgbm'")
        assert by_class["ap_baseline"].tolist() == pytest.approx(y.mean().tolist(), abs=6e-5)
    scores = read(plan, "scores.csv").set_index("rows")
    assert scores.loc["oof", "log_loss_baseline"].unique() == pytest.approx(
        found["baseline"]["oof"]["log_loss"]["value"], abs=6e-5
    )


def test_scores_per_study_equal_those_of_scikit_learn(plan, capsys):
    scores = read(plan, "scores_by_study.csv").set_index(["model", "rows", "class"])
    studies = slice_table((), CLASSES).set_index("image_id")["study_id"]
    score.run(Plan(plan.recipe, plan.root))
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    for model in plan.models:
        for where in ("oof", "test"):
            y, p, _ = truth_and_probability(plan, model, where)
            ids = pd.read_parquet(plan.workspace.model(model) / f"{where}.parquet")["image_id"]
            of_slices = (
                pd.DataFrame(x).groupby(studies[ids].to_numpy()) for x in (y, p, decisions(plan, model, where))
            )
            y, p, decided = (one.max().to_numpy() for one in of_slices)
            means = scores.loc[model, where, "macro"]
            assert means["auc"] == pytest.approx(roc_auc_score(y, p, average="macro"), abs=6e-5)
            for c, name in enumerate(CLASSES):
                row = scores.loc[model, where, name]
                assert (row["studies"], row["positives"]) == (len(y), y[:, c].sum())
                assert row["sensitivity"] == pytest.approx(recall_score(y[:, c], decided[:, c]), abs=6e-5)
                assert row["specificity"] == pytest.approx(recall_score(y[:, c], decided[:, c], pos_label=0), abs=6e-5)
                assert row["auc_low"] <= row["auc"] <= row["auc_high"]
                shown = [f"{row[key]:.4f}" for key in ("auc", "sensitivity", "specificity")]
                assert model != "blend" or any(line[:1] == [name] and set(shown) <= set(line) for line in printed)


def test_single_images_have_no_scores_per_study():
    table = slice_table((), CLASSES)
    rows = {"oof": evaluation.Rows(table.assign(study_id=table["image_id"]), CLASSES)}
    assert evaluation.study_cells(rows, {}, CLASSES) == {}


def test_reliability_of_the_blend_per_class(plan):
    curve = read(plan, "reliability.csv")
    assert set(zip(curve["rows"], curve["class"], strict=True)) == {(r, c) for r in ("oof", "test") for c in CLASSES}
    assert curve.groupby("rows")["count"].sum()["oof"] == 6 * read(plan)["rows"]["oof"]["slices"]
    bins = curve[(curve["rows"] == "oof") & (curve["class"] == "any")]
    error = (bins["count"] * (bins["probability"] - bins["observed"]).abs()).sum() / bins["count"].sum()
    assert read(plan)["calibration_error"]["oof"]["any"] == pytest.approx(error, abs=1e-4)


def test_the_blend_is_evaluated_per_fold_on_the_test_set(plan):
    truth = slice_table((), CLASSES).query("split == 'test'")[list(CLASSES)].to_numpy()
    blend = read(plan)["models"]["blend"]["oof"]
    cuts = [blend["classes"][name]["thresholds"]["f2"] for name in CLASSES]
    found = []
    for k in range(3):
        logits = pd.read_parquet(plan.workspace.fold("blend", k) / "test.parquet")[logit_columns(CLASSES)].to_numpy()
        found.append(fbeta_score(truth, sigmoid(logits) >= cuts, beta=2, average="macro", zero_division=0))
    assert max(found) - min(found) > 0.01
    assert read(plan)["one_fold"]["f2"] == pytest.approx(np.mean(found), abs=1e-6)


@pytest.mark.parametrize("applied", [False, True])
def test_the_submission_is_evaluated_with_its_own_thresholds_and_prevalence(tmp_path, applied, capsys):
    plan = made(tmp_path)
    tune(plan, applied=applied, classes={name: {"train": 0.5, "test": 0.2, "threshold": 0.3} for name in CLASSES})
    score.run(Plan(plan.recipe, plan.root))
    truth = slice_table((), CLASSES).query("split == 'test'")[list(CLASSES)].to_numpy()
    logits = pd.read_parquet(plan.workspace.model("blend") / "test.parquet")[logit_columns(CLASSES)].to_numpy()
    p, cut = sigmoid(logits), 0.4
    if applied:  # odds of 1 to 1 become odds of 1 to 4
        p, cut = sigmoid(project_any(logits - np.log(4), CLASSES, [1, 1, 1, 1, 1, 2])), 0.3
    f = read(plan)["submission"]["f"]
    assert f["value"] == pytest.approx(fbeta_score(truth, p >= cut, beta=2, average="micro"), abs=1e-6)
    assert f["low"] < f["value"] < f["high"]
    assert f"a micro F2 of {f['value']:.4f}" in " ".join(capsys.readouterr().out.split())


def test_another_metric_and_folds_by_slice_with_a_bootstrap_over_patients(tmp_path, capsys):
    plan = made(tmp_path, thresholds={"metric": "f0.5"}, folds={"n": 3, "by": "slice"}, stack={})
    score.run(plan)
    assert "macro F0.5" in capsys.readouterr().out
    columns = set(read(plan, "scores.csv").columns)
    assert {"f0.5", "f0.5_half", "f0.5_low", "f0.5_in_sample", "f1", "f2"} <= columns
    assert any(warning.startswith("folds.by is slice") for warning in read(plan)["warnings"])
    assert read(plan)["rows"]["oof"]["patients"] == 20


def test_a_class_of_one_label_and_a_solution_of_some_slices(tmp_path):
    plan = made(tmp_path, never=["epidural"], solution="part")
    score.run(plan)
    found = read(plan)
    assert [line for line in found["warnings"] if line.startswith("epidural: one label only in the labelled slices")]
    blend = found["models"]["blend"]["oof"]
    assert blend["classes"]["epidural"]["auc"] == {"value": None, "low": None, "high": None}
    others = [blend["classes"][name]["auc"]["value"] for name in CLASSES if name != "epidural"]
    assert blend["auc"]["value"] == pytest.approx(np.mean(others), abs=1e-5)
    assert blend["classes"]["epidural"]["f2"]["value"] == 0
    text = (plan.workspace.submissions / "scores_by_class.csv").read_text()
    assert "blend,oof,epidural,0,0," in text
    assert ",nan," in text
    table = slice_table()
    assert found["rows"]["test"]["slices"] == ((table["split"] == "test") & (table.index % 4 != 0)).sum()


def test_without_any_auc_or_solution_there_is_one_table_with_dashes(tmp_path, capsys):
    plan = made(tmp_path, never=CLASSES, solution="none")
    score.run(plan)
    printed = capsys.readouterr().out
    assert "Out of fold: 200 slices of 20 patients" in printed
    assert "Hidden" not in printed
    blend = next(line.split() for line in printed.splitlines() if line.split()[:1] == ["blend"])
    assert blend[3:7] == ["-", "-", "±", "-"], "after the log loss and its interval"
    models = read(plan)["models"]
    assert models["blend"]["oof"]["auc"]["value"] is None
    assert models["lgbm"]["oof"]["auc"]["minus_blend"] == {"value": None, "low": None, "high": None}
    assert set(read(plan, "scores.csv")["rows"]) == set(read(plan)["rows"]) == {"oof"}


def test_without_a_test_set_a_solution_of_other_slices_is_ignored(tmp_path):
    plan = made(tmp_path, test_set=False, solution="others")
    score.run(plan)
    assert set(read(plan)["rows"]) == set(read(plan)["calibration_error"]) == {"oof"}


def test_a_solution_without_a_test_slice_is_a_warning(tmp_path):
    plan = made(tmp_path, solution="others")
    score.run(plan)
    assert set(read(plan)["rows"]) == {"oof"}
    assert any("solution.csv has no image of the test set" in warning for warning in read(plan)["warnings"])

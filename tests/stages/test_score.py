"""`ich score` on members whose predictions are made up: no network, every artefact with its record."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import fbeta_score, roc_auc_score

from ich.ensemble import thresholds
from ich.ensemble.hierarchy import project_any
from ich.ensemble.members import logit_columns, sigmoid
from ich.phantom.competition import CLASSES
from ich.pipeline.plan import Plan
from ich.recipe import Recipe
from ich.stages import score
from ich.store.atomic import write_json

NETWORK = {"backbone": "resnet10t"}
RECIPE = {
    "name": "made",
    "competition": {"format": "rsna2019", "root": "input/made"},
    "folds": {"n": 3},
    "cnn": {"resnet": NETWORK, "densenet": NETWORK},
    "stack": {"lgbm": {}},
    "thresholds": {"metric": "f2"},
}
FIGURES = ["log_loss", "auc", "ap", "f1", "f1_half", "f2", "f2_half"]


def slice_table(never: Sequence[str] = (), *, test_set: bool = True) -> pd.DataFrame:
    """Ten slices of each patient; every third patient is in the test set, and nobody has the classes `never`."""
    random = np.random.default_rng(0)
    owner = np.repeat(np.arange(30), 10)
    bleeds = random.random((30, 6)) < 0.5
    labels = pd.DataFrame((bleeds[owner] & (random.random((len(owner), 6)) < 0.6)).astype(float), columns=list(CLASSES))
    labels["any"] = labels[list(CLASSES[:-1])].max(axis=1)
    labels[list(never)] = 0.0
    table = pd.DataFrame(
        {
            "image_id": [f"ID_{k:04d}" for k in range(len(owner))],
            "patient_id": [f"p{k}" for k in owner],
            "study_id": [f"s{k}" for k in owner],
            "series_id": [f"r{k}" for k in owner],
            "split": np.where((owner % 3 == 2) & test_set, "test", "train"),
        }
    )
    return pd.concat([table, labels], axis=1)


def write(path: Path, table: pd.DataFrame) -> dict[str, Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)
    return {path.name: path}


def made(root: Path, *, solution: str = "whole", never: Sequence[str] = (), test_set: bool = True, **sections) -> Plan:
    """A plan whose members are all done: the truth and noise, less of it with every member."""
    plan = Plan(Recipe.model_validate({**RECIPE, **sections}), root)
    plan.raw_root.mkdir(parents=True)
    table = slice_table(never, test_set=test_set)
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
    for number, member in enumerate(plan.members):
        random = np.random.default_rng(number)
        noise = random.normal(size=(len(table), 6)) * (2 - 0.4 * number)
        logits = pd.DataFrame(3 * table[list(CLASSES)].to_numpy() - 2 + noise, columns=logit_columns(CLASSES))
        logits.insert(0, "image_id", table["image_id"])
        more = {"own_rows": {"weighted_log_loss": 0.1, "macro_auc": 0.99}} if number > 1 else {}
        for k in plan.fold_numbers:
            shifted = logits[test].set_index("image_id") + (k - 1)  # the mean over folds stays what it is
            parts = {"valid": logits[fold == k], "test": shifted.reset_index()}
            folder = plan.workspace.fold(member, k)
            files = [write(folder / f"{name}.parquet", part) for name, part in parts.items()]
            more_of_fold = {**more, "warnings": ["its epochs were judged by the fold"] * (number == 0)}
            plan.make(plan.fold(member, k), lambda _, f=files, m=more_of_fold: (f[0] | f[1], m))
        files = [
            write(plan.workspace.member(member) / f"{n}.parquet", logits[rows])
            for n, rows in (("oof", ~test), ("test", test))
        ]
        plan.make(plan.member(member), lambda _, f=files: (f[0] | f[1], {}))
    tuned = {"beta": 2.0, "average": "micro", "zero_division": 0, "thresholds": dict.fromkeys(CLASSES, 0.4)}
    tuned["prevalence"] = {"applied": False, "classes": {}}
    write_json(plan.workspace.thresholds, tuned)
    plan.make(plan.thresholds, lambda _: ({"thresholds.json": plan.workspace.thresholds}, {}))
    return plan


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    plan = made(tmp_path_factory.mktemp("made"))
    score.run(plan)
    return plan


def read(plan: Plan, name: str = "scores.json"):
    path = plan.workspace.submissions / name
    return json.loads(path.read_text()) if path.suffix == ".json" else pd.read_csv(path)


def truth_and_probability(plan: Plan, member: str, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and folds (-1 on the test set) of a member's rows, by another way."""
    table = slice_table().set_index("image_id")
    logits = pd.read_parquet(plan.workspace.member(member) / f"{where}.parquet").set_index("image_id")
    folds = table["study_id"].map(pd.read_csv(plan.workspace.folds).set_index("study_id")["fold"]).fillna(-1)
    return table.loc[logits.index, list(CLASSES)].to_numpy(), sigmoid(logits), folds[logits.index].to_numpy()


def test_values_are_those_of_independent_metrics(plan):
    scores = read(plan, "scores.csv").set_index(["member", "rows"])
    assert set(scores.index) == {(m, r) for m in ("resnet", "densenet", "lgbm", "blend") for r in ("oof", "test")}
    for (member, where), row in scores.iterrows():
        y, p, _ = truth_and_probability(plan, member, where)
        assert row["auc"] == pytest.approx(roc_auc_score(y, p, average="macro"), abs=6e-5)
        assert row["f2_half"] == pytest.approx(fbeta_score(y, p >= 0.5, beta=2, average="macro"), abs=6e-5)


def test_thresholds_come_from_the_other_folds_and_for_the_test_set_from_all(plan):
    scores = read(plan, "scores.csv").set_index(["member", "rows"])
    y, p, folds = truth_and_probability(plan, "resnet", "oof")
    goal = thresholds.Goal(2.0)
    decided = np.zeros(y.shape, dtype=bool)
    for k in range(3):
        others = thresholds.tune(y[folds != k], p[folds != k], CLASSES, goal, trials=0, seed=0)
        decided[folds == k] = thresholds.apply(p[folds == k], [others.thresholds[c] for c in CLASSES])
    honest = fbeta_score(y, decided, beta=2, average="macro")
    row = scores.loc["resnet", "oof"]
    assert row["f2"] == pytest.approx(honest, abs=6e-5)
    tuned = thresholds.tune(y, p, CLASSES, goal, trials=0, seed=0)
    assert row["f2_own"] == pytest.approx(tuned.score, abs=6e-5)
    assert row["f2_own"] > row["f2"], "what is tuned on its own rows flatters"
    y, p, _ = truth_and_probability(plan, "resnet", "test")
    decided = thresholds.apply(p, [tuned.thresholds[c] for c in CLASSES])
    assert scores.loc[("resnet", "test"), "f2"] == pytest.approx(
        fbeta_score(y, decided, beta=2, average="macro"), abs=6e-5
    )


def test_every_value_lies_in_its_interval(plan):
    found = read(plan)
    assert found["level"] == 0.95
    for member in found["members"].values():
        for where in ("oof", "test"):
            for figures in (member[where], *member[where]["classes"].values()):
                for name in FIGURES:
                    cell = figures[name]
                    assert cell["low"] <= cell["value"] <= cell["high"]
                    assert cell["low"] < cell["high"] or cell["value"] in (0, 1), "a class that is told apart"


def test_what_is_tuned_is_shown_on_its_own_rows_too(plan):
    scores = read(plan, "scores.csv").set_index(["rows", "member"])
    assert scores.loc["oof"].loc[["lgbm", "blend"], ["log_loss_own", "auc_own"]].eq([0.1, 0.99]).all(axis=None)
    assert scores.loc["oof"].loc[["resnet", "densenet"], ["log_loss_own", "auc_own"]].isna().all(axis=None)
    assert scores.loc["oof"][["f1_own", "f2_own"]].notna().all(axis=None)
    assert scores.loc["test"][["f1_own", "f2_own", "log_loss_own"]].isna().all(axis=None)


def test_the_difference_to_the_blend_is_surer_than_the_figures_themselves(plan):
    members = read(plan)["members"]
    assert "minus_blend" not in members["blend"]["oof"]["auc"]
    cell = members["lgbm"]["oof"]["log_loss"]
    difference = cell["minus_blend"]
    assert difference["value"] == pytest.approx(cell["value"] - members["blend"]["oof"]["log_loss"]["value"], abs=2e-6)
    assert difference["low"] < difference["value"] < difference["high"]
    assert difference["high"] - difference["low"] < cell["high"] - cell["low"]


def test_rows_say_how_much_there_was_to_judge_by(plan):
    rows = read(plan)["rows"]
    table = slice_table()
    for where, split in (("oof", "train"), ("test", "test")):
        part = table[table["split"] == split]
        assert (rows[where]["slices"], rows[where]["patients"]) == (len(part), part["patient_id"].nunique())
        any_ = part[part["any"] == 1]
        assert rows[where]["classes"]["any"] == {
            "positives": len(any_),
            "patients": any_["patient_id"].nunique(),
            "prevalence": pytest.approx(len(any_) / len(part), abs=1e-6),
        }


def test_printed_figures_are_those_of_the_files_to_the_last_digit(plan, capsys):
    score.run(Plan(plan.recipe, plan.root))
    printed = capsys.readouterr().out
    scores = pd.read_csv(plan.workspace.submissions / "scores.csv", dtype=str)
    for row in scores.to_dict("records"):
        lines = [line for line in printed.splitlines() if line.split()[:1] == [row["member"]]]
        for figure in ("log_loss", "auc", "f2"):
            span = f"{row[figure]} {row[f'{figure}_low']}-{row[f'{figure}_high']}"
            assert any(span in line for line in lines), (row["member"], span)
        if row["rows"] == "oof":
            assert any(f"  {row['f2_own']}" in line for line in lines)
    by_class = pd.read_csv(plan.workspace.submissions / "scores_by_class.csv", dtype=str)
    said = read(plan)["members"]
    for row in by_class.to_dict("records"):
        cells = said[row["member"]][row["rows"]]["classes"][row["class"]]
        assert row["f2_low"] == f"{cells['f2']['low']:.4f}"
        assert row["f2_threshold"] == f"{cells['thresholds']['f2']:.4f}"


def test_a_second_look_makes_nothing_and_the_same_again_is_the_same_to_the_last_byte(plan):
    names = [path.name for path in plan.workspace.submissions.glob("*.[cj]s*") if "run" not in path.name]
    assert len(names) == 5
    before = {name: (plan.workspace.submissions / name).read_bytes() for name in names}
    score.run(Plan(plan.recipe, plan.root))
    score.run(Plan(plan.recipe, plan.root), force=True)
    assert before == {name: (plan.workspace.submissions / name).read_bytes() for name in names}


def test_reliability_is_the_blend_s_of_each_class_on_both_sets(plan):
    curve = read(plan, "reliability.csv")
    assert set(zip(curve["rows"], curve["class"], strict=True)) == {(r, c) for r in ("oof", "test") for c in CLASSES}
    rows = read(plan)["rows"]
    counted = curve.groupby("rows")["count"].sum()
    assert counted["oof"] == 6 * rows["oof"]["slices"]
    bins = curve[(curve["rows"] == "oof") & (curve["class"] == "any")]
    error = (bins["count"] * (bins["probability"] - bins["observed"]).abs()).sum() / bins["count"].sum()
    assert read(plan)["calibration_error"]["oof"]["any"] == pytest.approx(error, abs=1e-4)


def test_the_blend_of_one_fold_is_judged_alone_on_the_test_set(plan):
    table = slice_table()
    truth = table.loc[table["split"] == "test", list(CLASSES)].to_numpy()
    blend = read(plan)["members"]["blend"]["oof"]
    cuts = [blend["classes"][name]["thresholds"]["f2"] for name in CLASSES]
    found = []
    for k in range(3):
        logits = pd.read_parquet(plan.workspace.fold("blend", k) / "test.parquet")[logit_columns(CLASSES)].to_numpy()
        found.append(fbeta_score(truth, sigmoid(logits) >= cuts, beta=2, average="macro", zero_division=0))
    assert max(found) - min(found) > 0.01
    assert read(plan)["one_fold"]["f2"] == pytest.approx(np.mean(found), abs=1e-6)


@pytest.mark.parametrize("applied", [False, True])
def test_the_submission_is_judged_by_its_own_goal_thresholds_and_prevalence(tmp_path, applied, capsys):
    plan = made(tmp_path)
    tuned = json.loads(plan.workspace.thresholds.read_text())
    there = {"train": 0.5, "test": 0.2, "threshold": 0.3}
    tuned["prevalence"] = {"applied": applied, "classes": dict.fromkeys(CLASSES, there)}
    write_json(plan.workspace.thresholds, tuned)
    plan.make(plan.thresholds, lambda _: ({"thresholds.json": plan.workspace.thresholds}, {}), force=True)
    score.run(Plan(plan.recipe, plan.root))
    truth = slice_table().query("split == 'test'")[list(CLASSES)].to_numpy()
    logits = pd.read_parquet(plan.workspace.member("blend") / "test.parquet")[logit_columns(CLASSES)].to_numpy()
    p, cut = sigmoid(logits), 0.4
    if applied:  # odds of 1 to 1 become odds of 1 to 4
        p, cut = sigmoid(project_any(logits - np.log(4), CLASSES, [1, 1, 1, 1, 1, 2])), 0.3
    said = read(plan)["submission"]
    assert said["f"]["value"] == pytest.approx(fbeta_score(truth, p >= cut, beta=2, average="micro"), abs=1e-6)
    assert said["f"]["low"] < said["f"]["value"] < said["f"]["high"]
    assert f"a micro F2 of {said['f']['value']:.4f}" in " ".join(capsys.readouterr().out.split())


def test_warnings_of_folds_reach_those_who_read_them(plan):
    assert read(plan)["warnings"] == [
        *["resnet: its epochs were judged by the fold"] * 3,
        "lgbm, blend: what they read is optimistic, and so are their scores",
    ]


def test_another_metric_is_judged_beside_f1_and_f2(tmp_path, capsys):
    plan = made(tmp_path, thresholds={"metric": "f0.5"})
    score.run(plan)
    assert "macro F0.5" in capsys.readouterr().out
    assert {"f0.5", "f0.5_half", "f0.5_low", "f0.5_own", "f1", "f2"} <= set(read(plan, "scores.csv").columns)


def test_a_class_of_one_label_is_said_and_left_out_of_the_macro_mean(tmp_path):
    plan = made(tmp_path, never=["epidural"])
    score.run(plan)
    found = read(plan)
    assert [line for line in found["warnings"] if line.startswith("epidural: one label only in the labelled slices")]
    blend = found["members"]["blend"]["oof"]
    assert blend["classes"]["epidural"]["auc"] == {"value": None, "low": None, "high": None}
    others = [blend["classes"][name]["auc"]["value"] for name in CLASSES if name != "epidural"]
    assert blend["auc"]["value"] == pytest.approx(np.mean(others), abs=1e-5)
    assert blend["classes"]["epidural"]["f2"]["value"] == 0
    text = (plan.workspace.submissions / "scores_by_class.csv").read_text()
    assert "blend,oof,epidural,0,0," in text
    assert ",nan," in text


def test_where_no_auc_exists_the_table_has_a_dash_and_the_json_null(tmp_path, capsys):
    plan = made(tmp_path, never=CLASSES)
    score.run(plan)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (blend, _) = [line for line in lines if line[:1] == ["blend"]]
    assert blend[3] == "-", "after the log loss and its interval"
    blend = read(plan)["members"]["blend"]["oof"]
    assert blend["auc"]["value"] is None
    assert read(plan)["members"]["lgbm"]["oof"]["auc"]["minus_blend"] == {"value": None, "low": None, "high": None}
    assert "nan" in (plan.workspace.submissions / "scores.csv").read_text()


def test_without_a_test_set_a_solution_of_other_slices_judges_nothing(tmp_path):
    plan = made(tmp_path, test_set=False, solution="others")
    score.run(plan)
    assert set(read(plan)["rows"]) == {"oof"}
    assert set(read(plan)["calibration_error"]) == {"oof"}


def test_without_a_solution_there_is_one_table(tmp_path, capsys):
    plan = made(tmp_path, solution="none")
    score.run(plan)
    assert set(read(plan)["rows"]) == {"oof"}
    assert set(read(plan, "scores.csv")["rows"]) == {"oof"}
    printed = capsys.readouterr().out
    assert "Out of fold: 200 slices of 20 patients" in printed
    assert "Hidden" not in printed


def test_a_solution_of_some_slices_judges_these(tmp_path):
    plan = made(tmp_path, solution="part")
    score.run(plan)
    table = slice_table()
    known = table[(table["split"] == "test") & (table.index % 4 != 0)]
    assert read(plan)["rows"]["test"]["slices"] == len(known)


def test_folds_by_slice_are_drawn_by_patient_all_the_same_and_warned_of(tmp_path):
    plan = made(tmp_path, folds={"n": 3, "by": "slice"}, stack={})
    score.run(plan)
    found = read(plan)
    assert found["warnings"][-1].startswith("folds.by is slice")
    assert found["rows"]["oof"]["patients"] == 20

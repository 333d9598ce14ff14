"""Blend, thresholds, submission and scores of trained members, stage by stage: what is tuned, on what, and for whom."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from scipy.special import expit, logit
from sklearn.metrics import fbeta_score

from conftest import RECIPE, House, cloned
from ich import cli
from ich.ensemble import prevalence
from ich.ensemble.hierarchy import project_any
from ich.ensemble.thresholds import search
from ich.phantom.competition import CLASSES
from ich.pipeline.plan import Plan
from ich.recipe import load
from ich.stages import blend, predict, score, smooth, stack, submit, thresholds
from ich.stages.inputs import Slices
from ich.store.atomic import read_json

pytestmark = pytest.mark.usefixtures("one_core")

# Three folds: with two, a fold's blend has one fold to be tuned on, and takes what needs no tuning.
SETTINGS = (
    *("name=trio", "folds.n=3", "demo.train_studies=18", "thresholds.shrink=0"),
    *("cnn.resnext=null", "cnn.resnet.learning_rate=0.02", "cnn.resnet.batch_size=8"),  # it learns a little
    *("sequence.bigru.on=[resnet]", "sequence.bigru.learning_rate=0.03"),
)
STAGES = (
    *("demo", "prepare", "folds", "cnn", "sequence", "smooth", "stack"),
    *("blend", "thresholds", "submit", "score"),
)
TEST_FOLDER = "input/tiny/stage_2_test"
LOGITS = [f"logit_{name}" for name in CLASSES]


def settings_of(*changes: str) -> list[str]:
    return [word for change in (*SETTINGS, *changes) for word in ("--set", change)]


def ich(root: Path, command: str, *words: str) -> str:
    """`ich command recipe words` in `root`, in this process; what it said."""
    with chdir(root), redirect_stdout(io.StringIO()) as said:
        cli.app([command, RECIPE, *words, *settings_of()], standalone_mode=False)
    return said.getvalue()


def plan_of(root: Path, *changes: str) -> Plan:
    return Plan(load(root / RECIPE, [*SETTINGS, *changes]), root)


@pytest.fixture(scope="module")
def trio(tmp_path_factory) -> Path:
    """A clone in which all stages were run; tests that change it work on a copy."""
    root = cloned(tmp_path_factory.mktemp("trio")).root
    for stage in STAGES:
        ich(root, stage)
    return root


@pytest.fixture
def copy(trio, tmp_path) -> Path:
    subprocess.run(["cp", "-a", f"{trio}/.", str(tmp_path)], check=True)
    return tmp_path


def remade(root: Path, *changes: str) -> Plan:
    """The plan whose blend, thresholds and submission are made with these changes."""
    for stage in (blend, thresholds, submit):
        stage.run(plan_of(root, *changes))
    return plan_of(root, *changes)


def submitted(root: Path, name: str = "submission") -> pd.DataFrame:
    """A submission as a table: a row an image, a column a class."""
    table = pd.read_csv(root / f"submissions/trio/{name}.csv")
    table[["image_id", "kind"]] = table["ID"].str.rsplit("_", n=1, expand=True)
    return table.pivot(index="image_id", columns="kind", values="Label")[list(CLASSES)]


def out_of_fold(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Labels and the blend's logits [n, c] of the labelled slices."""
    table = pd.read_parquet(plan.prepared.folder / "slices.parquet").set_index("image_id")
    oof = pd.read_parquet(plan.workspace.member("blend") / "oof.parquet").set_index("image_id")
    return table.loc[oof.index, list(CLASSES)].to_numpy(), oof[LOGITS].to_numpy("float64")


# ---- what a fold is tuned on


def turn_labels_round(plan: Plan, fold: int) -> None:
    """In the slice table itself: whoever reads a label of that fold reads another one."""
    path = plan.prepared.folder / "slices.parquet"
    table = pd.read_parquet(path)
    inside = (Slices(plan).table["fold"] == fold).to_numpy()
    table.loc[inside, list(CLASSES)] = 1 - table.loc[inside, list(CLASSES)]
    table.to_parquet(path, index=False)


def left_by_fold_0(plan: Plan) -> dict[str, dict[str, Any]]:
    """By member: files, and what the record says of the rows that it was tuned on."""
    made = {
        "gauss": smooth.fit_fold(plan, "gauss", 0, "unused"),
        "lgbm": stack.fit_fold(plan, "lgbm", 0, "unused"),
        "blend": blend._fold(plan, 0),
    }
    said = ("widths", "chosen", "own_rows")
    return {
        member: {name: path.read_bytes() for name, path in files.items()}
        | {key: record[key] for key in said if key in record}
        for member, (files, record) in made.items()
    }


@pytest.mark.parametrize("method", ["auto", "greedy", "weights"])
def test_a_fold_s_own_labels_have_no_say_in_what_judges_it(copy, method):
    plan = plan_of(copy, f"blend.method={method}", "blend.calibration=platt")
    before = left_by_fold_0(plan)
    assert {"smooth.json", "valid.parquet", "own_rows"} <= set(before["gauss"])
    assert {"model_any.txt", "valid.parquet", "own_rows"} <= set(before["lgbm"])
    assert {"blend.json", "valid.parquet", "chosen"} <= set(before["blend"])
    turn_labels_round(plan, 0)
    assert left_by_fold_0(plan) == before
    turn_labels_round(plan, 1)
    after = left_by_fold_0(plan)
    for member, file in (("gauss", "own_rows"), ("lgbm", "model_any.txt"), ("blend", "blend.json")):
        assert after[member][file] != before[member][file], "those of the other folds have"


# ---- every blend, in training and afterwards


def assert_predicted_as_submitted(plan: Plan, root: Path) -> None:
    predict.run(plan, root / TEST_FOLDER, root / "out.csv")
    scored, expected = pd.read_csv(root / "out.csv").set_index("image_id"), submitted(root)
    found = scored.loc[expected.index, [f"prob_{name}" for name in CLASSES]]
    np.testing.assert_allclose(logit(found), logit(expected), rtol=0, atol=1e-5)  # the same batches
    decided = scored.loc[expected.index, [f"positive_{name}" for name in CLASSES]]
    assert (decided.to_numpy() == submitted(root, "submission_binary").to_numpy()).all()


@pytest.mark.parametrize(
    ("method", "calibration", "metric"),
    [
        ("logits", "none", "log_loss"),
        ("ranks", "platt", "log_loss"),
        ("greedy", "beta", "f2"),
        ("weights", "isotonic", "log_loss"),
        ("weights", "temperature", "f2"),
        ("probabilities", "isotonic", "log_loss"),
    ],
)
def test_predicting_the_test_folder_gives_the_submission(copy, method, calibration, metric):
    chosen = {"method": method, "calibration": calibration, "metric": metric, "trials": 10}
    plan = remade(copy, *(f"blend.{key}={value}" for key, value in chosen.items()))
    for k in plan.fold_numbers:
        fitted = read_json(plan.workspace.fold("blend", k) / "blend.json")["classes"]["any"]
        assert (fitted["combination"]["method"], fitted["calibration"]["method"]) == (method, calibration)
    assert logit(submitted(copy)["any"]).std() > 1e-3, "of slices that are all alike equality says nothing"
    assert_predicted_as_submitted(plan, copy)


# ---- another prevalence in the test set


def say_another_prevalence(patch: pytest.MonkeyPatch, subtypes: float, any_: float) -> None:
    """As if the predictions said that there are so many times as many positives as in training."""

    def shifts(_z, y, _z_test, classes: Sequence[str], _patients) -> dict[str, prevalence.Shift]:
        found = {}
        for name, train in zip(classes, y.mean(axis=0, dtype=np.float64).tolist(), strict=True):
            test = train * (any_ if name == "any" else subtypes)
            found[name] = prevalence.Shift(train, test, test, 0.9 * test, 1.1 * test)
        return found

    patch.setattr(prevalence, "shifts", shifts)


@pytest.mark.parametrize(("subtypes", "any_"), [(2.0, 2.0), (1.0, 0.05)])  # the latter puts any below its subtypes
def test_an_applied_prevalence_shifts_probabilities_and_thresholds(copy, monkeypatch, subtypes, any_):
    say_another_prevalence(monkeypatch, subtypes, any_)
    before = logit(submitted(copy))
    plan = remade(copy, "thresholds.prevalence=apply")
    found = read_json(plan.workspace.thresholds)["prevalence"]
    assert found["applied"]
    rates = {name: (one["train"], one["test"]) for name, one in found["classes"].items()}
    assert [test / train for train, test in rates.values()] == pytest.approx([subtypes] * 5 + [any_])
    steps = np.array([logit(test) - logit(train) for train, test in rates.values()])
    weights = [1, 1, 1, 1, 1, 2]
    moved = project_any(before[list(rates)].to_numpy() + steps, list(rates), weights)
    after = submitted(copy)
    np.testing.assert_allclose(after, expit(moved), atol=1e-6)
    cuts = [found["classes"][name]["threshold"] for name in CLASSES]
    assert (submitted(copy, "submission_binary").to_numpy() == (after >= cuts).to_numpy()).all()

    # the threshold is the best one for rows as they would be in the test set
    y, z = out_of_fold(plan)
    shifted = expit(project_any(z + steps, list(rates), weights))
    for name in CLASSES[-2:]:
        c, (train, test) = CLASSES.index(name), rates[name]
        stand_for = np.where(y[:, c] == 1, test / train, (1 - test) / (1 - train))

        def f2(cut: float, c: int = c, stand_for: np.ndarray = stand_for) -> float:
            return float(fbeta_score(y[:, c], shifted[:, c] >= cut, beta=2, sample_weight=stand_for))

        assert f2(cuts[c]) == pytest.approx(max(map(f2, np.unique(shifted[:, c]))), abs=1e-12)


def test_the_test_set_s_prevalence_is_none_of_other_slices_business(copy, monkeypatch):
    """`ich predict` scores any folder, which may have a prevalence of its own."""
    say_another_prevalence(monkeypatch, 2, 2)
    predict.run(plan_of(copy), copy / TEST_FOLDER, copy / "before.csv")
    predict.run(remade(copy, "thresholds.prevalence=apply"), copy / TEST_FOLDER, copy / "after.csv")
    assert (copy / "after.csv").read_bytes() == (copy / "before.csv").read_bytes()


def test_a_reported_prevalence_changes_nothing_that_is_submitted(copy, monkeypatch):
    say_another_prevalence(monkeypatch, 2, 2)
    names = ("submission.csv", "submission_binary.csv")
    before = [(copy / "submissions/trio" / name).read_bytes() for name in names]
    for stage in (thresholds, submit):
        stage.run(plan_of(copy), force=True)
    found = read_json(plan_of(copy).workspace.thresholds)
    assert not found["prevalence"]["applied"]
    assert found["prevalence"]["classes"]["any"]["threshold"] != found["thresholds"]["any"]
    assert [(copy / "submissions/trio" / name).read_bytes() for name in names] == before


# ---- thresholds


def trials_in(plan: Plan) -> dict[str, list[tuple[float, float | None]]]:
    """Where each trial of a study looked and what it found, as Optuna itself reads the journal."""
    storage = JournalStorage(JournalFileBackend(str(plan.workspace.thresholds.with_suffix(".journal"))))
    names = [study.study_name for study in storage.get_all_studies()]
    studies = {name: optuna.load_study(study_name=name, storage=storage) for name in names}
    return {name: [(t.params[search.NAME], t.value) for t in study.trials] for name, study in studies.items()}


def without_thresholds(root: Path) -> Plan:
    """The plan with more trials than were made; nothing of its thresholds is there."""
    plan = plan_of(root, "thresholds.trials=60")
    for suffix in (".json", ".run.json", ".journal"):
        plan.workspace.thresholds.with_suffix(suffix).unlink()
    return plan


@pytest.fixture(scope="module")
def uninterrupted(trio, tmp_path_factory) -> tuple[bytes, Any]:
    """thresholds.json of 60 trials made at a stretch, and the trials."""
    root = tmp_path_factory.mktemp("whole")
    subprocess.run(["cp", "-a", f"{trio}/.", str(root)], check=True)
    plan = without_thresholds(root)
    thresholds.run(plan)
    trials = trials_in(plan)
    assert [len(study) for study in trials.values()] == [60] * len(CLASSES)
    return plan.workspace.thresholds.read_bytes(), trials


@pytest.mark.parametrize("trials", [1, 100, 301])
def test_thresholds_that_were_stopped_go_on_to_the_same_bytes(copy, uninterrupted, monkeypatch, trials):
    plan = without_thresholds(copy)
    real, made = search._kept, []

    def kept(*arguments: Any) -> optuna.Study:
        study = real(*arguments)
        add = study.add_trial

        def add_trial(trial: optuna.trial.FrozenTrial) -> None:
            if len(made) == trials:
                raise KeyboardInterrupt
            made.append(trial)
            add(trial)

        study.add_trial = add_trial
        return study

    with monkeypatch.context() as patch:
        patch.setattr(search, "_kept", kept)
        with pytest.raises(KeyboardInterrupt):
            thresholds.run(plan)
    assert sum(map(len, trials_in(plan).values())) == trials
    assert not plan.workspace.thresholds.exists()
    thresholds.run(plan_of(copy, "thresholds.trials=60"))
    assert (plan.workspace.thresholds.read_bytes(), trials_in(plan)) == uninterrupted


def test_thresholds_that_were_killed_go_on_to_the_same_bytes(copy, uninterrupted):
    plan = without_thresholds(copy)
    journal = plan.workspace.thresholds.with_suffix(".journal")
    process = House(copy).start("thresholds", *settings_of("thresholds.trials=60"))
    until = time.monotonic() + 120
    while not (journal.is_file() and journal.stat().st_size > 20_000) and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not plan.workspace.thresholds.exists(), "it was killed in the middle"
    assert 0 < sum(map(len, trials_in(plan).values())) < 60 * len(CLASSES)
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "tri')  # as a full buffer leaves it
    thresholds.run(plan_of(copy, "thresholds.trials=60"))
    assert (plan.workspace.thresholds.read_bytes(), trials_in(plan)) == uninterrupted


@pytest.mark.parametrize(
    ("average", "metric", "least"),
    [
        ("macro", "f2", 0.0),
        ("macro", "f0.5", 0.9),
        ("micro", "f0.5", 0.0),
        ("micro", "f1", 0.9),
        ("samples", "f1", 0.9),
    ],
)
def test_every_goal_is_reached_on_the_rows_that_tune(copy, average, metric, least):
    chosen = {"average": average, "min_recall": least or "null", "trials": 30}
    ich(copy, "thresholds", "--metric", metric, *settings_of(*(f"thresholds.{k}={v}" for k, v in chosen.items())))
    found = read_json(copy / "oof/trio/thresholds.json")
    assert (found["metric"], found["average"]) == (metric, average)
    y, z = out_of_fold(plan_of(copy))
    decided = expit(z) >= [found["thresholds"][name] for name in CLASSES]
    beta = float(metric[1:])
    assert found["score"] == pytest.approx(fbeta_score(y, decided, beta=beta, average=average, zero_division=0))
    for c, name in enumerate(CLASSES):
        if y[:, c].any():
            assert found["recall"][name] == pytest.approx(decided[y[:, c] == 1, c].mean())
            assert found["recall"][name] >= least, name
    assert found["interval_cross_fitted"][0] <= found["score_cross_fitted"] <= found["interval_cross_fitted"][1]


# ---- scores


def test_what_is_printed_is_what_the_files_hold_and_nothing_stands_without_an_interval(trio):
    said = ich(trio, "score").splitlines()
    found = json.loads((trio / "submissions/trio/scores.json").read_text())
    table = pd.read_csv(trio / "submissions/trio/scores.csv", dtype=str).set_index(["member", "rows"])
    start = {where: next(i for i, line in enumerate(said) if line.startswith(title)) for where, title in TITLES.items()}
    parts = {"oof": said[start["oof"] : start["test"]], "test": said[start["test"] :]}
    for member, by_rows in found["members"].items():
        for where, lines in parts.items():
            printed = "  ".join(line for line in lines if line.split()[:1] == [member])
            cells = [by_rows[where][figure] for figure in ("log_loss", "auc", "f2")]
            for figure, cell in by_rows[where].items():
                if figure != "classes":
                    in_table = [table.loc[(member, where), f"{figure}{end}"] for end in ("", "_low", "_high")]
                    assert in_table == [f"{cell[end]:.4f}" for end in ("value", "low", "high")], (member, figure)
            cells += [cells[0]["minus_blend"]] if member != "blend" else []
            for cell in cells:
                assert span(cell) in printed, (member, where)
                printed = printed.replace(span(cell), "", 1)
            own = [f"{cells[2]['own']:.4f}"] if where == "oof" else []
            assert re.findall(r"[\d.]+", printed.replace(member, "")) == own, "a value without its interval"


TITLES = {"oof": "Out of fold: ", "test": "Hidden test solution: "}


def span(cell: Mapping[str, float]) -> str:
    low, high = f"{cell['low']:.4f}", f"{cell['high']:.4f}"
    return f"{cell['value']:.4f} {low}{' to ' if cell['low'] < 0 else '-'}{high}"


def test_whatever_is_tuned_on_rows_is_shown_on_these_too(trio):
    table = pd.read_csv(trio / "submissions/trio/scores.csv").set_index(["rows", "member"]).loc["oof"]
    assert table.loc[["gauss", "lgbm", "blend"], ["log_loss_own", "auc_own"]].notna().all(axis=None)
    assert table.loc[["resnet", "bigru"], ["log_loss_own", "auc_own"]].isna().all(axis=None), "they were not tuned"
    assert table["f2_own"].notna().all()
    records = [read_json(trio / f"oof/trio/lgbm/fold{k}/run.json")["own_rows"]["weighted_log_loss"] for k in range(3)]
    assert table.loc["lgbm", "log_loss_own"] == pytest.approx(np.mean(records), abs=6e-5)


# ---- what is done, and what a user gets wrong


def test_everything_is_listed_and_done_and_a_second_run_writes_nothing(copy):
    listed = {line.split()[0]: line.split()[1] for line in ich(copy, "status").splitlines()[2:] if "/" in line}
    for name in ("smooth/gauss/fold0", "smooth/gauss", "cnn/resnet/fold2/train", "blend/blend"):
        assert listed[name] == "done"
    assert set(listed.values()) == {"done"}  # explain and report, which were not run, have no slash
    before = House(copy).files()
    for stage in (smooth, stack, blend, thresholds, submit, score):
        stage.run(plan_of(copy))
    assert House(copy).files() == before


def test_training_rows_are_listed_where_they_are_read(trio):
    names = {task.name for task in plan_of(trio, "sequence.bigru.features=oof").all()}
    assert "smooth/gauss/fold0" in names
    assert not {name for name in names if name.endswith("/train")}


@pytest.mark.parametrize(
    ("command", "change", "says"),
    [
        ("thresholds", "thresholds.min_recall={epdural: 0.9}", "there is no class 'epdural'; the classes are epidural"),
        ("thresholds", "thresholds.prevalence=applied", "thresholds.prevalence: Input should be 'report' or 'apply'"),
        ("thresholds", "thresholds.average=samples", "average samples mixes classes; write 0"),
        ("blend", "blend.metric=auc", "blend.metric"),
        ("blend", "blend.method=geometric", "blend.method"),
        ("blend", "blend.members=[resnt]", "did you mean"),
        ("smooth", "smooth.gauss.width=5", "did you mean widths?"),
    ],
)
def test_a_user_s_mistake_is_one_line(trio, monkeypatch, capsys, command, change, says):
    monkeypatch.chdir(trio)
    shrunk = "thresholds.shrink=10"  # goes with no average over slices
    monkeypatch.setattr(sys, "argv", ["ich", command, RECIPE, *settings_of(shrunk, change)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line

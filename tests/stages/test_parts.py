"""Pre-training, end-to-end networks, early stopping, folds by slice and ablations, on tests/parts.yaml."""

import io
import json
import subprocess
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn import metrics

from conftest import cloned
from ich.cli import app
from ich.errors import UserError
from ich.pipeline.plan import Plan
from ich.recipe import load
from ich.stages import ablate, cnn, end_to_end, fitting, pretrain
from ich.stages.fitting import splits
from ich.stages.inputs import Slices
from ich.training import loop

pytestmark = pytest.mark.usefixtures("one_core")

RECIPE = "tests/parts.yaml"
CLASSES = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
LOGITS = [f"logit_{name}" for name in CLASSES]
STAGES = (
    *("demo", "prepare", "folds", "pretrain", "cnn", "end_to_end", "sequence", "smooth", "stack", "blend"),
    *("thresholds", "submit", "score", "explain", "report"),
)
MEMBERS = ["resnet", "resnext", "small", "joint", "bigru", "lr", "inside", "gauss", "lgbm", "blend"]


def ich(root: Path, command: str, *arguments: str, recipe: str = RECIPE) -> str:
    """`ich command recipe arguments` in `root`, in this process; what it said."""
    with chdir(root), redirect_stdout(io.StringIO()) as said:
        app([command, recipe, *arguments], standalone_mode=False)
    return said.getvalue()


def setting(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def plan_of(root: Path, *changes: str) -> Plan:
    return Plan(load(root / RECIPE, changes), root)


def copied(source: Path, target: Path) -> Path:
    """Modification times are kept: they judge the raw data."""
    subprocess.run(["cp", "-a", f"{source}/.", str(target)], check=True)
    return target


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A clone in which all stages of the recipe were run; tests that change it work on a copy."""
    root = cloned(tmp_path_factory.mktemp("parts")).root
    for stage in STAGES:
        ich(root, stage)
    return root


@pytest.fixture
def copy(parts, tmp_path) -> Path:
    return copied(parts, tmp_path)


def undone(root: Path, *changes: str) -> set[str]:
    plan = plan_of(root, *changes)
    return {task.name for task in plan.all() if not plan.state(task).done}


def record(root: Path, member: str, fold: int = 0) -> dict[str, Any]:
    return json.loads((root / f"oof/parts/{member}/fold{fold}/run.json").read_text())


class Training(Exception):
    """A network as it is when its training begins, and what it would be trained on."""

    def __init__(self, network: Any, dataset: Any, settings: loop.FitSettings) -> None:
        self.network, self.dataset, self.settings = network, dataset, settings


@contextmanager
def stopped_before_training(patch: pytest.MonkeyPatch) -> Iterator[None]:
    def fit(network, batches, _loss_of, settings, **_):
        raise Training(network, batches(0).dataset, settings)

    with patch.context() as inside:
        inside.setattr(loop, "fit", fit)
        inside.setattr(fitting._Epochs, "counted", lambda _self, _epoch, batches: batches)  # the loader itself
        yield


def training(patch: pytest.MonkeyPatch, stage: ModuleType, plan: Plan, member: str, fold: int = 0) -> Training:
    with stopped_before_training(patch), pytest.raises(Training) as caught:
        stage.fit_fold(plan, member, fold, "unused")
    return caught.value


# ---- the whole path


def test_every_artefact_is_done(parts):
    assert not undone(parts)
    assert plan_of(parts).members == MEMBERS


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_predicts_every_labelled_slice_once(parts, member):
    slices = Slices(plan_of(parts))
    oof = pd.read_parquet(parts / f"oof/parts/{member}/oof.parquet")
    assert sorted(oof["image_id"]) == sorted(slices.ids(slices.labelled.nonzero()[0]))
    assert np.isfinite(oof[LOGITS]).all(axis=None)


def assert_predicted_as_submitted(root: Path, *changes: str) -> None:
    out = root / "out.csv"
    ich(root, "predict", "input/tiny/stage_2_test", "-o", str(out), *setting(*changes))
    table = pd.read_csv(root / "submissions/parts/submission.csv")
    table[["image_id", "kind"]] = table["ID"].str.rsplit("_", n=1, expand=True)
    expected = logit(table.pivot(index="image_id", columns="kind", values="Label")[CLASSES])
    found = logit(pd.read_csv(out).set_index("image_id").loc[expected.index, [f"prob_{name}" for name in CLASSES]])
    assert expected.std().max() > 1e-3, "of slices that are all alike equality says nothing"
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # the same batches: see test_predict.py


def test_predicting_the_test_folder_gives_the_submission(copy):
    assert_predicted_as_submitted(copy)


@pytest.mark.parametrize("member", ["small", "joint", "bigru", "lr", "inside", "gauss"])
def test_so_it_does_where_a_member_is_the_whole_blend(copy, member):
    change = f"blend.members=[{member}]"
    for stage in ("blend", "thresholds", "submit"):
        ich(copy, stage, *setting(change))
    assert_predicted_as_submitted(copy, change)


# ---- end to end


@pytest.mark.parametrize("fold", [0, 1])
def test_an_end_to_end_fold_leaves_what_a_member_leaves(parts, fold):
    files = {path.name for path in (parts / f"oof/parts/joint/fold{fold}").iterdir() if path.is_file()}
    assert files == {"valid.parquet", "test.parquet", "model.safetensors", "history.csv", "run.json"}
    said, like = record(parts, "joint", fold), record(parts, "resnext", fold)
    assert set(said) == set(like)
    assert said["metrics"].keys() == like["metrics"].keys()
    rows = Slices(plan_of(parts))
    valid = pd.read_parquet(parts / f"oof/parts/joint/fold{fold}/valid.parquet")
    assert valid["image_id"].tolist() == rows.ids(rows.valid_rows(fold)).tolist()


def test_an_end_to_end_network_starts_from_its_own_fold_s_network(parts, monkeypatch):
    from safetensors.torch import load_file

    for fold in (0, 1):
        begun = training(monkeypatch, end_to_end, plan_of(parts), "joint", fold).network.cnn.backbone.state_dict()
        below = load_file(parts / f"oof/parts/resnet/fold{fold}/model.safetensors")
        assert all(value.equal(below[f"backbone.{name}"]) for name, value in begun.items())


# ---- pre-training


def test_a_network_starts_from_the_pretrained_backbone(parts, monkeypatch):
    from safetensors.torch import load_file

    learned = load_file(parts / "oof/parts/simclr/model.safetensors")
    begun = training(monkeypatch, cnn, plan_of(parts), "small").network.backbone.state_dict()
    assert begun
    assert all(value.equal(learned[f"cnn.backbone.{name}"]) for name, value in begun.items())
    fresh = training(monkeypatch, cnn, plan_of(parts, "cnn.small.start=null"), "small").network.backbone.state_dict()
    assert any(not value.equal(learned[f"cnn.backbone.{name}"]) for name, value in fresh.items())


def change_labels(plan: Plan) -> None:
    """In the prepared table: every training study's labels the other way round, or gone."""
    path = plan.prepared.folder / "slices.parquet"
    table = pd.read_parquet(path)
    train = (table["split"] == "train").to_numpy()
    study = table["study_id"].astype("category").cat.codes.to_numpy()
    for name in Slices(plan).classes:
        table.loc[train, name] = 1 - table.loc[train, name]
        table.loc[train & (study % 2 == 0), name] = np.nan
    table.to_parquet(path, index=False)


def test_pretraining_sees_every_slice_and_no_label(copy, monkeypatch):
    path = copy / "oof/parts/simclr/model.safetensors"
    before, plan = path.read_bytes(), plan_of(copy)
    change_labels(plan)
    table = pd.read_parquet(plan.prepared.folder / "slices.parquet")
    assert table.loc[table["split"] == "train", "any"].isna().any()
    with stopped_before_training(monkeypatch), pytest.raises(Training) as caught:
        pretrain._fit(plan, "simclr", "unused")
    assert caught.value.dataset.dataset.rows.tolist() == list(range(len(table)))
    path.unlink()
    pretrain._fit(plan, "simclr", "unused")
    assert path.read_bytes() == before


def test_other_pretraining_makes_stale_what_started_from_it_and_nothing_else(copy):
    change = "pretrain.simclr.seed=8"
    begun = {"cnn/small", "sequence/inside", "smooth/gauss", "stack/lgbm", "blend/blend"}
    later = begun | {f"{name}/fold{k}" for name in begun for k in (0, 1)}
    later |= {f"cnn/small/fold{k}/train" for k in (0, 1)}
    later |= {"thresholds", "submit", "score", "explain", "report"}
    assert undone(copy, change) == {"pretrain/simclr"} | later
    ich(copy, "pretrain", *setting(change))
    said = ich(copy, "status", *setting(change))
    stale = {line.split()[0] for line in said.splitlines() if " stale " in line}
    assert stale == later
    assert "cnn/resnet/fold0" in said


# ---- a share of the labels


def patients(slices: Slices, rows: np.ndarray) -> set[str]:
    return set(slices.table["patient_id"].iloc[rows])


@pytest.mark.parametrize("fold", [0, 1])
def test_half_of_the_labels_are_those_of_half_of_the_patients(parts, monkeypatch, fold):
    plan = plan_of(parts)
    slices = Slices(plan)
    rows = training(monkeypatch, cnn, plan, "small", fold).dataset.rows
    everybody, drawn = slices.train_rows(fold), patients(slices, rows)
    assert abs(len(drawn) - len(patients(slices, everybody)) / 2) <= 1
    whole = slices.table["patient_id"].iloc[everybody].isin(drawn).to_numpy()
    assert rows.tolist() == everybody[whole].tolist()
    other = training(monkeypatch, cnn, plan_of(parts, "cnn.small.seed=8"), "small", fold).dataset.rows
    assert patients(slices, other) != drawn


@pytest.mark.parametrize("fold", [0, 1])
def test_members_of_one_seed_draw_the_same_patients(parts, monkeypatch, fold):
    """Else two systems are compared on other labels, and a judge of the second has trained the first."""
    inner = "early_stopping={metric: f2, on: inner, share: 0.3}"
    plan = plan_of(parts, "cnn.resnext.labels=0.5", f"end_to_end.joint.{inner}")
    slices, cnns = Slices(plan), plan.recipe.cnn
    small, resnext = (training(monkeypatch, cnn, plan, name, fold).dataset.rows for name in ("small", "resnext"))
    assert small.tolist() == resnext.tolist()
    judge = splits(slices, plan.recipe.end_to_end["joint"], fold)["inner"]
    started_from = splits(slices, cnns["resnet"], fold)["train"]
    assert not patients(slices, judge) & patients(slices, started_from)


# ---- early stopping


def test_the_best_epoch_by_the_fold_itself_is_warned_of(parts):
    for k in (0, 1):
        (warning,) = record(parts, "joint", k)["warnings"]
        assert warning == f"the best epoch was chosen by f2 on fold {k} itself: its score is optimistic"
        assert f"warning: joint: {warning}" in ich(parts, "score")
    for member in ("resnet", "resnext", "bigru"):
        assert record(parts, member)["warnings"] == []
    assert "warning: lgbm, blend: what they read is optimistic, and so are their scores" in ich(parts, "score")


@pytest.mark.parametrize("fold", [0, 1])
def test_inner_patients_are_neither_trained_on_nor_of_the_fold(parts, monkeypatch, fold):
    plan = plan_of(parts)
    slices, settings = Slices(plan), plan.recipe.cnn["resnet"]
    rows = splits(slices, settings, fold)
    trained = training(monkeypatch, cnn, plan, "resnet", fold).dataset.rows
    assert trained.tolist() == rows["train"].tolist()
    inner = patients(slices, rows["inner"])
    assert inner
    assert not inner & patients(slices, trained)
    assert not (inner | patients(slices, trained)) & patients(slices, slices.valid_rows(fold))
    assert sorted([*rows["inner"], *trained]) == slices.train_rows(fold).tolist()


def best_f2(truth: np.ndarray, score: np.ndarray) -> float:
    cuts = [*np.unique(score), np.inf]
    return max(metrics.fbeta_score(truth, score >= cut, beta=2, zero_division=0) for cut in cuts)


def test_the_history_has_the_judged_figure_and_the_model_is_the_best_epoch_s(copy):
    """With a learning rate that soon does harm, so that the last epoch is not the best one."""
    ich(copy, "end_to_end", *setting("end_to_end.joint.epochs=4", "end_to_end.joint.learning_rate=0.05"))
    slices, best = Slices(plan_of(copy)), []
    for k in (0, 1):
        folder = copy / f"oof/parts/joint/fold{k}"
        history = pd.read_csv(folder / "history.csv")
        assert list(history.columns) == ["epoch", "learning_rate", "loss", "valid_loss", "valid_f2"]
        truth = slices.labels[slices.valid_rows(k)]
        found = expit(pd.read_parquet(folder / "valid.parquet")[LOGITS].to_numpy("float64"))
        f2 = np.mean([best_f2(y, p) for y, p in zip(truth.T, found.T, strict=True)])
        assert f2 == pytest.approx(history["valid_f2"].max(), abs=1e-9)
        best.append(int(history["valid_f2"].argmax()))
        kept = record(copy, "joint", k)["metrics"]["weighted_log_loss"]
        assert kept == pytest.approx(history["valid_loss"][best[-1]], abs=1e-6)
        assert history["valid_loss"].is_unique
    assert min(best) < 3


def test_inner_patients_judge_where_they_were_set_aside(parts):
    for k in (0, 1):
        assert "inner_f2" in pd.read_csv(parts / f"oof/parts/resnet/fold{k}/history.csv")
        assert list(pd.read_csv(parts / f"oof/parts/resnext/fold{k}/history.csv"))[-1] == "valid_loss"


# ---- folds by slice

WHOLE_STUDIES = ("end_to_end", "sequence", "smooth", "stack")  # members that read them
BY_SLICE = ("name=sliced", "folds.by=slice", "cnn.small=null", *(f"{group}=null" for group in WHOLE_STUDIES))


def test_folds_by_slice_leak_and_say_so(copy):
    changes = setting(*BY_SLICE)
    ich(copy, "prepare", *changes)
    assert "every out-of-fold score is optimistic" in ich(copy, "folds", *changes)
    for stage in ("cnn", "blend", "thresholds"):
        ich(copy, stage, *changes)
    assert "slices of one patient stand in several folds" in ich(copy, "score", *changes)

    plan = plan_of(copy, *BY_SLICE)
    slices = Slices(plan)
    folds = slices.table[slices.labelled].groupby("patient_id")["fold"].nunique()
    assert (folds == 2).all()
    for member in plan.members:
        oof = pd.read_parquet(plan.workspace.member(member) / "oof.parquet")
        assert sorted(oof["image_id"]) == sorted(slices.ids(slices.labelled.nonzero()[0]))
    assert undone(copy) == set(), "the recipe by patient is untouched"


# ---- end to end alone

ALONE = ("name=alone", "end_to_end.joint.start=null", "end_to_end.joint.epochs=1", "ablation=null")
ALONE += tuple(f"{group}=null" for group in ("pretrain", "cnn", "sequence", "smooth", "stack"))


def test_an_end_to_end_network_alone_has_a_page_without_maps(copy):
    changes = setting(*ALONE)
    for stage in ("prepare", "folds", "end_to_end", *STAGES[STAGES.index("blend") :]):
        ich(copy, stage, *changes)
    page = (copy / "submissions/alone/report.html").read_text()
    assert "This recipe has no network that reads single slices" in page
    assert "No network of this recipe makes a map of where it looks" in page
    assert "Grad-CAM for" not in page


# ---- the scores


def test_the_confusion_table_adds_up(parts):
    plan = plan_of(parts)
    slices = Slices(plan)
    table = pd.read_csv(parts / "submissions/parts/confusion.csv", dtype={"thresholds": str})
    solution = pd.read_csv(parts / "input/tiny/solution.csv").set_index("ID")["Label"]
    ids = {"oof": slices.ids(slices.labelled.nonzero()[0]), "test": slices.ids(slices.test_rows)}
    keys = ["member", "rows", "thresholds", "class"]
    assert not table.duplicated(keys).any()
    assert len(table) == len(MEMBERS) * 2 * 3 * len(CLASSES)
    assert table["tp"].dtype == "int64"
    assert (table[["tp", "fp", "fn", "tn"]].sum(axis=1) == table["rows"].map({k: len(v) for k, v in ids.items()})).all()
    for where, file in (("oof", "oof.parquet"), ("test", "test.parquet")):
        logits = pd.read_parquet(parts / "oof/parts/joint" / file).set_index("image_id").loc[ids[where], LOGITS]
        for c, name in enumerate(CLASSES):
            if where == "oof":
                truth = slices.labels[slices.labelled, c]
            else:
                truth = solution[[f"{i}_{name}" for i in ids[where]]].to_numpy()
            found = table.set_index(keys).loc[("joint", where, "0.5", name)]
            guess = logits[f"logit_{name}"] >= 0
            tn, fp, fn, tp = metrics.confusion_matrix(truth, guess, labels=[0, 1]).ravel()
            assert found[["tp", "fp", "fn", "tn"]].tolist() == [tp, fp, fn, tn]
            expected = {
                "accuracy": metrics.accuracy_score(truth, guess),
                "precision": metrics.precision_score(truth, guess, zero_division=0),
                "recall": metrics.recall_score(truth, guess, zero_division=0),
                "f1": metrics.f1_score(truth, guess, zero_division=0),
            }
            assert found[list(expected)].tolist() == pytest.approx(list(expected.values()), abs=5e-5)


# ---- the ablation

FEWER = [f"{group}=null" for group in ("pretrain", "cnn.small", *WHOLE_STUDIES)]  # it lists none of them
RUNS = ["parts_random_s1", "parts_random_s2", "parts_s1", "parts_s2"]


@pytest.fixture(scope="module")
def ablated(parts, tmp_path_factory) -> tuple[Path, str]:
    root = copied(parts, tmp_path_factory.mktemp("ablated"))
    return root, ich(root, "ablate", *setting(*FEWER))


def made(root: Path) -> dict[str, int]:
    """Modification times of what the runs of the ablation left."""
    folders = [root / below / run for below in ("oof", "submissions") for run in RUNS]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix != ".lock" and path.is_file()]
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in files}


def test_an_ablation_writes_its_table_from_a_run_a_variant_and_seed(ablated):
    root, said = ablated
    assert sorted(path.name for path in (root / "oof").glob("parts_*")) == RUNS
    rows = pd.read_csv(root / "submissions/parts/ablation.csv")
    assert len(rows) == 3 * 2 * 2
    for row in rows.itertuples():
        member, variant = {"one": ("resnet", ""), "two": ("resnext", ""), "one, random": ("resnet", "random_")}[
            row.system
        ]
        scores = pd.read_csv(root / f"submissions/parts_{variant}s{row.seed}/scores.csv").set_index(["member", "rows"])
        assert row.f2 == scores.loc[(member, row.rows), "f2"]
    text = (root / "submissions/parts/ablation.md").read_text()
    assert text in said
    mean = rows[(rows["system"] == "one") & (rows["rows"] == "oof")]["f2"].mean()
    assert f"| one | 0.7000 | {mean:.4f} ± " in text
    assert "- two over one: document +0.0500; here " in text
    assert "- one, random over one: document -; here " in text


def test_the_seed_changes_folds_and_networks_and_the_variant_the_folds(ablated):
    root, _ = ablated
    folds = {run: (root / f"folds/{run}.csv").read_text() for run in RUNS}
    assert len(set(folds.values())) == 4
    weights = [(root / f"oof/{run}/resnet/fold0/model.safetensors").read_bytes() for run in RUNS]
    assert len(set(weights)) == 4
    settings = json.loads((root / "oof/parts_s2/resnext/fold0/run.json").read_text())["settings"]
    assert settings["seed"] == 2


def test_a_second_ablation_computes_nothing(ablated):
    root, said = ablated
    before = made(root)
    again = ich(root, "ablate", *setting(*FEWER))
    assert made(root) == before
    assert again.splitlines()[-3:] == said.splitlines()[-3:]


def test_an_interrupted_ablation_goes_on_where_it_was(ablated, tmp_path):
    root = copied(ablated[0], tmp_path)
    before, table = made(root), (root / "submissions/parts/ablation.csv").read_bytes()
    gone = ["oof/parts_s2/resnext/fold1/run.json", "submissions/parts_random_s1/scores.run.json"]
    for name in [*gone, "submissions/parts/ablation.csv"]:
        (root / name).unlink()
    ich(root, "ablate", *setting(*FEWER))
    after = made(root)
    assert (root / "submissions/parts/ablation.csv").read_bytes() == table
    remade = {name for name in after if after[name] != before.get(name)}
    assert set(gone) <= remade
    scores = [f"submissions/parts_random_s1/{name}" for name in ("score", "confusion.csv", "reliability.csv")]
    assert all(name.startswith(("oof/parts_s2/resnext/fold1/", *scores)) for name in remade), remade


def test_a_recipe_without_an_ablation_is_refused_in_one_line(clone):
    said = clone.ich("ablate", recipe="tests/tiny.yaml", code=2)
    assert said == "error: recipe tiny has no section ablation; configs/seeds/ has examples\n"


def test_a_variant_without_a_system_s_member_is_refused_before_anything_is_run(parts):
    changes = ["ablation.systems.joint={member: joint, variant: random}", "ablation.variants.random=[end_to_end=null]"]
    with pytest.raises(UserError, match=r"systems\.joint: variant 'random' leaves member 'joint' out") as error:
        ablate.runs(parts / RECIPE, changes, parts)
    assert "\n" not in str(error.value)


def test_too_few_patients_to_set_some_aside_are_told_in_one_line(parts, monkeypatch):
    plan = plan_of(parts)
    slices = Slices(plan)
    train = slices.train_rows(0)
    one = train[slices.table["patient_id"].iloc[train] == slices.table["patient_id"].iloc[train[0]]]
    monkeypatch.setattr(Slices, "train_rows", lambda *_: one)
    with pytest.raises(UserError, match="too few") as error:
        splits(slices, plan.recipe.cnn["resnet"], 0)
    assert "\n" not in str(error.value)

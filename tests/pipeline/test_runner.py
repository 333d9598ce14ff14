"""Folds: killed ones resume to the same bytes, predictions that are not finite are refused, each is made once."""

import os
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import Clone, make, plan_of
from ich.errors import UserError
from ich.models.cnn import FittedCnn
from ich.models.slices import Predictions
from ich.models.smooth import FittedSmooth
from ich.pipeline import runner
from ich.pipeline.state import Busy, Plan
from ich.pipeline.tasks import CHECKPOINT, Task
from ich.pipeline.untrainable import untrainable
from ich.store.locks import hold
from ich.training import fit as training
from ich.training.checkpoint import TrainingState


class Killed(BaseException):
    """Raised in place of a kill; nothing catches it."""


def contents(task: Task) -> dict[str, bytes]:
    """The files of a fold, without its record."""
    return {
        path.name: path.read_bytes() for path in task.folder.iterdir() if path.is_file() and path.name != "run.json"
    }


def dead_fold(plan: Plan, model: str) -> Task:
    """Fold 0 of a model, or pre-training, after all its files were removed."""
    task = plan.fold(model, None if model in plan.recipe.pretrain else 0)
    for path in task.folder.iterdir():
        if path.is_file():
            path.unlink()
    plan.forget()
    return task


# ---- killed


@pytest.mark.parametrize("model", ["simclr", "resnet", "joint", "inside"])
def test_a_killed_network_of_any_kind_resumes_to_the_same_bytes(copy, monkeypatch, model):
    changes = ["pretrain.simclr.epochs=2"] if model == "simclr" else []
    plan = plan_of(copy, *changes)
    stage, fold = plan.settings_of(model).stage, None if model == "simclr" else 0
    make(plan, stage, model=model, fold=fold)  # simclr only: it has one epoch otherwise
    task = plan.fold(model, fold)
    whole, save, epoch, trained = contents(task), TrainingState.save, training.train_epoch, []
    dead_fold(plan, model)

    def saved_and_killed(self: TrainingState, *arguments: Any) -> None:
        save(self, *arguments)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TrainingState, "save", saved_and_killed)
        make(plan, stage, model=model, fold=fold)
    plan = plan_of(copy, *changes)
    assert plan.standing(task).kind == "killed"
    assert "resume after the last finished epoch" in plan.standing(task).why
    monkeypatch.setattr(training, "train_epoch", lambda state, *rest: trained.append(0) or epoch(state, *rest))
    torch.rand(3)
    make(plan, stage, model=model, fold=fold)
    assert len(trained) == 1, "of two epochs"
    assert contents(task) == whole
    assert plan.state(task).done


@pytest.mark.parametrize("model", ["resnet", "gauss", "lgbm", "blend"])
def test_a_fold_killed_before_its_record_is_made_again_to_the_same_bytes(copy, monkeypatch, model):
    plan = plan_of(copy)
    task = plan.fold(model, 0)
    whole = contents(task)
    dead_fold(plan, model)

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("ich.pipeline.runner.write_predictions", killed)
        make(plan, task.stage, model=model, fold=0)
    assert not plan_of(copy).state(task).done
    make(plan_of(copy), task.stage, model=model, fold=0)
    assert contents(task) == whole


def test_an_old_fold_stays_whole_until_the_new_one_is_complete(copy, monkeypatch):
    change = "cnn.resnet.seed=8"
    old, new = plan_of(copy), plan_of(copy, change)
    task, before = old.fold("resnet", 0), contents(old.fold("resnet", 0))

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("ich.pipeline.runner.write_predictions", killed)
        make(new, "cnn", model="resnet", fold=0)
    assert contents(task) == before
    assert plan_of(copy).standing(task).done
    assert "resume after the last finished epoch" in plan_of(copy, change).standing(new.fold("resnet", 0)).why
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_epoch", lambda *_: pytest.fail("a finished epoch was trained again"))
        make(plan_of(copy, change), "cnn", model="resnet", fold=0)
    after = contents(task)
    assert after.keys() == before.keys()
    assert after["model.safetensors"] != before["model.safetensors"]
    assert plan_of(copy, change).state(new.fold("resnet", 0)).done
    make(plan_of(copy), "cnn", model="resnet", fold=0)
    assert contents(task) == before


def test_unfinished_files_of_a_finished_fold_are_removed(copy):
    """Those of a killed run with other settings."""
    plan, before = plan_of(copy), Clone(copy).files()
    task = plan.fold("resnet", 1)
    task.record.work.mkdir()
    (task.record.work / CHECKPOINT).write_bytes(b"left")
    make(plan, "cnn")
    assert Clone(copy).files() == before


# ---- made once


def test_a_forced_fold_is_the_same_and_remakes_its_in_sample_predictions(copy):
    before, plan = Clone(copy).files(), plan_of(copy)
    make(plan, "cnn", model="resnet", fold=1, force=True)
    after = Clone(copy).files()
    rewritten = {path for path in after if after[path] != before.get(path)}
    assert rewritten == {path for path in before if path.startswith("oof/parts/resnet/fold1/")}
    changed = {path for path in rewritten if after[path][1] != before[path][1]}
    assert changed == {f"oof/parts/resnet/fold1/{record}" for record in ("run.json", "train/run.json")}  # seconds


def test_in_sample_predictions_are_made_without_training(copy, monkeypatch):
    def trained(*_: Any) -> None:
        raise AssertionError("a network was trained")

    monkeypatch.setattr("ich.models.network.fit", trained)
    plan = plan_of(copy, "sequence.bigru.inputs=[resnet, resnext, small]", "cnn.resnet.workers=1")
    for k in range(3):
        (plan.workspace.fold("resnet", k) / "train/run.json").unlink()
    with pytest.raises(UserError, match=r"needs cnn/resnet/fold1/train, which is missing. Run `ich cnn` first"):
        make(plan, "sequence", model="bigru", fold=1)
    make(plan, "cnn")
    assert all(plan.state(plan.in_sample("resnet", k)).done for k in range(3))


def test_in_sample_predictions_cover_the_other_folds(trained):
    plan = plan_of(trained)
    slices = pd.read_parquet(plan.prepared.folder / "slices.parquet").set_index("image_id")
    folds = pd.read_csv(plan.workspace.folds).set_index("study_id")["fold"]
    for fold in range(3):
        folder = plan.in_sample("resnet", fold).folder
        table, embeddings = pd.read_parquet(folder / "train.parquet"), np.load(folder / "train_embeddings.npy")
        of = folds.loc[slices.loc[table["image_id"], "study_id"]]
        assert sorted(table["image_id"]) == sorted(slices.index[slices["study_id"].map(folds).fillna(fold) != fold])
        assert set(of) == set(range(3)) - {fold}
        assert (embeddings.dtype, len(embeddings)) == (np.float16, len(table))
        other = pd.read_parquet(plan.workspace.fold("resnet", (fold + 1) % 3) / "valid.parquet").set_index("image_id")
        logits = table.set_index("image_id").loc[other.index].filter(like="logit_")
        assert not np.allclose(logits, other.filter(like="logit_")), "those are of another network"


def test_in_sample_predictions_are_computed_as_validation_predictions(copy, monkeypatch):
    monkeypatch.setattr("ich.models.table.SliceTable.train_rows", lambda self, fold: self.valid_rows(fold))
    plan = plan_of(copy)
    runner.predict_in_sample(plan, plan.in_sample("resnext", 0), "")
    folder, found = plan.workspace.fold("resnext", 0), plan.in_sample("resnext", 0).folder
    valid = pd.read_parquet(folder / "valid.parquet").drop(columns="fold")
    pd.testing.assert_frame_equal(pd.read_parquet(found / "train.parquet"), valid)
    embeddings = [np.load(path) for path in (found / "train_embeddings.npy", folder / "valid_embeddings.npy")]
    np.testing.assert_array_equal(*embeddings)


def test_one_fold_is_made_and_not_assembled(copy):
    plan = plan_of(copy, "cnn.resnext.seed=8")
    said = make(plan, "cnn", model="resnext", fold=2)
    assert "cnn/resnext: not assembled, missing folds: 0, 1" in said
    done = [plan.state(plan.fold("resnext", k)).done for k in range(3)]
    assert done == [False, False, True]
    assert not plan.state(plan.assembled("resnext")).done


# ---- another process


@pytest.mark.parametrize("model", ["gauss", "resnext"])  # another model reads in-sample predictions of the latter
def test_a_fold_that_another_process_makes_is_left(copy, model):
    plan = plan_of(copy, "compute.busy=leave")
    task = plan.fold(model, 0)
    for k in range(2):
        (plan.workspace.fold(model, k) / "run.json").unlink()
    with hold(task.record.lock, on_wait=pytest.fail):
        assert plan.standing(task).kind == "running"
        with pytest.raises(Busy, match=f"{task.name} is being made by process {os.getpid()} on "):
            make(plan, task.stage, model=model)
        plan.forget()
        assert [plan.state(plan.fold(model, k)).kind for k in range(3)] == ["missing", "done", "done"]
        with pytest.raises(UserError, match=f"needs {task.name}, which another process is making. Wait for it"):
            plan.require(plan.fold("blend", 0))
    assert plan.standing(task).kind == "missing"
    make(plan_of(copy), task.stage, model=model)
    assert plan_of(copy).state(plan.assembled(model)).done


# ---- not finite


@pytest.mark.parametrize(
    ("model", "kind", "split", "spoiled"),
    [
        ("resnext", FittedCnn, "valid", "logits"),
        ("resnext", FittedCnn, "test", "embeddings"),
        ("gauss", FittedSmooth, "test", "logits"),
        ("gauss", FittedSmooth, "train", "logits"),
    ],
)
def test_a_fold_that_predicts_nan_is_never_recorded(copy, monkeypatch, model, kind, split, spoiled):
    plan = plan_of(copy)
    task, real, calls = plan.fold(model, 1), kind.predict, []

    def predicted(self: Any, slices: Any, inputs: Any) -> Predictions:
        found = real(self, slices, inputs)
        calls.append(slices)
        if len(calls) == ("valid", "test", "train").index(split) + 1:
            getattr(found, spoiled)[2, 1] = np.inf
        return found

    monkeypatch.setattr(kind, "predict", predicted)
    before = (task.folder / f"{split}.parquet").stat().st_mtime_ns if split != "train" else 0
    with pytest.raises(UserError, match=f"{model} fold 1: the {spoiled} of 1 of .* are not finite, the first of"):
        make(plan, task.stage, model=model, fold=1, force=True)
    if split != "train":
        assert (task.folder / f"{split}.parquet").stat().st_mtime_ns == before
    (task.folder / "run.json").unlink()
    calls.clear()
    with pytest.raises(UserError, match="are not finite"):
        make(plan_of(copy), task.stage, model=model, fold=1)
    assert not (task.folder / "run.json").exists()


def test_tables_that_lack_a_slice_are_not_assembled(copy):
    plan = plan_of(copy)
    task = plan.fold("resnet", 0)
    path = task.folder / "valid.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path, index=False)
    record = plan.record_of(task)
    task.record.write(
        record["fingerprint"],
        {name: task.folder / name for name in record["files"]},
        **{key: value for key, value in record.items() if key not in ("fingerprint", "files", "stamps")},
    )
    with pytest.raises(UserError, match=r"cnn/resnet: .*labelled slices are missing.*`ich cnn --model resnet --force`"):
        make(plan_of(copy), "cnn", model="resnet")


# ---- the record


def test_a_record_has_settings_inputs_files_metrics_and_versions(trained):
    plan = plan_of(trained)
    keys = {"task", "settings", "inputs", "files", "metrics", "seconds", "peak_memory_mib", "versions", "warnings"}
    for model in plan.models:
        record = plan.record_of(plan.fold(model, 0))
        assert keys <= set(record), model
        assert ("in_sample" in record) == (model in ("gauss", "lgbm", "blend"))
        assert record["settings"]["fold"] == 0
        assert set(record["metrics"]) == {"weighted_log_loss", "macro_auc"}


@pytest.mark.parametrize(
    ("option", "says"),
    [({"model": "resnt"}, "Choose from resnet, resnext, small"), ({"fold": 7}, "--fold 7: no such fold")],
)
def test_an_unknown_model_or_fold_is_an_error(trained, option, says):
    with pytest.raises(UserError, match=says):
        make(plan_of(trained), "cnn", **option)


# ---- networks that cannot be trained

VIT = "{backbone: vit_tiny_patch16_224, kwargs: {embed_dim: 24, depth: 1, num_heads: 2}, epochs: 1, batch_size: 16}"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["end_to_end.joint.start=null", "end_to_end.joint.backbone=resnet_10"], ["end_to_end.joint: timm "]),
        (["cnn.other={backbone: resnet18, weights: no.safetensors}"], ["cnn.other: no weights at no.safetensors"]),
        (
            ["cnn.odd={backbone: resnet10t, kwargs: {widht: 3}}", "pretrain.odd_too={backbone: resnet_10}"],
            ["pretrain.odd_too: timm ", "cnn.odd: backbone resnet10t does not take"],
        ),
        (
            [
                "cnn.odd={backbone: vit_tiny_patch16_224, kwargs: {embed_dim: 9, depth: 1, num_heads: 3}}",
                "sequence.lr={head: sdl, inputs: [odd]}",
            ],
            ["sequence.lr: a bidirectional gru cannot add to 9 features"],
        ),
    ],
)
def test_all_networks_are_tried_before_one_is_trained(copy, monkeypatch, changes, says):
    monkeypatch.setattr("ich.models.network.fit", lambda *_: pytest.fail("a network was trained"))
    with pytest.raises(UserError) as error:
        make(plan_of(copy, *changes), "cnn", model="resnet", fold=0, force=True)
    lines = str(error.value).splitlines()
    assert len(lines) == len(says)
    assert all(line.startswith(start) for line, start in zip(lines, says, strict=True))


@pytest.mark.parametrize("done", [True, False])
def test_weights_of_trained_models_are_not_loaded_again(trained, monkeypatch, done):
    plan, pretrained = plan_of(trained, "cnn.resnet.pretrained=true"), list[bool]()
    monkeypatch.setattr(plan, "finished", lambda _: done)
    monkeypatch.setattr("ich.models.images.try_network", lambda spec, _: pretrained.append(spec.pretrained) or 8)
    assert not untrainable(plan, 6, "hu")
    assert pretrained == [False, not done, False, False, False], "simclr, resnet, resnext, small, joint"


def test_a_transformer_is_trained_at_the_size_of_the_images(copy):
    plan = plan_of(copy, f"cnn.vit={VIT}")
    make(plan, "cnn", model="vit", fold=0)
    fitted = runner.load_fitted(plan, "vit", 0)
    assert fitted.spec["network"]["kwargs"]["img_size"] == plan.recipe.image.size

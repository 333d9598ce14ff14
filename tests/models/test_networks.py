"""Networks before and after training: initial weights, training rows, and the epoch that is kept."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import expit, logit
from sklearn import metrics

from conftest import CLASSES, LOGITS, PARTS, RECIPE, ROOT, copied, fold_data, make, plan_of
from ich.errors import UserError
from ich.models import network as network_module
from ich.models import pretrain as pretrain_module
from ich.models import registry
from ich.models.cnn import FittedCnn
from ich.models.registry import build
from ich.models.slices import Predictions, Shape
from ich.networks.losses import nt_xent
from ich.networks.masks import mask_loss
from ich.phantom.masks import lesion_masks
from ich.pipeline import runner
from ich.pipeline.state import Plan
from ich.pipeline.tasks import WEIGHTS
from ich.recipe import load
from ich.stages import export
from ich.store.hashes import seed_of
from ich.training import fit as training
from ich.training.checkpoint import TrainingState
from ich.training.fit import Loader
from ich.training.run import Run


class Begun(Exception):
    """Holds a network and its training set when training begins."""

    def __init__(self, network: Any, loader: Loader, loss_of: Any, *_: Any) -> None:
        self.network, self.loader, self.loss_of = network, loader, loss_of


def begun(plan: Plan, model: str, fold: int | None = 0) -> Begun:
    """Fit a fold until its training begins."""

    def fit(*arguments: Any) -> None:
        raise Begun(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Begun) as caught:
        patch.setattr(network_module, "fit", fit)
        patch.setattr(pretrain_module, "fit", fit)
        runner.make_fold(plan, plan.fold(model, fold), "fingerprint")
    return caught.value


def backbone(weights: Any, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    assert one.keys() == other.keys()
    assert one
    return all(value.equal(other[name]) for name, value in one.items())


# ---- initial weights


def test_a_cnn_starts_from_the_pretrained_backbone(trained):
    learned = backbone(load_file(trained / "oof/parts/simclr/model.safetensors"), "cnn.backbone.")
    for fold in (0, 1):
        weights = begun(plan_of(trained), "small", fold).network.state_dict()
        assert same(backbone(weights, "backbone."), learned)
    fresh = begun(plan_of(trained, "cnn.small.start=null"), "small").network.state_dict()
    assert not same(backbone(fresh, "backbone."), learned)
    frozen = begun(plan_of(trained, "cnn.small.frozen=true"), "small").network
    assert [name for name, value in frozen.named_parameters() if value.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]


def test_an_end_to_end_network_starts_from_the_network_of_its_own_fold(trained):
    for fold in (0, 1):
        weights = backbone(begun(plan_of(trained), "joint", fold).network.state_dict(), "cnn.")
        for k in (0, 1):
            saved = load_file(trained / f"oof/parts/resnet/fold{k}/model.safetensors")
            assert same(weights, saved) == (k == fold)


def test_a_head_starts_at_the_predictions_of_its_cnn(trained):
    found = begun(plan_of(trained, "sequence.lr.head=sdl", "sequence.lr.start=resnet"), "lr")
    batch = next(iter(found.loader.epoch(0)))
    logits = batch.real(found.network.eval()(*batch.inputs)).detach()
    np.testing.assert_allclose(logits, batch.real(batch.base), atol=2e-3)  # from embeddings in half precision
    assert logits.std() > 0


def test_a_head_without_the_classifier_of_its_input_is_refused(trained):
    plan = plan_of(trained, "sequence.lr.start=resnet")
    with pytest.raises(
        ValueError, match=r"^start: head lrnn_sdl with hidden: 8 cannot .* of resnet; use linear or sdl"
    ):
        build(plan.settings_of("lr")).try_network(Shape(6, "hu", 32), {"resnet": 16})


def test_a_network_starts_at_the_predictions_of_another_recipe_a_bundle_or_a_file(copy):
    """The second recipe has the same slices and folds, and the first one's predictions as its inputs."""
    second = lambda *changes: plan_of(copy, "name=second", "end_to_end.joint.cutmix=0", *changes)
    make(second(), "prepare", "folds")
    (copy / "oof/parts").rename(copy / "oof/second")
    copied(copy / "oof/second", copy / "oof/parts")
    export.run(plan_of(copy), copy / "bundle", folds=[1])
    sources = {f"cnn.resnet.start={{file: oof/parts/resnet/fold2/{WEIGHTS}, classes: [{', '.join(CLASSES)}]}}": 2}
    for section, model in (("cnn", "resnet"), ("end_to_end", "joint"), ("sequence", "lr"), ("sequence", "bigru")):
        sources[f"{section}.{model}.start={{recipe: {PARTS}, model: {model}}}"] = 0
        if model in ("resnet", "bigru"):
            sources[f"{section}.{model}.start={{bundle: bundle, model: {model}}}"] = 1
    for change, fold in sources.items():
        stage, model, _ = change.split(".", 2)
        found = begun(second(change), model)
        donor = registry.load(stage, copy / f"oof/parts/{model}/fold{fold}", model).network.eval()
        batch = next(iter(found.loader.epoch(0)))
        with torch.no_grad():
            assert torch.equal(found.network.eval()(*batch.inputs), donor(*batch.inputs)), change

    start = f"cnn.resnext.start={{recipe: {PARTS}, model: resnext}}"
    for change, message in (
        ("cnn.resnext.input=windows", "^cnn.resnext: start from .*fold0 requires input: neighbours and windows: "),
        (
            "cnn.resnext.kwargs.stem_width=8",
            r"^cnn.resnext.start: backbone.* has the shape \[3, .*, but \[6, .* is req",
        ),
    ):
        with pytest.raises(UserError, match=message):
            begun(second(start, change), "resnext")


def test_slice_loss_is_added_to_the_loss_of_the_head(trained):
    losses = []
    for weight in (0, 1, 0.5):
        found = begun(plan_of(trained, f"end_to_end.joint.slice_loss={weight}"), "joint")
        batch, network = next(iter(found.loader.epoch(0))), found.network.eval()
        losses.append(found.loss_of(network, batch).item())
    slice_loss = network_module.loss_for(fold_data(plan_of(trained), "joint"))(
        network.cnn(batch.images), batch.targets
    ).item()
    assert losses[1:] == pytest.approx([losses[0] + slice_loss, losses[0] + 0.5 * slice_loss], rel=1e-5)
    assert slice_loss > 0


def test_the_learning_rates_of_head_and_layers_are_scaled(trained):
    changes = ["end_to_end.joint.head_lr=10", "end_to_end.joint.layer_decay=0.5"]
    plan = plan_of(trained, *changes)
    found = begun(plan, "joint")
    scales = network_module.fit_settings(plan.settings_of("joint"), found.network).lr_scales
    assert scales["head.classifier.weight"] == scales["cnn.classifier.weight"] == 10
    assert scales["cnn.backbone.layer4.0.bn1.bias"] == 2 * scales["cnn.backbone.layer3.0.bn1.bias"] == 1


@pytest.mark.parametrize("model", ["resnext", "joint", "bigru"])
def test_output_bias_starts_from_the_class_frequencies(trained, model):
    """A residual head starts from the logits of its inputs instead."""
    plan, means = plan_of(trained, "sequence.bigru.head=plain"), {}
    stage = plan.settings_of(model).stage
    for change in ("true", "false"):
        changed = plan_of(trained, "sequence.bigru.head=plain", f"{stage}.{model}.output_bias={change}")
        data, found = fold_data(changed, model), begun(changed, model)
        batch = next(iter(found.loader.epoch(0)))
        means[change] = batch.real(found.network.eval()(*batch.inputs)).detach().numpy().mean(axis=0)
    frequency = data.labels("train").mean(axis=0)
    assert np.abs(means["true"] - logit(frequency)).max() < 0.5
    assert np.abs(means["false"] - logit(frequency)).max() > 0.5


# ---- training rows


@pytest.mark.parametrize(
    ("model", "unit"), [("resnet", "slices"), ("small", "slices"), ("joint", "series"), ("bigru", "series")]
)
def test_an_epoch_has_the_training_rows_of_the_fold_with_their_labels(trained, model, unit):
    plan = plan_of(trained, "end_to_end.joint.cutmix=0", "sequence.bigru.batch_size=3")
    data, loader = fold_data(plan, model), begun(plan, model).loader
    rows = data.rows["train"]
    series = data.table.table["series"].iloc[rows].nunique()
    assert (loader.unit, loader.samples) == (unit, len(rows) if unit == "slices" else series)
    batches = list(loader.epoch(0))
    assert len(batches) == loader.batches
    targets = np.concatenate([batch.targets for batch in batches])
    order = np.concatenate([batch.rows for batch in batches])
    if not data.settings.reads_images:  # numbers in the training rows, else in the slice table
        order = rows[order]
    assert len(set(order.tolist())) == len(order), "each slice once"
    assert set(order) <= set(rows)
    if unit == "series":
        assert len(order) == len(rows)
    np.testing.assert_array_equal(targets, data.table.labels[order])


def test_pretraining_reads_every_slice_and_no_label(trained):
    plan = plan_of(trained)
    data, loader = fold_data(plan, "simclr", None), begun(plan, "simclr", None).loader
    assert data.rows["all"].tolist() == list(range(len(data.table.table)))
    assert loader.samples == len(data.table.table)
    assert next(iter(loader.epoch(0))).targets is None


def test_slices_of_the_same_study_are_not_negatives_in_pretraining(trained):
    data, found = fold_data(plan_of(trained), "simclr", None), begun(plan_of(trained), "simclr", None)
    batch, network = next(iter(found.loader.epoch(0))), found.network.eval()
    studies = data.table.table["study_id"].iloc[batch.rows].astype("category").cat.codes.to_numpy(np.int64)
    assert 1 < len(set(studies)) < len(studies)
    views = network(batch.first), network(batch.second)
    expected = nt_xent(*views, data.settings.temperature, torch.from_numpy(studies))
    torch.testing.assert_close(found.loss_of(network, batch), expected)


def test_label_weights_come_from_the_training_labels_and_class_weights_from_the_competition(trained):
    data = fold_data(plan_of(trained), "resnext")
    loss, share = network_module.loss_for(data), data.labels("train").mean(axis=0)
    np.testing.assert_allclose(np.array(loss.label_weight)[:, 1], np.minimum((1 - share) / share, 20), rtol=1e-5)
    plan = plan_of(trained, "cnn.resnext.loss={weight: competition}")
    assert network_module.loss_for(fold_data(plan, "resnext")).class_weight == [1, 1, 1, 1, 1, 2]


# ---- masks

MASKS = "cnn.resnet.masks=0.5"


def test_masks_of_training_slices_are_added_to_the_loss(trained):
    still = "cnn.resnet.augment={flip: 0, shift: 0, scale: 0, rotate: 0}"
    plan = plan_of(trained, MASKS, still)
    data, found = fold_data(plan, "resnet"), begun(plan, "resnet")
    (weighted, plain), totals = (
        (begun(plan_of(trained, still, change), "resnet") for change in (MASKS, "compute={}")),
        [],
    )
    for batch in found.loader.epoch(0):
        ids = data.table.ids(batch.rows.numpy()).tolist()
        boxes = data.table.table[["crop_row", "crop_column", "crop_side"]].to_numpy()[batch.rows]
        for c, name in enumerate(CLASSES):
            known = lesion_masks(trained / "input/tiny/masks.npz", ids, boxes, 32, name)
            np.testing.assert_array_equal((batch.masks[:, 0] >> c) & 1, known)
        totals.append(int(batch.masks.bool().sum()))
        network = weighted.network.train()
        cells = network.logits(batch.images)[1]
        both, alone = weighted.loss_of(network, batch), plain.loss_of(network.cnn, batch)
        torch.testing.assert_close(both, alone + 0.5 * mask_loss(cells, batch.masks))
    assert sum(totals) > 0
    assert next(iter(plain.loader.epoch(0))).masks is None


def test_the_head_for_masks_is_trained_resumed_and_dropped(trained, tmp_path, monkeypatch):
    settings = ["cnn.resnet.ema_decay=0.9", "cnn.resnet.learning_rate=0.03"]
    plan, run = plan_of(trained, MASKS, *settings), Run("resnet fold 0", seed=3, folder=tmp_path)
    data, save, heads = fold_data(plan, "resnet"), TrainingState.save, []

    def killed(self: TrainingState, *arguments: Any) -> None:
        save(self, *arguments)
        heads.append(self.network.state_dict()["head.weight"].abs().max())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingState, "save", killed)
        build(plan.settings_of("resnet")).fit(data, run)
    assert heads[0] > 0
    resumed = build(plan.settings_of("resnet")).fit(data, run)
    whole = build(plan.settings_of("resnet")).fit(data, replace(run, folder=None))
    other = plan_of(trained, *settings)
    plain = build(other.settings_of("resnet")).fit(fold_data(other, "resnet"), replace(run, folder=None))
    assert same(resumed.network.state_dict(), whole.network.state_dict())
    assert resumed.history == whole.history
    assert not same(whole.network.state_dict(), plain.network.state_dict()), "and has the same tensors"
    whole.save(tmp_path)
    loaded = registry.load("cnn", tmp_path, "resnet").predict(data.slices("valid"), {})
    np.testing.assert_array_equal(loaded.logits, whole.predict(data.slices("valid"), {}).logits)


def test_folds_depend_on_the_masks_only_if_they_use_them(copy):
    plan = plan_of(copy)
    assert plan.state(plan.fold("resnet", 0)).done
    assert "masks" not in plan.fold("resnet", 0).settings
    changed = plan_of(copy, MASKS)
    task = changed.fold("resnet", 0)
    assert changed.state(task).why == "masks was None, is 0.5"
    before = changed.fingerprint(task, changed.inputs(task))
    with (copy / "input/tiny/masks.npz").open("ab") as file:
        file.write(b"0")
    assert changed.fingerprint(task, changed.inputs(task)) != before
    assert plan_of(copy).state(plan.fold("resnet", 0)).done


@pytest.mark.parametrize("change", ["demo=null", "labels.table=a.csv", "cnn.resnet.frozen=true"])
def test_masks_have_no_effect_without_a_demo_with_labels_and_on_a_frozen_backbone(change):
    assert load(ROOT / RECIPE, [MASKS]).cnn["resnet"].masks == 0.5
    assert load(ROOT / RECIPE, [MASKS, change]).cnn["resnet"] == load(ROOT / RECIPE, [change]).cnn["resnet"]


def test_masks_with_a_backbone_without_maps_are_an_error_that_names_the_setting(copy):
    vit = "{embed_dim: 32, depth: 1, num_heads: 2, patch_size: 16}"
    changes = ["cnn.resnext.backbone=vit_tiny_patch16_224", f"cnn.resnext.kwargs={vit}", "cnn.resnext.masks=1"]
    with pytest.raises(UserError, match=r"^cnn.resnext.masks: vit_tiny_patch16_224 has no feature maps"):
        begun(plan_of(copy, *changes), "resnext")


# ---- test-time augmentation


def moved(hu: np.ndarray, x: int, y: int) -> np.ndarray:
    """Hounsfield units [n, S, S] shifted to the right and downwards, with air behind."""
    found, size = np.full_like(hu, -1024), hu.shape[-1]
    found[:, max(y, 0) : size + min(y, 0), max(x, 0) : size + min(x, 0)] = hu[
        :, max(-y, 0) : size + min(-y, 0), max(-x, 0) : size + min(-x, 0)
    ]
    return found


@pytest.mark.parametrize("model", ["small", "joint"])
def test_tta_is_the_mean_of_the_predictions_of_flipped_and_shifted_slices(trained, model):
    plan = plan_of(trained)
    fitted, slices = runner.load_fitted(plan, model, 0), fold_data(plan, model).slices("valid")
    hu = np.stack([np.asarray(slices.images[row]) for row in range(len(slices.table))])
    step = 3  # of 32 pixels
    copies = [moved(hu, x, y) for x, y in ((0, 0), (step, 0), (-step, 0), (0, step), (0, -step))]

    def predicted(tta: dict[str, Any], images: Any) -> dict[str, Any]:
        found = replace(fitted, spec={**fitted.spec, "precision": "fp32", "tta": tta})
        values = vars(found.predict(replace(slices, images=images), {}))
        return {name: np.float32(value) for name, value in values.items() if value is not None}

    for tta, views in (
        ({"flip": True}, [hu, hu[..., ::-1]]),
        ({"shift": 0.1}, copies),
        ({"flip": True, "shift": 0.1}, copies + [one[..., ::-1] for one in copies]),
    ):
        alone = [predicted({}, np.ascontiguousarray(view)) for view in views]
        for name, value in predicted(tta, hu).items():
            np.testing.assert_allclose(value, np.mean([one[name] for one in alone], axis=0), atol=1e-3, rtol=1e-3)
            assert np.abs(value - alone[0][name]).max() > 0.01


def test_epochs_are_evaluated_without_tta_and_folds_with_it(trained):
    plan = plan_of(trained)
    data, fitted = fold_data(plan, "small"), runner.load_fitted(plan, "small", 0)
    plain = replace(fitted, spec={**fitted.spec, "tta": {}}).predict(data.slices("valid"), {})
    history = pd.read_csv(plan.workspace.fold("small", 0) / "history.csv")["valid_loss"].iloc[-1]
    assert data.table.log_loss(data.rows["valid"], plain.logits) == pytest.approx(history, abs=1e-6)
    recorded = plan.record_of(plan.fold("small", 0))["metrics"]["weighted_log_loss"]
    assert abs(recorded - history) > 1e-6
    changed = plan_of(trained, "cnn.small.tta.flip=false")
    assert not changed.state(changed.fold("small", 0)).done


# ---- early stopping


def best_f2(truth: np.ndarray, score: np.ndarray) -> float:
    cuts = [*np.unique(score), np.inf]
    return max(metrics.fbeta_score(truth, score >= cut, beta=2, zero_division=0) for cut in cuts)


def test_the_history_has_the_metric_and_the_kept_epoch_is_the_best(copy):
    """With a learning rate that soon does harm, so that the last epoch is not the best one."""
    plan = plan_of(copy, "end_to_end.joint.epochs=4", "end_to_end.joint.learning_rate=0.05")
    make(plan, "end_to_end", fold=0)
    data, folder = fold_data(plan, "joint"), plan.workspace.fold("joint", 0)
    history, valid = pd.read_csv(folder / "history.csv"), pd.read_parquet(folder / "valid.parquet")
    assert list(history.columns) == ["epoch", "learning_rate", "loss", "valid_loss", "valid_f2"]
    assert valid["image_id"].tolist() == data.slices("valid").ids.tolist()
    columns = zip(data.labels("valid").T, expit(valid[LOGITS].to_numpy("float64")).T, strict=True)
    assert np.mean([best_f2(y, p) for y, p in columns]) == pytest.approx(history["valid_f2"].max(), abs=1e-9)
    best, record = int(history["valid_f2"].argmax()), plan.record_of(plan.fold("joint", 0))
    assert best < 3
    assert record["metrics"]["weighted_log_loss"] == pytest.approx(history["valid_loss"][best], abs=1e-6)
    assert history["valid_loss"].is_unique
    (warning,) = record["warnings"]
    assert "by f2 on fold 0" in warning


def test_inner_patients_choose_the_epoch_if_they_are_set_aside(trained):
    plan = plan_of(trained)
    last = {"resnet": "inner_f2", "resnext": "valid_loss", "joint": "valid_f2"}
    for model, column in last.items():
        assert list(pd.read_csv(plan.workspace.fold(model, 0) / "history.csv"))[-1] == column
        assert bool(plan.record_of(plan.fold(model, 0))["warnings"]) == (model == "joint")


def test_auc_of_rows_with_a_single_label_is_an_error(trained):
    data = fold_data(plan_of(trained), "resnet")
    positive = np.flatnonzero(data.labels("inner").sum(axis=1) == 0)
    data.rows["inner"] = data.rows["inner"][positive]
    with pytest.raises(UserError, match=r"no class has both labels.* use log_loss"):
        network_module.stopping_metric("auc", data, "inner", np.zeros((len(positive), 6)))


def test_nan_predictions_end_the_training(trained, monkeypatch):
    plan, real = plan_of(trained), FittedCnn.predict

    def predicted(self: FittedCnn, *arguments: Any) -> Predictions:
        found = real(self, *arguments)
        found.logits[2, 1] = np.nan
        return found

    monkeypatch.setattr(FittedCnn, "predict", predicted)
    first = fold_data(plan, "resnext", 1).slices("valid").ids[2]
    with pytest.raises(UserError, match=f"^resnext fold 1: the logits of 1 of .* are not finite, .* of {first};"):
        runner.make_fold(plan, plan.fold("resnext", 1), "fingerprint")


# ---- several seeds


def test_several_seeds_are_the_mean_of_separate_trainings_and_resume_to_the_same_weights(
    trained, tmp_path, monkeypatch
):
    plan, run = plan_of(trained, "sequence.inside.seeds=2"), Run("inside fold 0", seed=3, folder=tmp_path)
    data, save, epoch, trainings = fold_data(plan, "inside"), TrainingState.save, training.train_epoch, []
    slices, inputs = data.slices("valid"), data.inputs("valid")

    def killed_in_the_second_seed(self: TrainingState, *arguments: Any) -> None:
        save(self, *arguments)
        if (tmp_path / "seed1").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingState, "save", killed_in_the_second_seed)
        build(plan.settings_of("inside")).fit(data, run)
    monkeypatch.setattr(training, "train_epoch", lambda state, *rest: trainings.append(0) or epoch(state, *rest))
    resumed = build(plan.settings_of("inside")).fit(data, run)
    assert len(trainings) == 1, "of four epochs"
    whole = build(plan.settings_of("inside")).fit(data, replace(run, folder=None))
    assert same(resumed.network.state_dict(), whole.network.state_dict())
    assert resumed.history == whole.history
    assert [(row["seed"], row["epoch"]) for row in whole.history] == [(0, 0), (0, 1), (1, 0), (1, 1)]

    plan = plan_of(trained)
    data, seeds = fold_data(plan, "inside"), (3, seed_of(3, 1))
    alone = [build(plan.settings_of("inside")).fit(data, Run("alone", seed=seed)) for seed in seeds]
    assert not same(alone[0].network.state_dict(), alone[1].network.state_dict())
    expected = np.mean([one.predict(slices, inputs).logits for one in alone], axis=0)
    np.testing.assert_allclose(whole.predict(slices, inputs).logits, expected, atol=1e-6)
    whole.save(tmp_path)
    loaded = registry.load("sequence", tmp_path, "inside").predict(slices, inputs).logits
    np.testing.assert_array_equal(loaded, whole.predict(slices, inputs).logits)

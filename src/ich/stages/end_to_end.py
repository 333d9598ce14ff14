"""`ich end_to_end`: a backbone and a recurrent head trained as one network, whole studies at a time."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ich.pipeline.plan import Made, Plan, seed_of
from ich.stages.artefacts import pictures_of
from ich.stages.fitting import loss_for, splits, train_member
from ich.stages.inputs import Slices, study_pictures
from ich.stages.member import run_folds
from ich.stages.networks import Advance, cnn_spec, joined, network_of, paced, predict_study_pictures

if TYPE_CHECKING:
    import numpy as np


def run(plan: Plan, *, model: str | None = None, fold: int | None = None, force: bool = False) -> None:
    run_folds(plan, list(plan.recipe.end_to_end), fit_fold, model=model, fold=fold, force=force)


def fit_fold(plan: Plan, member: str, fold: int, fingerprint: str) -> Made:
    """Train one network on the studies outside fold `fold`, then predict that fold and the test set."""
    import torch

    from ich.data.augment import Augmentation, build
    from ich.data.on_device import OnDevice
    from ich.data.study_pictures import study_picture_loader

    settings = plan.recipe.end_to_end[member]
    torch.set_num_threads(plan.recipe.compute.threads)
    slices, seed, size = Slices(plan), seed_of(settings.seed, member, fold), settings.batch_size
    rows = splits(slices, settings, fold)
    hu = pictures_of(plan.prepared.folder / "hu.npy")
    shown = study_pictures(hu, slices.table, settings, slices.values, slices.labels, seed)
    augment = build(Augmentation(**settings.augment.model_dump()))
    training = shown(rows["train"], augment, settings.cutmix)
    seen = OnDevice(training.slices.view, augment.settings)
    held_out = {split: shown(these) for split, these in rows.items() if split != "train"}
    spec = cnn_spec(settings, training.slices.view.channels, len(slices.classes))
    start = None if settings.start is None else plan.fold(settings.start, fold)
    network = joined(settings, network_of(f"end_to_end.{member}", spec, seed, start, settings))
    if settings.output_bias:
        network.output_bias(slices.labels[rows["train"]].mean(axis=0))
    loss = loss_for(settings, slices, slices.labels[rows["train"]])

    def loss_of(model: Any, batch: Any) -> Any:
        inside = batch.rows >= 0
        return loss(model(seen.pictures(batch), batch.geometry, batch.lengths)[inside], batch.targets[inside])

    def loaded(epoch: int, workers: int) -> Any:
        return study_picture_loader(training, epoch, size, shuffle=True, workers=workers)

    settings, batches, pace = paced(plan, settings, network, loss_of, loaded)

    def predict(model: Any, split: str, advance: Advance) -> "dict[str, np.ndarray]":
        return {"logits": predict_study_pictures(model, held_out[split], settings, advance)}

    return train_member(
        plan,
        member,
        fold,
        fingerprint,
        network,
        settings,
        slices,
        rows,
        batches=batches,
        steps=-(-len(training) // size),
        loss_of=loss_of,
        predict=predict,
        counts=(len(training), "studies"),
        record={**pace, "model": {**asdict(spec), "pretrained": False, "weights": None}},  # in model.safetensors
    )

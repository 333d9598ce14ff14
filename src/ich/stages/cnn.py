"""`ich cnn`: stage 1. Trains each backbone a fold at a time; saves logits and embeddings, out of fold and test."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ich.stages.fitting import loss_for, splits, train_member
from ich.stages.inputs import Slices, cnn_spec, network_of, pictures, predict_pictures
from ich.stages.member import run_folds
from ich.stages.plan import Made, Plan, seed_of

if TYPE_CHECKING:
    import numpy as np


def run(plan: Plan, *, model: str | None = None, fold: int | None = None, force: bool = False) -> None:
    run_folds(plan, list(plan.recipe.cnn), fit_fold, model=model, fold=fold, force=force)


def fit_fold(plan: Plan, member: str, fold: int, fingerprint: str) -> Made:
    """Train one backbone without fold `fold`, then predict that fold and the test set."""
    import numpy as np
    import torch

    from ich.data.augment import Augmentation, build
    from ich.data.datasets import slice_loader

    settings = plan.recipe.cnn[member]
    torch.set_num_threads(plan.recipe.compute.threads)
    slices, seed, size = Slices(plan), seed_of(settings.seed, member, fold), settings.batch_size
    rows = splits(slices, settings, fold, settings.labels)
    hu = np.load(plan.prepared.folder / "hu.npy", mmap_mode="r", allow_pickle=False)
    shown = pictures(hu, slices.table, settings, slices.values, slices.labels, seed)
    augment = build(Augmentation(**settings.augment.model_dump()))
    training = shown(rows["train"], augment, settings.cutmix)
    held_out = {split: shown(these) for split, these in rows.items() if split != "train"}
    spec = cnn_spec(settings, training.view.channels, len(slices.classes), dropout=settings.dropout)
    start = None if settings.start is None else plan.pretrained(settings.start)
    network = network_of(f"cnn.{member}", spec, seed, start)
    if settings.output_bias:
        network.output_bias(slices.labels[rows["train"]].mean(axis=0))
    loss = loss_for(settings, slices, slices.labels[rows["train"]])

    def predict(model: Any, split: str) -> "dict[str, np.ndarray]":
        return predict_pictures(model, held_out[split], settings)

    return train_member(
        plan,
        member,
        fold,
        fingerprint,
        network,
        settings,
        slices,
        rows,
        batches=lambda epoch: slice_loader(training, epoch, size, shuffle=True, workers=settings.workers),
        steps=max(len(training) // size, 1),
        loss_of=lambda model, batch: loss(model(batch.images), batch.targets),
        predict=predict,
        counts=(len(training), "slices"),
        record={"model": {**asdict(spec), "pretrained": False, "weights": None}},  # they are in model.safetensors
    )

"""`ich cnn`: stage 1. Trains each backbone a fold at a time; saves logits and embeddings, out of fold and test.

Those of the rows that it was trained on too, where a sequence model reads them (features: in_sample).
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ich.console import progress, say
from ich.pipeline.plan import Made, Plan, seed_of
from ich.stages.artefacts import pictures_of
from ich.stages.fitting import enough, loss_for, splits, train_member
from ich.stages.inputs import Slices, pictures
from ich.stages.member import chosen, figures, leave_predictions, made_side_by_side, run_folds
from ich.stages.networks import Advance, cnn_spec, network_of, paced, predict_pictures, with_weights

if TYPE_CHECKING:
    import numpy as np


def run(plan: Plan, *, model: str | None = None, fold: int | None = None, force: bool = False) -> None:
    names = list(plan.recipe.cnn)
    run_folds(plan, names, fit_fold, model=model, fold=fold, force=force)
    pairs = [(name, k) for name, k in chosen(plan, names, model, fold) if name in plan.read_in_sample]
    todo = [(name, k) for name, k in pairs if force or not plan.finished(plan.training_rows(name, k))]
    for name, k in made_side_by_side(plan, todo, predict_training_rows, force, Plan.training_rows):
        say(f"cnn: {name} fold {k} predicted the rows that it was trained on")
    plan.forget()


def fit_fold(plan: Plan, member: str, fold: int, fingerprint: str) -> Made:
    """Train one backbone without fold `fold`, then predict that fold and the test set."""
    import torch

    from ich.data.augment import Augmentation, build
    from ich.data.batches import epoch_loader
    from ich.data.on_device import OnDevice

    settings = plan.recipe.cnn[member]
    torch.set_num_threads(plan.recipe.compute.threads)
    slices, seed, size = Slices(plan), seed_of(settings.seed, member, fold), settings.batch_size
    rows = splits(slices, settings, fold, settings.labels)
    hu = pictures_of(plan.prepared.folder / "hu.npy")
    shown = pictures(hu, slices.table, settings, slices.values, slices.labels, seed)
    augment = build(Augmentation(**settings.augment.model_dump()))
    training = shown(rows["train"], augment, settings.cutmix)
    seen = OnDevice(training.view, augment.settings)
    held_out = {split: shown(these) for split, these in rows.items() if split != "train"}
    spec = cnn_spec(settings, training.view.channels, len(slices.classes), dropout=settings.dropout)
    start = None if settings.start is None else plan.pretrained(settings.start)
    network = network_of(f"cnn.{member}", spec, seed, start, settings)
    if settings.output_bias:
        network.output_bias(slices.labels[rows["train"]].mean(axis=0))
    loss = loss_for(settings, slices, slices.labels[rows["train"]])

    def loss_of(model: Any, batch: Any) -> Any:
        return loss(model(seen.pictures(batch)), batch.targets)

    def loaded(epoch: int, workers: int) -> Any:
        return epoch_loader(training, epoch, size, shuffle=True, workers=workers)

    settings, batches, pace = paced(plan, settings, network, loss_of, loaded)

    def predict(model: Any, split: str, advance: Advance) -> "dict[str, np.ndarray]":
        return predict_pictures(model, held_out[split], settings, advance)

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
        steps=max(len(training) // size, 1),
        loss_of=loss_of,
        predict=predict,
        counts=(len(training), "slices"),
        record={**pace, "model": {**asdict(spec), "pretrained": False, "weights": None}},  # in model.safetensors
    )


def predict_training_rows(plan: Plan, member: str, fold: int, _fingerprint: str) -> Made:
    """What the fold's network says of the labelled rows outside the fold, all of them.

    Some of them it may not have learned from: those of the patients that judged its epochs, and those beyond the
    share of `labels`.
    """
    import torch

    from ich.networks.cnn import Cnn, CnnSpec

    settings, folder = plan.recipe.cnn[member], plan.training_rows(member, fold).folder
    torch.set_num_threads(plan.recipe.compute.threads)
    slices = Slices(plan)
    rows = slices.train_rows(fold)
    hu = pictures_of(plan.prepared.folder / "hu.npy")
    network = with_weights(plan, member, fold, lambda shape: Cnn(CnnSpec(**shape)))
    shown, what = pictures(hu, slices.table, settings, slices.values)(rows), f"{member} fold {fold}"
    with enough(what, settings), progress(what, len(rows), inner=True) as advance:
        found = predict_pictures(network, shown, settings, advance)
    files = leave_predictions(slices, folder, fold, "train", rows, found["logits"], found["embeddings"])
    return files, {"metrics": figures(slices, rows, found["logits"])}

"""`ich cnn`: stage 1. Trains each backbone a fold at a time; saves logits and embeddings, out of fold and test."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ich.recipe import Cnn as CnnSettings
from ich.stages.inputs import Slices, pictures, predict_pictures
from ich.stages.member import figures, leave_array, leave_predictions, log_loss, run_folds, train_network
from ich.stages.plan import Made, Plan, seed_of
from ich.workspace import UserError

if TYPE_CHECKING:
    import numpy as np

    from ich.models.losses import Loss

LARGEST_POS_WEIGHT = 20.0


def run(plan: Plan, *, model: str | None = None, fold: int | None = None, force: bool = False) -> None:
    run_folds(plan, list(plan.recipe.cnn), fit_fold, model=model, fold=fold, force=force)


def fit_fold(plan: Plan, member: str, fold: int, fingerprint: str) -> Made:
    """Train one backbone without fold `fold`, then predict that fold and the test set."""
    import numpy as np
    import torch

    from ich.data.augment import Augmentation, build
    from ich.data.datasets import slice_loader
    from ich.models.cnn import Cnn, CnnSpec

    settings, folder = plan.recipe.cnn[member], plan.workspace.fold(member, fold)
    torch.set_num_threads(plan.recipe.compute.threads)
    slices, seed, size = Slices(plan), seed_of(settings.seed, member, fold), settings.batch_size
    hu = np.load(plan.prepared.folder / "hu.npy", mmap_mode="r", allow_pickle=False)
    shown = pictures(hu, slices.table, settings, slices.values, slices.labels, seed)
    train, valid, test = slices.train_rows(fold), slices.valid_rows(fold), slices.test_rows
    training = shown(train, build(Augmentation(**settings.augment.model_dump())))
    held_out = {"valid": (valid, shown(valid)), "test": (test, shown(test))}
    spec = CnnSpec(
        in_channels=training.view.channels,
        classes=len(slices.classes),
        **settings.model_dump(include={"backbone", "kwargs", "dropout", "pretrained", "weights"}),
    )
    torch.manual_seed(seed)
    try:
        network = Cnn(spec)
    except ValueError as error:
        raise UserError(f"cnn.{member}: {error}") from None
    network.output_bias(slices.labels[train].mean(axis=0))
    loss = _loss(settings, slices.labels[train])

    def predicted(model: Any, split: str) -> dict[str, "np.ndarray"]:
        return predict_pictures(model, held_out[split][1], settings)

    files = train_network(
        plan,
        member,
        fold,
        fingerprint,
        network,
        settings,
        batches=lambda epoch: slice_loader(training, epoch, size, shuffle=True, workers=settings.workers),
        steps=max(len(train) // size, 1),
        loss_of=lambda model, batch: loss(model(batch.images), batch.targets),
        valid_loss=lambda model: log_loss(slices, valid, predicted(model, "valid")["logits"]),
        counts=(len(train), "slices"),
    )
    metrics: dict[str, float | None] = {}
    for split, (rows, _) in held_out.items():
        found = predicted(network, split)
        files |= leave_predictions(slices, folder, fold, split, rows, found["logits"])
        files |= leave_array(folder / f"{split}_embeddings.npy", found["embeddings"])
        if split == "valid":
            metrics = figures(slices, rows, found["logits"])
    rebuild = {**asdict(spec), "pretrained": False, "weights": None}  # the weights are in model.safetensors
    return files, {"model": rebuild, "classes": slices.classes, "metrics": metrics}


def _loss(settings: CnnSettings, labels: "np.ndarray") -> "Loss":
    from ich.models import losses

    pos_weight = None
    if settings.loss.pos_weight == "balanced":
        share = labels.mean(axis=0).clip(1e-6, 1)
        pos_weight = ((1 - share) / share).clip(max=LARGEST_POS_WEIGHT).tolist()
    return losses.build(pos_weight=pos_weight, **settings.loss.model_dump(exclude={"pos_weight"}))

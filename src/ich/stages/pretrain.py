"""`ich pretrain`: SimCLR on every slice of the competition, labelled, unlabelled and test; no label is read."""

from dataclasses import asdict
from typing import Any

from ich.console import say
from ich.pipeline.plan import Made, Plan, seed_of
from ich.stages.artefacts import pictures_of
from ich.stages.fitting import fit_network, tracked
from ich.stages.inputs import Slices, pictures
from ich.stages.member import named
from ich.stages.networks import cnn_spec, network_of, paced


def run(plan: Plan, *, model: str | None = None, force: bool = False) -> None:
    for name in named(list(plan.recipe.pretrain), model):
        task = plan.pretrained(name)
        made = plan.make(task, lambda fingerprint, name=name: _fit(plan, name, fingerprint), force=force)
        say(f"pretrain: {'wrote' if made else 'done'}, {task.folder}")


def _fit(plan: Plan, name: str, fingerprint: str) -> Made:
    import numpy as np
    import torch

    from ich.data.augment import Augmentation, build
    from ich.data.batches import epoch_loader
    from ich.data.datasets import TwoViews
    from ich.data.on_device import OnDevice
    from ich.networks.losses import nt_xent
    from ich.networks.simclr import SimClr

    settings, slices = plan.recipe.pretrain[name], Slices(plan)
    torch.set_num_threads(plan.cores)  # one network, so it may have every core
    seed, size = seed_of(settings.seed, name), settings.batch_size
    rows = np.arange(len(slices.table))
    hu = pictures_of(plan.prepared.folder / "hu.npy")
    shown = pictures(hu, slices.table, settings, slices.values, seed=seed)
    augment = build(Augmentation(**settings.augment.model_dump()))
    views = TwoViews(shown(rows, augment))
    seen = OnDevice(views.dataset.view, augment.settings)
    spec = cnn_spec(settings, views.dataset.view.channels, len(slices.classes))
    network = SimClr(network_of(f"pretrain.{name}", spec, seed, settings=settings))

    def loss_of(model: Any, batch: Any) -> Any:
        first, second = seen.views(batch)
        return nt_xent(model(first), model(second), settings.temperature)

    def loaded(epoch: int, workers: int) -> Any:
        return epoch_loader(views, epoch, size, shuffle=True, workers=workers)

    settings, batches, pace = paced(plan, settings, network, loss_of, loaded)
    files, how = fit_network(
        name,
        plan.pretrained(name).folder,
        fingerprint,
        network,
        settings,
        seed,
        batches=batches,
        steps=max(len(views) // size, 1),
        loss_of=loss_of,
        counts=(len(views), "slices"),
        follow=tracked(plan, name, name, settings),
        divisible=False,  # each slice is compared with all others of its batch
    )
    return files, {**how, **pace, "model": {**asdict(spec), "pretrained": False, "weights": None}, "slices": len(rows)}

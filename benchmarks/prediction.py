"""Logits and embeddings of all slices, against the bare network's forward on one batch that is in memory already.

Ours reads the slices from a memory map, shows them in a recipe's default windows, and leaves embeddings as float16 and
logits as float32 in arrays, with each slice's row, as the stages store them.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.race import Race, race
from benchmarks.training import Material, cases, conditions, half_of, waited
from ich.data.batches import epoch_loader
from ich.recipe import Cnn as Settings
from ich.stages.networks import loaders
from ich.training.device import Mover
from ich.training.predict import predict

BATCHES = 2  # as many slices at a time as in training, twice: no gradient needs memory


def races(*, quick: bool) -> Iterator[Race]:
    for case in cases(quick=quick):
        steps = case.steps if quick else 2 * case.steps
        with tempfile.TemporaryDirectory() as folder:
            yield whole_prediction(
                Material(replace(case, batch=BATCHES * case.batch, steps=steps), Path(folder)), quick
            )


def whole_prediction(material: Material, quick: bool) -> Race:
    case, network = material.case, material.network()
    dataset, count = material.dataset(), case.batch * case.steps
    workers = loaders(Settings(backbone=case.backbone))  # a stage's choice

    def ours() -> None:
        batches = epoch_loader(dataset, 0, case.batch, shuffle=False, workers=workers)
        found = predict(network, batches, count)
        assert len(found["embeddings"]) == count

    return race(
        f"prediction, {case.name}",
        {"ours": ours, "one batch in memory": forward(material)},
        unit="slices",
        count=count,
        rounds=1 if quick else 5,
        wanted={} if case.wanted is None else {"one batch in memory": case.wanted},
        notes={**conditions(material), "loader processes": workers},
    )


def forward(material: Material) -> Callable[[], None]:
    case, network, half = material.case, material.network().eval(), half_of(material)
    loader = epoch_loader(material.dataset(), 0, case.batch, shuffle=False)
    images, *_ = Mover(material.device)(next(iter(loader)))

    def run() -> None:
        with torch.inference_mode(), torch.autocast(material.device.type, half, enabled=half is not None):
            for _ in range(case.steps):
                network.embed(images)
        waited()

    return run

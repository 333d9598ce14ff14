"""Logits and embeddings of all slices, against the network's forward pass on one batch that is in memory already.

Ours reads and windows every slice and returns logits and embeddings as arrays, with the row of each slice.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.harness import Result, compare
from benchmarks.training import DEVICE, ON_CPU, QUICK
from ich.data.datasets import SliceBatch
from ich.networks.cnn import Cnn
from ich.training.device import autocast
from ich.training.predict import predict


def run(*, quick: bool) -> Iterator[Result]:
    case = QUICK if quick else ON_CPU
    case = replace(case, batch=2 * case.batch)  # without gradients there is memory for more
    with tempfile.TemporaryDirectory(prefix="ich-benchmark-") as folder:
        loader, network = case.loader(Path(folder), training=False), case.network()
        forward = bare_forward(network, next(iter(loader.epoch(0))))

        def bare() -> None:
            for _ in range(case.steps):
                forward()

        yield compare(
            f"prediction, {case.name}",
            {"ours": lambda: predict(network, loader.epoch(0), case.slices, "bf16"), "one batch in memory": bare},
            unit="slices",
            count=case.slices,
            rounds=1 if quick else 5,
        )


def bare_forward(network: Cnn, batch: SliceBatch) -> Callable[[], None]:
    """A function that computes logits and embeddings of the batch, which lies on the device."""
    images = batch.images.to(DEVICE)
    network.eval()

    @torch.inference_mode()
    def forward() -> None:
        with autocast("bf16", DEVICE):
            network.embed(images)

    return forward

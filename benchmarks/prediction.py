"""Logits and embeddings of all slices, against the network's forward pass on one batch that is in memory already.

Ours reads and windows every slice and returns logits and embeddings as arrays, with the row of each slice.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.harness import Result, compare
from benchmarks.training import DEVICE, chosen, loader_processes, synchronize
from ich.data.batches import epoch_loader
from ich.training.predict import predict


def run(*, quick: bool) -> Iterator[Result]:
    case = chosen(quick=quick)
    case = replace(case, batch=2 * case.batch)  # without gradients there is memory for more
    with tempfile.TemporaryDirectory(prefix="ich-benchmark-") as folder:
        dataset, network = case.dataset(Path(folder), augment=False), case.network().eval()
        images = next(iter(epoch_loader(dataset, 0, case.batch, shuffle=False))).images.to(DEVICE)

        def ours() -> None:
            batches = epoch_loader(dataset, 0, case.batch, shuffle=False, workers=loader_processes())
            predict(network, batches, case.slices, "bf16")

        def forward() -> None:
            with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16):
                for _ in range(case.steps):
                    network.embed(images)
            synchronize()

        yield compare(
            f"prediction, {case.name}",
            {"ours": ours, "one batch in memory": forward},
            unit="slices",
            count=case.slices,
            rounds=1 if quick else 5,
        )

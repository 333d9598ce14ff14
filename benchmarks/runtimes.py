"""`python -m benchmarks.runtimes`: the trained networks of the demo by torch and by ONNX Runtime, on the CPU.

Fold 0 of each network predicts the same slices of whole series, with one thread and with two: by torch in full
precision and in bfloat16, and by ONNX Runtime in full precision and in int8. int8 is static quantisation of the CNNs,
calibrated on training slices; its log loss on the fold is compared with that of full precision. ONNX Runtime has no
static quantisation of recurrent layers, and the heads never use bfloat16, so the others run in full precision only.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import ROOT, Result, compare, save, shown
from ich.console import set_level
from ich.ensemble.intervals import Bootstrap, interval
from ich.ensemble.metrics import row_losses
from ich.ensemble.predictions import sigmoid
from ich.models import onnx, registry, to_onnx
from ich.models.base import ONNX
from ich.models.data import FoldData
from ich.models.network import FittedNetwork
from ich.models.slices import Predictions, Slices
from ich.pipeline.state import Plan
from ich.recipe import load

READERS = {"cnn": onnx.OnnxCnn, "sequence": onnx.OnnxSequence}
FOLD, COUNT, CALIBRATED = 0, 200, 128  # the fold; slices that are timed; training slices for int8
ROUNDS = 7
THREADS = (1, 2)
RESULTS = ROOT / "benchmarks" / "results" / "runtimes.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtimes", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="workspace with the trained demo")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s; with fewer, save nothing")
    given = parser.parse_args()
    set_level("quiet")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    plan = Plan(load(ROOT / "configs" / "demo.yaml"), given.root)
    results = [measured(plan, name, given.rounds) for name in plan.models if plan.settings_of(name).stage in READERS]
    for line in table(results):
        print(line)
    if given.rounds >= ROUNDS:
        save(RESULTS, results)


def measured(plan: Plan, name: str, rounds: int) -> Result:
    stage = plan.settings_of(name).stage
    data = FoldData.read(plan.recipe, plan.workspace, plan.prepared.folder, name, FOLD)
    network, kind = registry.load(stage, plan.workspace.fold(name, FOLD), name), READERS[stage]
    assert isinstance(network, FittedNetwork)
    slices, inputs = data.slices("valid"), data.inputs("valid")
    ends = slices.offsets
    n = int(ends[ends >= COUNT][0])
    few = replace(slices, rows=slices.rows[:n])
    read = {
        one: Predictions(of.logits[:n], None if of.embeddings is None else of.embeddings[:n])
        for one, of in inputs.items()
    }
    ways: dict[str, Callable[[], Predictions]] = {}
    with tempfile.TemporaryDirectory(prefix="ich-benchmark-") as temporary:
        folder = Path(temporary)
        notes: dict[str, Any] = {"largest difference": to_onnx.write(network, kind, folder, few, read)}
        files = {"ONNX fp32": folder / ONNX}
        if kind is onnx.OnnxCnn:
            files["ONNX int8"] = folder / "int8.onnx"
            to_onnx.to_int8(kind(network.spec, path=folder / ONNX), training_slices(data), files["ONNX int8"])
            logits = [kind(network.spec, path=path).predict(slices, {}).logits for path in files.values()]
            notes |= loss_of_int8(data, *logits)
        for threads in THREADS:
            precisions = ("fp32", "bf16") if kind is onnx.OnnxCnn else ("fp32",)
            for precision in precisions:
                fitted = replace(network, spec={**network.spec, "precision": precision})
                ways[f"torch {precision}, {threads}"] = partial(by_torch, threads, fitted, few, read)
            for title, path in files.items():
                ways[f"{title}, {threads}"] = partial(kind(network.spec, path=path, threads=threads).predict, few, read)
        return {**compare(name, ways, unit="slices", count=n, rounds=rounds), "notes": notes}


def by_torch(threads: int, fitted: FittedNetwork, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
    torch.set_num_threads(threads)
    return fitted.predict(slices, inputs)


def training_slices(data: FoldData) -> Slices:
    rows = np.random.default_rng(0).choice(data.rows["train"], CALIBRATED, replace=False)
    return replace(data.slices("train"), rows=np.sort(rows))


def loss_of_int8(data: FoldData, full: np.ndarray, int8: np.ndarray) -> dict[str, Any]:
    """Log loss of both on the fold, and the difference with its interval: bootstrap over patients."""
    weights = np.array(data.table.class_weights) / np.sum(data.table.class_weights)
    losses = [row_losses(data.labels("valid"), sigmoid(logits)) @ weights for logits in (full, int8)]
    draws = Bootstrap(data.table.table["patient_id"].iloc[data.rows["valid"]]).means(losses[1] - losses[0])
    return {
        "log loss": [float(each.mean()) for each in losses],
        "difference": float((losses[1] - losses[0]).mean()),
        "interval": interval(draws),
        "largest difference of int8": float(np.abs(int8 - full).max()),
    }


def table(results: list[Result]) -> list[str]:
    """Slices per second of torch in full precision with one thread, and the speed of the others as a ratio to it."""
    ways = list(max((one["seconds"] for one in results), key=len))
    lines = [f"| network | {ways[0]} | {' | '.join(ways[1:])} |", "|---|" + "--:|" * len(ways)]
    for one in results:
        first = one["seconds"][ways[0]]
        cells = [f"{shown(one['count'] / statistics.median(first))}/s"]
        for way in ways[1:]:
            seconds = one["seconds"].get(way)
            cells.append(
                ""
                if seconds is None
                else f"{statistics.median(a / b for a, b in zip(first, seconds, strict=True)):.2f}"
            )
        lines.append(f"| {one['name']} | {' | '.join(cells)} |")
    lines += [
        "",
        "| network | largest difference | log loss fp32, int8 | difference (95 % interval) |",
        "|---|--:|--:|--:|",
    ]
    for one in results:
        notes = one["notes"]
        loss = ["", ""]
        if "log loss" in notes:
            low, high = notes["interval"]
            loss = [
                ", ".join(f"{value:.4f}" for value in notes["log loss"]),
                f"{notes['difference']:+.4f} ({low:+.4f} to {high:+.4f})",
            ]
        lines.append(f"| {one['name']} | {notes['largest difference']:.1e} | {' | '.join(loss)} |")
    return lines


if __name__ == "__main__":
    main()

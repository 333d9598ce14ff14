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

from benchmarks.harness import ROOT, Result, compare, save, shown
from ich.console import set_level
from ich.ensemble.intervals import Bootstrap, interval
from ich.ensemble.metrics import row_losses
from ich.ensemble.predictions import sigmoid
from ich.models import onnx, registry, to_onnx
from ich.models.base import ONNX, Fitted
from ich.models.data import FoldData
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
    """Speed of one network by each runtime and number of threads; notes: differences of logits and of log loss."""
    stage = plan.settings_of(name).stage
    data = FoldData.read(plan.recipe, plan.workspace, plan.prepared.folder, name, FOLD)
    chosen = {"valid": data.slices("valid").some_series(COUNT), "train": data.slices("train").some_series(CALIBRATED)}
    some, kind = replace(data, rows=chosen), READERS[stage]
    slices, inputs = some.slices("valid"), some.inputs("valid")
    network: Any = registry.load(stage, plan.workspace.fold(name, FOLD), name)
    with tempfile.TemporaryDirectory(prefix="ich-benchmark-") as temporary:
        folder = Path(temporary)
        notes: dict[str, Any] = {"largest difference": to_onnx.write(network, kind, folder, slices, inputs)}
        precisions, files = ["fp32"], {"fp32": folder / ONNX}
        if kind is onnx.OnnxCnn:
            precisions, files["int8"] = ["fp32", "bf16"], folder / "int8.onnx"
            to_onnx.to_int8(kind(network.spec, path=files["fp32"]), some.slices("train"), files["int8"])
            notes |= loss_of_int8(data, *(kind(network.spec, path=path) for path in files.values()))
        ways: dict[str, Callable[[], object]] = {}
        for threads in THREADS:
            for precision in precisions:
                fitted = replace(network, spec={**network.spec, "precision": precision})
                ways[f"torch {precision}, {threads}"] = partial(predicted, fitted, threads, slices, inputs)
            for precision, path in files.items():
                fitted = kind(network.spec, path=path)
                ways[f"ONNX {precision}, {threads}"] = partial(predicted, fitted, threads, slices, inputs)
        return {**compare(name, ways, unit="slices", count=len(slices), rounds=rounds), "notes": notes}


def predicted(fitted: Fitted, threads: int, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
    with fitted.using(threads):
        return fitted.predict(slices, inputs)


def loss_of_int8(data: FoldData, full: Fitted, int8: Fitted) -> dict[str, Any]:
    """Log loss of both on the fold, and the difference with its interval: bootstrap over patients."""
    weights = np.array(data.table.class_weights) / np.sum(data.table.class_weights)
    logits = [one.predict(data.slices("valid"), {}).logits for one in (full, int8)]
    losses = [row_losses(data.labels("valid"), sigmoid(one)) @ weights for one in logits]
    draws = Bootstrap(data.table.table["patient_id"].iloc[data.rows["valid"]]).means(losses[1] - losses[0])
    return {
        "log loss": [float(one.mean()) for one in losses],
        "difference": float((losses[1] - losses[0]).mean()),
        "interval": interval(draws),
        "largest difference of int8": float(np.abs(logits[1] - logits[0]).max()),
    }


def table(results: list[Result]) -> list[str]:
    """Slices per second of the first way, and the speed of the others as a ratio to it; then the notes."""
    ways = list(max((one["seconds"] for one in results), key=len))
    lines = [f"| network | {' | '.join(ways)} |", "|---|" + "--:|" * len(ways)]
    for one in results:
        first = one["seconds"][ways[0]]
        cells = [f"{shown(one['count'] / statistics.median(first))}/s"]
        for way in ways[1:]:
            ratios = [a / b for a, b in zip(first, one["seconds"].get(way, ()), strict=False)]
            cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
        lines.append(f"| {one['name']} | {' | '.join(cells)} |")
    lines += [
        "",
        "| network | ONNX: largest difference | int8: the same | log loss fp32, int8 | difference (95 % interval) |",
    ]
    lines += ["|---|--:|--:|--:|--:|"]
    for one in results:
        notes, cells = one["notes"], ["", "", ""]
        if "log loss" in notes:
            low, high = notes["interval"]
            cells = [
                f"{notes['largest difference of int8']:.2f}",
                ", ".join(f"{value:.4f}" for value in notes["log loss"]),
            ]
            cells += [f"{notes['difference']:+.4f} ({low:+.4f} to {high:+.4f})"]
        lines.append(f"| {one['name']} | {notes['largest difference']:.1e} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()

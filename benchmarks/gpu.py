"""`python -m benchmarks.gpu`: the networks on one GPU, against the same steps on one batch that is there already.

At most six minutes, tests/training/test_cuda.py included. The results are ratios of ways that are timed in turn: an
epoch of `fit` and its loader alone against bare steps, prediction against bare forward passes, and an epoch of a
stage-2 network at RSNA 2019's size against bare steps. A ratio of the loader above 1 means that the GPU need not wait
for it. Peak memory is that of each way alone, with its network.

The bare ways are plain PyTorch in the same precision and memory format, with its default kernels. Ours uses
deterministic ones. cudnn.benchmark is off in all of them. The clock of each way starts after its first batches, which
load kernels and start the loader's processes, and stops when the GPU has finished.
"""

import argparse
import gc
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import harness
from benchmarks.__main__ import RESULTS, write_tables
from benchmarks.harness import Result
from benchmarks.prediction import bare_forward
from benchmarks.sequence import head, loader_of, random_studies
from benchmarks.training import DEVICE, QUICK, Case, bare_step, fit_epoch
from ich.console import set_level
from ich.errors import UserError
from ich.training.device import loader_workers
from ich.training.fit import Loader
from ich.training.predict import predict

TESTS = "tests/training/test_cuda.py"
LONGEST = 330  # seconds, without imports and the last topic's delay
LONGEST_TESTS = 150  # seconds
CASES = [
    Case(backbone, size, batch)
    for backbone, batch in (("resnet18", 64), ("resnext50_32x4d", 48))
    for size in (256, 384)
]  # the batch sizes of configs/rsna2019.yaml
STAGE_2 = {"series": 18_938, "width": 2048, "batch_size": 64, "hidden": 256}
OUT = RESULTS / "gpu.json"
ROUNDS, QUICK_ROUNDS = 5, 2
BARE_SECONDS, QUICK_SECONDS = 3.0, 0.02  # of the bare way in one round
FIRST_SECONDS = 30  # guess of the first round of a topic
PROBED = 5  # steps
SKIPPED = 3 + 2 * loader_workers("auto")  # batches before the clock starts; each process loads two in advance


# ---- ways


class Clock:
    """Measures the seconds of a loop without its first batches."""

    def after_some(self, batches: Iterable[Any]) -> Iterator[Any]:
        for number, batch in enumerate(batches, start=1):
            yield batch
            if number == SKIPPED:
                self.started = now()

    def seconds(self) -> float:
        return now() - self.started


def now() -> float:
    """Seconds, when the GPU has finished."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def steps(step: Callable[[], None], number: int) -> float:
    clock = Clock()
    for _ in clock.after_some(range(SKIPPED + number)):
        step()
    return clock.seconds()


def epoch_of_fit(network: nn.Module, loader: Loader) -> float:
    clock = Clock()
    fit_epoch(network, replace(loader, epoch=lambda number: clock.after_some(loader.epoch(number))))
    return clock.seconds()


def epoch_of_loader(loader: Loader) -> float:
    clock = Clock()
    for _ in clock.after_some(loader.epoch(0)):
        pass
    return clock.seconds()


def prediction(network: nn.Module, loader: Loader) -> float:
    clock = Clock()
    predict(network, clock.after_some(loader.epoch(0)), loader.samples, "bf16")
    return clock.seconds()


# ---- topics


@dataclass
class Topic:
    """Ways to process `count` units. Each builds its network and returns its seconds; the last one is the limit."""

    name: str
    unit: str
    count: int
    ways: Mapping[str, Callable[[], float]]
    found: list[dict[str, tuple[float, float]]] = field(default_factory=list)
    """Seconds and peak memory (MiB) of each way, by round."""
    seconds: float = 0.0
    """Of the latest round."""

    def measure(self) -> None:
        started = time.perf_counter()
        self.found.append({way: measured(self.ways[way]) for way in harness.in_turn(self.ways, len(self.found))})
        self.seconds = time.perf_counter() - started

    def results(self) -> Iterator[Result]:
        """Seconds and, on a GPU, peak memory of each way and its limit."""
        *ours, limit = self.ways
        for way in ours:
            name = f"{way}, {self.name}"
            pairs = [{"ours": one[way], limit: one[limit]} for one in self.found]
            seconds, mib = ({key: [one[key][k] for one in pairs] for key in ("ours", limit)} for k in (0, 1))
            yield {"name": name, "unit": self.unit, "count": self.count, "seconds": seconds}
            if all(mib["ours"]):  # the loader alone needs none
                yield {"name": f"peak memory of {name}", "mib": mib}


def measured(way: Callable[[], float]) -> tuple[float, float]:
    """Seconds and peak GPU memory (MiB) of a way; 0 MiB without a GPU."""
    if DEVICE.type == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds = way()
    return harness.rounded(seconds), harness.rounded((torch.cuda.max_memory_allocated() - before) / 2**20)


def training(case: Case, folder: Path, seconds: float) -> Topic:
    batch = next(iter(case.loader(folder, training=True).epoch(0)))
    number = steps_in(seconds, bare_step(case.network(), batch))
    loader = replace(case, steps=SKIPPED + number).loader(folder, training=True)
    ways = {
        "fit": lambda: epoch_of_fit(case.network(), loader),
        "loader": lambda: epoch_of_loader(loader),
        "bare step": lambda: steps(bare_step(case.network(), batch), number),
    }
    return Topic(case.name, "slices", number * case.batch, ways)


def predicting(case: Case, folder: Path, seconds: float) -> Topic:
    case = replace(case, batch=2 * case.batch)
    batch = next(iter(case.loader(folder, training=False).epoch(0)))
    number = steps_in(seconds, bare_forward(case.network(), batch))
    loader = replace(case, steps=SKIPPED + number).loader(folder, training=False)
    ways = {
        "prediction": lambda: prediction(case.network(), loader),
        "bare forward": lambda: steps(bare_forward(case.network(), batch), number),
    }
    return Topic(case.name, "slices", number * case.batch, ways)


def stage_2(series: int, width: int, batch_size: int, hidden: int) -> Topic:
    arrays = random_studies(series, width)
    batch, network = next(iter(loader_of(arrays, batch_size).epoch(0))), partial(head, "gru", width, hidden, layers=2)
    number = loader_of(arrays, batch_size).batches - SKIPPED
    ways = {
        "fit": lambda: epoch_of_fit(network(), loader_of(arrays.on_device(DEVICE), batch_size)),
        "bare step": lambda: steps(bare_step(network(), batch), number),
    }
    return Topic(f"BiGRU on {series:,} series", "series", series - SKIPPED * batch_size, ways)


def steps_in(seconds: float, step: Callable[[], None]) -> int:
    return max(1, round(seconds * PROBED / steps(step, PROBED)))


# ---- the script


def cuda_tests() -> dict[str, Any]:
    """Run the tests that need a GPU in a process of their own; return exit code and last line of pytest."""
    words = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", TESTS]
    shape: dict[str, Any] = {"cwd": harness.ROOT, "env": harness.environment(), "text": True, "timeout": LONGEST_TESTS}
    try:
        done = subprocess.run(words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **shape)
    except subprocess.TimeoutExpired:
        return {"exit_code": None, "summary": f"not finished after {LONGEST_TESTS} s"}
    if done.returncode:
        print(done.stdout)
    return {"exit_code": done.returncode, "summary": done.stdout.strip("\n= ").rpartition("\n")[2].lstrip("= ")}


def card() -> dict[str, Any] | None:
    """The GPU and the versions of its software."""
    if DEVICE.type != "cuda":
        return None
    driver = None
    if shutil.which("nvidia-smi"):
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(words, check=False, capture_output=True, text=True).stdout.partition("\n")[0]
    return {
        "name": torch.cuda.get_device_name(),
        "memory_mib": torch.cuda.get_device_properties().total_memory >> 20,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def topics(folder: Path, *, quick: bool) -> Iterator[tuple[str, Callable[[], Topic]]]:
    """Names of the topics and the functions that build them."""
    yield "stage 2", partial(stage_2, 2 * SKIPPED, 16, 1, 8) if quick else partial(stage_2, **STAGE_2)
    seconds = QUICK_SECONDS if quick else BARE_SECONDS
    for case in [QUICK] if quick else CASES:
        yield f"training, {case.name}", partial(training, case, folder, seconds)
        yield f"prediction, {case.name}", partial(predicting, case, folder, seconds)


def conduct(
    builders: Mapping[str, Callable[[], Topic]], rounds: int, ends: float
) -> tuple[dict[str, Topic], dict[str, str]]:
    """Measure the topics in turn until the time is up; return them, and what is left out and why."""
    found, left_out = dict[str, Topic](), dict[str, str]()
    for number, (name, build) in product(range(rounds), builders.items()):
        needed = found[name].seconds if name in found else FIRST_SECONDS
        if name not in left_out and time.monotonic() + needed > ends:
            left_out[name] = f"{rounds - number} of {rounds} rounds, because the time is up"
        if name in left_out:
            continue
        try:
            topic = found[name] if name in found else build()
            topic.measure()
        except (RuntimeError, UserError) as error:  # such as out of memory
            left_out[name] = str(error).partition("\n")[0]
        else:
            found[name] = topic
    return found, left_out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help=f"JSON of the results (default: {OUT.relative_to(harness.ROOT)})")
    parser.add_argument("--quick", action="store_true", help="tiny networks, on a CPU too; without --out save nothing")
    given = parser.parse_args()
    if DEVICE.type != "cuda" and not given.quick:
        parser.error("no GPU found. To test the script on a CPU, use --quick")
    out = given.out or (None if given.quick else OUT)
    set_level("quiet")
    if given.quick:
        torch.set_num_threads(1)
    started = time.monotonic()
    tests = cuda_tests()
    print(f"{TESTS}: {tests['summary']}", flush=True)
    with tempfile.TemporaryDirectory(prefix="ich-benchmark-") as folder:
        builders = dict(topics(Path(folder), quick=given.quick))
        found, left_out = conduct(builders, QUICK_ROUNDS if given.quick else ROUNDS, started + LONGEST)
    results = [one for topic in found.values() for one in topic.results()]
    print(harness.table(results))
    for name, why in left_out.items():
        print(f"left out of {name}: {why}")
    if out is not None:
        seconds = round(time.monotonic() - started)
        harness.save(out, results, card=card(), tests=tests, left_out=left_out, seconds=seconds)
        print(f"-> {out}")
    if out == OUT:
        write_tables()
    return int(tests["exit_code"] != 0 or len(found) < len(builders))


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks.scaling [RECIPE [--run]]`: simulate `ich run` on several machines of one GPU each.

Without a recipe: RSNA 2019 at full size, by measured, published and assumed rates (docs/background/scaling.md). With a
recipe: by the seconds in the records of its finished workspace. With --run: run the recipe in an empty folder, two
steps at a time, and compare the time that this takes with a simulation by the seconds of its steps.
"""

import argparse
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import ROOT, RSNA_SLICES
from ich.pipeline.engines import Step, local, ready
from ich.pipeline.graph import IN_SAMPLE, SHARDS, Graph, Task
from ich.pipeline.state import Plan
from ich.recipe import Recipe, load
from ich.stages import demo, run

TEST_SLICES = 121_232  # of RSNA 2019
RAW_BYTES = 460e9
CORES = 8  # per machine
PREPARED = 656  # measured: slices/s per core, cold, at 256 px
PUBLISHED = {  # timm's training rate on an RTX 3090, images/s at 224 px; width of the embedding
    "resnet34": (2036.51, 512),
    "resnext50_32x4d": (1001.03, 2048),
    "seresnet50": (971.79, 2048),
    "densenet121": (913.65, 1024),
    "seresnext101_32x4d": (479.03, 2048),
    "convnext_tiny.in12k_ft_in1k_384": (819.24, 768),
}
FASTER = 2470 / 1218  # an A100 than an RTX 3090: published rates of ResNet-50
SEQUENCE = 50_000  # assumed: training slices/s of a sequence network
SECONDS = {  # of one step; measured on two cores, except where it says otherwise
    "folds": 3,
    "sequence": 245,  # reading the inputs, and an epoch of a small network
    "smooth": 163,
    "stack": 480,  # derived: 400 trees of 31 leaves, 5 seeds; eight threads, four times as fast as one
    "blend": 5,
    "thresholds": 17,
    "submit": 17,
    "score": 148,
    "explain": 600,  # assumed
    "report": 600,  # assumed
}
ASSEMBLED = 5  # assumed: oof.parquet and test.parquet of a model

Seconds = Mapping[str, float]
File = tuple[str, str]  # a step and the name of one of its files


# ---- the simulation


@dataclass(frozen=True)
class Slot:
    """A step on a machine, in seconds since the start."""

    name: str
    machine: int
    start: float
    end: float


def simulate(steps: Sequence[Step], duration: Callable[[str, int], float], machines: int) -> list[Slot]:
    """Schedule as the engines do: a step queues when its needs have finished; a free machine takes the first in line.

    Steps that become ready together queue in their order. Each takes a whole machine.
    duration: seconds of a step on a machine; called when it starts.
    """
    slots, finished, begun, queue = list[Slot](), set[str](), set[str](), deque[str]()
    free, running = list(range(machines)), list[tuple[float, int, str]]()
    now = 0.0
    while len(finished) < len(steps):
        queue.extend(step.name for step in ready(steps, finished, begun))
        begun.update(queue)
        while queue and free:
            name, machine = queue.popleft(), heappop(free)
            slots.append(Slot(name, machine, now, now + duration(name, machine)))
            heappush(running, (slots[-1].end, machine, name))
        now = running[0][0]
        while running and running[0][0] == now:
            _, machine, name = heappop(running)
            finished.add(name)
            heappush(free, machine)
    return slots


def remaining(steps: Sequence[Step], seconds: Seconds) -> dict[str, float]:
    """Seconds of the longest path from the start of each step to the end. Each step must follow its needs."""
    left = {step.name: seconds[step.name] for step in steps}
    for step in reversed(steps):
        for need in step.needs:
            left[need] = max(left[need], seconds[need] + left[step.name])
    return left


def critical_path(steps: Sequence[Step], seconds: Seconds) -> list[str]:
    """Names of the steps on the longest path."""
    left, path = remaining(steps, seconds), list[str]()
    while following := [step.name for step in steps if not path or path[-1] in step.needs]:
        path.append(max(following, key=left.__getitem__))
    return path


class Disks:
    """Durations of steps on machines that pull what they read, unless they hold it, and push what others read."""

    def __init__(self, reads: Mapping[str, Mapping[File, float]], seconds: Seconds, bandwidth: float) -> None:
        """reads: the files that each step reads and their bytes. bandwidth: bytes/s of each machine."""
        self.reads, self.seconds, self.bandwidth = reads, seconds, bandwidth
        self.held = defaultdict[int, set[str | File]](set)  # steps made there, and files pulled
        self.moved = Counter[int]()  # bytes pulled and pushed, by machine
        self.pushed = Counter[str]()  # bytes by step
        for (step, _), size in {file: size for files in reads.values() for file, size in files.items()}.items():
            self.pushed[step] += size

    def __call__(self, name: str, machine: int) -> float:
        held = self.held[machine]
        missing = {file: size for file, size in self.reads[name].items() if held.isdisjoint((file, file[0]))}
        held.update((name, *missing))
        moved = sum(missing.values()) + self.pushed[name]
        self.moved[machine] += moved
        return self.seconds[name] + moved / self.bandwidth


# ---- the steps of a recipe


def recorded(recipe: Recipe, steps: Sequence[Step]) -> tuple[dict[str, float], dict[str, dict[File, float]]]:
    """Seconds of each step in the records of this folder; 0 for steps without one."""
    graph, seconds = Graph(recipe, Path.cwd()), {step.name: 0.0 for step in steps}
    for task in graph.all():
        if "seconds" not in (record := graph.record_of(task)):
            raise SystemExit(f"{task.record.path}: no record of a finished run. Run `ich run RECIPE` first")
        seconds[task.name] = record["seconds"]
    return seconds, {step.name: {} for step in steps}


def estimated(graph: Graph, task: Task) -> float:
    """Seconds of a task of RSNA 2019 on one machine: an A100 and CORES cores."""
    folds, settings = graph.recipe.folds.n, graph.settings_of(task.model) if task.model else None
    train, valid = RSNA_SLICES * (folds - 1) / folds, RSNA_SLICES / folds
    if task.stage == "prepare":
        return (RSNA_SLICES + TEST_SLICES) / (PREPARED * CORES)
    if task.model and task.fold is None:
        return ASSEMBLED
    if task.stage == "sequence":
        return SECONDS["sequence"] + settings.seeds * settings.epochs * train / SEQUENCE
    if task.stage == "cnn":  # a prediction costs a third of a training step
        passes = 1 + settings.tta.flip
        images = settings.epochs * (train + valid / 3) + passes * (valid + TEST_SLICES) / 3
        if task.files == IN_SAMPLE:
            images = passes * train / 3
        return images / (FASTER * PUBLISHED[settings.backbone][0] * (224 / graph.recipe.image.size) ** 2)
    return SECONDS[task.stage]


def bytes_of(graph: Graph, task: Task, file: str) -> float:
    """Bytes of a file of RSNA 2019: of the cache and of embeddings; tables and weights are small."""
    folds = graph.recipe.folds.n
    if file == SHARDS:
        return 2 * graph.recipe.image.size**2 * (RSNA_SLICES + TEST_SLICES)
    if file.endswith("_embeddings.npy"):
        rows = {"train": RSNA_SLICES * (folds - 1) / folds, "valid": RSNA_SLICES / folds, "test": TEST_SLICES}
        return 2 * PUBLISHED[graph.recipe.cnn[task.model].backbone][1] * rows[file.partition("_")[0]]
    return 0


def rsna(plan: Plan, steps: Sequence[Step]) -> tuple[dict[str, float], dict[str, dict[File, float]]]:
    """Seconds of each step for RSNA 2019, and the bytes of the files that it reads. `prepare` is one step."""
    seconds, reads = {step.name: 0.0 for step in steps}, {step.name: dict[File, float]() for step in steps}
    for task in plan.all():
        seconds[task.name] = estimated(plan, task)
        for upstream, files in task.upstream:
            reads[task.name] |= {(upstream.name, file): bytes_of(plan, upstream, file) for file in files}
    reads["prepare"]["raw files", "prepare"] = RAW_BYTES
    return seconds, reads


# ---- results


def table(
    steps: Sequence[Step], seconds: Seconds, machines: Iterable[int], price: float, disks: Callable[[], Disks]
) -> Iterator[str]:
    """Yield the rows of the table: in the order of the recipe, and with the longest remaining path first."""
    left = remaining(steps, seconds)
    orders = {"as in the recipe": steps, "slowest networks first": sorted(steps, key=lambda step: -left[step.name])}
    yield from ("| GPUs | order | makespan, h | idle | moved per machine, GB | cost, $ |", "|--:|---|--:|--:|--:|--:|")
    for count in machines:
        for order, sequence in orders.items():
            slots = simulate(sequence, on := disks(), count)
            makespan, busy = max(slot.end for slot in slots), sum(slot.end - slot.start for slot in slots)
            idle, moved = 1 - busy / (count * makespan), sum(on.moved.values()) / count / 1e9
            cost = price * count * makespan / 3600
            yield f"| {count} | {order} | {makespan / 3600:.2f} | {idle:.0%} | {moved:,.0f} | {cost:,.0f} |"


def compared(path: str, overrides: Sequence[str]) -> str:
    """Run a recipe with two worker processes in an empty folder; return measured and simulated seconds."""
    recipe = load(path, [*overrides, "compute.processes=2"])
    with TemporaryDirectory(prefix="ich-benchmark-") as folder:
        if recipe.demo:
            demo.run(Plan(recipe, Path(folder)))
        steps, _ = run.steps_of(Plan(recipe, Path(folder)))
        make = partial(run.make_step, recipe, Path(folder), False)
        started = time.perf_counter()
        results = list(local.run(steps, make, recipe, Path(folder)))
        measured = time.perf_counter() - started
    if failed := [result.error for result in results if result.error]:
        raise SystemExit(failed[0])
    seconds = {result.name: result.seconds for result in results}
    simulated = max(slot.end for slot in simulate(steps, lambda name, _: seconds[name], 2))
    work = sum(seconds.values())
    return f"{measured:.1f} s measured, {simulated:.1f} s simulated: {simulated / measured:.3f}; {work:.1f} s of work"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", nargs="?", help="a recipe whose workspace is finished (default: RSNA 2019)")
    parser.add_argument("--run", action="store_true", help="run the recipe and compare the time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `ich run`")
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 4, 8, 20], help="numbers of machines")
    parser.add_argument("--price", type=float, default=2.0, help="dollars per GPU hour (default: 2, assumed)")
    parser.add_argument("--network", type=float, default=10.0, help="Gbit/s of each machine (default: 10, assumed)")
    given = parser.parse_args()
    if given.run and given.recipe is None:
        parser.error("--run requires a recipe")
    if given.run:
        print(compared(given.recipe, given.set))
        return
    recipe = load(given.recipe or ROOT / "configs" / "rsna2019.yaml", given.set)
    with TemporaryDirectory(prefix="ich-benchmark-") as empty:  # where no step is up to date
        plan = Plan(recipe, Path(empty))
        steps, _ = run.steps_of(plan)
        seconds, reads = rsna(plan, steps) if given.recipe is None else recorded(recipe, steps)
    disks = lambda: Disks(reads, seconds, given.network * 1e9 / 8)
    print(*table(steps, seconds, given.machines, given.price, disks), sep="\n")
    path = critical_path(steps, seconds)
    work, longest = (sum(seconds[name] for name in names) / 3600 for names in (seconds, path))
    print(f"work {work:.2f} h, critical path {longest:.2f} h:")
    print(*(f"  {name}: {seconds[name] / 60:.1f} min" for name in path), sep="\n")


if __name__ == "__main__":
    main()

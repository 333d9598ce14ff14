"""Where the time goes: `python -m benchmarks.spent RECIPE [MEMBER]`.

Of a finished run, by stage, out of its run records: seconds of all processes together. With the name of a cnn member,
an epoch of it instead, by parts, on pictures of noise as large as the recipe's, with loader processes taken away.
"""

import argparse
import cProfile
import json
import pstats
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SLICES = 2_000
PARTS = {  # by name: the end of the file's name, and the function
    "all": ("stages/cnn.py", "fit_fold"),
    "prediction, with its loading": ("training/predict.py", "_predict"),
    "loading": ("data/dataloader.py", "__next__"),
    "  windows": ("data/views.py", "render_rows"),
    "  augmentation": ("data/augment.py", "__call__"),
    "forward, of prediction too": ("networks/cnn.py", "embed"),
    "backward": ("torch/_tensor.py", "backward"),
    "optimizer": ("optim/optimizer.py", "wrapper"),
}


def by_stage(records: Iterator[tuple[str, dict[str, Any]]]) -> dict[str, tuple[int, float, float]]:
    """By stage: how many tasks, their seconds together, the most MiB."""
    found: dict[str, tuple[int, float, float]] = defaultdict(lambda: (0, 0.0, 0.0))
    for stage, record in records:
        count, seconds, peak = found[stage]
        found[stage] = count + 1, seconds + record["seconds"], max(peak, record["peak_memory_mib"])
    return dict(found)


def of_run(recipe: Path) -> Iterator[str]:
    from ich.pipeline.plan import Plan
    from ich.recipe import load

    plan = Plan(load(recipe), Path.cwd())
    made = [(task, plan.record_of(task.record)) for task in plan.all()]
    left = sorted(task.name for task, record in made if record is None)
    found = by_stage((task.stage, record) for task, record in made if record is not None)
    total = sum(seconds for _, seconds, _ in found.values())
    yield f"{'stage':12} {'tasks':>5} {'seconds':>9} {'share':>6} {'MiB':>7}"
    for stage, (count, seconds, peak) in found.items():
        yield f"{stage:12} {count:5} {seconds:9.1f} {seconds / total:6.1%} {peak:7.0f}"
    yield f"{'':12} {'':5} {total:9.1f}"
    if left:
        yield f"not there: {', '.join(left)}"


def of_epoch(recipe: Path, member: str) -> Iterator[str]:
    from benchmarks import house
    from ich.pipeline.plan import Plan
    from ich.recipe import load
    from ich.stages import cnn

    whole = load(recipe)
    network = whole.cnn[member].model_dump(mode="json", exclude_defaults=True)
    network = {**network, "epochs": 1, "workers": 0, "pretrained": False, "start": None}
    settings = [
        *("sequence={}", "smooth={}", "stack={}", "blend.members=all", f"folds.n={whole.folds.n}"),
        f"compute.threads={whole.compute.threads}",
        f"cnn={json.dumps({member: network})}",
    ]
    with tempfile.TemporaryDirectory(prefix="ich-benchmark-") as folder:
        plan = house.prepared(Path(folder), SLICES, whole.image.size, settings, noise=True)
        cnn.fit_fold(Plan(plan.recipe, plan.root), member, 0, "once")  # what is imported and compiled is no part of it
        profile = cProfile.Profile()
        profile.runcall(cnn.fit_fold, Plan(plan.recipe, plan.root), member, 0, "and again")
    yield from parts(pstats.Stats(profile))


def parts(stats: pstats.Stats) -> Iterator[str]:
    """Seconds within each of the parts, with all that they call; the profiler makes what is Python look larger."""
    seconds = {
        name: max(
            (row[3] for key, row in stats.stats.items() if key[0].endswith(file) and key[2] == function), default=0
        )
        for name, (file, function) in PARTS.items()
    }
    for name, spent in seconds.items():
        yield f"{name:30} {spent:8.2f} s {spent / seconds['all']:6.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spent", description="Where the time goes.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("member", nargs="?", help="a cnn member: an epoch of it")
    given = parser.parse_args()
    print("\n".join(of_run(given.recipe) if given.member is None else of_epoch(given.recipe, given.member)))


if __name__ == "__main__":
    main()

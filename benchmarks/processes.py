"""Folds side by side, as `ich cnn` trains them, against one after the other.

Two folds of a small network: in two processes of one thread each, and in one process with one thread and with two. The
processes are there before the clock runs, for a fold of a real recipe trains for minutes or hours.
"""

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

from benchmarks import house
from benchmarks.race import OURS, Race, race
from ich.pipeline.plan import Plan
from ich.recipe import load
from ich.stages import cnn

SLICES, SIZE, EPOCHS = 3_000, 96, 2
# the demo's resnet, at the demo's size
NETWORK = "{backbone: resnet10t, pretrained: false, workers: 0, batch_size: 32, epochs: %d, kwargs: {%s}}"
SHAPE, TINY = "channels: [32, 64, 128, 256], stem_width: 16", "channels: [4, 8, 8, 8], stem_width: 4"
TWO, ONE = "one after the other, two threads", "one after the other, one thread"


def races(*, quick: bool) -> Iterator[Race]:
    """One race; what is counted are slices trained on, and predicting the fold and the test set belongs to it.

    Quick: one process with one thread and with two, for to start others takes long.
    """
    slices, size, epochs = (60, 32, 1) if quick else (SLICES, SIZE, EPOCHS)
    with tempfile.TemporaryDirectory(prefix="ich-benchmark-") as folder:
        network = NETWORK % (epochs, TINY if quick else SHAPE)
        settings = [
            "folds.n=2",
            "sequence.bigru=null",
            "sequence.bilstm=null",
            "blend.members=all",
            f"cnn.resnet={network}",
        ]
        plan = house.prepared(Path(folder), slices, size, settings, noise=True)
        trained = epochs * int(plan.record_of(plan.prepared.record)["slices"])

        def folds(processes: int, threads: int) -> Callable[[], None]:
            given = [*settings, f"compute.processes={processes}", f"compute.threads={threads}"]

            def run() -> None:
                with redirect_stdout(io.StringIO()):  # children flush it, so it has to be one
                    cnn.run(Plan(load(house.path(plan.root), given), plan.root), model="resnet", force=True)

            return run

        ways = {OURS: folds(1 if quick else 2, 1), TWO: folds(1, 2), ONE: folds(1, 1)}
        yield race(
            "two folds",
            ways,
            unit="slices",
            count=trained,
            rounds=1 if quick else 3,
            warm_up=0 if quick else 1,
            wanted={TWO: 1, ONE: 1},
            notes={"cores": len(os.sched_getaffinity(0))},
        )

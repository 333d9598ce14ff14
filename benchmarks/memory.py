"""Peak memory by number of slices, of each stage of configs/rsna2019.yaml, a fold each, in processes of its own.

The tables are as long as said and as wide as the recipe's; pictures are small, and read from a memory map, so their
side changes nothing. Every 20 ms it is asked what a stage's processes hold (anonymous and shared memory; together).
Beside that stands the high-water mark of the largest process, with all the pages of files that it maps, which the
system takes back when it needs them: what is held lies between the two where there is one process.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.race import Peak

ROOT = Path(__file__).parents[1]
COUNTS, LIMIT = (10_000, 100_000, 752_803), 8 * 1024.0
SAMPLE = 0.02  # seconds
KEYS = ("RssAnon", "RssShmem", "VmHWM")  # of /proc/<pid>/status, in KiB
CNN, SEQUENCE = "resnext", "bigru"  # the widest embeddings; two of them side by side, 2,560 wide
STUDY = ("patient_id", "study_id", "series_id", "index")
READ_LAST = 64  # series whose pictures are read; those before them are told to be there, as after a kill


class Measured(NamedTuple):
    own: float
    largest: float
    seconds: float


def races(*, quick: bool) -> Iterator[Peak]:
    """A stage after the other, with the stages that later ones read last: each finds what it reads as it was made."""
    steps = ("folds",) if quick else tuple(STEPS)
    counts = (1_000,) if quick else COUNTS
    found = {count: dict(_measured(count, steps)) for count in counts}
    for step in steps:
        by_count = {count: found[count][step] for count in counts}
        columns = [{count: one[k] for count, one in by_count.items()} for k in range(3)]
        yield Peak(step, "slices", *columns, limit=LIMIT)


def _measured(count: int, steps: Sequence[str]) -> Iterator[tuple[str, Measured]]:
    from benchmarks import house

    with tempfile.TemporaryDirectory(prefix="ich-benchmark-") as folder:
        plan = house.prepared(Path(folder), count, noise=True)  # networks do not survive pictures without contrast
        if "tables" in steps:
            house.raw_files(plan)
        if set(steps) - {"tables", "folds"}:
            house.complete(plan)
        for step in steps:
            found = peak([sys.executable, "-m", "benchmarks.memory", step, str(count)], Path(folder))
            print(f"  {step}, {count:,} slices: {found.own:,.0f} MiB in {found.seconds:.0f} s", flush=True)
            yield step, found


def peak(command: Sequence[str], folder: Path) -> Measured:
    """Run a command in a folder; MiB that all its processes held at most, and of the largest with files."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1"}
    started, own, largest = time.perf_counter(), 0.0, 0.0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)
        while process.poll() is None:
            now = list(memory(process.pid))
            own = max(own, sum(anonymous for anonymous, _ in now))
            largest = max([largest, *(mark for _, mark in now)])
            time.sleep(SAMPLE)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command[1:])} ended with {process.returncode}: {said.read().decode()}")
    return Measured(own, largest, time.perf_counter() - started)


def memory(pid: int) -> Iterator[tuple[float, float]]:
    """MiB of a process and of each of its descendants: what it holds without files, and its high-water mark with them.

    Not by getrusage, whose mark goes on from that of the process which started this one.
    """
    waiting = [pid]
    while waiting:
        now = Path("/proc", str(waiting.pop()))
        try:
            text = (now / "status").read_text()
            for thread in (now / "task").iterdir():
                waiting += [int(child) for child in (thread / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):  # it has ended in the meantime
            continue
        kib = {
            key: int(value.split()[0])
            for key, _, value in (line.partition(":") for line in text.splitlines())
            if key in KEYS
        }
        if len(kib) == len(KEYS):  # else it is about to end
            yield (kib["RssAnon"] + kib["RssShmem"]) / 1024, kib["VmHWM"] / 1024


# ---- what is measured; each in a process that does nothing else


def tables(_count: int) -> None:
    """What `ich prepare` does with names, labels and headers, and its filling of hu.npy, most of which is there."""
    import numpy as np
    import pandas as pd

    from benchmarks.prepare import HEADER
    from ich.data import cache, dicom
    from ich.data.competitions import ADAPTERS
    from ich.data.dicom import Geometry

    raw = ADAPTERS["rsna2019"].raw(Path("input/house"))
    said = pd.read_parquet(next(Path("input/cache").glob("*/slices.parquet")), columns=["path", *STUDY]).set_index(
        "path"
    )
    places = said.loc[raw.files["path"], list(STUDY)].itertuples(index=False)
    headers = [Geometry(patient, study, series, 5.0 * k, k, 12.5, 0.48, 0.48) for patient, study, series, k in places]
    del said, places
    table, _ = cache.slice_table(raw, headers)
    table = table.assign(path="one.dcm")
    lengths = np.bincount(table.groupby(["split", "study_id", "series_id"], sort=False).ngroup())
    done = [cache.Series(np.zeros((n, 5), dtype=np.int32), {}, 0) for n in lengths[:-READ_LAST]]
    hu = np.random.default_rng(7).integers(-1000, 1000, (64, 64)).astype(np.int16)
    dicom.write(Path("one.dcm"), hu, replace(HEADER, image_id="1.2", signed=True, bits_stored=16))
    cache.fill(Path("filled.npy"), table, Path(), 16, "head", 1, lambda _: None, done=done, save=lambda _: None)


def stage(name: str, *, whole: bool = True) -> Callable[[int], None]:
    """A stage's own function: as the command calls it, or (not whole) as it is called for fold 0 of one member."""

    def run(_count: int) -> None:
        from importlib import import_module

        from ich.pipeline.plan import Plan
        from ich.recipe import load

        plan = Plan(load("configs/house.yaml"), Path.cwd())
        module = import_module(f"ich.stages.{name}")
        if whole:
            module.run(plan, force=True)
            return
        member = {"cnn": CNN, "sequence": SEQUENCE, "blend": "blend"}.get(name) or next(
            iter(getattr(plan.recipe, name))
        )
        make = (lambda plan, _, fold, __: module._fold(plan, fold)) if name == "blend" else module.fit_fold
        plan.make(plan.fold(member, 0), lambda fingerprint: make(plan, member, 0, fingerprint), force=True)

    return run


def training_rows(_count: int) -> None:
    """What the network of fold 0 says of the rows that it was trained on."""
    from ich.pipeline.plan import Plan
    from ich.recipe import load
    from ich.stages import cnn

    plan = Plan(load("configs/house.yaml"), Path.cwd())
    cnn.predict_training_rows(plan, CNN, 0, "")


STEPS: Mapping[str, Callable[[int], None]] = {
    "tables": tables,
    "folds": stage("folds"),
    "thresholds": stage("thresholds"),
    "submit": stage("submit"),
    "score": stage("score"),
    "blend": stage("blend", whole=False),
    "stack": stage("stack", whole=False),
    "smooth": stage("smooth", whole=False),
    "sequence": stage("sequence", whole=False),
    "cnn": stage("cnn", whole=False),
    "training rows": training_rows,
}


if __name__ == "__main__":
    STEPS[sys.argv[1]](int(sys.argv[2]))

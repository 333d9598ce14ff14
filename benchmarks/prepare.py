"""`ich prepare` on one core, against reading and copying the files' bytes, and against a plain script.

The files are those of the synthetic competition: uncompressed, 512 x 512, in both encodings, both pixel types and both
kinds of file meta information of RSNA 2019. Ours is the whole stage: headers, slice table, pixels, head crop, resize,
cache, hashes and records. Reading to Hounsfield units is also timed for each kind of file.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pydicom

from benchmarks.harness import Result, compare
from benchmarks.workspace import ich
from ich.cli import app
from ich.data import dicom

SIZE = 256
WINDOWS = ((40, 80), (80, 200), (600, 2800))  # level and width of brain, subdural and bone
RECIPE = """
name: prepare
competition: {{format: rsna2019, root: input/prepare}}
demo: {{train_studies: {studies}, test_studies: 1, slices: 32, size: 512}}
image: {{size: {size}, crop: head}}
cnn: {{resnet: {{backbone: resnet10t}}}}
blend: {{inputs: all}}
compute: {{processes: 1, threads: 1}}
"""


def run(*, quick: bool) -> Iterator[Result]:
    """Warm: the files are in the page cache. Cold: they come from the disk."""
    threads = cv2.getNumThreads()
    with tempfile.TemporaryDirectory(prefix="ich-benchmark-") as folder, contextlib.chdir(folder):
        Path("prepare.yaml").write_text(RECIPE.format(studies=1 if quick else 40, size=SIZE))
        ich(Path(folder), "demo", "prepare.yaml")
        paths = sorted(Path("input").rglob("*.dcm"))
        ways = {
            "ours": lambda: app(["prepare", "prepare.yaml", "--force", "--quiet"], standalone_mode=False),
            "reading and copying": lambda: read_and_copy(paths),
            "a plain script": lambda: plain_script(paths, Path("png")),
        }
        cv2.setNumThreads(1)
        rounds = 1 if quick else 5
        yield compare("prepare, warm", ways, unit="slices", count=len(paths), rounds=rounds)
        if hasattr(os, "posix_fadvise") and not quick:
            os.sync()  # only pages that are on the disk can be dropped
            ways.pop("a plain script")
            yield compare("prepare, cold", ways, unit="slices", count=len(paths), before=lambda: drop(paths))
        for kind, some in kinds(paths).items():
            readers = {"ours": read_units, "reading and copying": read_and_copy, "pydicom": read_by_pydicom}
            ways = {name: partial(reader, some) for name, reader in readers.items()}
            yield compare(f"reading, {kind}", ways, unit="slices", count=len(some), rounds=rounds)
    cv2.setNumThreads(threads)


def drop(paths: Sequence[Path]) -> None:
    """Drop the files from the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def kinds(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """The files by their kind of file meta information."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        with path.open("rb") as file:
            full = file.read(136)[132:] == b"\2\0\0\0"
        found.setdefault("with group length" if full else "without group length", []).append(path)
    return found


def read_units(paths: Sequence[Path]) -> None:
    for path in paths:
        dicom.hounsfield(path)


def read_by_pydicom(paths: Sequence[Path]) -> None:
    for path in paths:
        dataset = pydicom.dcmread(path)
        np.clip(dataset.pixel_array * dataset.RescaleSlope + dataset.RescaleIntercept, dicom.HU_LOW, dicom.HU_HIGH)


def read_and_copy(paths: Sequence[Path]) -> None:
    for path in paths:
        np.frombuffer(path.read_bytes(), np.uint8).copy()


def plain_script(paths: Sequence[Path], folder: Path) -> None:
    """Prepare slices as solutions of the 2019 challenge do: three windows in float64, resized, as PNG."""
    folder.mkdir(exist_ok=True)
    for path in paths:
        dataset = pydicom.dcmread(path)
        hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        channels = [np.clip((hu - level) / width + 0.5, 0, 1) for level, width in WINDOWS]
        image = cv2.resize(np.stack(channels, axis=-1), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{path.stem}.png"), (image * 255).astype(np.uint8))

"""`ich prepare` on one core, against reading, copying and resizing the files, and against a plain script.

The files are those of the synthetic competition: uncompressed, 512 x 512, in both encodings, both pixel types and both
kinds of file meta information of RSNA 2019. Ours is the whole stage: headers, slice table, pixels, head crop, resize,
cache, hashes and records. The limit knows the crop of each slice, and writes nothing.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pandas as pd
import pydicom

from benchmarks.harness import Result, compare
from benchmarks.workspace import ich
from ich.cli import app
from ich.data import dicom
from ich.data.cache import BOX
from ich.data.crop import resized
from ich.pipeline.state import Plan

SIZE = 256
Boxes = dict[str, tuple[int, ...]]  # cache.BOX of each slice
WINDOWS = ((40, 80), (80, 200), (600, 2800))  # level and width of brain, subdural and bone
RECIPE = """
name: prepare
competition: {{format: rsna2019, root: input/prepare}}
demo: {{train_studies: {studies}, test_studies: {studies}, slices: 32, size: 512}}
image: {{size: {size}, crop: head}}
cnn: {{resnet: {{backbone: resnet10t}}}}
blend: {{inputs: all}}
compute: {{processes: 1, threads: 1}}
"""


def run(*, quick: bool) -> Iterator[Result]:
    """Warm: the files are in the page cache. Cold: they come from the disk."""
    threads = cv2.getNumThreads()
    with (
        tempfile.TemporaryDirectory(prefix="ich-benchmark-") as folder,
        contextlib.chdir(folder),
        patch.object(Plan, "cores", 1),
    ):
        Path("prepare.yaml").write_text(RECIPE.format(studies=2 if quick else 32, size=SIZE))
        ich(Path(folder), "demo", "prepare.yaml")
        cv2.setNumThreads(1)
        rounds = 1 if quick else 5
        for kind, paths in kinds(Path("input/prepare")).items():
            boxes = prepare(kind)
            ways = {
                "ours": lambda kind=kind: prepare(kind),
                "reading, copying and resizing": lambda paths=paths, boxes=boxes: read_and_resize(paths, boxes),
                "a plain script": lambda paths=paths: plain_script(paths, Path("png")),
            }
            measured = partial(compare, unit="slices", count=len(paths), rounds=rounds)
            yield measured(f"prepare, {kind}, warm", ways, before=forget)
            if hasattr(os, "posix_fadvise") and not quick:
                os.sync()  # only pages that are on the disk can be dropped
                ways.pop("a plain script")
                yield measured(f"prepare, {kind}, cold", ways, before=lambda paths=paths: drop(paths))
            readers = {"ours": read_units, "reading and copying": read_and_copy, "pydicom": read_by_pydicom}
            yield measured(f"reading, {kind}", {name: partial(reader, paths) for name, reader in readers.items()})
    cv2.setNumThreads(threads)


def prepare(kind: str) -> Boxes:
    """Run the stage on the files of a kind; return the crops that it chose."""
    app(["prepare", "prepare.yaml", "--quiet", "--set", f"competition.root=input/{kind}"], standalone_mode=False)
    table = pd.read_parquet(next(Path("input/cache").glob("*/slices.parquet")))
    return dict(zip(table["image_id"], map(tuple, table[list(BOX)].to_numpy().tolist()), strict=True))


def forget() -> None:
    """Remove the caches, so that the stage starts anew."""
    shutil.rmtree("input/cache", ignore_errors=True)


def drop(paths: Sequence[Path]) -> None:
    """Remove the caches, and drop the files from the page cache."""
    forget()
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def kinds(root: Path) -> dict[str, list[Path]]:
    """Divide a competition by the kind of file meta information, into folders beside it."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.dcm")):
        with path.open("rb") as file:
            kind = "with group length" if file.read(136)[132:] == b"\2\0\0\0" else "without group length"
        link = root.with_name(kind) / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(path)
        found.setdefault(kind, []).append(link)
    for kind, paths in found.items():
        images = {path.stem for path in paths}
        for table in root.glob("stage_2_*.csv"):
            head, *rows = table.read_text().splitlines(keepends=True)
            kept = [row for row in rows if row.partition(",")[0].rpartition("_")[0] in images]
            (root.with_name(kind) / table.name).write_text("".join([head, *kept]))
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


def read_and_resize(paths: Sequence[Path], boxes: Boxes) -> None:
    for path in paths:
        row, column, side, rows, columns = boxes[path.stem]
        pixels = np.frombuffer(path.read_bytes()[-2 * rows * columns :], np.int16)  # the slice of bytes is the copy
        resized(pixels.reshape(rows, columns), (row, column, side), SIZE)


def plain_script(paths: Sequence[Path], folder: Path) -> None:
    """Prepare slices as solutions of the 2019 challenge do: three windows in float64, resized, as PNG."""
    folder.mkdir(exist_ok=True)
    for path in paths:
        dataset = pydicom.dcmread(path)
        hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        channels = [np.clip((hu - level) / width + 0.5, 0, 1) for level, width in WINDOWS]
        image = cv2.resize(np.stack(channels, axis=-1), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{path.stem}.png"), (image * 255).astype(np.uint8))

"""Raw DICOM files to the HU cache, on one core: against reading and copying their bytes, and against a plain script.

What is timed as ours is all that `ich prepare` does with files: headers, slice table, pixels, head crop, resize,
checksums, rows of hu.npy. The files are written first, uncompressed, 512 x 512, in both encodings and pixel kinds that
RSNA 2019 has.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom

from benchmarks.race import OURS, Race, race
from ich.data import cache, dicom
from ich.data.competitions import Raw
from ich.data.dicom import Geometry, SliceHeader, Unreadable

SIDE, SIZE, SERIES, SLICES = 512, 256, 12, 32
TABLE = 100_000  # slices of the table whose making is timed apart
WINDOWS = ((40, 80), (80, 200), (600, 2800))  # brain, subdural, bone: centre and width
LIMIT, SCRIPT = "reading and copying", "a plain script"
HEADER = SliceHeader(
    image_id="",
    patient_id="",
    study_id="",
    series_id="",
    position=(-125.0, -125.0, 0.0),
    orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    pixel_spacing=(0.488281, 0.488281),
    bits_stored=12,
    signed=False,
    slope=1.0,
    intercept=-1024.0,
    window_center=(40.0,),
    window_width=(80.0,),
    explicit_vr=False,
)


def races(*, quick: bool) -> Iterator[Race]:
    """Warm: the files are in the page cache. Cold: they are not, and the disk decides."""
    series, slices, rounds = (2, 6, 1) if quick else (SERIES, SLICES, 7)
    with tempfile.TemporaryDirectory(prefix="ich-benchmark-") as folder, one_thread():
        ours = Ours(Path(folder, "raw"), Path(folder, "hu.npy"), series, slices)
        paths = [ours.root / path for path in ours.raw.files["path"]]
        ways = {OURS: ours, LIMIT: lambda: limit(paths), SCRIPT: lambda: script(paths, Path(folder, "png"))}
        count, wanted = len(paths), {LIMIT: 0.35, SCRIPT: 30}
        found = race(
            "prepare, warm", ways, unit="slices", count=count, rounds=rounds, wanted=wanted, clock=ours.outside.clock
        )
        notes = ours.notes() | {"slice table, not timed above, ms a slice": ours.table_cost(1_000 if quick else TABLE)}
        yield replace(found, notes=notes)
        if hasattr(os, "posix_fadvise"):
            yield cold(ours, paths, rounds=1 if quick else 5)


def cold(ours: "Ours", paths: Sequence[Path], rounds: int) -> Race:
    """Against the limit with files that have to come from the disk, for headers and then again for pixels."""

    def forget() -> None:
        with ours.outside:
            for path in paths:
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def ours_cold() -> None:
        forget()
        ours(between=forget)

    def limit_cold() -> None:
        forget()
        limit(paths)

    os.sync()  # what is not on the disk yet cannot be forgotten
    ways, clock = {OURS: ours_cold, LIMIT: limit_cold}, ours.outside.clock
    ours.parts.clear()
    found = race("prepare, cold", ways, unit="slices", count=len(paths), rounds=rounds, clock=clock)
    return replace(found, notes=ours.notes())


class Outside:
    """A clock that stands still in `with outside`."""

    def __init__(self) -> None:
        self.spent = self.entered = 0.0

    def clock(self) -> float:
        return time.perf_counter() - self.spent

    def __enter__(self) -> None:
        self.entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.spent += time.perf_counter() - self.entered


class Ours:
    """What `ich prepare` does from the list of files to hu.npy.

    The slice table is not timed with the rest: few slices bear its fixed cost that many do not feel (`table_cost`).
    """

    def __init__(self, root: Path, target: Path, series: int, slices: int) -> None:
        self.root, self.target, self.outside = root, target, Outside()
        self.raw = competition(root, series, slices)
        self.parts: dict[str, list[float]] = {}  # seconds at each call

    def __call__(self, between: Callable[[], None] = lambda: None) -> None:
        """between: is called before the pixels are read."""
        with self.outside:
            self.target.unlink(missing_ok=True)
        started = time.perf_counter()
        geometries = self.headers()
        self.parts.setdefault("headers", []).append(time.perf_counter() - started)
        with self.outside:
            table, refused = cache.slice_table(self.raw, geometries)
        between()
        started = time.perf_counter()
        _, unread = cache.fill(self.target, table, self.root, SIZE, "head", 1, lambda _: None)
        self.parts.setdefault("pixels", []).append(time.perf_counter() - started)
        assert not refused + unread

    def headers(self) -> list[Geometry | Unreadable]:
        return cache.read_geometries(self.root, self.raw.files["path"].tolist(), 1, lambda _: None)

    def notes(self) -> dict[str, float]:
        """By part, median milliseconds a slice; the first call warms up."""
        count = len(self.raw.files)
        return {
            f"{part}, ms a slice": round(1e3 * float(np.median(seconds[1:])) / count, 4)
            for part, seconds in self.parts.items()
        }

    def table_cost(self, count: int) -> float:
        """Milliseconds a slice that the slice table of `count` slices takes."""
        known = [one for one in self.headers() if isinstance(one, Geometry)]
        names = [f"ID_{k:09x}" for k in range(count)]
        files = pd.DataFrame({"image_id": names, "split": "train", "path": [f"{name}.dcm" for name in names]})
        many = Raw(files, pd.DataFrame({"image_id": names, "any": 0.0}), [], self.raw.classes, "", ())
        study = [f"ID_{k // SLICES:010x}" for k in range(count)]
        headers = [replace(known[k % len(known)], study_id=s, series_id=s) for k, s in enumerate(study)]
        started = time.perf_counter()
        cache.slice_table(many, headers)
        return round(1e3 * (time.perf_counter() - started) / count, 4)


def competition(root: Path, series: int, slices: int) -> Raw:
    """Write heads as DICOM files: 12-bit unsigned and 16-bit signed series, implicit and explicit VR in turn."""
    random = np.random.default_rng(7)
    root.mkdir()
    names: list[str] = []
    for s in range(series):
        signed, explicit = s % 2 == 1, s // 2 % 2 == 1
        header = replace(
            HEADER,
            patient_id=f"ID_{s:08x}",
            study_id=f"ID_{s:010x}",
            series_id=f"ID_{s + 4096:010x}",
            explicit_vr=explicit,
            **({"signed": True, "bits_stored": 16, "intercept": 0.0} if signed else {}),
        )
        for k in range(slices):
            hu = head(random, 1 - abs(2 * k / slices - 1))
            stored = hu if signed else np.clip(hu + 1024, 0, 4095).astype(np.uint16)
            names.append(f"ID_{random.integers(16**9):09x}")
            place = replace(header, image_id=names[-1], position=(-125.0, -125.0, 5.0 * k))
            dicom.write(root / f"{names[-1]}.dcm", stored, place)
    names.sort()
    files = pd.DataFrame({"image_id": names, "split": "train", "path": [f"{name}.dcm" for name in names]})
    labels = pd.DataFrame({"image_id": names, "any": 0.0})
    return Raw(files, labels, [], {"any": 1.0}, "", ())


def head(random: np.random.Generator, height: float) -> np.ndarray:
    """int16 [SIDE, SIDE] Hounsfield units: brain, skull and scalp in noise, above a table; `height` 0 at the ends."""
    y, x = np.mgrid[:SIDE, :SIDE]
    radius = np.hypot((y - 240) / 1.2, x - 256) / (60 + 112 * height)
    hu = np.select([radius < 0.88, radius < 0.97, radius < 1], [35, 1100, 60], -1000)
    hu[470:476] = 200
    return (hu + random.normal(0, 6, hu.shape)).astype(np.int16)


def limit(paths: Iterable[Path]) -> None:
    """Each file's bytes into memory, and a copy of them."""
    for path in paths:
        np.frombuffer(path.read_bytes(), np.uint8).copy()


def script(paths: Iterable[Path], folder: Path) -> None:
    """As solutions of the 2019 challenge prepare a slice: three windows of 64-bit floats, resized, as PNG."""
    folder.mkdir(exist_ok=True)
    for path in paths:
        dataset = pydicom.dcmread(path)
        hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        channels = np.stack([windowed(hu, centre, width) for centre, width in WINDOWS], axis=-1)
        picture = cv2.resize(channels, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{path.stem}.png"), (picture * 255).astype(np.uint8))


def windowed(hu: np.ndarray, centre: float, width: float) -> np.ndarray:
    """0 to 1; clipped by masks, as they mostly do it."""
    low, high = centre - width / 2, centre + width / 2
    picture = hu.copy()
    picture[picture < low] = low
    picture[picture > high] = high
    return (picture - low) / (high - low)


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV on one core, as each process of `ich prepare` uses it."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)

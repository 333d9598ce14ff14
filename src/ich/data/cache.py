"""From raw files to one int16 memory map of Hounsfield units and the slice table that says what its rows are."""

import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pandas as pd

from ich.data import dicom, pictures, rows
from ich.data.competitions import Choice, Raw
from ich.data.crop import AIR, BLACK, Piece, box_around, edge_box, head_piece, resize_all
from ich.data.dicom import Geometry, Reason, Unreadable
from ich.data.files import BadArchive, ahead, located
from ich.processes import side_by_side

CHUNK = 64  # files a task
BLOCK = 8  # pictures written at once, which the processor's cache holds
HELD = 31 << 20  # bytes; 32 MiB are M_MMAP_THRESHOLD's maximum, mallopt(3)
SAVE_EVERY = 30.0  # seconds
SAME_PLACE = 1e-3  # mm; positions nearer than this are one place, the rest is rounding
Frames = Callable[[Path, Sequence[int]], list[np.ndarray | Unreadable]]
READERS: dict[str, tuple[Callable[[Path], Geometry], Frames]] = {
    "hu": (dicom.geometry, dicom.hounsfields),
    "grey": (pictures.geometry, lambda path, _: [pictures.grey(path)]),
}  # of Raw.values: header, and pixels of some frames
ID_OF = {"slice": "image_id", "study": "study_id"}  # what Raw.level joins labels by
Progress = Callable[[int], None]
Crop = Literal["head", "edges", "none"]


@dataclass(frozen=True)
class Quarantined:
    """A file, or a promised image without a file, that the run goes on without."""

    image_id: str
    split: str
    path: str
    reason: str
    detail: str


def read_header(path: Path, values: str = "hu") -> Geometry:
    """Identity and place of a file or a member of an archive; `values` as in Raw. Raises Unreadable."""
    return _read(READERS[values][0], path)


def read_frames(path: Path, frames: Sequence[int], values: str = "hu") -> list[np.ndarray | Unreadable]:
    """int16 [rows, columns] of each frame: Hounsfield units, or grey values 0..255; a refused one gives why."""
    try:
        return _read(lambda file: READERS[values][1](file, frames), path)
    except Unreadable as refusal:
        return [refusal] * len(frames)


def _read(reader: Callable[[Path], Any], path: Path) -> Any:
    try:
        with located(path) as file:
            return reader(file)
    except BadArchive as error:
        raise Unreadable(Reason.UNREADABLE, str(error)) from None


def read_geometries(
    root: Path, paths: Sequence[str], jobs: int, on_done: Progress, values: str = "hu"
) -> list[Geometry | Unreadable]:
    """The header of each file, in order; a file that cannot serve gives its Unreadable."""
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    found: list[Geometry | Unreadable] = []
    for part in side_by_side(_geometries, ((root, chunk, values) for chunk in chunks), jobs):
        found += part
        on_done(len(part))
    return found


def _geometries(root: Path, paths: Sequence[str], values: str) -> list[Geometry | Unreadable]:
    found: list[Geometry | Unreadable] = []
    for path in paths:
        try:
            found.append(read_header(root / path, values))
        except Unreadable as refusal:
            found.append(refusal)
    return found


def slice_table(raw: Raw, geometries: Sequence[Geometry | Unreadable]) -> tuple[pd.DataFrame, list[Quarantined]]:
    """The slice table of the readable headers, and what was refused.

    Columns: image_id, patient_id, study_id, series_id, position (mm), index, n_slices, split, tilt (degrees),
    row_spacing, column_spacing (mm), a float32 column a class (NaN: unlabelled), frame, path. Each frame of a
    multi-frame file is a slice, its image_id that of the file with `#<frame>`, from 0. Slices of a series stand
    together, in order of position; a series of which a slice has no position is ordered by instance number. Slices at
    one place stand in the order of their acquisitions, then of instance number and image id. Labels of studies are
    given to each slice of the study.
    """
    classes = list(raw.classes)
    headers = [(i, g) for i, first in enumerate(geometries) for g in _frames(first)]
    refused = _quarantined(raw.files, {i: g for i, g in enumerate(geometries) if isinstance(g, Unreadable)})
    table = raw.files.iloc[[i for i, _ in headers]].reset_index(drop=True)
    several = [isinstance(first := geometries[i], Geometry) and bool(first.further) for i, _ in headers]
    numbered = [f"{name}#{g.frame}" for name, (_, g) in zip(table["image_id"], headers, strict=True)]
    table["image_id"] = table["image_id"].mask(np.array(several, dtype=bool), pd.Series(numbered, dtype="str"))
    said = pd.DataFrame([vars(g) for _, g in headers], columns=list(Geometry.__annotations__))
    table = pd.concat([table, said], axis=1).merge(raw.labels, on=ID_OF[raw.level], how="left", validate="many_to_one")
    if table["image_id"].duplicated().any():
        twice = table.loc[table["image_id"].duplicated(), "image_id"].iloc[0]
        raise ValueError(f"image {twice} lies in two folders; keep one of its files")
    table[classes] = table[classes].astype("float32")
    table.loc[table["study_id"].isin(raw.test_studies), "split"] = "test"
    table.loc[table["split"] == "test", classes] = np.nan
    table = _ordered(table)
    columns = ["image_id", "patient_id", "study_id", "series_id", "position", "index", "n_slices", "split"]
    columns += ["tilt", "row_spacing", "column_spacing", *classes, "frame", "path"]
    return table[columns], refused + _without_file(raw, table)


def _frames(first: Geometry | Unreadable) -> tuple[Geometry, ...]:
    return (first, *first.further) if isinstance(first, Geometry) else ()


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    table = table.astype(dict.fromkeys(("position", "acquisition", "instance"), "float64"))
    series = table.groupby(["split", "study_id", "series_id"], sort=False)
    placed = series["position"].transform("count") == series["position"].transform("size")
    table = table.assign(
        order=(table["position"] / SAME_PLACE).round().where(placed, table["instance"]),
        is_test=table["split"] == "test",
    )
    keys = ["is_test", "study_id", "series_id", "order", "acquisition", "instance", "image_id"]
    return _counted(table.sort_values(keys, ignore_index=True, kind="stable"))


def chosen(table: pd.DataFrame, choice: Choice) -> tuple[pd.DataFrame, list[Quarantined]]:
    """The slices of a slice table that a competition's `choose` keeps, counted anew, and the others with why."""
    reasons = {i: Unreadable(Reason[name.upper()], detail) for i, (name, detail) in choice.reasons.items()}
    return _counted(table[choice.keep.to_numpy()].reset_index(drop=True)), _quarantined(table, reasons)


def _counted(table: pd.DataFrame) -> pd.DataFrame:
    """The table with each slice's place in its series and the series' length; series stand together and in order."""
    series = table.groupby(["split", "study_id", "series_id"], sort=False)
    counts = series["image_id"].transform("size").astype("int32")
    return table.assign(index=series.cumcount().astype("int32"), n_slices=counts)


def without_overlap(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """A slice table without the training studies of patients who are in the test set too, and a note that counts."""
    train = table["split"] == "train"
    both = train & table["patient_id"].isin(table.loc[~train, "patient_id"])
    counts = table.loc[both, ["patient_id", "study_id", "image_id"]].nunique()
    note = (
        f"{counts['patient_id']} patients of the test set are in the training set too: their {counts['study_id']}"
        f" training studies ({counts['image_id']} slices) are left out"
    )
    return table[~both].reset_index(drop=True), note if both.any() else ""


def _quarantined(files: pd.DataFrame, refused: Mapping[int, Unreadable]) -> list[Quarantined]:
    """The refused rows of a table with image_id, split and path."""
    names = files[["image_id", "split", "path"]].astype(str).to_numpy()
    reasons = {i: (refused[i].reason.name.lower(), refused[i].detail) for i in sorted(refused)}
    return [Quarantined(names[i, 0], names[i, 1], names[i, 2], *reason) for i, reason in reasons.items()]


def _without_file(raw: Raw, table: pd.DataFrame) -> list[Quarantined]:
    """Images (studies) that the labels or the sample submission name and that have no file (no readable one)."""
    present = set(raw.files["image_id"]) | set(table["image_id"])
    present |= set(table["study_id"]) if raw.level == "study" else set()
    promised = [("train", i) for i in raw.labels[ID_OF[raw.level]]] + [("test", i) for i in raw.test_ids]
    reason = Reason.LABEL_WITHOUT_FILE.name.lower()
    return [Quarantined(i, split, "", reason, "") for split, i in promised if i not in present]


@dataclass(frozen=True)
class Series:
    """A series that is in the file: BOX of each of its slices, int32 [n, 5]; those that were refused, by place in it.

    checksum: CRC-32 of the rows of the others.
    """

    boxes: np.ndarray
    refused: Mapping[int, Unreadable]
    checksum: int

    @property
    def rows(self) -> int:
        """How many rows it has in the end."""
        return len(self.boxes) - len(self.refused)


def to_bytes(series: Sequence[Series]) -> bytes:
    """JSON."""
    values = [
        {
            "boxes": one.boxes.tolist(),
            "refused": {str(i): [why.reason.name, why.detail] for i, why in one.refused.items()},
            "checksum": one.checksum,
        }
        for one in series
    ]
    return json.dumps(values, separators=(",", ":")).encode()


def from_bytes(data: bytes) -> list[Series]:
    """What `to_bytes` was given."""
    return [
        Series(
            np.array(value["boxes"], dtype=np.int32),
            {int(i): Unreadable(Reason[name], detail) for i, (name, detail) in value["refused"].items()},
            value["checksum"],
        )
        for value in json.loads(data)
    ]


def intact(target: Path, size: int, series: Sequence[Series], on_done: Progress) -> list[Series]:
    """Of the series that a killed `fill` kept, those before the first whose rows are not what it wrote."""
    found: list[Series] = []
    if target.is_file():
        for one, checksum in zip(series, rows.checksums(target, size, (one.rows for one in series)), strict=True):
            if checksum != one.checksum:
                break
            found.append(one)
            on_done(len(one.boxes))
    return found


def fill(
    target: Path,
    table: pd.DataFrame,
    root: Path,
    size: int,
    crop: Crop,
    jobs: int,
    on_done: Progress,
    values: str = "hu",
    *,
    done: Sequence[Series] = (),
    save: Callable[[Sequence[Series]], None] | None = None,
) -> tuple[pd.DataFrame, list[Quarantined]]:
    """Write `target` (.npy, int16 [n, size, size]) series by series; row i belongs to row i of the returned table.

    values: hu: Hounsfield units; grey: grey values 0..255.
    crop: head: one square around the head in all slices of a series (of grey pictures: the whole); edges: a square a
    slice, without its black edges, so that slices of a series no longer lie over one another; none: the whole picture.

    The returned table has lost the slices whose pixels could not be read and gained the crop: crop_row, crop_column
    and crop_side, in pixels of the raw slice (rows x columns of it in raw_rows, raw_columns).

    done: the first series, which an earlier call for the same table left in `target`; they are not read again.
    save: is given the first series every SAVE_EVERY seconds, once they are on the disk, and at the end, however it
    comes (then without waiting for the disk: after a power cut `intact` finds what did not reach it).

    Series are written side by side where the table has them. One after the other they then move up to their last
    place, by as many rows as were refused before. So no row that was saved is touched again, whenever the kill comes.
    Processes that outlive a killed call for a moment write the same bytes to rows of series that were not saved; they
    are gone long before the next call, which begins these anew, moves the first of them.
    """
    finished, groups = list(done), _series(table)
    places = [(root / path, int(frame)) for path, frame in zip(table["path"], table["frame"], strict=True)]
    left = groups[len(finished) :]
    tasks = ((target, group, [places[i] for i in group], size, crop, values) for group in left)
    end, saved = sum(one.rows for one in finished), time.monotonic()
    rows.reserve(target, (len(table), size, size))
    try:
        for group, one in zip(left, side_by_side(_fill_series, tasks, jobs), strict=True):
            rows.move_up(target, np.delete(group, list(one.refused)), end)
            finished.append(one)
            end += one.rows
            on_done(len(group))
            if save is not None and time.monotonic() - saved >= SAVE_EVERY:
                rows.keep(target)
                save(finished)
                saved = time.monotonic()
    finally:
        if save is not None and finished:
            save(finished)
    rows.cut(target, (end, size, size))
    boxes = np.concatenate([one.boxes for one in finished])
    table = table.assign(**dict(zip(BOX, boxes.T, strict=True)))
    refused = {
        int(group[i]): why for group, one in zip(groups, finished, strict=True) for i, why in one.refused.items()
    }
    if not refused:
        return table, []
    quarantined = _quarantined(table, refused)
    return _counted(table.drop(index=list(refused)).reset_index(drop=True)), quarantined


def _series(table: pd.DataFrame) -> list[np.ndarray]:
    """The rows of each series, in order; they stand together."""
    codes = table.groupby(["split", "study_id", "series_id"], sort=False).ngroup().to_numpy()
    return np.split(np.arange(len(table)), np.flatnonzero(np.diff(codes)) + 1)


BOX = ("crop_row", "crop_column", "crop_side", "raw_rows", "raw_columns")


def _fill_series(
    target: Path, group: np.ndarray, places: Sequence[tuple[Path, int]], size: int, crop: Crop, values: str
) -> Series:
    cv2.setNumThreads(1)
    # From now on malloc keeps what it is given back. Each series in new pages would take twice as long.
    np.empty(HELD, np.uint8)
    slices: dict[int, np.ndarray] = {}
    refused: dict[int, Unreadable] = {}
    heads: dict[tuple[int, ...], list[Piece]] = {}  # by shape of the slice
    parts = [list(part) for _, part in groupby(enumerate(places), key=lambda item: item[1][0])]
    for path, some in zip(ahead([part[0][1][0] for part in parts]), parts, strict=True):
        for (i, _), picture in zip(some, read_frames(path, [frame for _, (_, frame) in some], values), strict=True):
            if isinstance(picture, Unreadable):
                refused[i] = picture
                continue
            slices[i] = picture
            if crop == "head" and values == "hu":
                heads.setdefault(picture.shape, []).append(head_piece(picture))
    found = {shape: box_around(pieces, shape) for shape, pieces in heads.items()}
    boxes = np.zeros((len(group), 5), dtype=np.int32)
    for i, picture in slices.items():
        box = found.get(picture.shape, (0, 0, max(picture.shape)))
        boxes[i] = (*(edge_box(picture, BLACK[values]) if crop == "edges" else box), *picture.shape)
    return Series(boxes, refused, _write_series(target, int(group[0]), slices, boxes, size, values))


def _write_series(
    target: Path, first: int, slices: Mapping[int, np.ndarray], boxes: np.ndarray, size: int, values: str
) -> int:
    """Write the squares of slices, by place in the series that begins with row `first`; CRC-32 of all of them.

    At once: neighbours with one box, a few of them.
    """
    checksum = 0
    with target.open("r+b") as file:
        for _, run in groupby(enumerate(slices), key=lambda at: (at[1] - at[0], tuple(boxes[at[1]]))):
            ids = [i for _, i in run]
            for some in (ids[k : k + BLOCK] for k in range(0, len(ids), BLOCK)):
                block = np.empty((len(some), size, size), np.int16)
                row, column, side = boxes[some[0], :3].tolist()
                resize_all([slices[i] for i in some], (row, column, side), AIR if values == "hu" else 0, block)
                checksum = zlib.crc32(block.data, checksum)
                rows.put(file, first + some[0], block)
    return checksum

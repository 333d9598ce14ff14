"""The HU cache: shards of int16 slices, each with whole series."""

import errno
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, Literal, Self

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich import errors
from ich.data import dicom, images
from ich.data.crop import AIR, BLACK, Piece, box_around, edge_box, head_piece, resize_all
from ich.data.dicom import Reason, Unreadable
from ich.data.files import ahead, located
from ich.data.slice_table import SERIES, Progress, Quarantined, quarantine_list, with_indices
from ich.processes import run_parallel
from ich.store.atomic import atomic
from ich.store.hashes import digest, remember, sha256_file
from ich.store.records import read_record, record_text

SHARD_BYTES = 1 << 27  # of pixels: 1,024 slices of 256 x 256
LEAST_SHARDS = 32  # of a small competition, so that every core has some
PARTS = LEAST_SHARDS  # steps that write the shards, on several machines
MOST_HELD = 1 << 28  # bytes of raw slices of a series; the rest of a longer series is read twice
HELD = 31 << 20  # bytes; 32 MiB are M_MMAP_THRESHOLD's maximum, mallopt(3)
BOX = ("crop_row", "crop_column", "crop_side", "raw_rows", "raw_columns")
Places = list[tuple[str, int, int]]  # path below the competition's folder, crc and frame, for each slice of a series
ShardTask = tuple[Path, str, Path, list[Places], "ImageFormat"]  # arguments of `write_shard`


@dataclass(frozen=True)
class ImageFormat:
    """The pixels of the cached slices.

    size: rows and columns.
    crop: "head": one square around the head for all slices of a series (grey images are not cropped). "edges": one
    square per slice without its black edges, so that the slices of a series are not aligned. "none": the whole slice.
    values: "hu": Hounsfield units. "grey": grey values 0..255.
    """

    size: int
    crop: Literal["head", "edges", "none"] = "none"
    values: str = "hu"


def read_frames(
    path: Path, frames: Sequence[int], values: str = "hu", crc: int | None = None
) -> Iterator[np.ndarray | Unreadable]:
    """Yield frames as int16 [rows, columns] of Hounsfield units or grey values; Unreadable for each rejected one.

    crc: that of the file's Geometry, if it was read before.
    """
    read = 0
    try:
        with located(path) as file:
            for found in dicom.hounsfields(file, frames, crc) if values == "hu" else [images.grey(file, crc)]:
                read += 1
                yield found
    except Unreadable as refusal:
        yield from [refusal] * (len(frames) - read)


def shard_name(number: int) -> str:
    return f"hu-{number:05}.npy"


def note(shard: Path) -> Path:
    """The note next to a shard of an unfinished cache."""
    return shard.with_suffix(".json")


def notes(folder: Path) -> list[Path]:
    """All notes of an unfinished cache; they are removed once its record is written."""
    return sorted(folder.glob("hu-*.json"))


@dataclass(frozen=True)
class Shard:
    """A written shard: BOX of each slice, int32 [n, 5], and the unreadable slices by their number in the shard."""

    boxes: NDArray[np.int32]
    unread: Mapping[int, Unreadable]
    sha256: str
    reused: bool


def write_shards(
    folder: Path,
    table: pd.DataFrame,
    root: Path,
    image: ImageFormat,
    jobs: int,
    on_done: Progress,
    fingerprint: str = "",
) -> tuple[pd.DataFrame, list[Quarantined], int]:
    """Write the pixels of a slice table as shards, int16 [rows, size, size]; a shard holds whole series, in order.

    Returns the table without the unreadable slices, with `shard`, `shard_row` and the crop (crop_row, crop_column and
    crop_side, in pixels of the raw slice of raw_rows x raw_columns); the unreadable slices; and the number of slices
    in finished shards of an earlier call with the same fingerprint, which are reused.

    A shard is written atomically and depends on its own files alone. So the folder has the same bytes in the end,
    with any number of processes and after any number of kills.
    """
    boxes, numbers, unread, reused = [], list[int](), {}, 0
    for k, written in enumerate(run_parallel(write_shard, shard_tasks(folder, table, root, image, fingerprint), jobs)):
        remember(folder / shard_name(k), written.sha256)
        unread |= {len(numbers) + i: why for i, why in written.unread.items()}
        count = len(written.boxes)
        boxes.append(written.boxes)
        numbers += [k] * count
        reused += count if written.reused else 0
        on_done(count)
    table = table.drop(columns="crc").assign(
        shard=np.array(numbers, np.int32), shard_row=0, **dict(zip(BOX, np.concatenate(boxes).T, strict=True))
    )
    refused = quarantine_list(table, unread)
    if unread:
        table = with_indices(table.drop(index=list(unread)).reset_index(drop=True))
    return table.assign(shard_row=table.groupby("shard").cumcount().astype("int32")), refused, reused


def shard_tasks(folder: Path, table: pd.DataFrame, root: Path, image: ImageFormat, fingerprint: str) -> list[ShardTask]:
    """Return the arguments of `write_shard` for each shard, and remove other shards from the folder.

    For `write_shards`, and for machines that write some of the shards before it, which it then reuses. The rows of a
    series are adjacent in the table. Raises UserError if the disk is too small.
    """
    places = list(zip(table["path"], table["crc"].tolist(), table["frame"].astype(int).tolist(), strict=True))
    codes = table.groupby(SERIES, sort=False).ngroup().tolist()
    most = min(SHARD_BYTES // (2 * image.size**2), -(-len(places) // LEAST_SHARDS))
    shards: list[list[Places]] = []
    filled = 0
    for _, rows in groupby(range(len(places)), codes.__getitem__):
        series = [places[i] for i in rows]
        if not shards or filled + len(series) > most:
            shards.append([])
            filled = 0
        shards[-1].append(series)
        filled += len(series)
    paths = [folder / shard_name(k) for k in range(len(shards))]
    for path in set(folder.glob("hu-*.npy")) - set(paths):
        path.unlink(missing_ok=True)
    _require_space(folder, 2 * image.size**2 * len(places))
    return [(path, fingerprint, root, shard, image) for path, shard in zip(paths, shards, strict=True)]


def _require_space(folder: Path, size: int) -> None:
    """Raise UserError if the disk cannot hold `size` bytes of shards, including those already there."""
    folder.mkdir(parents=True, exist_ok=True)
    there = sum(path.stat().st_size for path in folder.glob("hu-*.npy"))
    if size - there > shutil.disk_usage(folder).free:
        full = OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({(size - there) / 1e9:.3g} GB are needed)")
        raise errors.refused(folder, full)


def write_shard(path: Path, fingerprint: str, root: Path, series: list[Places], image: ImageFormat) -> Shard:
    """Write a shard and a note by which a later call can reuse it; or reuse it."""
    fingerprint = digest([fingerprint, image.size, image.crop, image.values, series])
    known = read_record(note(path))
    if known and known["fingerprint"] == fingerprint and path.is_file() and sha256_file(path) == known["shard"]:
        unread = {int(i): Unreadable(Reason[name], detail) for i, (name, detail) in known["unread"].items()}
        found = np.frombuffer(bytes.fromhex(known["boxes"]), np.int32).reshape(-1, len(BOX))
        return Shard(found, unread, known["shard"], reused=True)
    cv2.setNumThreads(1)
    # From now on malloc keeps freed memory. New pages for each series would take twice as long.
    np.empty(HELD, np.uint8)
    boxes: list[list[int]] = []
    unread: dict[int, Unreadable] = {}
    with atomic(path) as temporary:
        with temporary.open("wb") as file:
            hasher = hashlib.sha256()

            def write(data: bytes | memoryview) -> None:
                hasher.update(data)
                file.write(data)

            write(_header(sum(map(len, series)), image.size))
            for places in series:
                of_series, lost = _write_series(write, root, places, image)
                unread |= {len(boxes) + i: why for i, why in lost.items()}
                boxes += of_series
            if unread:
                file.seek(0)
                file.write(_header(len(boxes) - len(unread), image.size))
        written = sha256_file(temporary) if unread else hasher.hexdigest()
        reasons = {str(i): [why.reason.name, why.detail] for i, why in unread.items()}
        found = np.array(boxes, np.int32)
        # A note that is cut off by a kill is ignored, and so is one whose shard differs. So it needs no fsync.
        known = {"fingerprint": fingerprint, "shard": written, "boxes": found.tobytes().hex(), "unread": reasons}
        note(path).write_text(record_text(known))
    return Shard(found, unread, written, reused=False)


def _header(rows: int, size: int) -> bytes:
    """The header of a .npy file; numpy pads it, so that its length does not depend on `rows`."""
    kind = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int16)), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file := io.BytesIO(), kind | {"shape": (rows, size, size)})
    return file.getvalue()


def _write_series(
    write: Callable[[bytes | memoryview], object], root: Path, places: Places, image: ImageFormat
) -> tuple[list[list[int]], dict[int, Unreadable]]:
    """Write the cropped slices of a series; returns BOX of each slice, and the unreadable ones by their number."""
    held: dict[int, np.ndarray] = {}
    unread: dict[int, Unreadable] = {}
    heads: dict[tuple[int, ...], list[Piece]] = {}  # by shape of the slice
    boxes, readable, size = [[0] * len(BOX) for _ in places], list[int](), 0
    for i, raw in _read_series(root, places, image.values):
        if isinstance(raw, Unreadable):
            unread[i] = raw
            continue
        readable.append(i)
        box = edge_box(raw, BLACK[image.values]) if image.crop == "edges" else (0, 0, max(raw.shape))
        boxes[i] = [*box, *raw.shape]
        if image.crop == "head" and image.values == "hu":
            heads.setdefault(raw.shape, []).append(head_piece(raw))
        size += raw.nbytes
        if size <= MOST_HELD:
            held[i] = raw
    around = {shape: box_around(pieces, shape) for shape, pieces in heads.items()}
    for i in readable:
        shape = tuple(boxes[i][3:])
        boxes[i] = [*around.get(shape, boxes[i][:3]), *shape]
    beyond, again = AIR if image.values == "hu" else 0, readable[len(held) :]
    slices = chain(
        held.values(), (_same(raw) for _, raw in _read_series(root, [places[i] for i in again], image.values))
    )
    for box, run in groupby(readable, key=lambda i: boxes[i]):
        row, column, side, *_ = box
        for block in resize_all(islice(slices, len(list(run))), (row, column, side), beyond, image.size):
            write(block.data)
    return boxes, unread


def _read_series(root: Path, places: Places, values: str) -> Iterator[tuple[int, np.ndarray | Unreadable]]:
    """Yield each slice of a series with its number."""
    files = [(file, list(frames)) for file, frames in groupby(enumerate(places), key=lambda item: item[1][:2])]
    for path, ((_, crc), frames) in zip(ahead([root / name for (name, _), _ in files]), files, strict=True):
        found = read_frames(path, [frame for _, (*_, frame) in frames], values, crc)
        yield from zip([i for i, _ in frames], found, strict=True)


def _same(raw: np.ndarray | Unreadable) -> np.ndarray:
    """Return a slice that could be read before. Raises UserError if it cannot be read again."""
    if isinstance(raw, Unreadable):
        raise errors.UserError(f"a raw file changed while it was read ({raw}). Run `ich prepare` again")
    return raw


class HuCache:
    """The slices of a HU cache as one array int16 [n, S, S], in the order of its slice table.

    A row number gives a view [S, S]; an array of them, or a slice, gives a copy. A shard is mapped into memory when it
    is first read. Unpickled in another process, the cache maps the shards again.
    """

    dtype = np.dtype(np.int16)

    def __init__(self, folder: Path, shard: NDArray[np.integer], row: NDArray[np.integer]) -> None:
        """shard, row [n]: each slice's shard and row in it. Raises UserError if the first shard is damaged."""
        self.folder, self._shard, self._row = folder, shard, row
        self._counts = np.bincount(shard)
        self._mapped: dict[int, NDArray[np.int16]] = {}
        self.shape = (len(shard), 0, 0)
        self.shape = (len(shard), *self._map(int(shard[0])).shape[1:])

    @classmethod
    def open(cls, folder: Path, table: pd.DataFrame) -> Self:
        """Open the cache in `folder`; `table` has the columns shard and shard_row of its slice table."""
        return cls(folder, table["shard"].to_numpy(), table["shard_row"].to_numpy())

    def __len__(self) -> int:
        return len(self._shard)

    def __getitem__(self, rows: Any) -> NDArray[np.int16]:
        if isinstance(rows, int | np.integer):
            return self._map(int(self._shard[rows]))[self._row[rows]]
        shards, places = self._shard[rows], self._row[rows]
        found = np.empty((*shards.shape, *self.shape[1:]), np.int16)
        for shard in np.unique(shards):
            inside = shards == shard
            found[inside] = self._map(int(shard))[places[inside]]
        return found

    def _map(self, number: int) -> NDArray[np.int16]:
        if number not in self._mapped:
            path, (_, side, _) = self.folder / shard_name(number), self.shape
            with errors.parsing(path, "delete it and run `ich prepare` again"):
                found = np.load(path, mmap_mode="r", allow_pickle=False)
                rows, size = self._counts[number], side or found.shape[-1]
                if found.dtype != np.int16 or found.shape != (rows, size, size):
                    raise ValueError(f"{found.dtype} {list(found.shape)}, not int16 [{rows}, {size}, {size}]")
            self._mapped[number] = np.asarray(found)
        return self._mapped[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}

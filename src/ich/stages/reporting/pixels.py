"""Pictures for the page: the slices with more pixels than the networks saw, and where the networks looked."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

from ich.console import progress
from ich.stages.artefacts import pictures_of
from ich.stages.reporting.evidence import Evidence

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MOST = 256  # pixels a side of a picture on the page
PIXELS = 64 * MOST**2  # of a series: those of one of many thin slices are smaller
BATCH = 32  # pictures a time whose gradients are taken


@dataclass(frozen=True)
class Shown:
    """Pictures of a series as the page shows them."""

    values: "np.ndarray"
    """int16 [n, S, S]: Hounsfield units -1024..3071, or grey values 0..255"""
    says: str
    """Which pictures these are, in words."""


def shown(evidence: Evidence, rows: "np.ndarray") -> Shown:
    """The pictures of rows [n] of one series, in the crop of the cache.

    Out of the raw files where they are still there and have more pixels than the cache, else out of the cache; all n
    of one kind and one size, at most MOST pixels a side.
    """
    import numpy as np

    cached = pictures_of(evidence.plan.prepared.folder / "hu.npy")
    table, size = evidence.slices.table.iloc[rows], cached.shape[1]
    most = min(MOST, int((PIXELS / len(rows)) ** 0.5))
    side = min(most, int(table["crop_side"].max()))
    raw = _raw(evidence, table, side) if side > size else None
    if raw is not None:
        return Shown(raw, f"{side} x {side} pixels, read from the raw files; the networks saw {size} x {size}")
    if size > most:
        return Shown(_smaller(np.asarray(cached[rows]), most), f"the networks' {size} x {size} pixels, shown as {most}")
    return Shown(np.asarray(cached[rows]), f"{size} x {size} pixels, as the networks saw them")


def _raw(evidence: Evidence, table: "pd.DataFrame", side: int) -> "np.ndarray | None":
    """The raw slices int16 [n, side, side] in the crop of the cache; None where one of them is no longer as it was."""
    import numpy as np

    from ich.data import cache
    from ich.data.crop import AIR, resized

    values, found = evidence.slices.values, []
    beyond = AIR if values == "hu" else 0
    columns = ["path", "frame", "crop_row", "crop_column", "crop_side", "raw_rows", "raw_columns"]
    for path, group in groupby(table[columns].itertuples(index=False, name=None), key=lambda one: one[0]):
        slices = list(group)
        frames = [int(one[1]) for one in slices]
        read = cache.read_frames(evidence.plan.raw_root / str(path), frames, values)
        for picture, (_, _, *box, rows, columns_) in zip(read, slices, strict=True):
            if not isinstance(picture, np.ndarray) or picture.shape != (rows, columns_):
                return None
            row, column, across = (int(number) for number in box)
            found.append(resized(picture, (row, column, across), side, beyond))
    return np.stack(found)


def _smaller(pictures: "np.ndarray", side: int) -> "np.ndarray":
    """Pictures [n, S, S] brought to `side` pixels by the mean of areas."""
    import cv2
    import numpy as np

    return np.stack([cv2.resize(one, (side, side), interpolation=cv2.INTER_AREA) for one in pictures])


# ---- Grad-CAM


@lru_cache(maxsize=1)
def cam_member(evidence: Evidence) -> str | None:
    """The first cnn member of which Grad-CAM makes maps."""
    from ich.stages.maps import fold_network

    plan = evidence.plan
    for member in plan.recipe.cnn:
        if fold_network(plan, member, 0).feature_layer(plan.recipe.image.size) is not None:
            return member
    return None


def cams(evidence: Evidence, rows: "np.ndarray") -> "np.ndarray | None":
    """Grad-CAM uint8 [n, c, h, w] of rows [n], in the cells of the layer; None where no network makes maps.

    By the network of the row's own fold, which never saw it; rows that are in no fold by fold 0's. The maps of a class
    share a scale within a series: 255 is the largest value there, so that a slice with little of it stays dim.
    """
    import numpy as np

    member = cam_member(evidence)
    if member is None or not len(rows):
        return None
    folds = evidence.slices.table["fold"].to_numpy()[rows]
    folds = np.nan_to_num(folds.astype(float), nan=0.0).astype(int)
    maps: np.ndarray | None = None
    with progress("report: Grad-CAM", len(rows)) as advance:
        for fold in np.unique(folds).tolist():
            places = np.flatnonzero(folds == fold)
            some = _cells(evidence, member, fold, rows[places], advance)
            maps = np.zeros((len(rows), *some.shape[1:]), np.float32) if maps is None else maps
            maps[places] = some
    assert maps is not None, "there is a row"
    return _scaled(maps, evidence.slices.table["series"].to_numpy()[rows])


def _cells(
    evidence: Evidence, member: str, fold: int, rows: "np.ndarray", advance: Callable[[int], None]
) -> "np.ndarray":
    """Grad-CAM float32 [n, c, h, w] of the rows by one fold's network."""
    import numpy as np

    from ich.report import gradcam
    from ich.stages.maps import fold_network, images_of

    network = fold_network(evidence.plan, member, fold)
    layer, found = network.feature_layer(evidence.plan.recipe.image.size), []
    for start in range(0, len(rows), BATCH):
        images = images_of(evidence.plan, evidence.slices, member, rows[start : start + BATCH])
        classes = range(len(evidence.classes))
        found.append(np.stack([gradcam.cells(network, layer, images, c) for c in classes], axis=1))
        advance(len(images))
    return np.concatenate(found)


def _scaled(maps: "np.ndarray", series: "np.ndarray") -> "np.ndarray":
    """Maps [n, c, h, w] as uint8, each class divided by its largest value in the series [n]."""
    import numpy as np

    found = np.zeros(maps.shape, np.uint8)
    for one in np.unique(series):
        some = maps[series == one]
        largest = some.max(axis=(0, 2, 3), keepdims=True)
        tiny = np.finfo(maps.dtype).tiny
        found[series == one] = np.rint(255 * (some / np.maximum(largest, tiny)))
    return found

"""`ich report`: one HTML page with all results of a recipe and a study viewer."""

from itertools import groupby

import cv2
import numpy as np
import pandas as pd
import torch

from ich.console import progress, say
from ich.data import cache
from ich.data.cache import HuCache
from ich.data.crop import AIR, resized
from ich.data.windowing import Window, Windowing, render
from ich.models.table import SliceTable
from ich.pipeline.state import Made, Plan
from ich.report.card import parts
from ich.report.page import document
from ich.report.page.blocks import Page
from ich.report.sections import embeddings, errors, examples, models, per_class, provenance, summary, viewer
from ich.report.sections.viewer import Images
from ich.stages.card import read_facts
from ich.stages.evidence import read_evidence
from ich.stages.maps import cams
from ich.store.atomic import write_text

SIDE = 256  # maximum side of a slice on the page, in pixels
PIXELS = 64 * SIDE**2  # maximum per series: series of many thin slices are downsampled
BRAIN = Windowing("windows", (Window(40.0, 80.0),))


def run(plan: Plan, *, force: bool = False) -> None:
    made = plan.make(plan.report, lambda _: _report(plan), force=force)
    path = plan.workspace.submissions / "report.html"
    say(f"report: {'wrote' if made else 'up to date,'} {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _report(plan: Plan) -> Made:
    torch.set_num_threads(plan.recipe.compute.threads)
    slices = SliceTable.read(plan.workspace, plan.prepared.folder)
    evidence = read_evidence(plan)
    studies = viewer.select_studies(evidence, evidence.settings["report"]["studies"])
    found = errors.select_slices(evidence)
    bleeds = examples.select_examples(evidence)
    cards = [one for kind in found.values() for one in kind]

    study_maps, card_maps = None, None
    if evidence.cam_by is not None:
        wanted = [*(study.rows for study in studies.values()), *(one.beside for one in cards)]
        rows = np.unique(np.concatenate(wanted)).astype(np.int64)
        maps = cams(plan, slices, evidence.cam_by, rows)
        study_maps = [_scaled(maps[np.searchsorted(rows, study.rows)]) for study in studies.values()]
        card_maps = [_scaled(maps[np.searchsorted(rows, one.beside)])[one.beside.index(one.row)] for one in cards]

    images, greys = [], []
    view = BRAIN if evidence.values == "hu" else Windowing("grey")
    shown = [*bleeds.values(), *cards]
    with progress("report: images", len(studies) + len(shown), "series") as advance:
        for study in studies.values():
            images.append(images_of_series(plan, slices, study.rows))
            advance(1)
        for one in shown:
            values = images_of_series(plan, slices, np.array(one.beside)).values
            greys.append(render(values[:, None], view)[..., 0])
            advance(1)

    top = examples.blocks(evidence, bleeds, greys[: len(bleeds)], studies, found["False negatives"])
    sections = [
        summary.section(evidence, top),
        viewer.section(evidence, list(studies.values()), images, study_maps),
        per_class.section(evidence),
        models.section(evidence),
        embeddings.section(evidence),
        errors.section(evidence, found, greys[len(bleeds) :], card_maps, studies),
        parts.section(read_facts(plan)),
        provenance.section(evidence),
    ]
    page = Page(
        f"Intracranial hemorrhage: {plan.recipe.name}", "Scores, errors and provenance of the ensemble.", sections
    )
    path = plan.workspace.submissions / "report.html"
    write_text(path, document.render(page))
    return {path.name: path}, {}


def images_of_series(plan: Plan, slices: SliceTable, rows: np.ndarray) -> Images:
    """The slices of rows [n] of one series in the crop of the cache, resized to one size.

    They are read from the raw files if these still exist and have more pixels than the cache.
    """
    cached = HuCache.open(plan.prepared.folder, slices.table)
    table, size = slices.table.iloc[rows], cached.shape[1]
    most = min(SIDE, int((PIXELS / len(rows)) ** 0.5))
    side = min(most, int(table["crop_side"].max()))
    raw = _raw(plan, slices, table, side) if side > size else None
    if raw is not None:
        return Images(raw, f"{side} x {side} pixels, read from the raw files; the networks use {size} x {size}")
    values = np.asarray(cached[rows])
    if size <= most:
        return Images(values, f"{size} x {size} pixels, as in the cache")
    smaller = np.stack([cv2.resize(one, (most, most), interpolation=cv2.INTER_AREA) for one in values])
    return Images(smaller, f"{size} x {size} pixels, shown as {most} x {most}")


def _raw(plan: Plan, slices: SliceTable, table: pd.DataFrame, side: int) -> np.ndarray | None:
    """The raw slices int16 [n, side, side] in the crop of the cache; None if one is missing or its size has changed."""
    found = []
    beyond = AIR if slices.values == "hu" else 0
    columns = ["path", "frame", "crop_row", "crop_column", "crop_side", "raw_rows", "raw_columns"]
    for path, group in groupby(table[columns].itertuples(index=False, name=None), key=lambda one: one[0]):
        wanted = list(group)
        read = cache.read_frames(plan.raw_root / str(path), [int(one[1]) for one in wanted], slices.values)
        for image, (_, _, *box, raw_rows, raw_columns) in zip(read, wanted, strict=True):
            if not isinstance(image, np.ndarray) or image.shape != (raw_rows, raw_columns):
                return None
            row, column, across = (int(number) for number in box)
            found.append(resized(image, (row, column, across), side, beyond))
    return np.stack(found)


def _scaled(maps: np.ndarray) -> np.ndarray:
    """Maps [n, c, h, w] of a series as uint8; 255 is the maximum of each class."""
    largest = np.maximum(maps.max(axis=(0, 2, 3), keepdims=True), np.finfo(maps.dtype).tiny)
    return np.rint(255 * (maps / largest)).astype(np.uint8)

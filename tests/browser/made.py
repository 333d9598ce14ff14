"""A page of extreme and hostile blocks, and viewer studies with known Hounsfield units."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from ich.report.page import charts
from ich.report.page.blocks import (
    Case,
    Cases,
    Chart,
    Code,
    Details,
    Image,
    Notes,
    Page,
    Panels,
    Section,
    Strip,
    Table,
    Tile,
    Tiles,
    Viewer,
)
from ich.report.page.document import render
from ich.report.page.images import planes
from ich.report.sections.viewer import BOUNDS, PRESETS

EVIL = "</script><script>window.broken=1</script>"
IMAGE = '"><img src=x onerror=window.broken=2>{{ 7*7 }}<b>bold</b>&amp;'
LONG = "ID_" + "0123456789abcdef" * 16
CLASSES = ["intraparenchymal", "any"]
SIDE, PATCH = 64, 8  # pixels of a slice and of its patches, each of one value
PATCHES = SIDE // PATCH
PNG = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()


def known_units() -> np.ndarray:
    """Hounsfield units of the patches, int16 [slices, PATCHES, PATCHES]: the whole range, and that of each window."""
    n = PATCHES**2
    rng = np.random.default_rng(5)
    ends = [(-1024, 3071), (-20, 106), (-40, 200), (24, 40), (-900, 2200), (0, 80)]
    slices = [np.linspace(low, high, n).round().astype(np.int16) for low, high in ends]
    return np.stack([rng.permutation(values).reshape(PATCHES, PATCHES) for values in slices])


def pixels_of(patches: np.ndarray) -> np.ndarray:
    return patches.repeat(PATCH, axis=1).repeat(PATCH, axis=2)


WHOLE = np.random.default_rng(7).permutation(np.arange(-1024, 3072, dtype=np.int16)).reshape(1, SIDE, SIDE)
PIXELS = {"steps": pixels_of(known_units()), "turned": pixels_of(known_units()[::-1, ::-1]), EVIL: WHOLE}


def study(name: str, pixels: np.ndarray, *, known: bool, cam: bool, evil: str, image: str) -> dict[str, Any]:
    """A study for the viewer, without labels, predictions and positions unless they are `known`."""
    n = len(pixels)
    maps = np.random.default_rng(6).integers(0, 256, (n, len(CLASSES), 16), dtype=np.uint8)
    return {
        "id": name,
        "group": f"Most wrong {evil}",
        "reasons": [f"worst log loss {image}"],
        "patient": name,
        "split": "train" if known else "test",
        "folds": [1] if known else [],
        "start": 0,
        "millimetres": 200.0 if known else None,
        "source": f"{SIDE} x {SIDE} pixels",
        "images": [f"{name}_{i}" for i in range(n)],
        "positions": [2.5 * i if known else None for i in range(n)],
        "labels": [[i % 2 if known else None] * 2 for i in range(n)],
        "probabilities": [[round(i / 10, 1) if known else None] * 2 for i in range(n)],
        "side": SIDE,
        "pixels": [planes(one, -1024) for one in pixels],
        "sum": int((pixels.astype(int) + 1024).sum()),
        "cam": {"height": 4, "width": 4, "cells": maps.tolist()} if cam else None,
    }


def viewer_data(evil: str = EVIL, image: str = IMAGE) -> dict[str, Any]:
    studies = [
        study(name, pixels, known=pixels is not WHOLE, cam=name == "steps", evil=evil, image=image)
        for name, pixels in zip(("steps", "turned", evil), PIXELS.values(), strict=True)
    ]
    settings = {"classes": CLASSES, "thresholds": [0.25, 0.5], "presets": PRESETS["hu"], **BOUNDS["hu"]}
    return {**settings, "studies": studies}


def full_page(evil: str = EVIL, image: str = IMAGE, long: str = LONG) -> str:
    """Every kind of block, with the given texts wherever text is shown."""

    def case(study_id: str, index: int) -> Case:
        strip = Strip(f"intraparenchymal {evil}", [0.1, 0.9, 1.0], [0, None, 1], 1, 0.25)
        images = [Image(PNG, f"a slice {image}", evil)] * 3
        return Case(f"Error {evil}", [image, long], images, strip, study_id, index)

    def chart(name: str, figure: Mapping[str, Any]) -> Chart:
        return Chart(name, f"Figure {evil}", f"It says {image}", figure)

    points = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    matrix = charts.correlation(np.array([[1.0, 0.5], [0.5, 1.0]]), [f"net {evil}", f"net {image}"])
    by_group = charts.map_by_group(points, ["a", evil, image], ["a", evil, image], [evil, image, long])
    classes = {
        f"first {evil}": [chart("correlation", matrix)],
        f"second {image}": [chart("map", by_group), Table(evil, [evil, "n"], [[image, "1"], [long, "2"]])],
        "third, without positives": [chart("confusion", charts.confusion(0, 0, 0, 10))],
    }
    details = Details(evil, [Code(evil + "\n" + long), chart("roc", by_group)])
    viewer = [Viewer(viewer_data(evil, image)), Notes([evil, image, long]), Notes([evil], "warning")]
    beside = Cases([case("unknown", 0)] * 2, beside=True)
    sections = [
        Section("summary", f"Summary {evil}", [Tiles([Tile(evil, "0.9", image), Tile(long, long)])], f"Lead {image}"),
        Section("studies", "Viewer", viewer),
        Section("per-class", "Per class", [Panels("classes", classes)]),
        Section("errors", "Errors", [Cases([case("turned", 2), case("unknown", 0)]), beside, Cases([])]),
        Section("provenance", "Provenance", [Table("", [], []), Table("", ["a"], []), details]),
        Section("empty", "Nothing", []),
    ]
    return render(Page(f"Hostile {evil}", image, sections))

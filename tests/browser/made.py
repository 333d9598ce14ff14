"""A page of extreme and hostile blocks, with a viewer of studies whose Hounsfield units are known exactly."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from ich.report.page import (
    Case,
    Cases,
    Chart,
    Code,
    Details,
    Notes,
    Page,
    Panels,
    Picture,
    Section,
    Strip,
    Table,
    Tile,
    Tiles,
    Viewer,
    charts,
    render,
)
from ich.report.page.packing import packed
from ich.stages.reporting.studies import BOUNDS, PRESETS

EVIL = "</script><script>window.broken=1</script>"
IMAGE = '"><img src=x onerror=window.broken=2>{{ 7*7 }}<b>bold</b>&amp;'
LONG = "ID_" + "0123456789abcdef" * 16
CLASSES = ["epidural", "any"]
UNDEFINED = {"sensitivity": None, "specificity": 1.0}
SIDE, PATCH = 64, 8  # pixels of a picture, and of its patches, each of one value
PATCHES = SIDE // PATCH
PNG = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()


def known_units() -> np.ndarray:
    """The patches' Hounsfield units int16 [slices, PATCHES, PATCHES]: the whole range, and what each window shows."""
    n = PATCHES**2
    rng = np.random.default_rng(5)
    ends = [(-1024, 3071), (-20, 106), (-40, 200), (24, 40), (-900, 2200), (0, 80)]
    slices = [np.linspace(low, high, n).round().astype(np.int16) for low, high in ends]
    return np.stack([rng.permutation(values).reshape(PATCHES, PATCHES) for values in slices])


def study(name: str, patches: np.ndarray, *, known: bool, cam: bool) -> dict[str, Any]:
    """What the viewer reads of a study; of one that is not `known` there are pictures alone."""
    n, rng = len(patches), np.random.default_rng(6)
    pixels = patches.repeat(PATCH, axis=1).repeat(PATCH, axis=2)
    maps = rng.integers(0, 256, (n, len(CLASSES), 4, 4), dtype=np.uint8)
    return {
        "id": name,
        "group": f"Most wrong {EVIL}",
        "reasons": [f"worst log loss {IMAGE}"],
        "patient": name,
        "split": "train" if known else "test",
        "folds": [1] if known else [],
        "start": 0,
        "millimetres": 200.0 if known else None,
        "pictures": f"{SIDE} x {SIDE} pixels",
        "images": [f"{name}_{i}" for i in range(n)],
        "positions": [2.5 * i if known else None for i in range(n)],
        "labels": [[i % 2 if known else None] * 2 for i in range(n)],
        "probabilities": [[round(i / 10, 1) if known else None] * 2 for i in range(n)],
        "pixels": packed(pixels, -1024),
        "cam": packed(maps) if cam else None,
    }


def viewer_data() -> dict[str, Any]:
    patches = known_units()
    studies = [
        study("steps", patches, known=True, cam=True),
        study("turned", patches[::-1, ::-1], known=True, cam=False),
        study(EVIL, patches[:1], known=False, cam=False),
    ]
    return {
        "classes": CLASSES,
        "thresholds": [0.25, 0.5],
        "presets": PRESETS["hu"],
        **BOUNDS["hu"],
        "studies": studies,
    }


def case(study_id: str, index: int) -> Case:
    strip = Strip(f"epidural {EVIL}", [0.1, 0.9, 1.0], [0, None, 1], 1, 0.25)
    pictures = [Picture(PNG, f"a slice {IMAGE}", EVIL)] * 3
    return Case(f"Mistake {EVIL}", [IMAGE, LONG], pictures, strip, study_id, index)


def chart(name: str, figure: Mapping[str, Any]) -> Chart:
    return Chart(name, f"Figure {EVIL}", f"It says {IMAGE}", figure)


def hostile_page() -> str:
    matrix = np.array([[1.0, 0.5], [0.5, 1.0]])
    points = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    names = [f"net {EVIL}", f"net {IMAGE}"]
    by_group = charts.map_by_group(points, ["a", EVIL, IMAGE], ["a", EVIL, IMAGE], [EVIL, IMAGE, LONG])
    sections = [
        Section("verdict", f"Verdict {EVIL}", [Tiles([Tile(EVIL, "0.9", IMAGE), Tile(LONG, LONG)])], f"Lead {IMAGE}"),
        Section("studies", "Viewer", [Viewer(viewer_data()), Notes([EVIL, IMAGE, LONG]), Notes([EVIL], "warning")]),
        Section(
            "per-class",
            "Class by class",
            [
                Panels(
                    "classes",
                    {
                        f"first {EVIL}": [chart("correlation", charts.correlation(matrix, names))],
                        f"second {IMAGE}": [
                            chart("map", by_group),
                            Table([EVIL, "n"], [[IMAGE, "1"], [LONG, "2"]], EVIL),
                        ],
                        "third, without a positive": [
                            chart("confusion", charts.confusion(0, 0, 0, 10)),
                            chart("four", charts.four(UNDEFINED, {0: UNDEFINED})),
                        ],
                    },
                )
            ],
        ),
        Section("mistakes", "Mistakes", [Cases([case("turned", 2), case("not held", 0)]), Cases([])]),
        Section(
            "provenance",
            "Where this comes from",
            [Table([], []), Table(["a"], []), Details(EVIL, [Code(EVIL + "\n" + LONG), chart("roc", by_group)])],
        ),
        Section("empty", "Nothing", []),
    ]
    return render(Page(f"Hostile {EVIL}", IMAGE, sections))

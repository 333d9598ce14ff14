"""PNG figures: reproducible bytes, independent of the user's settings; outlines and maps."""

import matplotlib
import numpy as np
import pytest

from ich.report.figures import Panel, gallery, scatter_groups, scatter_values

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(60, 2))
GREY = RNG.integers(0, 256, (32, 32)).astype(np.uint8)
RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)
BOX = np.zeros((32, 32), bool)
BOX[8:20, 8:20] = True


def values() -> bytes:
    return scatter_values(POINTS, np.arange(60), "a title", "a scale")


def groups() -> bytes:
    return scatter_groups(POINTS, ["none", "one", "two"] * 20, ["none", "one", "two", "three"], "a title")


def panels() -> bytes:
    rows = [("first", [Panel(GREY, "p = 0.5"), Panel(GREY, "", RAMP, BOX)]), ("second", [Panel(GREY, "")])]
    return gallery(rows, "a title")


@pytest.mark.parametrize("figure", [values, groups, panels])
def test_the_same_data_give_the_same_bytes_under_any_settings(figure):
    first = figure()
    assert first.startswith(b"\x89PNG")
    with matplotlib.rc_context({"font.size": 25, "axes.facecolor": "red", "savefig.dpi": 20, "image.cmap": "hot"}):
        assert figure() == first
        assert matplotlib.rcParams["font.size"] == 25
    assert not any(word in first for word in (b"tEXt", b"tIME", b"iTXt", b"atplotlib")), "no program and no date"


def test_a_mask_and_a_map_change_the_image_unless_they_are_empty():
    plain, empty, outlined, mapped = (
        gallery([("row", [Panel(GREY, "", heat, mask)])], "a title")
        for heat, mask in ((None, None), (np.zeros((32, 32)), ~BOX & BOX), (None, BOX), (RAMP, None))
    )
    assert plain == empty
    assert len({plain, outlined, mapped}) == 3

"""PNG figures: reproducible bytes, independent of the user's settings; colours of groups, outlines and maps."""

import cv2
import matplotlib
import numpy as np
import pytest

from ich.report.figures import OKABE_ITO, Panel, gallery, scatter_groups, scatter_values

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


def decoded(png: bytes) -> np.ndarray:
    """uint8 [rows, columns, 3], red first."""
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image[..., ::-1].astype(int)


def has_colour(image: np.ndarray, colour: str) -> bool:
    wanted = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    return bool((np.abs(image - wanted).max(axis=-1) <= 2).any())


@pytest.mark.parametrize("figure", [values, groups, panels])
def test_the_same_data_give_the_same_bytes_under_any_settings(figure):
    first = figure()
    assert first.startswith(b"\x89PNG")
    with matplotlib.rc_context({"font.size": 25, "axes.facecolor": "red", "savefig.dpi": 20, "image.cmap": "hot"}):
        assert figure() == first
        assert matplotlib.rcParams["font.size"] == 25
    assert not any(word in first for word in (b"tEXt", b"tIME", b"iTXt", b"atplotlib")), "no program and no date"


def test_every_group_has_its_colour_and_no_other():
    image = decoded(groups())
    assert [has_colour(image, OKABE_ITO[k]) for k in (0, 1, 5)] == [True, True, False]


def test_an_outline_is_drawn_only_for_a_mask():
    plain, outlined = (gallery([("row", [Panel(GREY, "", None, mask)])], "title") for mask in (None, BOX))
    assert [has_colour(decoded(one), OKABE_ITO[1]) for one in (plain, outlined)] == [False, True]
    assert gallery([("row", [Panel(GREY, "", None, ~BOX & BOX)])], "title") == plain


def test_a_map_colours_only_its_region():
    black, spot = np.zeros((32, 32), np.uint8), np.zeros((32, 32))
    spot[4:12, 4:12] = 1
    plain, mapped = (decoded(gallery([("", [Panel(black, "", m)])], "")) for m in (None, spot))
    changed = np.argwhere((plain != mapped).any(-1))
    tile = np.argwhere((plain == 0).all(-1))
    (top, left), (bottom, right) = tile.min(0), tile.max(0)
    middle = (changed.mean(0) - (top, left)) / (bottom - top, right - left)
    np.testing.assert_allclose(middle, 8 / 32, atol=0.03)

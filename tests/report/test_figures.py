"""Figures are PNG files, always the same bytes, whatever the user's settings; colours reach the pixels."""

import cv2
import matplotlib
import numpy as np
import pytest

from ich.report.figures import OKABE_ITO, Picture, gallery, scatter_groups, scatter_values

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


def pictures() -> bytes:
    rows = [("first", [Picture(GREY, "p = 0.5"), Picture(GREY, "", RAMP, BOX)]), ("second", [Picture(GREY)])]
    return gallery(rows, "a title")


def decoded(png: bytes) -> np.ndarray:
    """uint8 [rows, columns, 3], red first."""
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture[..., ::-1].astype(int)


def has_colour(picture: np.ndarray, colour: str) -> bool:
    wanted = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    return bool((np.abs(picture - wanted).max(axis=-1) <= 2).any())


@pytest.mark.parametrize("figure", [values, groups, pictures])
def test_the_same_data_give_the_same_bytes_whatever_the_settings(figure):
    first = figure()
    assert first.startswith(b"\x89PNG")
    with matplotlib.rc_context({"font.size": 25, "axes.facecolor": "red", "savefig.dpi": 20, "image.cmap": "hot"}):
        assert figure() == first
        assert matplotlib.rcParams["font.size"] == 25
    assert not any(word in first for word in (b"tEXt", b"tIME", b"iTXt", b"atplotlib")), "no program and no date"


def test_every_group_has_its_colour_and_no_other():
    picture = decoded(groups())
    assert [has_colour(picture, OKABE_ITO[k]) for k in (0, 1, 5)] == [True, True, False]


def test_an_outline_is_drawn_where_one_is_given_only():
    plain, outlined = (gallery([("row", [Picture(GREY, "", None, mask)])], "title") for mask in (None, BOX))
    assert [has_colour(decoded(one), OKABE_ITO[1]) for one in (plain, outlined)] == [False, True]
    assert gallery([("row", [Picture(GREY, "", None, ~BOX & BOX)])], "title") == plain


def test_a_map_colours_what_it_points_at_and_leaves_the_rest():
    black, spot = np.zeros((32, 32), np.uint8), np.zeros((32, 32))
    spot[4:12, 4:12] = 1
    plain, mapped = (decoded(gallery([("", [Picture(black, "", m)])], "")) for m in (None, spot))
    changed = np.argwhere((plain != mapped).any(-1))
    tile = np.argwhere((plain == 0).all(-1))
    (top, left), (bottom, right) = tile.min(0), tile.max(0)
    middle = (changed.mean(0) - (top, left)) / (bottom - top, right - left)
    np.testing.assert_allclose(middle, 8 / 32, atol=0.03)

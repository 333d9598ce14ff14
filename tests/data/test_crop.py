"""Quick ways to a crop give what slow ones give."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.data.crop import box_around, head_piece, resize_all, resized


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 9),
    shape=st.tuples(st.integers(20, 130), st.integers(20, 130)),
    corner=st.tuples(st.integers(-15, 15), st.integers(-15, 15)),
    side=st.integers(20, 150),
    size=st.integers(3, 60),
)
def test_slices_that_are_resized_together_are_as_each_alone(seed, count, shape, corner, side, size):
    slices = np.random.default_rng(seed).integers(-1024, 3072, (count, *shape)).astype(np.int16)
    into = np.full((count, size, size), 77, np.int16)
    resize_all(list(slices), (*corner, side), -1024, into)
    np.testing.assert_array_equal(into, [resized(one, (*corner, side), size) for one in slices])


@pytest.mark.parametrize("side", [256, 428, 512, 100])
def test_a_whole_picture_is_resized_by_even_and_uneven_factors_together_as_alone(side):
    slices = np.random.default_rng(side).integers(-1024, 3072, (6, 512, 512)).astype(np.int16)
    into = np.empty((6, 256, 256), np.int16)
    resize_all(list(slices), (40, 50, side), -1024, into)
    np.testing.assert_array_equal(into, [resized(one, (40, 50, side), 256) for one in slices])


def head_box(slices: list[np.ndarray]) -> tuple[int, int, int]:
    return box_around([head_piece(one) for one in slices], slices[0].shape)


def by_components(picture: np.ndarray) -> tuple[int, ...]:
    """left, top, across, down, area of the largest piece, by labelling all of them."""
    step = max(1, max(picture.shape) // 128)
    width = max(3, round(0.05 * max(picture[::step, ::step].shape))) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    opened = cv2.morphologyEx((picture[::step, ::step] > -300).astype(np.uint8), cv2.MORPH_OPEN, disc)
    count, _, stats, _ = cv2.connectedComponentsWithStats(opened)
    return (0,) * 5 if count == 1 else tuple(stats[1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())].tolist())


@settings(max_examples=150)
@given(
    shape=st.tuples(st.integers(30, 260), st.integers(30, 260)),
    discs=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.02, 0.4)), max_size=6),
)
def test_the_largest_piece_is_found_among_others_and_of_two_alike_the_first(shape, discs):
    y, x = np.mgrid[: shape[0], : shape[1]]
    picture = np.full(shape, -1000, np.int16)
    for row, column, radius in discs:
        picture[np.hypot(y - row * shape[0], x - column * shape[1]) < radius * min(shape)] = 40
    assert tuple(head_piece(picture)) == by_components(picture)
    twice = np.hstack([picture, picture])  # a tie
    assert tuple(head_piece(twice)) == by_components(twice)


def test_a_box_is_around_the_large_pieces_of_all_slices():
    first, second, speck = (np.full((128, 128), -1000, np.int16) for _ in range(3))
    first[20:70, 30:80] = second[40:90, 50:100] = speck[0:20, 0:20] = 40  # 400 pixels are no fifth of 2,500
    row, column, side = head_box([first, second, speck])
    assert (row + side / 2, column + side / 2) == pytest.approx((55, 65), abs=1)
    assert side == pytest.approx(70 * 1.04, abs=1)

"""The fast paths of cropping equal the slow ones."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.data.crop import box_around, head_piece, resize_all, resized


def assert_resized_as_alone(slices: np.ndarray, box: tuple[int, int, int], size: int) -> None:
    together = np.concatenate([block.copy() for block in resize_all(list(slices), box, -1024, size)])
    np.testing.assert_array_equal(together, [resized(one, box, size) for one in slices])


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 9),
    shape=st.tuples(st.integers(20, 130), st.integers(20, 130)),
    corner=st.tuples(st.integers(-15, 15), st.integers(-15, 15)),
    side=st.integers(20, 150),
    size=st.integers(3, 60),
)
def test_slices_are_resized_together_as_alone(seed, count, shape, corner, side, size):
    slices = np.random.default_rng(seed).integers(-1024, 3072, (count, *shape)).astype(np.int16)
    assert_resized_as_alone(slices, (*corner, side), size)


@pytest.mark.parametrize("side", [256, 428, 512, 100])
def test_slices_of_usual_size_are_resized_together_as_alone(side):
    slices = np.random.default_rng(side).integers(-1024, 3072, (6, 512, 512)).astype(np.int16)
    assert_resized_as_alone(slices, (40, 50, side), 256)


def by_components(image: np.ndarray) -> tuple[int, ...]:
    """left, top, across, down and area of the largest component, by labelling all of them."""
    step = max(1, max(image.shape) // 128)
    width = max(3, round(0.05 * max(image[::step, ::step].shape))) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    opened = cv2.morphologyEx((image[::step, ::step] > -300).astype(np.uint8), cv2.MORPH_OPEN, disc)
    count, _, stats, _ = cv2.connectedComponentsWithStats(opened)
    return (0,) * 5 if count == 1 else tuple(stats[1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())].tolist())


@settings(max_examples=150)
@given(
    shape=st.tuples(st.integers(30, 260), st.integers(30, 260)),
    discs=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.02, 0.4)), max_size=6),
)
def test_the_largest_component_is_found_and_the_first_of_two_equal_ones(shape, discs):
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.full(shape, -1000, np.int16)
    for row, column, radius in discs:
        image[np.hypot(y - row * shape[0], x - column * shape[1]) < radius * min(shape)] = 40
    assert tuple(head_piece(image)) == by_components(image)
    twice = np.hstack([image, image])  # a tie
    assert tuple(head_piece(twice)) == by_components(twice)


def test_the_box_contains_the_large_components_of_all_slices():
    first, second, speck = (np.full((128, 128), -1000, np.int16) for _ in range(3))
    first[20:70, 30:80] = second[40:90, 50:100] = speck[0:20, 0:20] = 40  # less than a fifth of 2,500 pixels
    row, column, side = box_around([head_piece(one) for one in (first, second, speck)], first.shape)
    assert (row + side / 2, column + side / 2) == pytest.approx((55, 65), abs=1)
    assert side == pytest.approx(70 * 1.04, abs=1)

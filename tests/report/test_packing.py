"""Packed pictures, taken apart by a plain double loop."""

import base64
import json
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ich.report.page.packing import packed


def unpacked(one: dict) -> np.ndarray:
    """As the format's description says, a pixel at a time."""
    planes, shape = zlib.decompress(base64.b64decode(one["data"])), one["shape"]
    count, modulus = len(planes) // one["bytes"], 256 ** one["bytes"]
    found = np.zeros((count // max(1, shape[-1] * shape[-2]), *shape[-2:]), dtype=np.int64)
    for i in range(count):
        folded = sum(planes[i + k * count] * 256**k for k in range(one["bytes"]))
        error = folded // 2 if folded % 2 == 0 else -(folded + 1) // 2
        picture, row, column = np.unravel_index(i, found.shape)
        left = found[picture, row, column - 1] if column else 0
        upper = found[picture, row - 1, column] if row else 0
        corner = found[picture, row - 1, column - 1] if row and column else 0
        guess = sorted((left, upper, left + upper - corner))[1]
        found[picture, row, column] = (guess + error) % modulus
    return found.reshape(shape)


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))


@given(arrays.arrays(np.int16, SHAPES, elements=st.integers(-1024, 3071)))
def test_hounsfield_units_come_back_as_they_were(values):
    assert np.array_equal(unpacked(packed(values, -1024)) - 1024, values)


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 2), *[st.integers(1, 4)] * 3)))
def test_maps_of_bytes_come_back_as_they_were(values):
    one = packed(values)
    assert one["bytes"] == 1
    assert np.array_equal(unpacked(one), values)


@given(arrays.arrays(np.uint16, SHAPES))
def test_all_sixteen_bits_come_back_as_they_were(values):
    assert np.array_equal(unpacked(packed(values)), values)


@pytest.mark.parametrize("ends", [(-1024, 3071), (3071, -1024), (3071, 3071), (-1024, -1024)])
def test_air_beside_the_densest_bone_comes_back(ends):
    board = np.where(np.indices((2, 5, 7)).sum(axis=0) % 2, *ends).astype(np.int16)
    assert np.array_equal(unpacked(packed(board, -1024)) - 1024, board)


def test_a_smooth_picture_is_guessed_and_takes_no_room():
    plane = np.add.outer(np.arange(64), 3 * np.arange(64))[None]
    assert len(packed(plane)["data"]) < plane.size / 20


def test_the_first_pixels_are_as_the_format_says():
    """10 is guessed as 0; 12 as 10, of 10, 0 and 10; 9 as 10; 20 as 11, of 9, 12 and 9 + 12 - 10."""
    one = packed(np.array([[10, 12], [9, 20]]))
    assert one["shape"] == [2, 2]
    assert list(zlib.decompress(base64.b64decode(one["data"]))) == [20, 4, 1, 18]


def test_the_same_pictures_give_the_same_text():
    values = np.random.default_rng(1).integers(-1024, 3072, (3, 20, 20)).astype(np.int16)
    assert json.dumps(packed(values, -1024)) == json.dumps(packed(values.copy(order="F"), -1024))


@pytest.mark.parametrize("values", [np.array([[-1]]), np.array([[65536]]), np.arange(3)])
def test_what_cannot_be_packed_is_refused(values):
    with pytest.raises(ValueError, match="can be packed"):
        packed(values)

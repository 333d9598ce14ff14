import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich.data.windowing import Window, Windowing, neighbour_rows, render

BRAIN, SUBDURAL, BONE = Window(40, 80), Window(80, 200), Window(600, 2800)
KINDS = [("windows", (BRAIN, SUBDURAL, Window(40, 380))), ("neighbours", (SUBDURAL, BRAIN)), ("grey", ())]


def grey_of(hu: int, window: Window) -> float:
    """The definition, one number at a time and before rounding."""
    hu = min(max(hu, -1024), 3071)
    return min(max((hu - window.level + window.width / 2) / window.width, 0.0), 1.0) * 255


def row_of(values: list[int], windowing: Windowing) -> list[int]:
    """Grey values of a slice with one row, in the first channel."""
    return render(np.array([[values]], np.int16), windowing)[0, :, 0].tolist()


def test_brain_window_by_hand():
    assert row_of([-1000, 0, 20, 60, 80, 3000], Windowing("windows", (BRAIN,))) == [0, 0, 64, 191, 255, 255]


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=20), st.floats(-500, 1500), st.floats(1, 4000))
def test_values_are_rounded_to_the_nearest_grey(values: list[int], level: float, width: float):
    window = Window(level, width)
    for value, found in zip(values, row_of(values, Windowing("windows", (window,))), strict=True):
        assert abs(found - grey_of(value, window)) <= 0.5 + 1e-6


def test_windows_become_channels_in_order():
    hu = np.random.default_rng(0).integers(-1024, 3072, (1, 7, 7)).astype(np.int16)
    three = render(hu, Windowing("windows", (BRAIN, SUBDURAL, BONE)))
    assert (three.shape, three.dtype) == ((7, 7, 3), np.uint8)
    for channel, window in enumerate((BRAIN, SUBDURAL, BONE)):
        np.testing.assert_array_equal(three[..., channel], render(hu, Windowing("windows", (window,)))[..., 0])


def test_neighbours_in_several_windows_are_ordered_by_slice():
    hu = np.array([[[0]], [[40]], [[80]]], dtype=np.int16)
    shown = render(hu, Windowing("neighbours", (BRAIN, SUBDURAL)))
    # brain shows 0..80 HU, subdural -20..180
    assert shown[0, 0].tolist() == [0, 26, 128, 76, 255, 128]


def test_wrong_input_is_rejected():
    for hu in (np.zeros((3, 4, 4), np.int16), np.zeros((1, 4, 4), np.float32)):
        with pytest.raises(ValueError, match="expected int16"):
            render(hu, Windowing("windows", (BRAIN,)))
    with pytest.raises(ValueError, match="above 0"):
        Window(40, 0)
    with pytest.raises(ValueError, match="clip limit"):
        Windowing("grey", clahe=-1)


def test_neighbours_by_hand():
    study = np.array([5, 5, 2, 5, 2, 9])
    index = np.array([4, 0, 1, 2, 0, 0])  # study 5: rows 1, 3, 0; study 2: rows 4, 2; study 9: row 5
    expected = [[3, 0, 0], [1, 1, 3], [4, 2, 2], [1, 3, 0], [4, 4, 2], [5, 5, 5]]
    assert neighbour_rows(study, index).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), unique=True, max_size=30))
def test_neighbours_are_the_nearest_slices_of_the_same_study(slices: list[tuple[int, int]]):
    study = np.array([s for s, _ in slices], dtype=np.int64)
    index = np.array([i for _, i in slices], dtype=np.int64)
    for row, (before, here, after) in enumerate(neighbour_rows(study, index)):
        same = [r for r, (s, _) in enumerate(slices) if s == study[row]]
        lower = [r for r in same if index[r] < index[row]]
        higher = [r for r in same if index[r] > index[row]]
        assert here == row
        assert before == max(lower, key=lambda r: index[r], default=row)
        assert after == min(higher, key=lambda r: index[r], default=row)


# ---- contrast


def some_slices(depth: int, n: int = 3, size: int = 24) -> np.ndarray:
    """int16 [n, depth, size, size] with values inside every window."""
    return np.random.default_rng(5).integers(20, 70, (n, depth, size, size)).astype(np.int16)


def test_min_max_by_hand():
    values = [20, 30, 40, 50]
    assert row_of(values, Windowing("windows", (BRAIN,))) == [64, 96, 128, 159]
    assert row_of(values, Windowing("windows", (BRAIN,), minmax=True)) == [0, 86, 172, 255]
    assert row_of(values, Windowing("grey", minmax=True)) == [0, 85, 170, 255]
    assert row_of(values, Windowing("windows", (Window(-500, 100),), minmax=True)) == [0] * 4  # constant


@pytest.mark.parametrize(("kind", "windows"), KINDS)
def test_min_max_and_then_clahe_are_applied_to_each_channel_by_itself(kind, windows):
    plain, stretched, equalized, both = (
        Windowing(kind, windows, minmax, clahe) for clahe in (0.0, 2.0) for minmax in (False, True)
    )
    hu, clahe = some_slices(plain.depth), cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8))
    for images in zip(*(render(hu, windowing) for windowing in (plain, stretched, equalized, both)), strict=True):
        for x, minmax, equal, last in zip(*(np.moveaxis(image, -1, 0) for image in images), strict=True):
            spread = (x.astype(float) - x.min()) / (float(x.max()) - x.min()) * 255
            np.testing.assert_array_equal(minmax, np.rint(spread))
            np.testing.assert_array_equal(equal, clahe.apply(np.ascontiguousarray(x)))
            np.testing.assert_array_equal(last, clahe.apply(np.ascontiguousarray(minmax)))
            assert not np.array_equal(equal, x)


@pytest.mark.parametrize("enhance", [{}, {"minmax": True, "clahe": 3.0}])
@pytest.mark.parametrize(("kind", "windows"), KINDS)
def test_images_are_the_same_alone_and_in_a_batch_of_any_memory_layout(kind, windows, enhance):
    windowing = Windowing(kind, windows, **enhance)
    hu = some_slices(windowing.depth)
    alone = np.stack([render(one, windowing) for one in hu])
    for batch in (hu, np.ascontiguousarray(hu[..., ::-1])[..., ::-1], np.asfortranarray(hu)):
        assert render(batch, windowing).flags.c_contiguous
        np.testing.assert_array_equal(render(batch, windowing), alone)

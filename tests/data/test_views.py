import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich.data.views import View, Window, neighbour_rows, render

BRAIN, SUBDURAL, BONE = Window(40, 80), Window(80, 200), Window(600, 2800)


def grey_of(hu: int, window: Window) -> float:
    """The definition, one number at a time and not yet rounded."""
    hu = min(max(hu, -1024), 3071)
    return min(max((hu - window.level + window.width / 2) / window.width, 0.0), 1.0) * 255


def test_brain_window_by_hand():
    hu = np.array([[[-1000, 0, 20, 60, 80, 3000]]], dtype=np.int16)
    assert render(hu, View("windows", (BRAIN,)))[0, :, 0].tolist() == [0, 0, 64, 191, 255, 255]


@given(
    st.lists(st.integers(-32768, 32767), min_size=1, max_size=20),
    st.floats(-500, 1500),
    st.floats(1, 4000),
)
def test_every_value_lands_on_the_nearest_grey(values: list[int], level: float, width: float):
    window = Window(level, width)
    grey = render(np.array([[values]], dtype=np.int16), View("windows", (window,)))[0, :, 0]
    for value, found in zip(values, grey, strict=True):
        assert abs(float(found) - grey_of(value, window)) <= 0.5 + 1e-6


def test_windows_become_channels_in_their_order():
    hu = np.random.default_rng(0).integers(-1024, 3072, (1, 7, 7)).astype(np.int16)
    three = render(hu, View("windows", (BRAIN, SUBDURAL, BONE)))
    assert three.shape == (7, 7, 3)
    assert three.dtype == np.uint8
    for channel, window in enumerate((BRAIN, SUBDURAL, BONE)):
        np.testing.assert_array_equal(three[..., channel], render(hu, View("windows", (window,)))[..., 0])


def test_neighbours_in_several_windows_stand_slice_by_slice():
    hu = np.array([[[0]], [[40]], [[80]]], dtype=np.int16)
    shown = render(hu, View("neighbours", (BRAIN, SUBDURAL)))
    # brain shows 0..80 HU, subdural -20..180
    assert shown[0, 0].tolist() == [0, 26, 128, 76, 255, 128]


@pytest.mark.parametrize("view", [View("windows", (BRAIN, BONE)), View("neighbours", (SUBDURAL, BRAIN))])
def test_a_batch_is_rendered_as_its_slices_are(view: View):
    hu = np.random.default_rng(2).integers(-1024, 3072, (4, view.depth, 6, 6)).astype(np.int16)
    batch = render(hu, view)
    assert batch.flags.c_contiguous
    np.testing.assert_array_equal(batch, np.stack([render(one, view) for one in hu]))


def test_a_view_refuses_what_it_cannot_show():
    with pytest.raises(ValueError, match="wants int16"):
        render(np.zeros((3, 4, 4), np.int16), View("windows", (BRAIN,)))
    with pytest.raises(ValueError, match="wants int16"):
        render(np.zeros((1, 4, 4), np.float32), View("windows", (BRAIN,)))
    with pytest.raises(ValueError, match="above 0"):
        Window(40, 0)
    with pytest.raises(ValueError, match="clip limit"):
        View("grey", clahe=-1)


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

SHOWN = [
    ("windows", (BRAIN, SUBDURAL, Window(40, 380))),
    ("neighbours", (SUBDURAL, BRAIN)),
    ("grey", ()),
]


def some_slices(depth: int, n: int = 3, size: int = 24) -> np.ndarray:
    """int16 [n, depth, size, size] that fill no window and no grey scale to its ends."""
    return np.random.default_rng(5).integers(20, 70, (n, depth, size, size)).astype(np.int16)


def test_min_max_by_hand():
    hu = np.array([[[20, 30, 40, 50]]], dtype=np.int16)  # brain window: 64, 96, 128, 159 of 255
    assert render(hu, View("windows", (BRAIN,)))[0, :, 0].tolist() == [64, 96, 128, 159]
    assert render(hu, View("windows", (BRAIN,), minmax=True))[0, :, 0].tolist() == [0, 86, 172, 255]
    assert render(hu, View("grey", minmax=True))[0, :, 0].tolist() == [0, 85, 170, 255]
    without_contrast = render(hu, View("windows", (Window(-500, 100),), minmax=True))
    assert not without_contrast.any()


@pytest.mark.parametrize(("kind", "windows"), SHOWN)
def test_min_max_stretches_each_channel_of_each_picture_by_itself(kind, windows):
    plain, stretched = View(kind, windows), View(kind, windows, minmax=True)
    hu = some_slices(plain.depth)
    before, after = render(hu, plain).astype(float), render(hu, stretched)
    for picture, found in zip(before, after, strict=True):
        for channel in range(plain.channels):
            x = picture[..., channel]
            expected = np.rint((x - x.min()) / (x.max() - x.min()) * 255)
            np.testing.assert_array_equal(found[..., channel], expected)


@pytest.mark.parametrize("minmax", [False, True])
@pytest.mark.parametrize(("kind", "windows"), SHOWN)
def test_clahe_comes_last_and_equalises_each_channel_by_itself(kind, windows, minmax):
    before, after = View(kind, windows, minmax=minmax), View(kind, windows, minmax=minmax, clahe=2.0)
    hu = some_slices(before.depth)
    alone = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8))
    for picture, found in zip(render(hu, before), render(hu, after), strict=True):
        assert not np.array_equal(picture, found)
        for channel in range(before.channels):
            expected = alone.apply(np.ascontiguousarray(picture[..., channel]))
            np.testing.assert_array_equal(found[..., channel], expected)


def test_the_limit_of_clahe_bounds_how_much_contrast_grows():
    faint = np.tile(np.arange(100, 132, dtype=np.int16), (32, 1))[None]
    spread = [int(np.ptp(render(faint, View("grey", clahe=limit)).astype(int))) for limit in (0.0, 1.0, 4.0, 40.0)]
    assert spread == sorted(spread)
    assert spread[0] == 31 < spread[-1]


@pytest.mark.parametrize(("kind", "windows"), SHOWN)
def test_adjusted_pictures_are_the_same_alone_and_in_a_batch_of_any_memory(kind, windows):
    view = View(kind, windows, minmax=True, clahe=3.0)
    hu = some_slices(view.depth)
    mirrored = np.ascontiguousarray(hu[..., ::-1])[..., ::-1]
    turned = np.asfortranarray(hu)
    alone = np.stack([render(one, view) for one in hu])
    for batch in (hu, mirrored, turned):
        assert render(batch, view).flags.c_contiguous
        np.testing.assert_array_equal(render(batch, view), alone)

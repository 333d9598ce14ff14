import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.data.augment import Augment, Augmentation
from ich.data.datasets import cutmix_box, sample_seed

STRENGTHS = {"rotate": 20} | dict.fromkeys(["flip", "vertical_flip", "transpose", "dropout"], 1)


def image(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (24, 24, channels)).astype(np.uint8)


def only(**strengths: float) -> Augment:
    """The changes named; the others are disabled."""
    off = dict.fromkeys(["flip", "shift", "scale", "rotate", "brightness", "contrast"], 0)
    return Augment(Augmentation(**(off | strengths)))


def test_changes_are_drawn_independently_of_one_another():
    augment = only(flip=0.5, dropout=0.5)
    rising = np.tile(np.arange(1, 25, dtype=np.uint8)[None, :, None], (24, 1, 1))
    seen = {(flipped, holed): 0 for flipped in (False, True) for holed in (False, True)}
    for seed in range(400):
        shown = augment(rising, seed).astype(int)
        left, right = shown[:, :12].max(), shown[:, 12:].max()
        seen[bool(left > right), bool((shown == 0).any())] += 1
    assert min(seen.values()) > 60  # 100 each are expected, with a standard deviation of 9


def test_a_shift_is_filled_with_black():
    augment, white = only(shift=0.2), np.full((24, 24, 3), 255, np.uint8)
    assert max(int((augment(white, seed) == 0).sum()) for seed in range(10)) > 24 * 3


@pytest.mark.parametrize("field", sorted(set(Augmentation.__dataclass_fields__) - {"jitter"}))
def test_each_strength_changes_the_image(field: str):
    assert not np.array_equal(only(**{field: STRENGTHS.get(field, 0.3)})(image(), 4), image())


def test_seeds_are_the_same_on_every_machine_and_differ_in_each_part():
    assert sample_seed(7, 0, "ID_000000001") == 636421012374911107
    parts = itertools.product(range(3), range(3), ["ID_a", "ID_b"])
    seeds = {sample_seed(*part) for part in parts} | {sample_seed(1, 11, "x"), sample_seed(11, 1, "x")}
    seeds |= {sample_seed(7, 0, "a", use) for use in ("", "cutmix", "partner", "first", "second")}
    assert len(seeds) == 25
    assert all(0 <= seed < 2**63 for seed in seeds)


strengths = st.builds(
    Augmentation,
    jitter=st.sampled_from([0.0, 0.3, 1.0]),
    **{field: st.sampled_from([0.0, strength / 2, strength]) for field, strength in STRENGTHS.items()},
    **{field: st.sampled_from([0.0, 0.3]) for field in ("crop", "optical", "grid", "shift", "scale", "noise")},
)


@settings(max_examples=25)
@given(strengths, st.integers(0, 2**63 - 1), st.sampled_from([1, 3, 4, 9]))
def test_the_same_seed_makes_the_same_bytes_with_any_settings(augmentation, seed, channels):
    first, second = Augment(augmentation), Augment(augmentation)
    second(image(1), 1)  # neither earlier calls nor their sizes matter
    second(np.zeros((7, 9, 3), np.uint8)[:, :7].copy(), 2)
    given_image = image(channels)
    shown = first(given_image, seed)
    np.testing.assert_array_equal(given_image, image(channels))
    assert (shown.shape, shown.dtype) == ((24, 24, channels), np.uint8)
    np.testing.assert_array_equal(shown, second(image(channels), seed))


def test_mirrors_and_transposition_by_hand():
    np.testing.assert_array_equal(only()(image(), 1), image())
    np.testing.assert_array_equal(only(flip=1)(image(), 1), image()[:, ::-1])
    np.testing.assert_array_equal(only(vertical_flip=1)(image(), 1), image()[::-1])
    np.testing.assert_array_equal(only(transpose=1)(image(), 1), image().transpose(1, 0, 2))


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_crop_keeps_at_least_its_share_of_the_area_in_nearly_the_same_shape(share):
    """Two channels with each pixel's row and column show the position of the crop."""
    size = 200
    y, x = np.mgrid[:size, :size].astype(np.uint8)
    augment, areas, corners = only(crop=share), [], set()
    for seed in range(200):
        shown = augment(np.dstack([y, x]), seed).astype(float)
        height, width = (np.ptp(shown[..., channel]) + 1 for channel in (0, 1))
        assert 1 / 1.12 < width / height < 1.12
        areas.append(height * width / size**2)
        corners.add((shown[0, 0, 0] > 5, shown[0, 0, 1] > 5))
    assert share - 0.02 < min(areas) < share + 0.05
    assert max(areas) > 0.95
    assert np.mean(areas) == pytest.approx((share + 1) / 2, abs=0.05)
    assert corners == {(False, False), (False, True), (True, False), (True, True)}


def test_jitter_is_the_probability_that_brightness_and_contrast_change():
    for jitter, low, high in ((0, 0, 0), (0.4, 90, 150), (1, 300, 300)):  # 120 expected, standard deviation 8.5
        augment = only(brightness=0.3, contrast=0.3, jitter=jitter)
        assert low <= sum(not np.array_equal(augment(image(), seed), image()) for seed in range(300)) <= high


@pytest.mark.parametrize(("field", "strength"), [("optical", 0.4), ("grid", 0.3)])
def test_a_distortion_moves_pixels_by_its_strength_and_keeps_their_grey(field, strength):
    """Two channels with each pixel's row and column show where it came from; the border may turn black."""
    y, x = np.mgrid[:128, :128].astype(np.uint8)
    places = np.dstack([y, x])

    def moved(share: float) -> list[float]:
        augment = only(**{field: strength * share})
        differences = (augment(places, seed).astype(float) - places for seed in range(20))
        return [float(np.abs(difference[16:-16, 16:-16]).max()) for difference in differences]

    assert 3 < max(moved(1)) < 32
    assert max(moved(0.1)) <= 0.2 * max(moved(1))
    assert len(set(moved(1))) > 2


# ---- CutMix


@given(st.integers(1, 80), st.floats(0.05, 20), st.integers(0, 10_000))
def test_a_box_lies_in_the_image(size, alpha, seed):
    top, bottom, left, right = cutmix_box(size, alpha, np.random.default_rng(seed))
    assert 0 <= top <= bottom <= size
    assert 0 <= left <= right <= size


def test_boxes_have_the_centres_and_areas_of_the_paper():
    """With alpha 1, the area is uniform. Boxes are square before they are cropped, and centred anywhere."""
    rng, size = np.random.default_rng(0), 1000
    boxes = np.array([cutmix_box(size, 1.0, rng) for _ in range(4000)])
    top, bottom, left, right = boxes.T
    whole = (top > 0) & (bottom < size) & (left > 0) & (right < size)
    assert (bottom - top)[whole].tolist() == (right - left)[whole].tolist()
    # of a box of side r and a uniform centre, r - r^2/4 of the side lies inside: (r - r^2/4)^2, with r^2 uniform
    share = np.linspace(0, 1, 100_001)
    expected = np.mean((np.sqrt(share) - share / 4) ** 2)
    assert np.mean((bottom - top) * (right - left)) / size**2 == pytest.approx(expected, abs=0.015)
    small = (bottom - top < 100) & whole
    assert np.mean(top[small] + bottom[small]) / 2 == pytest.approx(500, abs=60)


def test_a_large_alpha_covers_half_and_a_small_one_all_or_nothing():
    rng = np.random.default_rng(1)
    half = np.array([cutmix_box(400, 500.0, rng) for _ in range(200)])
    whole = half[(half[:, 0] > 0) & (half[:, 1] < 400)]
    assert np.abs((whole[:, 1] - whole[:, 0]) / 400 - 0.5**0.5).max() < 0.06
    extreme = [cutmix_box(400, 0.01, rng) for _ in range(200)]
    empty = np.mean([bottom == top or left == right for top, bottom, left, right in extreme])
    assert 0.35 < empty < 0.65


# ---- masks

GEOMETRY = ["flip", "vertical_flip", "transpose", "crop", "shift", "scale", "rotate", "optical", "grid", "dropout"]
BLEEDS = np.zeros((32, 32), np.uint8)  # two subtypes, one of them in two bits
BLEEDS[4:13, 5:11], BLEEDS[18:26, 20:29] = 1 << 1, 1 << 4 | 1


@pytest.mark.parametrize("field", GEOMETRY)
def test_a_mask_is_moved_like_its_image(field: str):
    augment, white = only(**{field: STRENGTHS.get(field, 0.3)}), np.where(BLEEDS, 255, 0).astype(np.uint8)
    moved = 0
    for seed in range(8):
        shown, mask = augment(white[..., None].repeat(3, axis=2), seed)[..., 0], augment.mask(BLEEDS, seed)
        inner, outer = shown > 250, shown == 0  # in between, the image is interpolated
        assert (inner | outer).mean() > 0.85
        assert (mask[inner] > 0).all()
        assert not mask[outer].any()
        assert set(np.unique(mask)) <= set(np.unique(BLEEDS))
        moved += not np.array_equal(mask, BLEEDS)
    assert moved >= 2


def test_grey_values_do_not_change_a_mask():
    np.testing.assert_array_equal(only(brightness=0.3, contrast=0.3, noise=0.3).mask(BLEEDS, 3), BLEEDS)

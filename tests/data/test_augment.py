import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.data.augment import Augmentation, build
from ich.data.datasets import cutmix_box, sample_seed

NONE = {"flip": 0, "shift": 0, "scale": 0, "rotate": 0, "brightness": 0, "contrast": 0}
DISTORTED = {"vertical_flip": 0.5, "transpose": 0.5, "crop": 0.5, "optical": 0.1, "grid": 0.3, "jitter": 0.5}
ALL = Augmentation(noise=0.05, dropout=0.5, **DISTORTED)


def picture(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (24, 24, channels)).astype(np.uint8)


def test_changes_are_drawn_independently_of_one_another():
    augment = build(Augmentation(**(NONE | {"flip": 0.5, "dropout": 0.5})))
    image = np.tile(np.arange(1, 25, dtype=np.uint8)[None, :, None], (24, 1, 1))  # rises to the right
    seen = {(flipped, holed): 0 for flipped in (False, True) for holed in (False, True)}
    for seed in range(400):
        shown = augment(image, seed).astype(int)
        left, right = shown[:, :12].max(), shown[:, 12:].max()
        seen[bool(left > right), bool((shown == 0).any())] += 1
    assert min(seen.values()) > 60  # 100 each are expected, with a standard deviation of 9


def test_a_shift_brings_in_air():
    augment = build(Augmentation(**(NONE | {"shift": 0.2})))
    white = np.full((24, 24, 3), 255, np.uint8)
    dark = [int((augment(white, seed) == 0).sum()) for seed in range(10)]
    assert max(dark) > 24 * 3


STRENGTHS = {"rotate": 20} | dict.fromkeys(["flip", "vertical_flip", "transpose", "dropout"], 1)


@pytest.mark.parametrize("field", sorted(set(Augmentation.__dataclass_fields__) - {"jitter"}))
def test_each_strength_changes_the_picture(field: str):
    strength = STRENGTHS.get(field, 0.3)
    shown = build(Augmentation(**(NONE | {field: strength})))(picture(), 4)
    assert not np.array_equal(shown, picture())


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
def test_the_same_seed_makes_the_same_bytes_whatever_the_settings(augmentation, seed, channels):
    first, second = build(augmentation), build(augmentation)
    second(picture(1), 1)  # neither what was done before nor in which size matters
    second(np.zeros((7, 9, 3), np.uint8)[:, :7].copy(), 2)
    image = picture(channels)
    shown = first(image, seed)
    np.testing.assert_array_equal(image, picture(channels))
    assert (shown.shape, shown.dtype) == ((24, 24, channels), np.uint8)
    np.testing.assert_array_equal(shown, second(picture(channels), seed))


def test_mirrors_and_transposition_by_hand():
    def only(field: str) -> np.ndarray:
        return build(Augmentation(**(NONE | {field: 1})))(picture(), 1)

    np.testing.assert_array_equal(build(Augmentation(**NONE))(picture(), 1), picture())
    np.testing.assert_array_equal(only("flip"), picture()[:, ::-1])
    np.testing.assert_array_equal(only("vertical_flip"), picture()[::-1])
    np.testing.assert_array_equal(only("transpose"), picture().transpose(1, 0, 2))


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_crop_keeps_at_least_its_share_of_the_area_in_nearly_the_same_shape(share):
    """Two channels that hold each pixel's row and column tell what was kept."""
    size = 200
    y, x = np.mgrid[:size, :size].astype(np.uint8)
    augment = build(Augmentation(**(NONE | {"crop": share})))
    areas, corners = [], set()
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


def test_jitter_is_how_often_brightness_and_contrast_change():
    changing = NONE | {"brightness": 0.3, "contrast": 0.3}
    always, often = build(Augmentation(**changing)), build(Augmentation(**changing, jitter=0.4))
    changed = 0
    for seed in range(300):
        shown = often(picture(), seed)
        changed += not np.array_equal(shown, picture())
        assert not np.array_equal(always(picture(), seed), picture())
    assert 90 < changed < 150  # 120 are expected, with a standard deviation of 8.5
    never = build(Augmentation(**changing, jitter=0))
    np.testing.assert_array_equal(never(picture(), 1), picture())


@pytest.mark.parametrize(("field", "strength"), [("optical", 0.4), ("grid", 0.3)])
def test_a_distortion_moves_pixels_by_its_strength_and_keeps_their_grey(field, strength):
    """Two channels that hold each pixel's row and column tell where it came from; borders let black in."""
    y, x = np.mgrid[:128, :128].astype(np.uint8)
    places = np.dstack([y, x])

    def moved(share: float) -> list[float]:
        augment = build(Augmentation(**(NONE | {field: strength * share})))
        differences = (augment(places, seed).astype(float) - places for seed in range(20))
        return [float(np.abs(difference[16:-16, 16:-16]).max()) for difference in differences]

    assert 3 < max(moved(1)) < 32
    assert max(moved(0.1)) <= 0.2 * max(moved(1))
    assert len(set(moved(1))) > 2


# ---- CutMix


@given(st.integers(1, 80), st.floats(0.05, 20), st.integers(0, 10_000))
def test_a_box_lies_in_the_picture(size, alpha, seed):
    top, bottom, left, right = cutmix_box(size, alpha, np.random.default_rng(seed))
    assert 0 <= top <= bottom <= size
    assert 0 <= left <= right <= size


def test_boxes_have_the_centres_and_areas_of_the_paper():
    """With alpha 1 the share kept is uniform; boxes are square before they are cut off, and centred anywhere."""
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

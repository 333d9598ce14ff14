import itertools

import numpy as np
import pytest

from ich.data.augment import Augmentation, build, sample_seed

NONE = {"flip": 0, "shift": 0, "scale": 0, "rotate": 0, "brightness": 0, "contrast": 0}
ALL = Augmentation(noise=0.05, dropout=0.5)


def picture(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (24, 24, channels)).astype(np.uint8)


def test_a_change_depends_on_the_seed_alone():
    first, second = build(ALL), build(ALL)
    expected = [first(picture(), seed) for seed in range(10)]
    for seed in reversed(range(10)):
        second(picture(), 1000 + seed)
        np.testing.assert_array_equal(second(picture(), seed), expected[seed])


def test_other_seeds_make_other_pictures():
    augment = build(Augmentation())
    pictures = [augment(picture(), seed) for seed in range(8)]
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(pictures, 2))


def test_changes_are_drawn_independently_of_one_another():
    augment = build(Augmentation(**(NONE | {"flip": 0.5, "dropout": 0.5})))
    image = np.tile(np.arange(1, 25, dtype=np.uint8)[None, :, None], (24, 1, 1))  # rises to the right
    seen = {(flipped, holed): 0 for flipped in (False, True) for holed in (False, True)}
    for seed in range(400):
        shown = augment(image, seed).astype(int)
        left, right = shown[:, :12].max(), shown[:, 12:].max()
        seen[bool(left > right), bool((shown == 0).any())] += 1
    assert min(seen.values()) > 60  # 100 each are expected, with a standard deviation of 9


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_shape_and_type_stay_whatever_the_channels(channels: int):
    shown = build(ALL)(picture(channels), 3)
    assert shown.shape == (24, 24, channels)
    assert shown.dtype == np.uint8


def test_strengths_of_zero_leave_the_picture_alone():
    np.testing.assert_array_equal(build(Augmentation(**NONE))(picture(), 1), picture())


def test_a_flip_is_a_left_right_mirror():
    shown = build(Augmentation(**(NONE | {"flip": 1})))(picture(), 1)
    np.testing.assert_array_equal(shown, picture()[:, ::-1])


def test_a_shift_brings_in_air():
    augment = build(Augmentation(**(NONE | {"shift": 0.2})))
    white = np.full((24, 24, 3), 255, np.uint8)
    dark = [int((augment(white, seed) == 0).sum()) for seed in range(10)]
    assert max(dark) > 24 * 3


@pytest.mark.parametrize("field", ["shift", "scale", "rotate", "brightness", "contrast", "noise", "dropout"])
def test_each_strength_changes_the_picture(field: str):
    strength = {"rotate": 20, "dropout": 1}.get(field, 0.3)
    shown = build(Augmentation(**(NONE | {field: strength})))(picture(), 4)
    assert not np.array_equal(shown, picture())


def test_the_picture_handed_in_is_not_changed():
    image = picture()
    build(ALL)(image, 5)
    np.testing.assert_array_equal(image, picture())


def test_seeds_are_the_same_on_every_machine_and_differ_in_each_part():
    assert sample_seed(7, 0, "ID_000000001") == 636421012374911107
    parts = itertools.product(range(3), range(3), ["ID_a", "ID_b"])
    seeds = {sample_seed(*part) for part in parts} | {sample_seed(1, 11, "x"), sample_seed(11, 1, "x")}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)

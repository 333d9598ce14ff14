"""Pictures made on the device against those that the loader makes of the same draws."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from ich.data.augment import Augmentation, build, drawn, sample_seed
from ich.data.batches import epoch_loader
from ich.data.datasets import SliceBatch, SliceDataset, TwoViews
from ich.data.on_device import OnDevice, _normal
from ich.data.study_pictures import StudyPictures
from ich.data.views import View, Window, neighbour_rows, render

N, SIZE = 12, 64
WINDOWS = View("windows", (Window(40, 80), Window(80, 200), Window(600, 2800)))
NEIGHBOURS = View("neighbours", (Window(80, 200), Window(40, 380)))
GREY = View("grey")
NONE = Augmentation(flip=0, shift=0, scale=0, rotate=0, brightness=0, contrast=0)
MIRRORS = {"flip": 0.5, "vertical_flip": 0.5, "transpose": 0.5}
AFFINE = {"shift": 0.06, "scale": 0.1, "rotate": 15}
ALL = Augmentation(crop=0.5, optical=0.1, grid=0.2, dropout=0.5, **MIRRORS, **AFFINE)
DEVICE = replace(ALL, on="device")


def blurred(sigma: float, spread: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    slices = [cv2.GaussianBlur(rng.normal(0, 1, (SIZE, SIZE)), (0, 0), sigma) for _ in range(N)]
    return np.stack([(one / one.std() * spread).clip(-1024, 3071) for one in slices]).astype(np.int16)


HU = blurred(4, 200)


def dataset(view: View, augmentation: Augmentation, cutmix: float = 0.0, hu: np.ndarray = HU) -> SliceDataset:
    around = neighbour_rows(np.arange(N) // 4, np.arange(N) % 4)
    ids = [f"ID_{row}" for row in range(N)]
    targets = np.arange(N, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    return SliceDataset(hu, np.arange(N), around, ids, targets, view, build(augmentation), 3, cutmix)


def both(view: View, augmentation: Augmentation, cutmix: float = 0.0, hu: np.ndarray = HU):
    """Pictures of the loader and of the device, float32, of one batch with the same targets."""
    there = replace(augmentation, on="device")
    one, other = (
        dataset(view, chosen, cutmix, hu).__getitems__([(1, i) for i in range(N)]) for chosen in (augmentation, there)
    )
    assert one.targets is not None
    assert other.targets is not None
    assert torch.equal(one.targets, other.targets)
    shown = OnDevice(view, there).pictures(other)
    assert (shown.dtype, shown.shape) == (torch.uint8, one.images.shape)
    assert shown.is_contiguous(memory_format=torch.channels_last)
    return one.images.float(), shown.float()


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- windows


def test_the_device_shows_all_numbers_of_16_bits_as_the_look_up_table_does():
    hu = np.arange(65536, dtype=np.uint16).view(np.int16).reshape(1, 1, 256, 256)
    windows = (Window(40, 80), Window(80, 200), Window(600, 2800), Window(-37.5, 0.3), Window(1200, 8000))
    for view in (View("windows", windows), GREY):
        found = OnDevice(view, NONE)._grey(torch.from_numpy(hu)[:, None])
        np.testing.assert_array_equal(found[0, 0].numpy(), np.moveaxis(render(hu[0], view), -1, 0))


@pytest.mark.parametrize("view", [WINDOWS, NEIGHBOURS, GREY, replace(NEIGHBOURS, minmax=True, clahe=2.0)])
@pytest.mark.parametrize("cutmix", [0.0, 1.0])
@pytest.mark.parametrize(
    "changes", [{}, MIRRORS, {"brightness": 0.2, "contrast": 0.3, "jitter": 0.7}, {"dropout": 0.7}, {"shift": 0.2}]
)
def test_what_needs_no_interpolation_is_the_same_to_the_byte(view, cutmix, changes):
    one, other = both(view, replace(NONE, **changes), cutmix)
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    "changes", [AFFINE, AFFINE | MIRRORS, {"optical": 0.3}, {"grid": 0.3, "flip": 0.5}, {"scale": 0.3}, {"rotate": 180}]
)
@pytest.mark.parametrize("view", [WINDOWS, NEIGHBOURS])
def test_what_is_interpolated_once_differs_by_rounding_alone(view, changes):
    one, other = both(view, replace(NONE, **changes), cutmix=1.0)
    if view is WINDOWS:
        assert (one - other).abs().max() <= 1
        assert (one != other).float().mean() < 0.01
    else:  # of the last two of six channels OpenCV knows places to 1/32 of a pixel only
        assert (one - other).abs()[:, :4].max() <= 1
        assert (one - other).abs().mean() < 0.2


def test_several_distortions_differ_at_the_edge_of_black_and_by_the_blur_of_each_sampling():
    view = View("windows", (Window(0, 1600),))
    one, other = both(view, ALL, hu=blurred(8, 300))
    apart = (one - other).abs()
    assert (apart > 2).float().mean() < 0.1  # an edge of a pixel's width around a picture is 6 % of it
    assert apart[apart <= 2].mean() < 0.5
    assert abs((one - other).mean()) < 0.5


def test_brightness_and_contrast_of_pictures_spread_as_the_loader_s_do():
    augmentation = replace(ALL, noise=0.05, brightness=0.2, contrast=0.2)
    one, other = both(WINDOWS, augmentation)
    for figure in (torch.mean, torch.std):
        mine, theirs = (torch.stack([figure(picture) for picture in pictures]) for pictures in (one, other))
        assert torch.corrcoef(torch.stack([mine, theirs]))[0, 1] > 0.99
        torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0)


def test_noise_is_normal_has_the_drawn_strength_and_depends_on_its_key_and_place_alone():
    keys = torch.tensor([3.0, 4.0, 3.0, 2.0**24 - 1])[:, None, None]
    noise = torch.stack([_normal(keys, channel, 128) for channel in range(3)], dim=1)
    assert noise.isfinite().all()
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(_normal(keys[1:2], 2, 128)[0], noise[1, 2])
    for part in (noise[0, 0], noise[1, 1], noise[3, 2], noise[0, :, ::2], noise[:2, 0, :, 1::2]):
        assert abs(float(part.mean())) < 4 / part.numel() ** 0.5
        assert abs(float(part.std()) - 1) < 3 / part.numel() ** 0.5
    flat = noise[:2].flatten(1)
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.02
    assert abs(float((flat[:, 1:] * flat[:, :-1]).mean())) < 0.02
    quantiles = torch.quantile(noise[0, 0].flatten(), torch.tensor([0.0228, 0.1587, 0.5, 0.8413, 0.9772]))
    torch.testing.assert_close(quantiles, torch.tensor([-2.0, -1, 0, 1, 2]), atol=0.08, rtol=0)
    augmentation = replace(NONE, noise=0.1)
    grey = np.full((N, SIZE, SIZE), 80, np.int16)
    view = View("windows", (Window(80, 200),))
    one, other = both(view, augmentation, hu=grey)
    torch.testing.assert_close(one.std(dim=(1, 2, 3)), other.std(dim=(1, 2, 3)), rtol=0.05, atol=0.1)
    assert abs(float((one - other).mean())) < 0.2


# ---- draws


def test_draws_are_albumentations_own_numbers():
    augment, size = build(replace(ALL, brightness=0.1, contrast=0.2, noise=0.1)), 50
    found = np.stack([augment.draw(size, seed) for seed in range(400)])
    change = drawn(found)
    for name, low, high in (("lens", -0.1, 0.1), ("noise", 0, 25.5)):
        assert low <= change[name][:, 0].min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < change[name][:, 0].max() <= high
    factor, more = change["grey"].T
    assert 0.8 <= factor.min() < 0.82
    assert 1.18 < factor.max() <= 1.2
    assert -25.5 <= more.min() < -24
    assert 24 < more.max() <= 25.5
    determinant = np.linalg.det(change["warp"].reshape(-1, 2, 3)[:, :, :2])
    assert 1.1**-2 - 1e-6 <= determinant.min() < 0.84
    assert 1.2 < determinant.max() <= 0.9**-2 + 1e-6
    mirrored = np.linalg.det(change["place"].reshape(-1, 2, 3)[:, :, :2])
    assert 0.4 < (mirrored < 0).mean() < 0.6
    assert 0.5 <= np.abs(mirrored).min() < 0.53
    assert (change["columns"][:, -1] - size < 1e-3).all()
    holed = change["holes"].any(axis=1).mean()
    assert 0.42 < holed < 0.58


def test_draws_depend_on_seed_epoch_and_id_alone_whatever_batches_and_workers():
    there, show = dataset(NEIGHBOURS, DEVICE, cutmix=1.0), OnDevice(NEIGHBOURS, DEVICE)

    def found(batch_size: int, shuffle: bool, workers: int = 0, epoch: int = 1) -> dict[int, tuple]:
        rows = {}
        for batch in epoch_loader(there, epoch, batch_size, shuffle, workers):
            shown = show.pictures(batch)
            assert batch.draws is not None
            assert batch.targets is not None
            for i, row in enumerate(batch.rows.tolist()):
                rows[row] = tuple(part[i].numpy().tobytes() for part in (shown, batch.draws, batch.targets))
        return rows

    first = found(N, True)
    assert len(first) == N
    assert found(5, False) == found(4, False, workers=1) == first
    later = found(N, True, epoch=2)
    assert all(later[row][1] != first[row][1] for row in first)


def test_pieces_hold_the_draws_of_their_slices():
    noisy = replace(DEVICE, noise=0.1)
    show = OnDevice(WINDOWS, noisy)
    batch = dataset(WINDOWS, noisy, cutmix=1.0).__getitems__([(0, i) for i in range(7)])
    pieces = [piece for piece, _ in batch.pieces(3)]
    assert torch.equal(torch.cat([show.pictures(piece) for piece in pieces]), show.pictures(batch))


def test_neither_autocast_nor_the_gradient_reach_the_pictures():
    show, batch = OnDevice(WINDOWS, DEVICE), dataset(WINDOWS, DEVICE).__getitems__([(0, i) for i in range(N)])
    expected = show.pictures(batch)
    with torch.autocast("cpu", torch.bfloat16):
        shown = show.pictures(batch)
    assert torch.equal(shown, expected)
    assert not shown.requires_grad


def test_what_the_loader_has_finished_stays_as_it_is():
    batch = dataset(WINDOWS, ALL).__getitems__([(0, 1)])
    assert OnDevice(WINDOWS, ALL).pictures(batch) is batch.images


# ---- other data sets


@pytest.mark.parametrize("view", [WINDOWS, NEIGHBOURS, replace(WINDOWS, minmax=True)])
def test_two_views_are_the_loader_s_two_views(view: View):
    augmentation = replace(NONE, **AFFINE, flip=0.5, brightness=0.2)
    there = replace(augmentation, on="device")
    items = [(2, i) for i in (4, 0, 7)]
    expected = TwoViews(dataset(view, augmentation)).__getitems__(items)
    batch = TwoViews(dataset(view, there)).__getitems__(items)
    assert isinstance(batch, SliceBatch)
    assert batch.images.shape[1] == 1  # each slice travels once
    assert batch.rows.tolist() == expected.rows.tolist()
    found = OnDevice(view, there).views(batch)
    for one, other in zip(OnDevice(view, augmentation).views(expected), found, strict=True):
        assert other.is_contiguous(memory_format=torch.channels_last)
        assert (one.float() - other.float()).abs().mean() < 0.3
    assert not torch.equal(*found)


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_the_slices_of_a_study_are_changed_alike_and_as_the_loader_does(cutmix: float):
    augmentation = replace(NONE, **AFFINE, **MIRRORS, contrast=0.2)
    offsets, ids = np.array([0, 4, 9, 12]), ["a", "b", "c"]
    one, other = (
        StudyPictures(dataset(WINDOWS, chosen, cutmix), offsets, ids, np.zeros((N, 2), np.float32))
        for chosen in (augmentation, replace(augmentation, on="device"))
    )
    items = [(1, 2), (1, 0), (1, 1)]
    expected, batch = one.__getitems__(items), other.__getitems__(items)
    assert expected.targets is not None
    assert batch.targets is not None
    assert batch.draws is not None
    assert torch.equal(expected.targets, batch.targets)
    show = OnDevice(WINDOWS, replace(augmentation, on="device"))
    shown = show.pictures(batch)
    assert (shown.float() - expected.images.float()).abs().max() <= 1
    draws = batch.draws.split(batch.lengths.tolist())
    assert all((study == study[0]).all() for study in draws)
    assert not torch.equal(draws[0][0], draws[1][0])
    pieces = [piece for piece, _ in batch.pieces(2)]
    assert torch.equal(torch.cat([show.pictures(piece) for piece in pieces]), shown)


def test_the_draws_of_a_slice_are_those_of_its_seed():
    batch = dataset(WINDOWS, DEVICE).__getitems__([(5, 3)])
    assert batch.draws is not None
    np.testing.assert_array_equal(batch.draws[0, 0], build(ALL).draw(SIZE, sample_seed(3, 5, "ID_3")))

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ich.data.augment import Augment, Augmentation
from ich.data.batches import EpochBatches, epoch_loader
from ich.data.datasets import SliceDataset, Transform, TwoViews, cutmix_box, sample_seed
from ich.data.series import SeriesArrays, series_batch, series_loader
from ich.data.windowing import Window, Windowing, neighbour_rows, render

WINDOWS = Windowing("windows", (Window(40, 80), Window(80, 200)))
NEIGHBOURS = Windowing("neighbours", (Window(80, 200),))
AUGMENT = Augment(Augmentation())
HU = np.random.default_rng(0).integers(-100, 200, (20, 8, 8)).astype(np.int16)
AROUND = neighbour_rows(np.arange(20) // 5, np.arange(20) % 5)
ROWS = [17, 2, 3, 4, 9, 0, 12]


def dataset(windowing: Windowing, augment: Augment | None = None, cutmix: float = 0.0) -> SliceDataset:
    targets = np.repeat(np.array(ROWS, np.float32)[:, None], 6, axis=1)
    ids, transform = [f"ID_{row}" for row in ROWS], Transform(windowing, augment, cutmix, seed=3)
    return SliceDataset(HU, np.array(ROWS), AROUND, ids, targets, transform)


def image_of(row: int, windowing: Windowing) -> np.ndarray:
    return render(HU[AROUND[row]] if windowing is NEIGHBOURS else HU[row][None], windowing)


def test_each_epoch_has_every_slice_once_in_an_order_of_seed_and_epoch_alone():
    orders = []
    for seed, epoch in ((1, 0), (1, 1), (2, 0), (1, 0)):
        batches = list(EpochBatches(10, 4, seed, epoch, shuffle=True, drop_last=False))
        assert [len(batch) for batch in batches] == [4, 4, 2]
        items = [item for batch in batches for item in batch]
        assert {e for e, _ in items} == {epoch}
        orders.append([i for _, i in items])
        assert sorted(orders[-1]) == list(range(10))
        torch.manual_seed(9)
    first, *others, again = orders
    assert first == again
    assert first not in others


@pytest.mark.parametrize(("n", "drop_last", "sizes"), [(10, True, [4, 4]), (3, True, [3]), (10, False, [4, 4, 2])])
def test_an_incomplete_batch_is_dropped_unless_it_is_the_only_one(n, drop_last, sizes):
    batches = EpochBatches(n, 4, 0, 0, shuffle=True, drop_last=drop_last)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)


@pytest.mark.parametrize("windowing", [WINDOWS, NEIGHBOURS])
def test_images_targets_and_rows_belong_together(windowing: Windowing):
    seen = []
    for batch in epoch_loader(dataset(windowing), epoch=0, batch_size=3, shuffle=False):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[1:] == (windowing.channels, 8, 8)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for image, target, row in zip(*batch[:3], strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0), image_of(int(row), windowing))
            assert target.tolist() == [row] * 6
            seen.append(int(row))
    assert seen == ROWS


@pytest.mark.parametrize("windowing", [WINDOWS, NEIGHBOURS])
def test_batches_are_the_same_with_any_number_of_workers(windowing: Windowing):
    alone, shared = (
        list(epoch_loader(dataset(windowing, AUGMENT, cutmix=1.0), 2, 2, shuffle=True, workers=workers))
        for workers in (0, 2)
    )
    assert len(alone) == len(shared) == 3
    for one, other in zip(alone, shared, strict=True):
        for a, b in zip(one[:3], other[:3], strict=True):
            assert torch.equal(a, b)


def test_augmentation_depends_on_id_and_epoch_but_not_on_the_order():
    for epoch, batch_size, shuffle in ((1, 3, False), (1, 7, True), (2, 3, False)):
        for batch in epoch_loader(dataset(WINDOWS, AUGMENT), epoch, batch_size, shuffle):
            for image, row in zip(batch.images, batch.rows.tolist(), strict=True):
                expected = AUGMENT(image_of(row, WINDOWS), sample_seed(3, epoch, f"ID_{row}"))
                np.testing.assert_array_equal(image.permute(1, 2, 0), expected)


def test_loading_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(epoch_loader(dataset(WINDOWS, AUGMENT), 0, 3, shuffle=True))
    assert torch.equal(torch.rand(3), expected)


# ---- CutMix


@pytest.mark.parametrize("augment", [None, AUGMENT])
@pytest.mark.parametrize("windowing", [WINDOWS, NEIGHBOURS])
def test_cutmix_shows_a_partner_in_the_box_and_mixes_targets_by_area(windowing: Windowing, augment: Augment | None):
    mixed, shares = dataset(windowing, augment, cutmix=1.0), []

    def image(row: int, *seed: object) -> np.ndarray:
        plain = image_of(row, windowing)
        return plain if augment is None else augment(plain, sample_seed(3, *seed))

    batches = [(epoch, batch) for epoch in range(8) for batch in epoch_loader(mixed, epoch, 3, shuffle=True)]
    for epoch, batch in batches:
        images = batch.images.permute(0, 2, 3, 1).numpy()
        for shown, target, row in zip(images, batch.targets, batch.rows.tolist(), strict=True):
            rng = np.random.default_rng(sample_seed(3, epoch, f"ID_{row}", "cutmix"))
            partner = [other for other in ROWS if other != row][int(rng.integers(6))]
            top, bottom, left, right = cutmix_box(8, 1.0, rng)
            own, other = image(row, epoch, f"ID_{row}"), image(partner, epoch, f"ID_{row}", "partner")
            inside = np.zeros((8, 8), bool)
            inside[top:bottom, left:right] = True
            share = inside.mean()
            np.testing.assert_array_equal(shown[inside], other[inside])
            np.testing.assert_array_equal(shown[~inside], own[~inside])
            np.testing.assert_allclose(target, [(1 - share) * row + share * partner] * 6, rtol=1e-6)
            shares.append(share)
    np.testing.assert_array_equal(mixed.targets, dataset(windowing).targets)  # the dataset's own are unchanged
    assert np.mean(np.array(shares) > 0) > 0.8  # the others were rounded to nothing
    assert len(set(shares)) > 10


# ---- two views


@pytest.mark.parametrize("workers", [0, 2])
def test_two_views_are_two_augmentations_of_the_same_slices(workers: int):
    views, seen = TwoViews(dataset(NEIGHBOURS, AUGMENT)), []
    assert len(views) == 7
    for batch in epoch_loader(views, 4, 3, shuffle=True, workers=workers):
        rows = batch.rows.tolist()
        for images, name in ((batch.first, "first"), (batch.second, "second")):
            assert images.dtype == torch.uint8
            assert images.is_contiguous(memory_format=torch.channels_last)
            for image, row in zip(images, rows, strict=True):
                expected = AUGMENT(image_of(row, NEIGHBOURS), sample_seed(3, 4, f"ID_{row}", name))
                np.testing.assert_array_equal(image.permute(1, 2, 0), expected)
        assert not any(torch.equal(a, b) for a, b in zip(batch.first, batch.second, strict=True))
        seen += rows
    assert len(set(seen)) == len(seen) == 6  # an incomplete last batch is dropped


# ---- studies


def packed(lengths: list[int]) -> SeriesArrays:
    n, rng = sum(lengths), np.random.default_rng(0)
    return SeriesArrays(
        features=[rng.normal(size=(n, width)).astype(np.float16) for width in (5, 2)],
        base=rng.normal(size=(n, 6)).astype(np.float32),
        geometry=rng.normal(size=(n, 2)).astype(np.float32),
        targets=rng.integers(0, 2, (n, 6)).astype(np.float32),
        offsets=np.cumsum([0, *lengths]),
    )


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
def test_padding_puts_every_slice_at_its_place(lengths: list[int], data: st.DataObject):
    studies = packed(lengths)
    chosen = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, max_size=5))
    batch = series_batch(studies, np.array(chosen))
    rows = np.concatenate([np.arange(*studies.offsets[k : k + 2]) for k in chosen])
    assert batch.lengths.tolist() == [lengths[k] for k in chosen]
    assert batch.rows.tolist() == rows.tolist()
    np.testing.assert_array_equal(batch.targets, studies.targets[rows])
    features, base, geometry, given_lengths = batch.inputs
    assert given_lengths is batch.lengths
    both = np.concatenate(studies.features, axis=1)
    for padded, source in ((features, both), (base, studies.base), (geometry, studies.geometry)):
        assert padded.dtype == torch.float32
        assert padded.shape == (len(chosen), max(batch.lengths), source.shape[1])
        np.testing.assert_array_equal(batch.real(padded), source[rows])
        for study, length in zip(padded, batch.lengths, strict=True):
            assert not study[length:].any()


def test_an_epoch_has_each_series_once():
    whole = [list(range(3)), [3], list(range(4, 8)), [8, 9], list(range(10, 15))]
    for shuffle in (False, True):
        batches = list(series_loader(packed([3, 1, 4, 2, 5]), 2, shuffle=shuffle, seed=1, epoch=1))
        rows = [one.tolist() for batch in batches for one in batch.rows.split(batch.lengths.tolist())]
        assert sorted(rows) == sorted(whole)
        assert shuffle or rows == whole


@pytest.mark.parametrize("batch", [dataset(WINDOWS)[0, 3], TwoViews(dataset(WINDOWS, AUGMENT))[0, 3]])
def test_batches_of_slices_have_no_padding(batch):
    assert [tuple(images.shape) for images in batch.inputs] == [(1, 2, 8, 8)] * len(batch.inputs)
    assert batch.real(batch.inputs[0]) is batch.inputs[0]
    assert batch.rows.tolist() == [4]
    assert batch.targets is None or batch.targets.tolist() == [[4] * 6]


def test_tables_are_moved_to_a_gpu_with_twice_their_size_free(monkeypatch):
    studies, gpu = packed([2, 3]), torch.device("cuda", 0)
    size = 5 * ((5 + 2) * 2 + (6 + 2 + 6) * 4)
    for free, there in ((2 * size, gpu), (2 * size - 1, torch.device("cpu"))):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10 * free))
        assert studies.on_device(gpu).device == there
    assert studies.on_device(torch.device("cpu")) is studies
    features, base, *_ = studies.tables
    for table, array in zip([*features, base], [*studies.features, studies.base], strict=True):
        assert np.shares_memory(table.numpy(), array)


def test_masks_of_a_batch_show_the_same_places_as_its_images():
    """Of slices that are white where their mask is, flipped and mixed by CutMix; the second slice has no bleed."""
    bleeds = np.zeros((3, 16, 16), np.uint8)
    bleeds[0, 2:7, 3:12], bleeds[2, 8:15, 1:5] = 1, 4
    hu, compressed = np.where(bleeds, 300, -300).astype(np.int16), {k: zlib.compress(bleeds[k]) for k in (0, 2)}
    augment = Augment(Augmentation(flip=0.5, vertical_flip=0.5, shift=0, scale=0, rotate=0, brightness=0, contrast=0))
    transform = Transform(Windowing("windows", (Window(0, 100),)), augment, cutmix=1.0, seed=3)
    around, ids = np.arange(3)[:, None].repeat(3, axis=1), ["a", "b", "c"]
    slices = SliceDataset(hu, np.arange(3), around, ids, np.eye(3, dtype=np.float32), transform, compressed)
    mixed = 0
    for epoch in range(12):
        batch = slices.__getitems__([(epoch, i) for i in range(3)])
        assert batch.masks is not None
        torch.testing.assert_close(batch.masks > 0, batch.images > 0)
        mixed += int((batch.masks[1] > 0).any())
    assert mixed, "the slice without a bleed gets those of its partners"
    assert dataset(WINDOWS).__getitems__([(0, 1)]).masks is None

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.data.augment import Augment, Augmentation
from ich.data.batches import epoch_loader
from ich.data.datasets import SliceDataset, Transform, cutmix_box, sample_seed
from ich.data.series_images import SeriesImages
from ich.data.windowing import Window, Windowing, neighbour_rows, render

WINDOWS = Windowing("windows", (Window(40, 80), Window(80, 200)))
NEIGHBOURS = Windowing("neighbours", (Window(80, 200),))
AUGMENT = Augment(Augmentation())


def studies(lengths: list[int], windowing=WINDOWS, augment=None, cutmix: float = 0.0, labelled=True) -> SeriesImages:
    """Studies in a cache with the studies in reverse order, after one slice that belongs to none."""
    n, rng = sum(lengths), np.random.default_rng(0)
    hu = rng.integers(-100, 200, (n + 1, 8, 8)).astype(np.int16)
    ends = np.cumsum(lengths)
    rows = np.concatenate([np.arange(n + 1 - end, n + 1 - end + k) for end, k in zip(ends, lengths, strict=True)])
    study, index = np.full(n + 1, -1), np.zeros(n + 1, int)
    study[rows] = np.repeat(np.arange(len(lengths)), lengths)
    index[rows] = np.concatenate([np.arange(k) for k in lengths])
    targets = np.column_stack([rows, rows + 100.0]).astype(np.float32) if labelled else None
    transform = Transform(windowing, augment, cutmix, seed=5)
    slices = SliceDataset(hu, rows, neighbour_rows(study, index), [f"i{row}" for row in rows], targets, transform)
    geometry = rng.normal(size=(n + 1, 2)).astype(np.float32)
    return SeriesImages(slices, np.append(0, ends), [f"s{k}" for k in range(len(lengths))], geometry)


def image_of(dataset: SeriesImages, row: int) -> np.ndarray:
    slices, windowing = dataset.slices, dataset.slices.transform.windowing
    return render(slices.hu[slices.neighbours[row]] if windowing is NEIGHBOURS else slices.hu[row][None], windowing)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_every_slice_is_at_its_place_and_padding_is_zero(lengths: list[int], data: st.DataObject):
    windowing = data.draw(st.sampled_from([WINDOWS, NEIGHBOURS]))
    dataset = studies(lengths, windowing)
    chosen = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, max_size=4))
    batch = dataset.__getitems__([(0, k) for k in chosen])
    first = [sum(lengths) + 1 - sum(lengths[: k + 1]) for k in range(len(lengths))]
    rows = [first[k] + t for k in chosen for t in range(lengths[k])]
    assert batch.lengths.tolist() == [lengths[k] for k in chosen]
    assert batch.rows.tolist() == rows
    images, geometry, given_lengths = batch.inputs
    assert given_lengths is batch.lengths
    assert (images.dtype, images.shape[1:]) == (torch.uint8, (windowing.channels, 8, 8))
    assert images.is_contiguous(memory_format=torch.channels_last)
    for image, row in zip(images, rows, strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0), image_of(dataset, row))
    np.testing.assert_array_equal(batch.targets, np.column_stack([rows, np.array(rows) + 100]).astype(np.float32))
    assert geometry.shape == (len(chosen), max(batch.lengths), 2)
    np.testing.assert_array_equal(batch.real(geometry), dataset.geometry[rows])
    for study, length in zip(geometry, batch.lengths, strict=True):
        assert not study[length:].any()


def test_the_slices_of_a_study_are_augmented_alike():
    augment = Augment(Augmentation(noise=0.1))
    dataset = studies([4, 3, 2], augment=augment)
    for epoch in (0, 1):
        batch = dataset.__getitems__([(epoch, k) for k in (2, 0, 1)])
        names = ["s2"] * 2 + ["s0"] * 4 + ["s1"] * 3
        for image, row, name in zip(batch.images, batch.rows.tolist(), names, strict=True):
            expected = augment(image_of(dataset, row), sample_seed(5, epoch, name))
            np.testing.assert_array_equal(image.permute(1, 2, 0), expected)


@pytest.mark.parametrize(
    ("lengths", "others"),  # others: the partner's slice for each slice of the first and of the second study
    [
        ([4, 2], ([0, 0, 1, 1], [1, 3])),
        ([5, 3], ([0, 0, 1, 2, 2], [0, 2, 4])),
        ([1, 6], ([3], [0] * 6)),
        ([3, 3], ([0, 1, 2], [0, 1, 2])),
    ],
)
def test_cutmix_has_one_box_per_study_and_the_partner_slice_at_the_same_relative_position(lengths, others):
    """With two studies, each is the other's partner."""
    dataset, boxes = studies(lengths, NEIGHBOURS, AUGMENT, cutmix=1.0), set()
    for epoch in range(10):
        batch = dataset.__getitems__([(epoch, 0), (epoch, 1)])
        images, rows = iter(batch.images), [part.tolist() for part in batch.rows.split(lengths)]
        assert batch.targets is not None
        for k in (0, 1):
            rng = np.random.default_rng(sample_seed(5, epoch, f"s{k}", "cutmix"))
            rng.integers(1)
            top, bottom, left, right = cutmix_box(8, 1.0, rng)
            boxes.add((top, bottom, left, right))
            inside = np.zeros((8, 8), bool)
            inside[top:bottom, left:right] = True
            share = inside.mean()
            for t, row in enumerate(rows[k]):
                other = rows[1 - k][others[k][t]]
                shown = next(images).permute(1, 2, 0).numpy()
                own = AUGMENT(image_of(dataset, row), sample_seed(5, epoch, f"s{k}"))
                foreign = AUGMENT(image_of(dataset, other), sample_seed(5, epoch, f"s{k}", "partner"))
                np.testing.assert_array_equal(shown[~inside], own[~inside])
                np.testing.assert_array_equal(shown[inside], foreign[inside])
                mixed = (1 - share) * row + share * other
                np.testing.assert_allclose(batch.targets.split(lengths)[k][t], [mixed, mixed + 100], rtol=1e-6)
    assert len(boxes) > 10


def test_an_epoch_has_every_study_once_with_any_batch_size_and_number_of_workers():
    dataset = studies([3, 1, 4, 2, 5], augment=AUGMENT, cutmix=1.0)

    def found(batch_size: int, shuffle: bool, workers: int = 0) -> list[tuple]:
        result = []
        for batch in epoch_loader(dataset, 1, batch_size, shuffle, workers):
            parts = (part.split(batch.lengths.tolist()) for part in (batch.rows, batch.images, batch.targets))
            result += [tuple(part.tolist() for part in study) for study in zip(*parts, strict=True)]
        return result

    expected = found(1, False)
    assert [len(rows) for rows, _, _ in expected] == [3, 1, 4, 2, 5]
    assert found(2, False) == found(3, False, workers=2) == expected
    shuffled = found(2, True)
    assert shuffled != expected
    assert sorted(shuffled) == sorted(expected)


def test_studies_without_labels_have_no_targets():
    assert studies([2, 1], labelled=False)[0, 1].targets is None

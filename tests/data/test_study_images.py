import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.data.augment import Augmentation, build
from ich.data.batches import epoch_loader
from ich.data.datasets import SliceDataset, cutmix_box, sample_seed
from ich.data.study_images import StudyImages
from ich.data.views import View, Window, neighbour_rows, render

WINDOWS = View("windows", (Window(40, 80), Window(80, 200)))
NEIGHBOURS = View("neighbours", (Window(80, 200),))


def studies(
    lengths: list[int],
    view: View = WINDOWS,
    augmentation: Augmentation | None = None,
    cutmix: float = 0.0,
    labelled: bool = True,
) -> StudyImages:
    """Studies in a cache that holds them the other way round, with a slice of nobody's before them."""
    n, rng = sum(lengths), np.random.default_rng(0)
    hu = rng.integers(-100, 200, (n + 1, 8, 8)).astype(np.int16)
    ends = np.cumsum(lengths)
    rows = np.concatenate([np.arange(n + 1 - end, n + 1 - end + k) for end, k in zip(ends, lengths, strict=True)])
    study, index = np.full(n + 1, -1), np.zeros(n + 1, int)
    study[rows] = np.repeat(np.arange(len(lengths)), lengths)
    index[rows] = np.concatenate([np.arange(k) for k in lengths])
    targets = np.column_stack([rows, rows + 100.0]).astype(np.float32) if labelled else None
    augment = None if augmentation is None else build(augmentation)
    ids = [f"i{row}" for row in rows]
    slices = SliceDataset(hu, rows, neighbour_rows(study, index), ids, targets, view, augment, 5, cutmix)
    geometry = rng.normal(size=(n + 1, 2)).astype(np.float32)
    return StudyImages(slices, np.append(0, ends), [f"s{k}" for k in range(len(lengths))], geometry)


def picture(set_: StudyImages, row: int) -> np.ndarray:
    slices = set_.slices
    return render(slices.hu[slices.neighbours[row]] if slices.view is NEIGHBOURS else slices.hu[row][None], slices.view)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_every_slice_is_at_its_place_and_padding_is_nothing(lengths: list[int], data: st.DataObject):
    set_ = studies(lengths, data.draw(st.sampled_from([WINDOWS, NEIGHBOURS])))
    chosen = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, max_size=4))
    batch = set_.__getitems__([(0, k) for k in chosen])
    first = [sum(lengths) + 1 - sum(lengths[: k + 1]) for k in range(len(lengths))]
    rows = [first[k] + t for k in chosen for t in range(lengths[k])]
    assert batch.lengths.tolist() == [lengths[k] for k in chosen]
    assert batch.real_rows.tolist() == rows
    images, geometry, given_lengths = batch.inputs
    assert given_lengths is batch.lengths
    assert (images.dtype, images.shape[1:]) == (torch.uint8, (set_.slices.view.channels, 8, 8))
    assert images.is_contiguous(memory_format=torch.channels_last)
    for image, row in zip(images, rows, strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0), picture(set_, row))
    np.testing.assert_array_equal(batch.targets, np.column_stack([rows, np.array(rows) + 100]).astype(np.float32))
    assert geometry.shape == (len(chosen), max(batch.lengths), 2)
    np.testing.assert_array_equal(batch.real(geometry), set_.geometry[rows])
    for study, length in zip(geometry, batch.lengths, strict=True):
        assert not study[length:].any()


def test_all_slices_of_a_study_are_changed_alike_and_studies_differently():
    set_ = studies([4, 3, 2], augmentation=Augmentation(noise=0.1))
    augment = build(Augmentation(noise=0.1))
    for epoch in (0, 1):
        batch = set_.__getitems__([(epoch, k) for k in (2, 0, 1)])
        names = ["s2"] * 2 + ["s0"] * 4 + ["s1"] * 3
        for image, row, name in zip(batch.images, batch.rows.tolist(), names, strict=True):
            expected = augment(picture(set_, row), sample_seed(5, epoch, name))
            np.testing.assert_array_equal(image.permute(1, 2, 0), expected)


@pytest.mark.parametrize("lengths", [[4, 2], [2, 4], [5, 3], [1, 6], [3, 3]])
def test_cutmix_is_one_box_a_study_and_the_partner_lies_at_the_same_relative_place(lengths: list[int]):
    """Of two studies each is the other's partner."""
    places = {(4, 2): [0, 0, 1, 1], (2, 4): [1, 3], (5, 3): [0, 0, 1, 2, 2], (3, 5): [0, 2, 4]}
    places |= {(1, 6): [3], (6, 1): [0] * 6, (3, 3): [0, 1, 2]}
    set_, boxes = studies(lengths, NEIGHBOURS, Augmentation(), cutmix=1.0), set()
    augment = build(Augmentation())
    for epoch in range(10):
        batch = set_.__getitems__([(epoch, 0), (epoch, 1)])
        images = iter(batch.images)
        assert batch.targets is not None
        for k in (0, 1):
            rng = np.random.default_rng(sample_seed(5, epoch, f"s{k}", "cutmix"))
            rng.integers(1)
            top, bottom, left, right = cutmix_box(8, 1.0, rng)
            boxes.add((top, bottom, left, right))
            inside = np.zeros((8, 8), bool)
            inside[top:bottom, left:right] = True
            share = inside.mean()
            rows, others = (batch.rows.split(lengths)[j].tolist() for j in (k, 1 - k))
            for t, row in enumerate(rows):
                other = others[places[lengths[k], lengths[1 - k]][t]]
                shown = next(images).permute(1, 2, 0).numpy()
                own = augment(picture(set_, row), sample_seed(5, epoch, f"s{k}"))
                foreign = augment(picture(set_, other), sample_seed(5, epoch, f"s{k}", "partner"))
                np.testing.assert_array_equal(shown[~inside], own[~inside])
                np.testing.assert_array_equal(shown[inside], foreign[inside])
                mixed = (1 - share) * row + share * other
                np.testing.assert_allclose(batch.targets.split(lengths)[k][t], [mixed, mixed + 100], rtol=1e-6)
    assert len(boxes) > 10


def test_an_epoch_is_every_study_once_whatever_the_batches_and_workers():
    set_ = studies([3, 1, 4, 2, 5], augmentation=Augmentation(), cutmix=1.0)

    def found(batch_size: int, shuffle: bool, workers: int = 0) -> list[tuple]:
        loaded, result = epoch_loader(set_, 1, batch_size, shuffle, workers), []
        for batch in loaded:
            assert batch.targets is not None
            lengths = batch.lengths.tolist()
            parts = (part.split(lengths) for part in (batch.rows, batch.images, batch.targets))
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


def test_parts_that_do_not_belong_together_are_refused():
    good = studies([2, 3])
    parts = (good.slices, good.offsets, good.study_ids, good.geometry)
    for place, wrong, says in (
        (1, np.array([0, 2, 4]), "offsets"),
        (1, np.array([0, 5, 5]), "offsets"),
        (2, ["s0"], "do not belong"),
        (3, good.geometry[1:], "do not belong"),
    ):
        with pytest.raises(ValueError, match=says):
            StudyImages(*(wrong if i == place else part for i, part in enumerate(parts)))
    with pytest.raises(ValueError, match="two studies"):
        studies([4], cutmix=1.0)

"""masks.npz: contents, and the masks of cropped and resized images."""

import zipfile

import numpy as np
import pytest

from ich.phantom.masks import add_mask, class_masks, lesion_masks


def test_the_file_contains_the_masks_of_exactly_the_slices_with_a_bleed(written):
    expected = {
        image_id: mask
        for _, study in written.studies
        for image_id, mask, labels in zip(study.image_ids, study.masks, study.labels, strict=True)
        if labels[5]
    }
    with np.load(written.root / "masks.npz", allow_pickle=False) as stored:
        assert sorted(stored.files) == sorted(expected)
        for image_id, mask in expected.items():
            np.testing.assert_array_equal(stored[image_id], mask, strict=True)


def test_the_file_is_compressed_and_has_no_dates(written):
    with zipfile.ZipFile(written.root / "masks.npz") as archive:
        entries = archive.infolist()
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert sum(entry.compress_size for entry in entries) < sum(entry.file_size for entry in entries) / 4


@pytest.fixture
def stored(tmp_path):
    """Two slices of 40 x 40: a rectangle of subtype 1 that subtype 4 overlaps, and a corner of subtype 2."""
    first, second = np.zeros((2, 40, 40), np.uint8)
    first[8:16, 12:28] |= 1 << 1
    first[14:20, 12:16] |= 1 << 4
    second[0:3, 0:3] |= 1 << 2
    with zipfile.ZipFile(tmp_path / "masks.npz", "w") as archive:
        add_mask(archive, "a", first)
        add_mask(archive, "b", second)
    return tmp_path / "masks.npz"


@pytest.mark.parametrize(
    ("name", "areas"),
    [
        ("intraparenchymal", [0, 128, 0]),
        ("subdural", [0, 24, 0]),
        ("intraventricular", [9, 0, 0]),
        ("epidural", [0, 0, 0]),
        ("any", [9, 144, 0]),
    ],
)
def test_a_subtype_is_one_bit_and_any_is_all_of_them(stored, name, areas):
    masks = lesion_masks(stored, ["b", "a", "healthy"], np.array([[0, 0, 40]] * 3), 40, name)
    assert masks.sum(axis=(1, 2)).tolist() == areas


def test_a_pixel_belongs_to_a_bleed_that_covers_half_of_it(stored):
    """At half the size, the rectangle has whole blocks and the 3 x 3 corner partial ones."""
    first, second = lesion_masks(stored, ["a", "b"], np.array([[0, 0, 40]] * 2), 20, "any")
    assert np.argwhere(first).min(0).tolist() == [4, 6]
    assert first.sum() == (128 + 16) / 4
    assert np.argwhere(second).tolist() == [[0, 0], [0, 1], [1, 0]]  # covered 1, 1/2, 1/2; the last one 1/4


def test_a_box_beyond_the_slice_shifts_the_mask(stored):
    mask = lesion_masks(stored, ["a"], np.array([[-6, -3, 52]]), 52, "intraparenchymal")[0]
    assert np.argwhere(mask).min(0).tolist() == [14, 15]
    assert mask.sum() == 128


def test_the_classes_of_a_slice_are_bits_of_one_mask(stored):
    names, boxes = ["any", "subdural", "intraparenchymal"], np.array([[0, 0, 40], [2, 4, 30], [0, 0, 40]])
    ((k, mask),) = class_masks(stored, ["healthy", "a", "other"], boxes, 30, names)
    assert (k, mask.dtype, mask.shape) == (1, np.uint8, (30, 30))
    for c, name in enumerate(names):
        np.testing.assert_array_equal((mask >> c) & 1, lesion_masks(stored, ["a"], boxes[1:], 30, name)[0])
    assert sorted(np.unique(mask)) == [0, 0b011, 0b101, 0b111]

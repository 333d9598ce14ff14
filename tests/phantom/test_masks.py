"""The masks of a synthetic competition: what is in the file, and what a network's picture shows of them."""

import zipfile

import cv2
import numpy as np
import pytest

from ich.data.crop import resized
from ich.phantom.competition import CLASSES, make_study, plan_competition
from ich.phantom.masks import lesion_masks, mask_writer


def test_the_file_holds_the_mask_of_every_slice_with_a_bleed_and_no_other(written):
    with np.load(written.root / "masks.npz", allow_pickle=False) as stored:
        keys = set(stored.files)
        assert len(keys) == len(stored.files)
        for p in plan_competition(train_studies=9, test_studies=5, seed=5):
            study = make_study(5, p.patient, p.study, slices=7, size=64, bleed_rate=0.0, kinds=p.kinds)
            for image_id, mask, labels in zip(study.image_ids, study.masks, study.labels, strict=True):
                assert (image_id in keys) == bool(labels[5])
                if labels[5]:
                    np.testing.assert_array_equal(stored[image_id], mask)
                    assert stored[image_id].dtype == np.uint8
                    keys.remove(image_id)
        assert not keys


def test_the_file_says_nothing_of_when_it_was_written(written):
    with zipfile.ZipFile(written.root / "masks.npz") as archive:
        members = archive.infolist()
    assert members
    assert {m.date_time for m in members} == {(1980, 1, 1, 0, 0, 0)}
    assert sum(m.compress_size for m in members) < sum(m.file_size for m in members) / 4


@pytest.fixture
def stored(tmp_path):
    """Two slices of 40 x 40: a rectangle of subtype 1 that subtype 4 overlaps, and nothing for a third."""
    first, second = np.zeros((2, 40, 40), np.uint8)
    first[8:16, 12:28] |= 1 << 1
    first[14:20, 12:16] |= 1 << 4
    second[0:3, 0:3] |= 1 << 2
    with mask_writer(tmp_path / "masks.npz") as add:
        add({"a": first})
        add({"b": second})
    return tmp_path / "masks.npz"


def test_a_subtype_is_its_bit_and_none_is_all_of_them(stored):
    whole = np.array([[0, 0, 40]] * 3)

    def areas(bit):
        return lesion_masks(stored, ["b", "a", "healthy"], whole, 40, bit).sum(axis=(1, 2)).tolist()

    assert areas(CLASSES.index("intraparenchymal")) == [0, 128, 0]
    assert areas(CLASSES.index("subdural")) == [0, 24, 0]
    assert areas(CLASSES.index("intraventricular")) == [9, 0, 0]
    assert areas(CLASSES.index("epidural")) == [0, 0, 0]
    assert areas(None) == [9, 144, 0]


def test_half_a_pixel_is_enough(stored):
    """Every second pixel: of the rectangle's rows 8..15 and columns 12..27 whole blocks, of the corner's 3 x 3 1.5."""
    boxes = np.array([[0, 0, 40], [0, 0, 40]])
    first, second = lesion_masks(stored, ["a", "b"], boxes, 20, None)
    assert np.argwhere(first).min(0).tolist() == [4, 6]
    assert first.sum() == (128 + 16) / 4
    assert np.argwhere(second).tolist() == [[0, 0], [0, 1], [1, 0]]  # covered 1, 1/2, 1/2; the last one 1/4


@pytest.mark.parametrize(
    "box", [(0, 0, 40), (5, 9, 21), (-6, -3, 52), (20, 15, 30), (-4, 10, 20), (3, 3, 16), (50, 0, 9)]
)
@pytest.mark.parametrize("size", [16, 24])
def test_masks_are_cut_and_resized_as_the_pictures_are(stored, box, size):
    with np.load(stored, allow_pickle=False) as file:
        mask = file["a"] != 0
    found = lesion_masks(stored, ["a"], np.array([box]), size, None)[0]
    if box[0] >= 40:
        assert not found.any()
        return
    picture = resized((mask * 10000).astype(np.int16), box, size, 0)
    np.testing.assert_array_equal(found, picture >= 5000)


def test_masks_lie_over_the_bleeds_of_the_pictures(written):
    """Bleeds are brighter than what lies around them, in the cropped picture too."""
    contrast = []
    for p in plan_competition(train_studies=9, test_studies=5, seed=5):
        study = make_study(5, p.patient, p.study, slices=7, size=64, bleed_rate=0.0, kinds=p.kinds)
        box = (3, 5, 50)
        masks = lesion_masks(
            written.root / "masks.npz", study.image_ids, np.array([box] * 99)[: len(study.hu)], 40, None
        )
        for hu, mask in zip(study.hu, masks, strict=True):
            if mask.sum() > 8:
                around = (cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0) & ~mask
                shown = resized(hu, box, 40).clip(0, 80)
                contrast.append(shown[mask].mean() - np.median(shown[around]))
    assert len(contrast) > 10
    assert np.mean(np.array(contrast) > 0) > 0.7

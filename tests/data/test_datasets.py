import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ich.data.augment import Augmentation, build, sample_seed
from ich.data.datasets import EpochBatches, SliceDataset, Studies, slice_loader, study_batch, study_loader
from ich.data.views import View, Window, neighbour_rows, render

WINDOWS = View("windows", (Window(40, 80), Window(80, 200)))
NEIGHBOURS = View("neighbours", (Window(80, 200),))
HU = np.random.default_rng(0).integers(-100, 200, (20, 8, 8)).astype(np.int16)
AROUND = neighbour_rows(np.arange(20) // 5, np.arange(20) % 5)


def dataset(view: View, augmentation: Augmentation | None = None, seed: int = 3) -> SliceDataset:
    rows = np.array([17, 2, 3, 4, 9, 0, 12])
    targets = rows[:, None] * np.ones((1, 6), np.float32)
    augment = None if augmentation is None else build(augmentation)
    ids = [f"ID_{row}" for row in rows]
    return SliceDataset(HU, rows, AROUND, ids, targets.astype(np.float32), view, augment, seed)


def test_each_epoch_shows_every_slice_once_in_another_order():
    orders = []
    for epoch in range(3):
        batches = list(EpochBatches(10, 4, seed=1, epoch=epoch, shuffle=True, drop_last=False))
        assert [len(batch) for batch in batches] == [4, 4, 2]
        items = [item for batch in batches for item in batch]
        assert {e for e, _ in items} == {epoch}
        orders.append([i for _, i in items])
        assert sorted(orders[-1]) == list(range(10))
    assert orders[0] != orders[1] != orders[2]


def test_the_order_depends_on_seed_and_epoch_alone():
    first = list(EpochBatches(50, 8, seed=1, epoch=4, shuffle=True, drop_last=True))
    np.random.default_rng(0).random(100)
    torch.manual_seed(9)
    assert first == list(EpochBatches(50, 8, seed=1, epoch=4, shuffle=True, drop_last=True))
    assert first != list(EpochBatches(50, 8, seed=2, epoch=4, shuffle=True, drop_last=True))


def test_an_incomplete_batch_is_dropped_unless_it_is_the_only_one():
    assert [len(b) for b in EpochBatches(10, 4, 0, 0, shuffle=True, drop_last=True)] == [4, 4]
    assert [len(b) for b in EpochBatches(3, 4, 0, 0, shuffle=True, drop_last=True)] == [3]
    for n, drop in [(10, True), (10, False), (3, True), (8, False)]:
        batches = EpochBatches(n, 4, 0, 0, shuffle=False, drop_last=drop)
        assert len(batches) == len(list(batches))
    with pytest.raises(ValueError, match="at least one"):
        EpochBatches(0, 4, 0, 0, shuffle=False, drop_last=False)


@pytest.mark.parametrize("view", [WINDOWS, NEIGHBOURS])
def test_pictures_targets_and_rows_belong_together(view: View):
    seen = []
    for images, targets, rows in slice_loader(dataset(view), epoch=0, batch_size=3, shuffle=False):
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (view.channels, 8, 8)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert targets is not None
        for image, target, row in zip(images, targets, rows.tolist(), strict=True):
            hu = HU[AROUND[row]] if view is NEIGHBOURS else HU[row][None]
            np.testing.assert_array_equal(image.permute(1, 2, 0), render(hu, view))
            assert target.tolist() == [row] * 6
            seen.append(row)
    assert seen == [17, 2, 3, 4, 9, 0, 12]


@pytest.mark.parametrize("view", [WINDOWS, NEIGHBOURS])
def test_batches_are_the_same_whatever_the_number_of_workers(view: View):
    def batches(workers: int):
        return list(slice_loader(dataset(view, Augmentation()), 2, 2, shuffle=True, workers=workers))

    alone, shared = batches(0), batches(2)
    assert len(alone) == len(shared) == 3
    for one, other in zip(alone, shared, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


def test_a_slice_is_changed_by_its_id_and_epoch_not_by_its_place():
    def pictures(epoch: int, batch_size: int, shuffle: bool) -> dict[int, np.ndarray]:
        loader = slice_loader(dataset(WINDOWS, Augmentation()), epoch, batch_size, shuffle)
        return {int(r): x.numpy() for images, _, rows in loader for x, r in zip(images, rows, strict=True)}

    ordered, shuffled, later = pictures(1, 3, False), pictures(1, 7, True), pictures(2, 3, False)
    assert ordered.keys() == shuffled.keys() == later.keys()
    augment = build(Augmentation())
    for row, shown in ordered.items():
        np.testing.assert_array_equal(shown, shuffled[row])
        assert not np.array_equal(shown, later[row])
        expected = augment(render(HU[row][None], WINDOWS), sample_seed(3, 1, f"ID_{row}"))
        np.testing.assert_array_equal(shown.transpose(1, 2, 0), expected)


def test_loading_draws_nothing_from_the_models_random_numbers():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(slice_loader(dataset(WINDOWS, Augmentation()), 0, 3, shuffle=True))
    assert torch.equal(torch.rand(3), expected)


def test_parts_of_different_length_are_refused():
    with pytest.raises(ValueError, match="belong together"):
        SliceDataset(HU, np.arange(4), AROUND, ["a", "b"], None, WINDOWS, None, 0)


def packed(lengths: list[int]) -> Studies:
    n, rng = sum(lengths), np.random.default_rng(0)
    return Studies(
        features=rng.normal(size=(n, 5)).astype(np.float16),
        base=rng.normal(size=(n, 6)).astype(np.float32),
        geometry=rng.normal(size=(n, 2)).astype(np.float32),
        targets=rng.integers(0, 2, (n, 6)).astype(np.float32),
        offsets=np.cumsum([0, *lengths]),
    )


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
def test_padding_puts_every_slice_at_its_place(lengths: list[int], data: st.DataObject):
    studies = packed(lengths)
    chosen = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, max_size=5))
    batch = study_batch(studies, np.array(chosen))
    longest = max(lengths[k] for k in chosen)
    assert batch.features.shape == (len(chosen), longest, 5)
    for place, k in enumerate(chosen):
        assert batch.lengths[place] == lengths[k]
        for t in range(longest):
            row = int(studies.offsets[k]) + t if t < lengths[k] else -1
            assert batch.rows[place, t] == row
            for padded, source in [
                (batch.features, studies.features),
                (batch.base, studies.base),
                (batch.geometry, studies.geometry),
                (batch.targets, studies.targets),
            ]:
                assert padded is not None
                assert source is not None
                assert padded.dtype == torch.float32
                expected = source[row] if row >= 0 else np.zeros(source.shape[1])
                np.testing.assert_array_equal(padded[place, t], expected)


def test_an_epoch_of_studies_holds_each_chosen_study_once():
    studies, chosen = packed([3, 1, 4, 2, 5]), np.array([4, 0, 2])
    whole = [list(range(10, 15)), list(range(3)), list(range(4, 8))]
    for shuffle in (False, True):
        batches = list(study_loader(studies, chosen, 2, shuffle=shuffle, seed=1, epoch=1))
        rows = [[r for r in study.tolist() if r >= 0] for batch in batches for study in batch.rows]
        assert sorted(rows) == sorted(whole)
        assert shuffle or rows == whole


def test_packed_studies_are_checked():
    good = packed([2, 3])
    for offsets in ([0, 2, 4], [1, 2, 5], [0, 5, 5]):
        with pytest.raises(ValueError, match="offsets"):
            Studies(good.features, good.base, good.geometry, good.targets, np.array(offsets))
    with pytest.raises(ValueError, match="differ in length"):
        Studies(good.features, good.base[:3], good.geometry, good.targets, good.offsets)

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ich.data.augment import Augmentation, build
from ich.data.batches import EpochBatches, epoch_loader
from ich.data.datasets import SliceDataset, TwoViews, covered, cutmix_box, paste, sample_seed
from ich.data.studies import Studies, study_batch, study_loader
from ich.data.views import View, Window, neighbour_rows, render

WINDOWS = View("windows", (Window(40, 80), Window(80, 200)))
NEIGHBOURS = View("neighbours", (Window(80, 200),))
HU = np.random.default_rng(0).integers(-100, 200, (20, 8, 8)).astype(np.int16)
AROUND = neighbour_rows(np.arange(20) // 5, np.arange(20) % 5)


def dataset(view: View, augmentation: Augmentation | None = None, seed: int = 3, cutmix: float = 0.0) -> SliceDataset:
    rows = np.array([17, 2, 3, 4, 9, 0, 12])
    targets = rows[:, None] * np.ones((1, 6), np.float32)
    augment = None if augmentation is None else build(augmentation)
    ids = [f"ID_{row}" for row in rows]
    return SliceDataset(HU, rows, AROUND, ids, targets.astype(np.float32), view, augment, seed, cutmix)


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
    for images, targets, rows in epoch_loader(dataset(view), epoch=0, batch_size=3, shuffle=False):
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
        return list(epoch_loader(dataset(view, Augmentation()), 2, 2, shuffle=True, workers=workers))

    alone, shared = batches(0), batches(2)
    assert len(alone) == len(shared) == 3
    for one, other in zip(alone, shared, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


def test_a_slice_is_changed_by_its_id_and_epoch_not_by_its_place():
    def pictures(epoch: int, batch_size: int, shuffle: bool) -> dict[int, np.ndarray]:
        loader = epoch_loader(dataset(WINDOWS, Augmentation()), epoch, batch_size, shuffle)
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
    list(epoch_loader(dataset(WINDOWS, Augmentation()), 0, 3, shuffle=True))
    assert torch.equal(torch.rand(3), expected)


def test_parts_of_different_length_are_refused():
    with pytest.raises(ValueError, match="belong together"):
        SliceDataset(HU, np.arange(4), AROUND, ["a", "b"], None, WINDOWS, None, 0)


# ---- CutMix


def test_a_box_by_hand():
    images, others = np.zeros((2, 5, 5, 2), np.uint8), np.full((2, 5, 5, 2), 9, np.uint8)
    for image, other, box in zip(images, others, [(1, 3, 2, 5), (2, 2, 0, 5)], strict=True):
        paste(image, other, box)
    assert images[0, ..., 1].tolist() == [[0] * 5, [0, 0, 9, 9, 9], [0, 0, 9, 9, 9], [0] * 5, [0] * 5]
    assert not images[1].any()
    assert covered((1, 3, 2, 5), 5) == 2 * 3 / 25
    assert covered((2, 2, 0, 5), 5) == 0


@pytest.mark.parametrize("augmentation", [None, Augmentation()])
@pytest.mark.parametrize("view", [WINDOWS, NEIGHBOURS])
def test_cutmix_shows_a_partner_in_the_box_and_mixes_targets_by_area(view: View, augmentation: Augmentation | None):
    mixed, rows = dataset(view, augmentation, cutmix=1.0), dataset(view).rows.tolist()
    augment = (lambda image, seed: image) if augmentation is None else build(augmentation)
    shares = []
    for epoch in range(8):
        batch = mixed.__getitems__([(epoch, i) for i in range(7)])
        assert batch.targets is not None
        for i, row in enumerate(rows):
            rng = np.random.default_rng(sample_seed(3, epoch, f"ID_{row}", "cutmix"))
            partner = rows[[k for k in range(7) if k != i][int(rng.integers(6))]]
            top, bottom, left, right = cutmix_box(8, 1.0, rng)
            own, other = (
                augment(render(HU[AROUND[r]] if view is NEIGHBOURS else HU[r][None], view), seed)
                for r, seed in (
                    (row, sample_seed(3, epoch, f"ID_{row}")),
                    (partner, sample_seed(3, epoch, f"ID_{row}", "partner")),
                )
            )
            inside = np.zeros((8, 8), bool)
            inside[top:bottom, left:right] = True
            shown = batch.images[i].permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(shown[inside], other[inside])
            np.testing.assert_array_equal(shown[~inside], own[~inside])
            share = inside.mean()
            np.testing.assert_allclose(batch.targets[i], [(1 - share) * row + share * partner] * 6, rtol=1e-6)
            assert batch.rows[i] == row
            shares.append(share)
    assert np.mean(np.array(shares) > 0) > 0.8  # all but the boxes that round to nothing
    assert len(set(shares)) > 10


def test_cutmix_depends_on_seed_epoch_and_id_alone_and_leaves_the_targets_handed_in():
    mixed = dataset(WINDOWS, Augmentation(), cutmix=1.0)

    def found(epoch: int, batch_size: int, shuffle: bool, workers: int = 0) -> dict[int, tuple]:
        loaded = epoch_loader(mixed, epoch, batch_size, shuffle, workers)
        return {
            int(r): (x.numpy(), y.tolist())
            for images, targets, rows in loaded
            for x, y, r in zip(images, targets if targets is not None else [], rows, strict=True)
        }

    first = found(1, 7, True)
    assert len(first) == 7
    for again in (found(1, 2, False), found(1, 3, False, workers=2)):
        for row, (image, target) in first.items():
            np.testing.assert_array_equal(again[row][0], image)
            assert again[row][1] == target
    assert any(found(2, 7, True)[row][1] != target for row, (_, target) in first.items())
    np.testing.assert_array_equal(mixed.targets, dataset(WINDOWS).targets)


def test_cutmix_without_targets_or_with_one_slice_is_refused():
    for rows, targets in ((np.arange(4), None), (np.arange(1), np.ones((1, 6), np.float32))):
        ids = [str(row) for row in rows]
        with pytest.raises(ValueError, match="CutMix"):
            SliceDataset(HU, rows, AROUND, ids, targets, WINDOWS, None, 0, cutmix=1.0)


# ---- two views


@pytest.mark.parametrize("workers", [0, 2])
def test_two_views_are_two_changes_of_the_same_slices(workers: int):
    views = TwoViews(dataset(NEIGHBOURS, Augmentation()))
    assert len(views) == 7
    augment, seen = build(Augmentation()), []
    for first, second, rows, _ in epoch_loader(views, 4, 3, shuffle=True, workers=workers):
        for images, name in ((first, "first"), (second, "second")):
            assert images.dtype == torch.uint8
            assert images.is_contiguous(memory_format=torch.channels_last)
            for image, row in zip(images, rows.tolist(), strict=True):
                expected = augment(render(HU[AROUND[row]], NEIGHBOURS), sample_seed(3, 4, f"ID_{row}", name))
                np.testing.assert_array_equal(image.permute(1, 2, 0), expected)
        assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        seen += rows.tolist()
    assert len(set(seen)) == len(seen) == 6  # an incomplete last batch is dropped


def test_two_views_want_an_augmentation_and_no_cutmix():
    for slices in (dataset(WINDOWS), dataset(WINDOWS, Augmentation(), cutmix=1.0)):
        with pytest.raises(ValueError, match="two views"):
            TwoViews(slices)


# ---- studies


def packed(lengths: list[int]) -> Studies:
    n, rng = sum(lengths), np.random.default_rng(0)
    return Studies(
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
    batch = study_batch(studies, np.array(chosen))
    rows = np.concatenate([np.arange(*studies.offsets[k : k + 2]) for k in chosen])
    assert batch.lengths.tolist() == [lengths[k] for k in chosen]
    assert batch.real_rows.tolist() == rows.tolist()
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


def test_an_epoch_of_studies_holds_each_chosen_study_once():
    studies, chosen = packed([3, 1, 4, 2, 5]), np.array([4, 0, 2])
    whole = [list(range(10, 15)), list(range(3)), list(range(4, 8))]
    for shuffle in (False, True):
        batches = list(study_loader(studies, chosen, 2, shuffle=shuffle, seed=1, epoch=1))
        rows = [study.tolist() for batch in batches for study in batch.rows.split(batch.lengths.tolist())]
        assert sorted(rows) == sorted(whole)
        assert shuffle or rows == whole


def test_packed_studies_are_checked():
    good = packed([2, 3])
    for offsets in ([0, 2, 4], [1, 2, 5], [0, 5, 5]):
        with pytest.raises(ValueError, match="offsets"):
            Studies(good.features, good.base, good.geometry, good.targets, np.array(offsets))
    with pytest.raises(ValueError, match="differ in length"):
        Studies(good.features, good.base[:3], good.geometry, good.targets, good.offsets)


@pytest.mark.parametrize("batch", [dataset(WINDOWS)[0, 3], TwoViews(dataset(WINDOWS, Augmentation()))[0, 3]])
def test_batches_of_slices_have_no_padding(batch):
    assert [tuple(images.shape) for images in batch.inputs] == [(1, 2, 8, 8)] * len(batch.inputs)
    assert batch.real(batch.inputs[0]) is batch.inputs[0]
    assert batch.real_rows.tolist() == [4]
    assert batch.targets is None or batch.targets.tolist() == [[4] * 6]


def test_tables_lie_on_a_gpu_that_has_twice_the_room_and_else_in_the_arrays(monkeypatch):
    studies, gpu = packed([2, 3]), torch.device("cuda", 0)
    size = 5 * ((5 + 2) * 2 + (6 + 2 + 6) * 4)
    for free, there in ((2 * size, gpu), (2 * size - 1, torch.device("cpu"))):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10 * free))
        assert studies.near(gpu).device == there
    assert studies.near(torch.device("cpu")) is studies
    features, base, *_ = studies.tables
    for table, array in zip([*features, base], [*studies.features, studies.base], strict=True):
        assert np.shares_memory(table.numpy(), array)

"""Where memory is short: batches in pieces, in training and in prediction; and the errors that tell of it."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

from ich.data.batches import EpochBatches, loader
from ich.data.datasets import SliceBatch, SliceDataset
from ich.data.studies import Studies, study_batch, study_loader
from ich.data.study_pictures import StudyPictures
from ich.data.views import View, Window, neighbour_rows
from ich.networks.losses import build
from ich.networks.sequence import SequenceHead
from ich.training import loop
from ich.training.loop import Diverged, FitSettings, fit
from ich.training.memory import free, lost_loader, out_of_memory
from ich.training.predict import predict, predict_studies

BCE = build("bce")


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect():
    """What the tests before have left need not be looked through each time that memory is short."""
    gc.freeze()
    yield
    gc.unfreeze()


SETTINGS = FitSettings(epochs=2, learning_rate=0.01, precision="fp32", seed=5)


def batch_of(n: int, seed: int = 0) -> SliceBatch:
    images = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return SliceBatch(images, (images[:, :2] > 0.5).float(), torch.arange(n))


def packed(lengths: list[int]) -> Studies:
    rng = np.random.default_rng(0)
    n = sum(lengths)
    return Studies(
        features=rng.normal(size=(n, 4)).astype(np.float16),
        base=rng.normal(size=(n, 2)).astype(np.float32),
        geometry=rng.normal(size=(n, 2)).astype(np.float32),
        targets=rng.integers(0, 2, (n, 2)).astype(np.float32),
        offsets=np.cumsum([0, *lengths]),
    )


def pictures(lengths: list[int]) -> StudyPictures:
    n, rng = sum(lengths), np.random.default_rng(0)
    hu = rng.integers(-100, 200, (n, 8, 8)).astype(np.int16)
    study = np.repeat(np.arange(len(lengths)), lengths)
    index = np.concatenate([np.arange(k) for k in lengths])
    targets, view = rng.random((n, 2)).astype(np.float32), View("windows", (Window(40, 80), Window(80, 200)))
    ids = [f"i{i}" for i in range(n)]
    slices = SliceDataset(hu, np.arange(n), neighbour_rows(study, index), ids, targets, view, None, 5)
    geometry = rng.normal(size=(n, 2)).astype(np.float32)
    return StudyPictures(slices, np.cumsum([0, *lengths]), [f"s{k}" for k in range(len(lengths))], geometry)


def groups(n: int, parts: int) -> list[list[int]]:
    """0..n-1 as np.array_split has it, which also says how nearly even the pieces are."""
    return [part.tolist() for part in np.array_split(np.arange(n), min(n, parts))]


def same(one: Any, other: Any) -> bool:
    return all(
        a is b if a is None or b is None else torch.equal(*map(torch.as_tensor, (a, b)))
        for a, b in zip(one, other, strict=True)
    )


# ---- the pieces


@given(st.integers(1, 9), st.integers(1, 12))
def test_pieces_of_slices_hold_each_slice_once_and_none_is_empty(n, parts):
    batch = batch_of(n)
    pieces = batch.pieces(parts)
    assert sorted(len(piece.rows) for piece, _ in pieces) == sorted(map(len, groups(n, parts)))
    assert [share for _, share in pieces] == [len(piece.rows) / n for piece, _ in pieces]
    columns = list(zip(*(piece for piece, _ in pieces), strict=True))
    assert same((None if column[0] is None else torch.cat(column) for column in columns), batch)
    assert batch._replace(targets=None).pieces(parts)[0][0].targets is None


@hypothesis(max_examples=30)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 8))
def test_a_piece_of_studies_is_the_batch_of_these_studies(lengths, parts):
    studies, shown = packed(lengths), pictures(lengths)
    everyone = np.arange(len(lengths))
    pieces = study_batch(studies, everyone).pieces(parts)
    pictured = shown.__getitems__([(0, k) for k in range(len(lengths))]).pieces(parts)
    assert len(pieces) == len(pictured) == min(parts, len(lengths))
    for (piece, share), (picture, other), k in zip(
        pieces, pictured, np.split(everyone, np.cumsum([len(piece.rows) for piece, _ in pieces])[:-1]), strict=True
    ):
        assert same(piece, study_batch(studies, k))
        assert same(picture, shown.__getitems__([(0, i) for i in k]))
        assert share == other == sum(lengths[i] for i in k) / sum(lengths)  # of the slices, not of the studies


# ---- training in pieces


def slices_loss(model: nn.Module, batch: SliceBatch) -> Tensor:
    assert batch.targets is not None
    return BCE(model(batch.images), batch.targets)


def trained(
    make: Callable[[], nn.Module], batches: Callable[[int], Any], loss_of: Any, settings: FitSettings, **options: Any
) -> list[Tensor]:
    """The loss and the clipped gradients of each step, the epochs' losses and the weights that are left."""
    torch.manual_seed(3)
    model, seen = make(), list[Tensor]()

    def watch(_epoch: int, _step: int, loss: float) -> None:
        seen.append(torch.tensor(loss))
        seen.extend(value.grad.clone() for value in model.parameters() if value.grad is not None)

    history = fit(model, batches, loss_of, settings, on_step=watch, **options)
    return [*seen, torch.tensor([row["loss"] for row in history]), *model.state_dict().values()]


def close(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-6, rtol=0) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("parts", [2, 3, 8, 100])
def test_pieces_of_slices_train_as_the_whole_batch_does(parts, clip):
    settings = replace(SETTINGS, gradient_clip=clip)

    def batches(epoch: int) -> list[SliceBatch]:
        return [batch_of(8, epoch), batch_of(5, 100 + epoch)]

    def learned(settings: FitSettings, **options: Any) -> list[Tensor]:
        return trained(lambda: nn.Linear(4, 2), batches, slices_loss, settings, steps_per_epoch=2, **options)

    assert close(learned(settings), learned(settings, parts=parts))
    assert not close(learned(settings), learned(replace(settings, gradient_clip=0.01)))


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_pieces_of_studies_of_unequal_length_train_as_the_whole_batch_does(parts, clip):
    studies, everyone = packed([3, 9, 1, 4, 2, 7, 1]), np.arange(7)

    def masked(head: nn.Module, batch: Any) -> Tensor:
        inside = batch.rows >= 0
        return BCE(head(*batch[:4])[inside], batch.targets[inside])

    def learned(**options: Any) -> list[Tensor]:
        return trained(
            lambda: SequenceHead(4, 2, "gru", hidden=8),
            lambda epoch: study_loader(studies, everyone, 5, shuffle=True, seed=1, epoch=epoch),
            masked,
            replace(SETTINGS, gradient_clip=clip),
            steps_per_epoch=2,
            **options,
        )

    assert close(learned(), learned(parts=parts))


def test_the_gradient_of_unequal_pieces_is_the_mean_s_by_hand():
    batch = SliceBatch(torch.tensor([[1.0], [2.0], [6.0]]), torch.zeros(3, 1), torch.arange(3))
    seen: list[float] = []
    model = nn.Linear(1, 1, bias=False)
    model.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(float(weight.grad)))  # pyright: ignore
    settings = replace(SETTINGS, epochs=1, gradient_clip=None)
    fit(model, lambda _: [batch], lambda m, b: m(b.images).mean(), settings, steps_per_epoch=1, parts=2)
    assert seen == [pytest.approx(1 / 3), pytest.approx(3.0)]  # 1, then 2 and 6: (1 + 2 + 6) / 3


def test_a_piece_whose_loss_is_no_number_stops_the_fit():
    hurt = batch_of(4)
    hurt.images[3] = torch.nan
    with pytest.raises(Diverged, match="the loss is nan at epoch 0, step 0"):
        fit(nn.Linear(4, 2), lambda _: [hurt], slices_loss, SETTINGS, steps_per_epoch=1, parts=4)


def test_another_error_of_a_step_is_raised_as_it_is():
    def broken(model: nn.Module, batch: SliceBatch) -> Tensor:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match=r"^something else$"):
        fit(nn.Linear(4, 2), lambda _: [batch_of(4)], broken, SETTINGS, steps_per_epoch=1, parts=2)


# ---- divergence that neither the loss nor the weights show


@pytest.fixture
def scaled(monkeypatch) -> None:
    """The scaler of fp16, which else only a GPU has."""

    def accelerator(_precision: str) -> Accelerator:
        made = Accelerator(cpu=True)
        made.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        made.native_amp = True
        return made

    monkeypatch.setattr(loop, "accelerator_for", accelerator)


def test_fp16_that_skips_step_after_step_is_noticed(scaled):
    def steep(model: nn.Module, batch: SliceBatch) -> Tensor:
        return (model(batch.images) * 0).sum().sqrt()  # 0, with an infinite slope

    with pytest.raises(Diverged, match=r"the gradients are too large for fp16 at epoch 2, step 9: .* precision fp32"):
        fit(nn.Linear(4, 2), lambda _: [batch_of(4)] * 10, steep, replace(SETTINGS, epochs=9), steps_per_epoch=10)


def test_fp16_that_skips_a_step_now_and_then_goes_on(scaled):
    calls = iter(range(1000))

    def loss_of(model: nn.Module, batch: SliceBatch) -> Tensor:
        bad = next(calls) % 20 == 3
        return (model(batch.images) * 0).sum().sqrt() if bad else slices_loss(model, batch)

    history = fit(nn.Linear(4, 2), lambda _: [batch_of(4)] * 30, loss_of, SETTINGS, steps_per_epoch=30)
    assert history[-1]["loss"] < history[0]["loss"]


def test_an_optimizer_that_stands_still_for_an_infinite_square_is_noticed():
    settings = replace(SETTINGS, gradient_clip=None)
    with pytest.raises(Diverged, match="the optimizer's state is not finite at epoch 0, step 1"):
        fit(nn.Linear(4, 2), lambda _: [batch_of(4)] * 2, lambda m, b: 1e30 * m(b.images).sum(), settings,
            steps_per_epoch=2)  # fmt: skip


# ---- prediction in pieces


class Narrow(nn.Module):
    """A network that is out of memory for more than `most` slices; its logits tell the row and the batch's size."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.sizes = most, list[int]()

    def forward(self, images: Tensor, *_: Tensor) -> Tensor:
        self.sizes.append(n := len(images))
        if n > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return 2 * images


def test_a_prediction_that_is_out_of_memory_passes_in_halves_from_then_on():
    model, batches = Narrow(3), [batch_of(8), batch_of(8, 1)]
    found = predict(model, batches, 16, "fp32")
    assert model.sizes == [8, 4, 2, 2, 4, 2, 2] + [1] * 8  # the second batch is not tried in whole
    np.testing.assert_array_equal(found["logits"], 2 * torch.cat([batch.images for batch in batches]).numpy())
    np.testing.assert_array_equal(found["rows"], [*range(8), *range(8)])


def test_a_single_slice_that_is_out_of_memory_is_an_error_and_so_is_any_other():
    with pytest.raises(torch.OutOfMemoryError):
        predict(Narrow(0), [batch_of(8)], 8, "fp32")
    with pytest.raises(ValueError, match="the 7 slices"):
        predict(Narrow(8), [batch_of(8)], 7, "fp32")


class NarrowHead(nn.Module):
    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, features: Tensor, base: Tensor, geometry: Tensor, lengths: Tensor) -> Tensor:
        if features.shape[0] * features.shape[1] > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return base


def test_studies_pass_in_halves_too():
    studies = packed([3, 9, 1, 4, 2])
    batches = list(study_loader(studies, np.arange(5), 5, shuffle=False))
    found = predict_studies(NarrowHead(12), batches, 19, "fp32")
    np.testing.assert_array_equal(found["logits"], studies.base)
    np.testing.assert_array_equal(found["rows"], np.arange(19))


# ---- what errors say


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), True),
        (torch.OutOfMemoryError("of a future wording"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_a_smaller_batch_might_cure(error, expected):
    assert out_of_memory(error) is expected
    assert not lost_loader(error)


def test_what_was_in_use_where_an_error_was_raised_is_given_back():
    held: list[weakref.ref[nn.Module]] = []

    def fails() -> None:
        model = nn.Linear(2, 2)
        held.append(weakref.ref(model))
        raise MemoryError

    def fails_later() -> None:
        try:
            fails()
        except MemoryError as error:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory") from error

    with pytest.raises(RuntimeError) as caught:
        fails_later()
    assert held[0]() is not None
    free(caught.value)
    assert held[0]() is None


class Worker(Dataset):
    """Ten batches, and something happens to the process that makes the fifth."""

    def __init__(self, happens: Callable[[], None]) -> None:
        self.happens = happens

    def __getitem__(self, item: tuple[int, int]) -> SliceBatch:
        return self.__getitems__([item])

    def __getitems__(self, items: list[tuple[int, int]]) -> SliceBatch:
        if items[0][1] == 5:
            self.happens()
        return batch_of(1)


def _raises(error: Exception) -> Callable[[], None]:
    def happens() -> None:
        raise error

    return happens


def of_worker(happens: Callable[[], None]) -> tuple[str, bool, bool]:
    """What the error says, whether it is that of a lost loader, and one that a smaller batch might cure."""
    order = EpochBatches(10, 1, 0, 0, shuffle=False, drop_last=False)
    try:
        list(loader(Worker(happens), order, workers=1))  # pyright: ignore[reportArgumentType]
    except Exception as error:
        free(error)
        return str(error), lost_loader(error), out_of_memory(error)
    raise AssertionError("nothing was raised")


def test_a_loader_without_memory_is_known():
    assert of_worker(_raises(MemoryError("Unable to allocate")))[1]


def test_a_fault_in_a_loader_is_no_lack_of_memory():
    for fault in (RuntimeError("a fault"), ValueError("a fault")):
        said, *known = of_worker(_raises(fault))
        assert "a fault" in said
        assert known == [False, False]


def test_a_full_shared_memory_is_told_and_nobody_waits_for_ever(monkeypatch):
    def full(_: Tensor) -> Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # which the forked process inherits
    assert of_worker(lambda: None)[1]

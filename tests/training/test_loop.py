import io
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ich.data.studies import Studies, study_loader
from ich.networks.classifier import Classifier
from ich.networks.losses import build
from ich.networks.sequence import SequenceHead
from ich.training.device import resolve
from ich.training.divergence import Losses, finite
from ich.training.loop import Diverged, FitSettings, OtherState, best_epoch, fit, learning_rate, weights
from ich.training.predict import predict, predict_studies

BCE = build("bce")
SETTINGS = FitSettings(epochs=3, learning_rate=0.01, precision="fp32", seed=5)
STEPS = 4


class Batch(NamedTuple):
    images: Tensor
    targets: Tensor | None
    rows: Tensor


def batches(epoch: int) -> Iterator[Batch]:
    rng = torch.Generator().manual_seed(100 + epoch)
    for _ in range(STEPS):
        images = torch.randn(8, 4, generator=rng)
        yield Batch(images, (images[:, :2] > 0).float(), torch.arange(8))


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    assert batch.targets is not None
    return BCE(model(batch.images), batch.targets)


def small() -> nn.Module:
    """A model with all that a state must hold: norms with running statistics, and dropout."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))


def run(settings: FitSettings, model: nn.Module | None = None, **options: Any) -> tuple[nn.Module, list]:
    model = small() if model is None else model
    options = {"steps_per_epoch": STEPS} | options
    return model, fit(model, batches, loss_of, settings, **options)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def flat(state: Any) -> Any:
    """A nested state with its tensors as bytes, to be compared with ==."""
    if isinstance(state, Tensor):
        return str(state.dtype), tuple(state.shape), state.numpy().tobytes()
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    return [flat(value) for value in state] if isinstance(state, list | tuple) else state


class Saved:
    """What a stage does with a state: bytes on a disk, read back without unpickling objects."""

    def __init__(self) -> None:
        self.files: list[bytes] = []

    def __call__(self, state: dict[str, Any]) -> None:
        file = io.BytesIO()
        torch.save(state, file)
        self.files.append(file.getvalue())

    def load(self, epoch: int) -> dict[str, Any]:
        return torch.load(io.BytesIO(self.files[epoch]), weights_only=True)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resuming_after_any_epoch_ends_in_the_same_bytes(ema, precision):
    settings, saved = replace(SETTINGS, ema=ema, precision=precision), Saved()

    def evaluate(model: nn.Module) -> dict[str, float]:
        model.eval()  # as a prediction does; the next epoch trains again
        return {"norm": float(sum(value.float().norm() for value in model.state_dict().values()))}

    whole, history = run(settings, save=saved, evaluate=evaluate)
    assert len(saved.files) == 3
    for epoch in range(3):
        torch.manual_seed(77)  # a new process starts with other random numbers and other weights
        other = small()
        nn.init.zeros_(other[0].weight)  # pyright: ignore[reportArgumentType, reportIndexIssue]
        again = Saved()
        went_on, rows = run(settings, other, resume=saved.load(epoch), save=again, evaluate=evaluate)
        assert same(whole, went_on), f"after epoch {epoch}"
        assert rows == history
        for later in range(epoch + 1, 3):
            assert flat(again.load(later - epoch - 1)) == flat(saved.load(later))


def test_the_same_seed_gives_the_same_model_and_another_seed_another():
    first, _ = run(SETTINGS)
    torch.rand(17)
    second, _ = run(SETTINGS)
    third, _ = run(replace(SETTINGS, seed=6))
    assert same(first, second)
    assert not same(first, third)


def test_a_fit_learns_and_tells_of_every_step_and_epoch():
    steps: list[tuple[int, int, float]] = []
    settings = replace(SETTINGS, epochs=20, learning_rate=0.05)
    _, history = run(settings, on_step=lambda *step: steps.append(step), evaluate=lambda _: {"auc": 0.5})
    assert [(epoch, step) for epoch, step, _ in steps] == [(e, s) for e in range(20) for s in range(STEPS)]
    assert list(history[0]) == ["epoch", "learning_rate", "loss", "auc"]  # no clock: same bytes each run
    assert [row["epoch"] for row in history] == list(range(20))
    assert history[3]["loss"] == pytest.approx(np.mean([loss for epoch, _, loss in steps if epoch == 3]))
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert {type(value) for row in history for value in row.values()} <= {int, float}


def test_learning_rate_rises_and_falls_as_worked_out_by_hand():
    settings = FitSettings(epochs=1, learning_rate=0.8, warmup=0.2)
    rates = [learning_rate(settings, step, 10) for step in range(10)]
    assert rates[:3] == pytest.approx([0.4, 0.8, 0.8])
    assert rates[6] == pytest.approx(0.4)  # half of the way down
    assert rates[9] == pytest.approx(0.4 * (1 + math.cos(math.pi * 7 / 8)))
    assert learning_rate(replace(settings, warmup=0), 0, 10) == 0.8


def test_the_cosine_ends_at_its_floor():
    settings = FitSettings(epochs=1, learning_rate=0.8, warmup=0.2, floor=0.25)
    rates = [learning_rate(settings, step, 10) for step in range(11)]
    assert rates[:3] == pytest.approx([0.4, 0.8, 0.8])
    assert rates[6] == pytest.approx(0.5)  # half of the way from 0.8 to 0.2
    assert rates[10] == pytest.approx(0.2)
    assert [learning_rate(replace(settings, floor=1), step, 10) for step in (2, 6, 9)] == [0.8] * 3


def test_steps_of_the_learning_rate_as_worked_out_by_hand():
    settings = FitSettings(epochs=5, learning_rate=0.8, warmup=0.2, step_every=2, step_factor=0.5, floor=0.9)
    rates = [learning_rate(settings, step, 20) for step in range(20)]  # 4 steps an epoch
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])  # the first epoch warms up
    assert rates[4:] == pytest.approx([0.8] * 4 + [0.4] * 8 + [0.2] * 4)
    assert learning_rate(replace(settings, warmup=0, step_factor=0.412, step_every=1), 19, 20) == 0.8 * 0.412**4


def test_the_rates_of_a_plain_recipe_keep_their_last_digit():
    settings = FitSettings(epochs=7, learning_rate=3e-3)
    for step in range(7, 70):
        assert learning_rate(settings, step, 70) == 3e-3 * (1 + math.cos(math.pi * (step - 7) / 63)) / 2


def test_the_history_shows_the_rate_of_each_epochs_last_step():
    _, history = run(SETTINGS)
    expected = [learning_rate(SETTINGS, last, 12) for last in (3, 7, 11)]
    assert [row["learning_rate"] for row in history] == pytest.approx(expected)


def test_steps_equal_plain_adamw_without_decay_of_biases_and_norms():
    settings = replace(SETTINGS, weight_decay=0.3, gradient_clip=0.05)
    fitted, plain = run(settings)[0], small()
    torch.manual_seed(settings.seed)
    names = dict(plain.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [names["0.weight"], names["3.weight"]], "weight_decay": 0.3},
            {"params": [value for name, value in names.items() if name not in {"0.weight", "3.weight"}]},
        ],
        weight_decay=0,
    )
    plain.train()
    for step, batch in enumerate(batch for epoch in range(3) for batch in batches(epoch)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, 12)
        optimizer.zero_grad()
        loss_of(plain, batch).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        optimizer.step()
    assert same(fitted, plain)


def test_the_result_is_the_moving_average_of_the_weights():
    seen: list[Tensor] = []
    model = small()
    settings = replace(SETTINGS, ema=0.6)
    start = model.state_dict()["0.weight"].clone()
    live = model.state_dict()["0.weight"]
    _, history = run(
        settings,
        model,
        on_step=lambda *_: seen.append(live.clone()),
        evaluate=lambda best: {"first": float(best.state_dict()["0.weight"][0, 0])},
    )
    average = start
    for step, value in enumerate(seen):
        decay = min(0.6, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
    torch.testing.assert_close(model.state_dict()["0.weight"], average)
    assert not torch.equal(average, seen[-1])
    assert history[-1]["first"] == float(model.state_dict()["0.weight"][0, 0])


class Scripted:
    """An evaluation whose figures are laid down, and which keeps the weights that it was shown."""

    def __init__(self, figures: list[float]) -> None:
        self.figures, self.seen = figures, list[dict[str, Tensor]]()

    def __call__(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        self.seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"other": 0.0, "f2": self.figures[len(self.seen) - 1]}

    def resumed(self, epochs: int) -> "Scripted":
        return Scripted(self.figures[epochs:])


NAN = math.nan
KEPT = [  # figures, larger is better, patience, epochs trained, best epoch
    ([0.3, 0.5, 0.4, 0.45], True, None, 4, 1),
    ([0.3, 0.5, 0.4, 0.45], False, None, 4, 0),
    ([0.3, 0.5, 0.5, 0.5], True, None, 4, 1),  # of equals the first
    ([NAN, 0.1, NAN, 0.2], True, None, 4, 3),
    ([NAN, 0.1, NAN, 0.2], False, None, 4, 1),
    ([0.3, 0.2, 0.4, 0.5], True, 1, 2, 0),
    ([0.3, 0.2, 0.4, 0.3], True, 2, 4, 2),
    ([0.3, 0.3, NAN, 0.5], True, 2, 3, 0),  # equal is no better, nor is NaN
    ([NAN, NAN, 0.4, 0.5], True, 3, 4, 3),
    ([math.inf, 0.4, 0.5, 0.6], False, 2, 4, 1),
]


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize(("figures", "larger", "patience", "trained", "best"), KEPT)
def test_the_model_ends_with_the_best_epochs_weights(figures, larger, patience, trained, best, ema):
    settings = replace(SETTINGS, epochs=4, keep_best="f2", larger_is_better=larger, patience=patience, ema=ema)
    judge = Scripted(figures)
    model, history = run(settings, evaluate=judge)
    assert len(history) == len(judge.seen) == trained
    assert best_epoch(settings, history) == best
    assert flat(model.state_dict()) == flat(judge.seen[best])
    assert all(flat(model.state_dict()) != flat(seen) for epoch, seen in enumerate(judge.seen) if epoch != best)
    assert {type(value) for row in history for value in row.values()} <= {int, float}


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize(("figures", "larger", "patience", "trained", "best"), KEPT)
def test_resuming_keeps_the_same_best_epoch_in_the_same_bytes(figures, larger, patience, trained, best, ema):
    settings = replace(SETTINGS, epochs=4, keep_best="f2", larger_is_better=larger, patience=patience, ema=ema)
    saved, judge = Saved(), Scripted(figures)
    whole, history = run(settings, evaluate=judge, save=saved)
    for epoch in range(trained):
        torch.manual_seed(77)
        other, again, later = small(), Saved(), judge.resumed(epoch + 1)
        nn.init.zeros_(other[0].weight)  # pyright: ignore[reportArgumentType, reportIndexIssue]
        went_on, rows = run(settings, other, resume=saved.load(epoch), save=again, evaluate=later)
        assert same(whole, went_on), f"after epoch {epoch}"
        assert repr(rows) == repr(history)  # NaN is not equal to itself
        assert len(later.seen) == trained - epoch - 1  # none after the last, though epochs would be left
        for k in range(len(later.seen)):
            assert repr(flat(again.load(k))) == repr(flat(saved.load(epoch + 1 + k)))


def test_keeping_the_best_changes_no_step_of_the_training():
    plain, kept = Saved(), Saved()
    run(SETTINGS, evaluate=Scripted([0.1, 0.3, 0.2]), save=plain)
    run(replace(SETTINGS, keep_best="f2"), evaluate=Scripted([0.1, 0.3, 0.2]), save=kept)
    for epoch in range(3):
        state = kept.load(epoch)
        assert state.pop("best") is not None
        assert flat(state) == flat(plain.load(epoch))


@pytest.mark.parametrize(("patience", "trained"), [(None, 3), (2, 2)])
def test_a_figure_that_is_never_a_number_is_refused(patience, trained):
    judge = Scripted([math.nan] * 3)
    with pytest.raises(ValueError, match="f2 was not a number in any epoch"):
        run(replace(SETTINGS, keep_best="f2", patience=patience), evaluate=judge)
    assert len(judge.seen) == trained


@pytest.mark.parametrize("evaluate", [None, lambda _: {"auc": 0.5}])
def test_a_figure_that_nobody_reports_is_refused(evaluate):
    with pytest.raises(ValueError, match=r"keep_best is 'f2', but an epoch's figures are epoch, learning_rate, loss"):
        run(replace(SETTINGS, keep_best="f2"), evaluate=evaluate)


def test_patience_without_a_figure_stops_nothing():
    assert len(run(replace(SETTINGS, patience=1), evaluate=Scripted([0.3, 0.2, 0.1]))[1]) == 3


def test_a_state_without_the_best_weights_is_refused():
    saved = Saved()
    run(SETTINGS, save=saved, evaluate=Scripted([0.1, 0.2, 0.3]))
    with pytest.raises(OtherState, match="another setting of ema or keep_best"):
        run(replace(SETTINGS, keep_best="f2"), resume=saved.load(0), evaluate=Scripted([0.2, 0.3]))


def test_the_first_loss_of_a_fit_is_the_entropy_of_the_prevalence():
    targets = torch.zeros(10, 2)
    targets[:1, 0], targets[:3, 1] = 1, 1
    model, first = Classifier(4, 2), list[float]()
    model.output_bias(np.array([0.1, 0.3]))
    everything = Batch(torch.randn(10, 4), targets, torch.arange(10))
    settings = replace(SETTINGS, epochs=1)
    fit(
        model, lambda _: [everything], loss_of, settings, steps_per_epoch=1, on_step=lambda *step: first.append(step[2])
    )
    entropy = -sum(p * math.log(p) + (1 - p) * math.log(1 - p) for p in (0.1, 0.3)) / 2
    assert first == [pytest.approx(entropy, rel=1e-5)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_fit_and_says_where(bad: float):
    def spoiled(epoch: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches(epoch)):
            hurt = epoch == 1 and step == 2
            yield batch._replace(images=batch.images * bad) if hurt else batch

    model, saved = small(), Saved()
    with pytest.raises(Diverged, match=r"epoch 1, step 2: lower learning_rate \(now 0.01\)"):
        fit(model, spoiled, loss_of, SETTINGS, steps_per_epoch=STEPS, save=saved)
    assert len(saved.files) == 1


@pytest.mark.parametrize("bad", [(0, 0), (1, 2), (1, STEPS - 1), (2, STEPS - 1)])
def test_the_first_bad_step_is_named_though_losses_are_read_later_and_no_epoch_of_it_is_saved(bad: tuple[int, int]):
    begun: list[tuple[int, int]] = []

    def spoiled(epoch: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches(epoch)):
            begun.append((epoch, step))
            yield batch._replace(images=batch.images * math.nan) if (epoch, step) >= bad else batch

    saved, judged = Saved(), list[int]()
    with pytest.raises(Diverged, match=f"the loss is nan at epoch {bad[0]}, step {bad[1]}:"):
        fit(
            small(),
            spoiled,
            loss_of,
            SETTINGS,
            steps_per_epoch=STEPS,
            save=saved,
            evaluate=lambda _: {"judged": float(judged.append(0) is None)},
        )
    assert len(saved.files) == len(judged) == bad[0]
    assert len(begun) <= bad[0] * STEPS + bad[1] + 2  # one more was under way at the most


def test_losses_are_read_one_step_late_and_all_of_them_at_the_epochs_end():
    losses = Losses(SETTINGS, 0)
    for step in range(3):
        losses.add([torch.tensor(0.25 * step), torch.tensor(0.5)], None)
        assert losses.values == [0.25 * k + 0.5 for k in range(step)]
    assert losses.read() == [0.5, 0.75, 1.0]
    assert losses.read() == [0.5, 0.75, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n", [1, 7, 33, 1000])
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(bad: float, n: int):
    whole = [torch.full((3, 5), 3e38), torch.zeros(()), torch.tensor(2**40), torch.zeros(0)]
    assert finite(whole)
    for place in {0, n // 2, n - 1}:
        hurt = torch.ones(n)
        hurt[place] = bad
        assert not finite([*whole, hurt])


def test_weights_that_are_no_numbers_are_noticed_before_they_are_saved():
    def steep(model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch.images) * 0).sum().sqrt()  # 0, with an infinite slope

    saved = Saved()
    with pytest.raises(Diverged, match="weights are not finite at epoch 0, step 0"):
        fit(small(), lambda e: list(batches(e))[3:], steep, SETTINGS, steps_per_epoch=1, save=saved)
    assert not saved.files


def test_a_wrong_number_of_batches_is_noticed():
    with pytest.raises(ValueError, match="4 batches, not the 5"):
        run(SETTINGS, steps_per_epoch=5)


def test_a_state_of_other_settings_is_refused():
    saved = Saved()
    run(SETTINGS, save=saved)
    with pytest.raises(OtherState, match="another setting of ema or keep_best"):
        run(replace(SETTINGS, ema=0.9), resume=saved.load(0))


def test_fits_of_different_precision_follow_one_another_in_one_process():
    kinds: list[torch.dtype] = []

    def watch(model: nn.Module, batch: Batch) -> Tensor:
        kinds.append(model(batch.images).dtype)
        return loss_of(model, batch)

    for precision in ("fp32", "bf16", "fp32"):
        settings = replace(SETTINGS, epochs=1, precision=precision)
        fit(small(), batches, watch, settings, steps_per_epoch=STEPS)
    assert kinds == [torch.float32] * STEPS + [torch.bfloat16] * STEPS + [torch.float32] * STEPS


def test_auto_precision_follows_the_processor(monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    for able, expected in [({"avx512_bf16": True}, "bf16"), ({"avx2": True, "avx512_bf16": False}, "fp32")]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert resolve("auto", cpu) == expected
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert resolve("auto", torch.device("cuda")) == "fp16"
    assert resolve("fp32", cpu) == "fp32"
    with pytest.raises(ValueError, match="needs a GPU"):
        resolve("fp16", cpu)


def test_determinism_is_asked_for_during_the_fit_only():
    inside: list[bool] = []
    run(SETTINGS, on_step=lambda *_: inside.append(torch.are_deterministic_algorithms_enabled()))
    assert all(inside)
    assert not torch.are_deterministic_algorithms_enabled()


def test_weights_are_contiguous_copies():
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    found = weights(model)
    assert found["weight"].is_contiguous()
    assert torch.equal(found["weight"], model.weight)


class Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.scale = nn.Dropout(0.5), nn.Parameter(torch.tensor(2.0))

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.drop(images), self.scale * images[:, :2]


def slices(sizes: list[int]) -> list[Batch]:
    rows = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(0))
    return [Batch(part[:, None] * torch.ones(3), None, part) for part in rows.split(sizes)]


def test_predictions_stand_with_their_rows():
    found = predict(Embedder(), slices([4, 4, 1]), 9, "fp32")
    assert {name: value.dtype for name, value in found.items()} == {
        "rows": np.int64,
        "logits": np.float32,
        "embeddings": np.float16,
    }
    assert sorted(found["rows"]) == list(range(9))
    np.testing.assert_array_equal(found["logits"], 2 * found["rows"][:, None] * np.ones(2))
    np.testing.assert_array_equal(found["embeddings"], found["rows"][:, None] * np.ones(3))  # no dropout


def test_a_model_without_embeddings_predicts_logits_alone():
    model = nn.Linear(3, 2)
    assert predict(model, slices([5]), 5, "fp32").keys() == {"rows", "logits"}


@pytest.mark.parametrize("announced", [8, 10])
def test_a_prediction_of_too_many_or_too_few_slices_is_refused(announced: int):
    with pytest.raises(ValueError, match=f"the {announced}"):
        predict(Embedder(), slices([4, 4, 1]), announced)


def studies(lengths: list[int]) -> Studies:
    rng = np.random.default_rng(0)
    n = sum(lengths)
    targets = rng.integers(0, 2, (n, 2)).astype(np.float32)
    return Studies(
        features=rng.normal(size=(n, 4)).astype(np.float16),
        base=rng.normal(size=(n, 2)).astype(np.float32),
        geometry=rng.normal(size=(n, 2)).astype(np.float32),
        targets=targets,
        offsets=np.cumsum([0, *lengths]),
    )


def test_a_sequence_head_is_fitted_and_predicts_every_slice_once():
    packed, everyone = studies([3, 5, 1, 4]), np.arange(4)
    torch.manual_seed(0)
    model = SequenceHead(4, 2, "gru", hidden=8)

    def epoch_of(epoch: int):
        return study_loader(packed, everyone, 2, shuffle=True, seed=1, epoch=epoch)

    def masked(head: nn.Module, batch: Any) -> Tensor:
        inside = batch.rows >= 0
        return BCE(head(*batch[:4])[inside], batch.targets[inside])

    untrained = predict_studies(model, study_loader(packed, everyone, 3, shuffle=False), 13)
    np.testing.assert_array_equal(untrained["logits"], packed.base)
    settings = replace(SETTINGS, epochs=30, learning_rate=0.05)
    history = fit(model, epoch_of, masked, settings, steps_per_epoch=2)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    found = predict_studies(model, study_loader(packed, everyone[::-1], 3, shuffle=False), 13)
    assert sorted(found["rows"]) == list(range(13))
    again = predict_studies(model, study_loader(packed, everyone, 1, shuffle=False), 13)
    np.testing.assert_allclose(found["logits"][np.argsort(found["rows"])], again["logits"], atol=1e-5)

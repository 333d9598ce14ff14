import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ich.errors import UserError
from ich.store.records import write_hashed
from ich.training import fit as fit_module
from ich.training.device import loader_workers, resolve
from ich.training.fit import FitSettings, Loader, all_finite, best_epoch, fit, learning_rate
from ich.training.run import Run
from tests.training.small import (
    LOADER,
    SETTINGS,
    STEPS,
    Batch,
    Killed,
    batch_of,
    batches,
    infinite_gradient,
    killed_in,
    loss_of,
)

RUN = Run("net fold 0", seed=5)


def small() -> nn.Module:
    """A network with everything that a checkpoint must hold: running statistics and dropout."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))


def fitted(settings: FitSettings, loader: Loader = LOADER, run: Run = RUN, **options: Any) -> nn.Module:
    network = small()
    fit(network, loader, options.pop("loss", loss_of), settings, run, **options)
    return network


def content(network: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}


class Scripted:
    """An evaluation with given metrics, which keeps the weights that it was shown."""

    def __init__(self, metrics: list[float]) -> None:
        self.metrics, self.seen = metrics, list[dict[str, bytes]]()

    def __call__(self, network: nn.Module) -> dict[str, float]:
        network.eval()  # as a prediction does; the next epoch trains again
        self.seen.append(content(network))
        return {"other": 0.0, "f2": self.metrics[len(self.seen) - 1]}


# ---- the result


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize(
    ("changes", "plain_optimizer"),
    [
        ({}, torch.optim.AdamW),
        ({"optimizer": "sgd", "momentum": 0.8}, partial(torch.optim.SGD, momentum=0.8, nesterov=True)),
        ({"optimizer": "sgd", "nesterov": False}, partial(torch.optim.SGD, momentum=0.9)),
    ],
)
def test_steps_equal_those_of_torch_without_decay_of_biases_and_norms(clip, changes, plain_optimizer):
    settings, losses = replace(SETTINGS, weight_decay=0.3, max_grad_norm=clip, **changes), list[float]()
    settings = replace(settings, lr_scales={"3.weight": 10.0, "3.bias": 10.0})
    network, plain = small(), small()
    history = fit(network, LOADER, loss_of, settings, RUN)
    torch.manual_seed(RUN.seed)
    names = dict(plain.named_parameters())
    optimizer = plain_optimizer(
        [
            {"params": [names["0.weight"]], "weight_decay": 0.3},
            {"params": [names["3.weight"]], "weight_decay": 0.3},
            {"params": [names["3.bias"]]},
            {"params": [value for name, value in names.items() if name not in {"0.weight", "3.weight", "3.bias"}]},
        ],
        lr=1.0,
        weight_decay=0,
    )
    plain.train()
    for step, batch in enumerate(batch for epoch in range(3) for batch in batches(epoch)):
        for group, scale in zip(optimizer.param_groups, (1, 10, 10, 1), strict=True):
            group["lr"] = scale * learning_rate(settings, step, 12)
        optimizer.zero_grad()
        loss = loss_of(plain, batch)
        loss.backward()
        losses.append(loss.item())
        if clip is not None:
            nn.utils.clip_grad_norm_(plain.parameters(), clip)
        optimizer.step()
    assert content(network) == content(plain)
    assert [list(row) for row in history] == [["epoch", "learning_rate", "loss"]] * 3  # no times: same bytes each run
    for epoch, row in enumerate(history):
        assert row["epoch"] == epoch
        assert row["loss"] == pytest.approx(sum(losses[4 * epoch : 4 * epoch + 4]) / 4)
        assert row["learning_rate"] == learning_rate(settings, 4 * epoch + 3, 12)


def test_ema_decay_returns_the_moving_average_of_the_weights():
    network, seen = small(), list[Tensor]()
    live = network.state_dict()["0.weight"]
    average = live.clone()

    def watch(network: nn.Module, batch: Batch) -> Tensor:
        seen.append(live.clone())  # the weights after the previous step
        return loss_of(network, batch)

    settings = replace(SETTINGS, ema_decay=0.6)
    final: list[Tensor] = []
    fit(network, LOADER, watch, settings, RUN, lambda _: final.append(live.clone()) or {})
    for step, value in enumerate([*seen[1:], final[-1]]):
        decay = min(0.6, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
    torch.testing.assert_close(network.state_dict()["0.weight"], average)
    assert not torch.equal(average, final[-1])


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("sizes", [[3, 5], [2, 1, 3, 2]])
def test_accumulated_batches_train_as_one_larger_batch(sizes, clip):
    """With an incomplete last group."""

    def separate(epoch: int) -> list[Batch]:
        parts = zip(*(part.split(sizes) for part in batch_of(sum(sizes), epoch)), strict=True)
        return [*(Batch(*values) for values in parts), batch_of(5, 100 + epoch)]

    def together(epoch: int) -> list[Batch]:
        return [batch_of(sum(sizes), epoch), batch_of(5, 100 + epoch)]

    settings, found = replace(SETTINGS, max_grad_norm=clip), []
    for accumulate, epoch, n in ((len(sizes), separate, len(sizes) + 1), (1, together, 2)):
        torch.manual_seed(3)
        network, loader = nn.Linear(4, 2), replace(LOADER, epoch=epoch, batches=n)
        history = fit(network, loader, loss_of, replace(settings, accumulate=accumulate), RUN)
        found.append([*network.parameters(), torch.tensor([list(row.values()) for row in history])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {0: 0.4, 1: 0.8, 2: 0.8, 6: 0.4, 9: 0.4 * (1 + math.cos(math.pi * 7 / 8)), 10: 0}),
        ({"warmup_ratio": 0}, {0: 0.8}),
        ({"min_lr_ratio": 0.25}, {0: 0.4, 1: 0.8, 2: 0.8, 6: 0.5, 10: 0.2}),
        ({"schedule": "constant"}, {0: 0.4, 1: 0.8, 2: 0.8, 6: 0.8, 9: 0.8}),
        # five epochs of two steps; the first warms up
        ({"decay_epochs": 2, "decay_rate": 0.5}, {0: 0.4, 1: 0.8, 3: 0.8, 4: 0.4, 7: 0.4, 8: 0.2, 9: 0.2}),
        ({"decay_epochs": 1, "decay_rate": 0.412, "warmup_ratio": 0}, {9: 0.8 * 0.412**4}),
    ],
)
def test_learning_rates_by_hand(changes, expected):
    settings = replace(FitSettings(epochs=5, learning_rate=0.8, warmup_ratio=0.2), **changes)
    assert {step: learning_rate(settings, step, 10) for step in expected} == pytest.approx(expected)


# ---- the best epoch, and resuming

NAN = math.nan


@pytest.mark.parametrize(
    ("metrics", "larger", "patience", "trained", "best"),
    [
        ([0.3, 0.5, 0.5, 0.45], True, None, 4, 1),  # the first of equals
        ([NAN, 0.1, NAN, 0.2], False, None, 4, 1),
        ([0.3, 0.2, 0.4, 0.5], True, 1, 2, 0),
        ([0.3, 0.2, 0.4, 0.3], True, 2, 4, 2),
        ([0.3, 0.3, NAN, 0.5], True, 2, 3, 0),  # neither equal nor NaN is an improvement
        ([NAN, NAN, 0.4, 0.5], True, 3, 4, 3),
    ],
)
def test_the_network_ends_with_the_best_epoch_wherever_it_was_killed(
    metrics, larger, patience, trained, best, tmp_path
):
    ema = None if patience else 0.9
    settings = replace(SETTINGS, epochs=4, keep_best="f2", larger_is_better=larger, patience=patience, ema_decay=ema)
    evaluation, network = Scripted(metrics), small()
    history = fit(network, LOADER, loss_of, settings, RUN, evaluation)
    assert len(history) == len(evaluation.seen) == trained
    assert best_epoch(settings, history) == best
    assert [epoch for epoch in range(trained) if evaluation.seen[epoch] == content(network)] == [best]
    for epoch in range(1, trained):
        run = replace(RUN, folder=tmp_path / str(epoch))
        with pytest.raises(Killed):
            fitted(settings, killed_in(epoch), run, evaluate=Scripted(metrics))
        later, again = Scripted(metrics[epoch:]), small()
        nn.init.zeros_(again[0].weight)  # pyright: ignore[reportArgumentType, reportIndexIssue]
        torch.manual_seed(77)
        assert repr(fit(again, LOADER, loss_of, settings, run, later)) == repr(history)  # NaN is not equal to itself
        assert content(again) == content(network)
        assert later.seen == evaluation.seen[epoch:]


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resuming_after_any_epoch_ends_in_the_same_bytes(ema, precision, tmp_path):
    settings = replace(SETTINGS, ema_decay=ema, precision=precision, accumulate=2)
    run = replace(RUN, folder=tmp_path / "whole")
    whole = content(fitted(settings, run=run))
    for epoch in range(3):
        run = replace(RUN, folder=tmp_path / str(epoch))
        with pytest.raises(Killed):
            fitted(settings, killed_in(epoch), run)
        assert (tmp_path / f"{epoch}/checkpoint.bin").exists() == (epoch > 0)
        torch.rand(7)
        assert content(fitted(settings, run=run)) == whole
    assert content(fitted(settings, killed_in(0), run)) == whole, "a finished training is not repeated"


@pytest.mark.parametrize("damage", ["fingerprint", "flipped bit", "cut"])
def test_a_damaged_or_foreign_checkpoint_is_ignored(damage, tmp_path):
    run, path = replace(RUN, folder=tmp_path), tmp_path / "checkpoint.bin"
    whole = content(fitted(SETTINGS, run=run))
    data = bytearray(path.read_bytes())
    if damage == "fingerprint":
        run = replace(run, fingerprint="another")
    elif damage == "cut":
        path.write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(Killed):  # it starts with the first epoch
        fitted(SETTINGS, killed_in(0), run)
    assert content(fitted(SETTINGS, run=run)) == whole


class Payload:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("state", [Payload(), {"network": 1}, None], ids=["code", "foreign", "nothing"])
def test_a_malformed_checkpoint_is_refused_and_runs_no_code(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(state, "state")
    write_hashed(tmp_path / "checkpoint.bin", "", Path("state").read_bytes())
    with pytest.raises(UserError, match=r"checkpoint.bin: .* does not fit .*; delete it"):
        fitted(SETTINGS, run=replace(RUN, folder=tmp_path))
    assert not Path("ran").exists()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run = replace(RUN, folder=tmp_path)
    fitted(SETTINGS, run=run)
    with pytest.raises(UserError, match="another precision or ema_decay"):
        fitted(replace(SETTINGS, ema_decay=0.9), run=run)


def test_a_missing_metric_and_one_that_is_always_nan_are_refused():
    with pytest.raises(UserError, match="net fold 0: f2 is NaN in every epoch"):
        fitted(replace(SETTINGS, keep_best="f2"), evaluate=Scripted([NAN] * 3))
    with pytest.raises(ValueError, match="keep_best is 'f2'"):
        fitted(replace(SETTINGS, keep_best="f2"))


# ---- divergence


@pytest.mark.parametrize(("first", "bad"), [((0, 0), math.inf), ((1, 2), math.nan), ((1, STEPS - 1), math.inf)])
def test_the_first_bad_step_is_named_and_its_epoch_is_not_saved(first, bad, tmp_path):
    begun: list[tuple[int, int]] = []

    def spoiled(epoch: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches(epoch)):
            begun.append((epoch, step))
            yield batch._replace(features=batch.features * bad) if (epoch, step) >= first else batch

    evaluation = Scripted([0.1, 0.2, 0.3])
    message = rf"net fold 0: the loss is nan in epoch {first[0] + 1}, step {first[1] + 1}\. Lower learning_rate"
    with pytest.raises(UserError, match=message):
        fitted(SETTINGS, replace(LOADER, epoch=spoiled), replace(RUN, folder=tmp_path), evaluate=evaluation)
    assert len(evaluation.seen) == first[0]
    assert (tmp_path / "checkpoint.bin").exists() == (first[0] > 0)
    assert len(begun) <= first[0] * STEPS + first[1] + 2  # losses are read one step late


@pytest.mark.parametrize(
    ("loss", "clip", "steps", "what"),
    [
        (infinite_gradient, 1.0, 1, "the weights are not finite"),
        (lambda network, batch: 1e30 * network(*batch.inputs).sum(), None, 2, "the optimizer state is not finite"),
    ],
)
def test_weights_and_optimizer_state_that_are_not_finite_are_not_saved(loss, clip, steps, what, tmp_path):
    loader = replace(LOADER, epoch=lambda epoch: list(batches(epoch))[:steps], batches=steps)
    with pytest.raises(UserError, match=f"{what} in epoch 1, step {steps}"):
        fit(nn.Linear(4, 2), loader, loss, replace(SETTINGS, max_grad_norm=clip), replace(RUN, folder=tmp_path))
    assert not (tmp_path / "checkpoint.bin").exists()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_found_anywhere(bad):
    whole = [torch.full((3, 5), 3e38), torch.zeros(()), torch.tensor(2**40), torch.zeros(0)]
    assert all_finite(whole)
    for place in (0, 500, 999):
        assert not all_finite([*whole, torch.ones(1000).index_fill(0, torch.tensor(place), bad)])


@pytest.fixture
def scaled(monkeypatch) -> None:
    """The scaler of fp16, which otherwise needs a GPU."""
    monkeypatch.setattr(fit_module, "GradScaler", lambda *_, **__: torch.amp.GradScaler("cpu", init_scale=2.0**16))


def test_fp16_that_skips_every_step_is_an_error(scaled):
    loader = replace(LOADER, epoch=lambda _: [batch_of(4)] * 40, batches=40)
    with pytest.raises(UserError, match="fp16 gradients overflow in epoch 1, step 40"):
        fit(nn.Linear(4, 2), loader, infinite_gradient, SETTINGS, RUN)


def test_gradients_are_clipped_without_the_scale_of_fp16(request):
    settings = replace(SETTINGS, max_grad_norm=0.05)
    plain = content(fitted(settings))
    request.getfixturevalue("scaled")
    assert content(fitted(settings)) == plain  # the scale is a power of two


def test_fp16_that_skips_some_steps_continues(scaled):
    calls = iter(range(1000))

    def sometimes(network: nn.Module, batch: Batch) -> Tensor:
        return infinite_gradient(network, batch) if next(calls) % 20 == 3 else loss_of(network, batch)

    loader = replace(LOADER, epoch=lambda _: [batch_of(4)] * 30, batches=30)
    history = fit(nn.Linear(4, 2), loader, sometimes, SETTINGS, RUN)
    assert history[-1]["loss"] < history[0]["loss"]


# ---- device


def test_a_wrong_number_of_batches_is_an_error():
    with pytest.raises(ValueError, match="4 batches, not 5"):
        fitted(SETTINGS, replace(LOADER, batches=5))


def test_precision_and_determinism_are_set_during_the_fit_only():
    seen: list[tuple[torch.dtype, bool]] = []

    def watch(network: nn.Module, batch: Batch) -> Tensor:
        seen.append((network(*batch.inputs).dtype, torch.are_deterministic_algorithms_enabled()))
        return loss_of(network, batch)

    for precision in ("bf16", "fp32"):
        fitted(replace(SETTINGS, epochs=1, precision=precision), loss=watch)
    assert seen == [(torch.bfloat16, True)] * STEPS + [(torch.float32, True)] * STEPS
    assert not torch.are_deterministic_algorithms_enabled()


def test_auto_precision_follows_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    for able, expected in [({"avx512_bf16": True}, "bf16"), ({"avx2": True, "avx512_bf16": False}, "fp32")]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert resolve("auto", cpu) == expected
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert resolve("auto", torch.device("cuda")) == "fp16"
    assert resolve("fp32", cpu) == "fp32"
    with pytest.raises(UserError, match="needs a GPU"):
        resolve("fp16", cpu)


@pytest.mark.parametrize(
    ("setting", "device", "cores", "expected"),
    [("auto", "cpu", 16, 0), ("auto", "cuda", 16, 8), ("auto", "cuda", 4, 3), ("auto", "cuda", 1, 1), (5, "cpu", 4, 5)],
)
def test_loader_workers(setting, device, cores, expected, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setattr("ich.training.device.default_device", lambda: torch.device(device))
    assert loader_workers(setting) == expected

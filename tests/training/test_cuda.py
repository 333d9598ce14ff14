"""Tests that need a GPU."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ich.data.series import SeriesArrays, series_loader
from ich.errors import UserError
from ich.networks.cnn import Cnn, CnnSpec
from ich.networks.layers import HeadSpec
from ich.networks.sequence import build_head
from ich.training.device import default_device, deterministic
from ich.training.fit import FitSettings, Loader, fit
from ich.training.predict import predict
from ich.training.run import Run
from tests.training.small import Batch, Killed, killed_in, loss_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SETTINGS = FitSettings(epochs=4, learning_rate=3e-3)
STEPS = 6
RUN = Run("net fold 0", seed=5)


def network() -> Cnn:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"channels": [16, 32, 64, 64], "stem_width": 16}
    return Cnn(CnnSpec(backbone="resnet10t", kwargs=shape, in_channels=3, classes=6, dropout=0.2))


def batches(epoch: int) -> list[Batch]:
    draw = torch.Generator().manual_seed(epoch)
    images = [torch.randint(256, (16, 3, 64, 64), generator=draw, dtype=torch.uint8).pin_memory() for _ in range(STEPS)]
    return [
        Batch(part, (part[:, 0, 0, :6] > 128).float().pin_memory(), torch.arange(16 * k, 16 * k + 16))
        for k, part in enumerate(images)
    ]


LOADER = Loader(batches, STEPS, 16 * STEPS, "slices")


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resumed_weights_are_within_1e_6(precision, accumulate, tmp_path):
    settings = replace(SETTINGS, precision=precision, ema_decay=0.9, accumulate=accumulate)
    whole = network()
    history = fit(whole, LOADER, loss_of, settings, RUN)
    for killed in range(1, 4):
        again, run = network(), replace(RUN, folder=tmp_path / str(killed))
        with pytest.raises(Killed):
            fit(network(), replace(LOADER, epoch=killed_in(killed, batches).epoch), loss_of, settings, run)
        torch.rand(7, device="cuda")
        rows = fit(again, LOADER, loss_of, settings, run)
        for name, value in again.state_dict().items():
            torch.testing.assert_close(value, whole.state_dict()[name], atol=1e-6, rtol=0, msg=name)
        assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in history], abs=1e-6)


def test_out_of_memory_names_the_settings_to_lower():
    images = torch.zeros(256, 3, 256, 256, dtype=torch.uint8)
    batch = Batch(images, torch.zeros(256, 6), torch.arange(256))
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_allocated() + (1 << 29)) / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        with pytest.raises(UserError, match=r"out of memory\. Lower batch_size"):
            fit(
                network(),
                replace(LOADER, epoch=lambda _: [batch], batches=1),
                loss_of,
                replace(SETTINGS, precision="fp32"),
                RUN,
            )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def watched(ready: list[Batch], strict: bool = True) -> Iterator[Batch]:
    """Batches between which synchronizing with the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error" if strict else "default")
    try:
        yield from ready
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_fit_never_waits_for_the_gpu(precision):
    ready, settings = batches(0), replace(SETTINGS, precision=precision, ema_decay=0.9, epochs=2)
    loader = replace(LOADER, epoch=lambda epoch: watched(ready, epoch > 0))  # in the first epoch libraries are loaded
    fit(network(), loader, loss_of, settings, RUN)


def test_predict_never_waits_for_the_gpu_and_keeps_the_order_of_rows():
    model, whole = network().cuda(), batches(0)
    torch.nn.init.normal_(model.classifier.weight)
    predict(model, whole, 16 * STEPS, "fp32")
    found = predict(model, watched(whole), 16 * STEPS, "fp32")
    with deterministic(), torch.inference_mode():  # other kernels may round differently
        logits = torch.cat([model.embed(batch.features.cuda())[1] for batch in whole]).cpu()
    torch.testing.assert_close(torch.from_numpy(found["logits"]), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_sequence_head_predicts_the_same_on_cpu_and_gpu(cell):
    torch.manual_seed(0)
    model = build_head(HeadSpec("residual", 16, 6, cell, hidden=8, layers=2, dropout=0.2)).eval()
    nn.init.normal_(model.residual.weight)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    lengths = torch.tensor([7, 3, 9, 1])
    inputs = [torch.randn(4, 9, width) for width in (16, 6, 2)]
    # TF32, the default of cuDNN, rounds the inputs of matrix products to 10 bits
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        here = model(*inputs, lengths)
        there = model.cuda()(*(value.cuda() for value in inputs), lengths).cpu()
    for k, length in enumerate(lengths):
        torch.testing.assert_close(there[k, :length], here[k, :length], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_sequence_head_is_trained_further_after_an_evaluation(cell):
    widths, offsets = (16, 6, 2, 6), np.array([0, 7, 10, 19, 20])
    features, *others = (np.random.default_rng(0).random((20, width), dtype=np.float32) for width in widths)
    series = SeriesArrays([features], *others, offsets).on_device(default_device())
    loader = Loader(lambda epoch: series_loader(series, 2, shuffle=True, epoch=epoch), 2, 4, "series")

    def evaluate(network: nn.Module) -> dict[str, float]:
        logits = predict(network, series_loader(series, 2, shuffle=False), 20, "fp32")["logits"]
        return {"spread": float(logits.std(axis=0).mean())}

    model = build_head(HeadSpec("residual", 16, 6, cell, hidden=8, layers=2, dropout=0.2))
    rows = fit(model, loader, loss_of, replace(SETTINGS, precision="fp32", ema_decay=0.9), RUN, evaluate)
    assert len({row["spread"] for row in rows}) == SETTINGS.epochs

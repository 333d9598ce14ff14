"""What only a GPU can show: resumed weights, memory that is short there. Skipped where there is none."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ich.data.datasets import SliceBatch
from ich.data.studies import Studies, StudyBatch, study_batch, study_loader
from ich.networks.cnn import Cnn, CnnSpec
from ich.networks.losses import build
from ich.networks.sequence import build_head
from ich.recipe import Cnn as CnnSettings
from ich.stages.fitting import fit_network
from ich.training.checkpoint import from_bytes, to_bytes
from ich.training.loop import Diverged, FitSettings, fit, weights
from ich.training.predict import predict, predict_studies

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

BCE = build("bce")
SETTINGS = FitSettings(epochs=4, learning_rate=3e-3, seed=5)
STEPS = 6


def network() -> Cnn:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"channels": [16, 32, 64, 64], "stem_width": 16}
    return Cnn(CnnSpec(backbone="resnet10t", kwargs=shape, in_channels=3, classes=6, dropout=0.2))


def batches(epoch: int) -> list[SliceBatch]:
    draw = torch.Generator().manual_seed(epoch)
    images = [torch.randint(256, (16, 3, 64, 64), generator=draw, dtype=torch.uint8) for _ in range(STEPS)]
    return [SliceBatch(part, (part[:, 0, 0, :6] > 128).float(), torch.arange(16)) for part in images]


def loss_of(model: nn.Module, batch: SliceBatch) -> Tensor:
    assert batch.targets is not None
    return BCE(model(batch.images), batch.targets)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resumed_weights_are_within_the_promised_distance(precision, parts):
    settings, saved = replace(SETTINGS, precision=precision, ema=0.9), list[bytes]()
    whole = network()
    options: dict[str, Any] = {"steps_per_epoch": STEPS, "parts": parts}
    history = fit(whole, batches, loss_of, settings, save=lambda state: saved.append(to_bytes(state)), **options)
    for state in saved[:-1]:
        torch.rand(7, device="cuda")
        again = network()
        rows = fit(again, batches, loss_of, settings, resume=from_bytes(state), **options)
        for (name, a), b in zip(weights(whole).items(), weights(again).values(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=lambda said, name=name: f"{name}: {said}")
        assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in history], abs=1e-6)


def test_a_gpu_that_is_too_small_gets_batches_in_pieces(tmp_path: Path, capsys):
    settings = CnnSettings(backbone="resnet10t", epochs=1, batch_size=256, precision="fp32")
    images = torch.zeros(256, 3, 256, 256, dtype=torch.uint8)
    batch = SliceBatch(images, torch.zeros(256, 6), torch.arange(256))
    gc.collect()
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_allocated() + (1 << 30)) / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        options: dict[str, Any] = {"batches": lambda _: [batch], "steps": 1, "counts": (256, "slices")}
        _, record = fit_network("net", tmp_path, "f", network(), settings, 0, loss_of=loss_of, **options)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert record["parts"] > 1
    assert f"each batch passes in {record['parts']} parts" in capsys.readouterr().out


def test_fp16_on_a_gpu_that_never_takes_a_step_is_noticed():
    def steep(model: nn.Module, batch: SliceBatch) -> Tensor:
        return (model(batch.images) * 0).sum().sqrt()

    with pytest.raises(Diverged, match="too large for fp16"):
        fit(network(), batches, steep, replace(SETTINGS, precision="fp16", epochs=20), steps_per_epoch=STEPS)


def pinned(batch: SliceBatch) -> SliceBatch:
    assert batch.targets is not None
    return SliceBatch(batch.images.pin_memory(), batch.targets.pin_memory(), batch.rows)


def test_no_step_of_a_fit_waits_for_the_gpu():
    ready = [pinned(batch) for batch in batches(0)]

    def watched(epoch: int) -> Iterator[SliceBatch]:
        torch.cuda.set_sync_debug_mode("error" if epoch else "default")  # in the first epoch libraries are loaded
        try:
            yield from ready
        finally:
            torch.cuda.set_sync_debug_mode("default")

    for precision in ("fp32", "bf16", "fp16"):
        settings = replace(SETTINGS, precision=precision, ema=0.9, epochs=2)
        fit(network(), watched, loss_of, settings, steps_per_epoch=STEPS)


def test_no_batch_of_a_prediction_waits_for_the_gpu_and_each_row_has_its_own_figures():
    model = network().cuda()
    torch.nn.init.normal_(model.classifier.weight)
    whole = [batch._replace(rows=torch.arange(16) + 16 * k) for k, batch in enumerate(batches(0))]
    ready = [pinned(batch) for batch in whole]
    predict(model, whole, 16 * STEPS, "fp32")

    def watched() -> Iterator[SliceBatch]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield from ready
        finally:
            torch.cuda.set_sync_debug_mode("default")

    found = predict(model, watched(), 16 * STEPS, "fp32")
    assert found["rows"].tolist() == list(range(16 * STEPS))
    with torch.inference_mode():
        logits = torch.cat([model.embed(batch.images.cuda())[1] for batch in whole]).cpu()
    torch.testing.assert_close(torch.from_numpy(found["logits"]), logits, atol=1e-4, rtol=1e-4)


def test_a_loss_that_is_no_number_is_named_by_its_step_and_never_saved():
    def spoiled(epoch: int) -> Iterator[SliceBatch]:
        for step, batch in enumerate(batches(epoch)):
            bad = (epoch, step) >= (1, STEPS - 1)
            yield batch._replace(targets=batch.targets * torch.nan) if bad else batch  # pyright: ignore

    saved: list[int] = []
    with pytest.raises(Diverged, match=f"the loss is nan at epoch 1, step {STEPS - 1}"):
        fit(network(), spoiled, loss_of, SETTINGS, steps_per_epoch=STEPS, save=lambda state: saved.append(1))
    assert len(saved) == 1


@pytest.mark.parametrize("way", ["checkpoint", "compile_training"])
def test_other_ways_to_train_give_nearly_the_same_weights(way):
    plain, other = network(), network()
    getattr(other, way)()
    for model in (plain, other):
        fit(model, batches, loss_of, replace(SETTINGS, precision="fp32", epochs=1), steps_per_epoch=STEPS)
    exact = way == "checkpoint"
    for (name, a), (same, b) in zip(weights(plain).items(), weights(other).items(), strict=True):
        assert name == same
        torch.testing.assert_close(a, b, atol=1e-6 if exact else 1e-2, rtol=0 if exact else 1e-2, msg=name)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_studies_whose_tables_lie_on_the_gpu_give_what_those_do_that_travel(cell):
    rng, lengths = np.random.default_rng(0), [7, 3, 9, 1, 5, 6]
    n = sum(lengths)
    far = Studies(
        features=rng.normal(size=(n, 16)).astype(np.float16),
        base=rng.normal(size=(n, 6)).astype(np.float32),
        geometry=rng.normal(size=(n, 2)).astype(np.float32),
        targets=rng.integers(0, 2, (n, 6)).astype(np.float32),
        offsets=np.cumsum([0, *lengths]),
    )
    near, everyone = far.near(torch.device("cuda", 0)), np.arange(len(lengths))
    assert near.device.type == "cuda"
    assert far.device.type == "cpu"
    settings = replace(SETTINGS, precision="fp32")
    found, models = [], []
    for studies in (near, far):
        torch.manual_seed(0)
        model = build_head("residual", features=16, classes=6, cell=cell, hidden=8, layers=2, dropout=0.2)

        def batches_of(epoch: int, studies: Studies = studies) -> Iterator[StudyBatch]:
            return study_loader(studies, everyone, 2, shuffle=True, seed=1, epoch=epoch)

        def of_slices(model: nn.Module, batch: StudyBatch) -> Tensor:
            assert batch.targets is not None
            return BCE(batch.slices(model(*batch[:4])), batch.slices(batch.targets))

        fit(model, batches_of, of_slices, settings, steps_per_epoch=3)
        found.append(predict_studies(model, study_loader(studies, everyone, 4, shuffle=False), n, "fp32"))
        models.append(weights(model))
    for (name, a), b in zip(models[0].items(), models[1].values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=name)
    for one in found:
        assert one["rows"].tolist() == list(range(n))
    torch.testing.assert_close(*(torch.from_numpy(one["logits"]) for one in found), atol=1e-5, rtol=1e-5)
    # and what a CPU says with these weights
    model = build_head("residual", features=16, classes=6, cell=cell, hidden=8, layers=2, dropout=0.2).eval()
    model.load_state_dict(models[0])
    batch = study_batch(far, everyone)
    with torch.inference_mode():
        logits = batch.slices(model(*batch[:4]))
    torch.testing.assert_close(torch.from_numpy(found[0]["logits"]), logits, atol=1e-4, rtol=1e-4)

"""Fitting a network where memory is short, where it is killed, and where its figures are no numbers."""

import gc
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from conftest import RECIPE, House
from ich.data.augment import Augmentation
from ich.data.augment import build as build_changes
from ich.data.batches import epoch_loader
from ich.data.datasets import SliceBatch, SliceDataset
from ich.data.on_device import OnDevice
from ich.data.views import View, Window
from ich.errors import UserError
from ich.networks.losses import build
from ich.pipeline.graph import CHECKPOINT, Task
from ich.pipeline.plan import Plan
from ich.recipe import Cnn, EndToEnd, Pretrain, Sequence, Training, load
from ich.stages import cnn, end_to_end, pretrain, sequence
from ich.stages.fitting import enough, fit_network
from ich.stages.inputs import Slices
from ich.stages.member import Checkpoint, finite, leave_predictions
from ich.training.loop import FitSettings, fit, weights

pytestmark = pytest.mark.usefixtures("one_core")

BCE = build("bce")
SETTINGS = Cnn(backbone="none", epochs=3, batch_size=8, learning_rate=0.01, precision="fp32", gradient_clip=0.1)
STEPS = 3


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect():
    """What the tests before have left need not be looked through each time that memory is short."""
    gc.freeze()
    yield
    gc.unfreeze()


class Killed(BaseException):
    """What nobody catches."""


def small() -> nn.Module:
    """Dropout and batch norm: what was begun and given up leaves traces in it."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2))


def batches(epoch: int) -> list[SliceBatch]:
    draw = torch.Generator().manual_seed(epoch)
    images = [torch.randn(8, 4, generator=draw) for _ in range(STEPS)]
    return [SliceBatch(part, (part[:, :2] > 0).float(), torch.arange(8)) for part in images]


def plain_loss(model: nn.Module, batch: SliceBatch) -> Tensor:
    assert batch.targets is not None
    return BCE(model(batch.images), batch.targets)


class Short:
    """A loss that is out of memory for more than `most` slices, from its `after`-th call on; its `calls`."""

    def __init__(self, most: int, after: int = 0, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.most, self.after, self.error, self.calls = most, after, error, list[int]()

    def __call__(self, model: nn.Module, batch: SliceBatch) -> Tensor:
        self.calls.append(len(batch.rows))
        loss = plain_loss(model, batch)
        if len(self.calls) > self.after and len(batch.rows) > self.most:
            raise self.error("CUDA out of memory. Tried to allocate 2 GiB")
        return loss


class Run(NamedTuple):
    weights: dict[str, Tensor]
    history: str
    record: dict[str, Any]


def run(
    folder: Path,
    loss_of: Callable[[Any, Any], Tensor] = plain_loss,
    *,
    network: nn.Module | None = None,
    settings: Training = SETTINGS,
    fingerprint: str = "f",
    **options: Any,
) -> Run:
    options = {"batches": batches, "steps": STEPS, "counts": (24, "slices")} | options
    network = small() if network is None else network
    files, record = fit_network("net fold 0", folder, fingerprint, network, settings, 5, loss_of=loss_of, **options)
    assert set(files) == {"history.csv", "model.safetensors"}
    return Run(weights(network), files["history.csv"].read_text(), record)


def same(one: Run, other: Run) -> bool:
    pairs = zip(one.weights.items(), other.weights.items(), strict=True)
    return one[1:] == other[1:] and all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@contextmanager
def killed(monkeypatch: pytest.MonkeyPatch, save: int):
    """Raise Killed once the `save`-th state, counted from 1, is on the disk."""
    real, saves = Checkpoint.save, iter(range(1, 100))

    def saved(self: Checkpoint, state: dict[str, Any]) -> None:
        real(self, state)
        if next(saves) == save:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoint, "save", saved)
        yield


# ---- out of memory


@pytest.mark.parametrize(("most", "parts"), [(8, 1), (7, 2), (3, 4), (1, 8)])
def test_batches_pass_in_twice_as_many_pieces_until_they_fit(tmp_path, capsys, most, parts):
    settings = SETTINGS.model_copy(update={"epochs": 2})
    linear = lambda: nn.Linear(4, 2)
    torch.manual_seed(0)
    whole = run(tmp_path / "whole", network=linear(), settings=settings)
    torch.manual_seed(0)
    found = run(tmp_path / "short", Short(most), network=linear(), settings=settings)
    assert found.record == {"parts": parts}
    said = capsys.readouterr().out
    assert said.count("out of memory") == parts.bit_length() - 1
    assert parts == 1 or f"net fold 0: out of memory; from epoch 1 on each batch passes in {parts} parts" in said
    for a, b in zip(whole.weights.values(), found.weights.values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_what_was_begun_in_vain_leaves_no_trace(tmp_path):
    found = run(tmp_path, Short(4, after=2))  # after two whole steps
    network = small()
    shared = SETTINGS.model_dump(include=set(FitSettings.__annotations__) - {"seed"})
    fit(network, batches, plain_loss, FitSettings(**shared, seed=5), steps_per_epoch=STEPS, parts=2)
    assert all(torch.equal(a, b) for a, b in zip(found.weights.values(), weights(network).values(), strict=True))


def test_finished_epochs_are_not_trained_again_in_pieces(tmp_path, capsys):
    short = Short(4, after=4)  # the second step of the second epoch
    run(tmp_path, short)
    assert short.calls == [8] * 5 + [4] * 2 * 2 * STEPS
    assert "from epoch 2 on each batch passes in 2 parts" in capsys.readouterr().out


@pytest.mark.parametrize("after", [1, 4])  # in the first epoch, or in the second
@pytest.mark.parametrize("save", [1, 2, 3])
def test_killed_after_it_was_out_of_memory_it_ends_in_the_same_bytes(tmp_path, monkeypatch, after, save):
    whole = run(tmp_path / "whole", Short(4, after))
    with killed(monkeypatch, save):
        run(tmp_path / "killed", Short(4, after))
    # the rest finds memory enough, where it may; what has passed in pieces goes on so
    early = after == 4 and save == 1
    again = run(tmp_path / "killed", Short(4, after - STEPS) if early else plain_loss)
    assert same(whole, again)
    assert again.record == {"parts": 2}


@pytest.mark.parametrize("after", [1, 4])
def test_killed_in_its_first_step_in_pieces_it_goes_on_in_pieces(tmp_path, after):
    whole, short = run(tmp_path / "whole", Short(4, after)), Short(4, after)

    def loss_of(model: nn.Module, batch: SliceBatch) -> Tensor:
        if len(batch.rows) == 4:
            raise Killed
        return short(model, batch)

    with pytest.raises(Killed):
        run(tmp_path / "killed", loss_of)
    assert same(whole, run(tmp_path / "killed"))


@pytest.mark.parametrize(
    ("settings", "lower"),
    [
        (SETTINGS, "lower batch_size, image.size or"),
        (EndToEnd(backbone="none", batch_size=8, epochs=3), "lower batch_size, chunk, hidden, image.size or"),
        (Sequence(on=("a",), epochs=3), "lower batch_size, hidden or"),
    ],
)
def test_single_samples_that_are_out_of_memory_end_it_with_what_to_lower(tmp_path, settings, lower):
    short = Short(0)
    with pytest.raises(UserError, match=f"^net fold 0: out of memory, .*; {lower} compute.processes") as caught:
        run(tmp_path, short, network=nn.Linear(4, 2), settings=settings)
    assert "\n" not in str(caught.value)
    assert short.calls == [8, 4, 2, 1]


def test_a_loss_that_compares_the_whole_batch_is_not_cut(tmp_path):
    short, settings = Short(4), Pretrain(backbone="none", epochs=3, batch_size=8)
    with pytest.raises(UserError, match=r"out of memory, .*; lower batch_size"):
        run(tmp_path, short, settings=settings, divisible=False)
    assert short.calls == [8]


def test_the_host_s_memory_counts_too(tmp_path):
    assert run(tmp_path, Short(4, error=MemoryError)).record == {"parts": 2}


def test_a_loader_that_is_out_of_memory_is_no_matter_of_the_batch(tmp_path):
    calls = 0

    def loss_of(model: nn.Module, batch: SliceBatch) -> Tensor:
        nonlocal calls
        calls += 1
        raise MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback")

    with pytest.raises(UserError, match=r"was lost, .* process 0\. Set workers to 0, or lower than 2"):
        run(tmp_path, loss_of, settings=SETTINGS.model_copy(update={"workers": 2}))
    assert calls == 1


def test_another_error_is_raised_as_it_is(tmp_path):
    def loss_of(model: nn.Module, batch: SliceBatch) -> Tensor:
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match=r"^a fault$"):
        run(tmp_path, loss_of)


PROCESS = """
import os, resource, signal, sys
from pathlib import Path
import torch
from torch import nn
torch.set_num_threads(1)
from ich.data.batches import Batches, epoch_loader
from ich.data.datasets import SliceBatch
from ich.recipe import Cnn
from ich.stages.fitting import fit_network
from ich.errors import UserError

class Slices(Batches):
    seed = 0
    def __init__(self, victim):
        self.victim = victim
    def __len__(self):
        return 48
    def __getitems__(self, items):
        if any(i == self.victim for _, i in items):
            os.kill(os.getpid(), signal.SIGKILL)
        rows = torch.tensor([i for _, i in items])
        return SliceBatch(rows[:, None, None, None] * torch.ones(1, 3, 64, 64) / 48, torch.zeros(len(items), 2), rows)

def fitted(name, victim, workers, batch_size):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )
    slices = Slices(victim)
    settings = Cnn(backbone="none", epochs=1, batch_size=batch_size, workers=workers, precision="fp32")
    return fit_network(
        name, Path(sys.argv[1]) / name, "f", network, settings, 0,
        batches=lambda epoch: epoch_loader(slices, epoch, batch_size, shuffle=True, workers=workers),
        steps=48 // batch_size,
        loss_of=lambda model, batch: (model(batch.images) - batch.targets).square().mean(),
        counts=(48, "slices"),
    )[1]

try:
    fitted("killed", 20, 1, 8)
except UserError as error:
    print("error:", error)
fitted("warm", None, 0, 8)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20,) * 2)
print(fitted("short", None, 0, 48))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited in the way of Linux")
def test_memory_that_is_really_short_and_a_loader_that_is_really_killed(tmp_path):
    words = [sys.executable, "-c", PROCESS, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    said = done.stdout.splitlines()
    lost = next(line for line in said if line.startswith("error: killed: a process that loads pictures was lost"))
    assert lost.endswith("Set workers to 0, or lower than 1; what was finished is kept")
    parts = int(said[-1].removeprefix("{'parts': ").removesuffix("}"))
    assert parts > 1, said
    assert f"short: out of memory; from epoch 1 on each batch passes in {parts} parts" in done.stdout


def test_a_full_shared_memory_names_the_setting():
    full = RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)\nmore")
    says = r"/dev/shm.* No space left on device \(28\)\. Set workers to 0"
    with pytest.raises(UserError, match=says) as caught, enough("net", SETTINGS.model_copy(update={"workers": 4})):
        raise full
    assert "\n" not in str(caught.value)
    with (
        pytest.raises(RuntimeError, match="unable to allocate"),
        enough("net", SETTINGS.model_copy(update={"workers": 0})),
    ):
        raise full


# ---- figures that are no numbers


class Spoiled:
    """A loss that is no number from its `after`-th call on."""

    def __init__(self, after: int) -> None:
        self.after, self.calls = after, 0

    def __call__(self, model: nn.Module, batch: SliceBatch) -> Tensor:
        self.calls += 1
        return plain_loss(model, batch) * (torch.nan if self.calls > self.after else 1)


def test_a_diverged_network_diverges_again_at_once_and_another_setting_begins_anew(tmp_path):
    with pytest.raises(UserError, match=r"net fold 0: the loss is nan at epoch 1, step 1: lower learning_rate"):
        run(tmp_path, Spoiled(4))
    assert (tmp_path / CHECKPOINT).is_file()
    assert not (tmp_path / "model.safetensors").exists()
    again = Spoiled(1)
    with pytest.raises(UserError, match="the loss is nan at epoch 1, step 1"):
        run(tmp_path, again)
    assert again.calls == 3  # the first epoch was not trained again; a step's loss is read during the next
    other = SETTINGS.model_copy(update={"learning_rate": 0.001})
    found = run(tmp_path, settings=other, fingerprint="another")
    assert same(found, run(tmp_path / "other", settings=other))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_predictions_that_are_no_numbers_are_refused_by_the_first_slice(bad):
    logits, ids = np.zeros((4, 2), np.float32), pd.Index(["a", "b", "c", "d"])
    finite("net fold 0", "valid", ids, {"logits": logits})
    finite("net fold 0", "test", ids[:0], {"logits": logits[:0]})
    logits[[1, 3], 1] = bad
    with pytest.raises(
        UserError, match=r"^net fold 0: the logits of 2 of 4 valid slices are not finite, the first of b;"
    ):
        finite("net fold 0", "valid", ids, {"logits": logits})


# ---- pictures that are changed on the device


@pytest.mark.parametrize("most", [8, 4])  # slices that memory is enough for
@pytest.mark.parametrize("save", [1, 2])
def test_killed_with_pictures_changed_on_the_device_it_ends_in_the_same_bytes(tmp_path, monkeypatch, most, save):
    changes = Augmentation(crop=0.5, noise=0.1, dropout=0.5, on="device")
    hu = np.random.default_rng(0).integers(-100, 200, (24, 16, 16)).astype(np.int16)
    rows, view = np.arange(24), View("windows", (Window(40, 80), Window(80, 200)))
    labels = (rows[:, None] % [2, 3] == 0).astype(np.float32)
    slices = SliceDataset(hu, rows, rows[:, None], [str(k) for k in rows], labels, view, build_changes(changes), 3, 1.0)
    show = OnDevice(view, changes)

    def loss_of(model: nn.Module, batch: SliceBatch) -> Tensor:
        assert batch.draws is not None
        assert batch.targets is not None
        if len(batch.rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return BCE(model(show.pictures(batch).float() / 255), batch.targets)

    def fitted(folder: Path) -> Run:
        torch.manual_seed(1)
        network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 2))
        shuffled = lambda epoch: epoch_loader(slices, epoch, 8, shuffle=True)
        return run(folder, loss_of, network=network, batches=shuffled)

    whole = fitted(tmp_path / "whole")
    with killed(monkeypatch, save):
        fitted(tmp_path / "killed")
    assert same(whole, fitted(tmp_path / "killed"))


# ---- the stages


MORE = (
    "pretrain.simclr={backbone: resnet10t, kwargs: {channels: [4, 8, 8, 8], stem_width: 4}, epochs: 3, batch_size: 16}",
    "end_to_end.joint={backbone: resnet10t, kwargs: {channels: [4, 8, 8, 8], stem_width: 4}, epochs: 3, batch_size: 2,"
    " hidden: 8, cutmix: 1, ema: 0.9, early_stopping: {metric: f2, patience: 2, share: 0.4},"
    " augment: {crop: 0.5, on: device}}",
    "sequence.bigru.epochs=3",
    "sequence.bigru.early_stopping={metric: f1, share: 0.4}",
)


@pytest.fixture(scope="module")
def clone(finished, tmp_path_factory) -> Plan:
    root = tmp_path_factory.mktemp("clone")
    subprocess.run(["cp", "-a", f"{finished.root}/.", str(root)], check=True)
    return Plan(load(House(root).root / RECIPE, MORE), root)


def outcome(task: Task, record: Any) -> tuple[dict[str, bytes], Any]:
    files = {path.name: path.read_bytes() for path in sorted(task.folder.iterdir()) if path.is_file()}
    return {name: data for name, data in files.items() if name not in {"run.json", CHECKPOINT}}, record


@pytest.mark.parametrize("stage", ["simclr", "joint", "bigru"])
def test_a_killed_network_of_any_kind_ends_in_the_same_bytes(clone, monkeypatch, stage):
    make, task = {
        "simclr": (lambda: pretrain._fit(clone, "simclr", "f"), clone.pretrained("simclr")),
        "joint": (lambda: end_to_end.fit_fold(clone, "joint", 0, "f"), clone.fold("joint", 0)),
        "bigru": (lambda: sequence.fit_fold(clone, "bigru", 0, "f"), clone.fold("bigru", 0)),
    }[stage]
    whole = outcome(task, make()[1])
    assert len(whole[0]) >= 2
    for save in (1, 2):
        (task.folder / CHECKPOINT).unlink(missing_ok=True)
        for name in whole[0]:
            (task.folder / name).unlink()
        with killed(monkeypatch, save):
            make()
        torch.rand(3)
        assert outcome(task, make()[1]) == whole, f"killed after epoch {save}"
    (task.folder / CHECKPOINT).unlink(missing_ok=True)


@pytest.mark.parametrize(("split", "spoiled"), [("valid", "logits"), ("test", "logits"), ("test", "embeddings")])
def test_a_fold_that_predicts_no_numbers_is_not_done(clone, monkeypatch, split, spoiled):
    slices, real, task = Slices(clone), cnn.predict_pictures, clone.fold("resnet", 1)
    rows = {"valid": slices.valid_rows(1), "test": slices.test_rows}[split]

    def predicted(network, dataset, *rest):
        found = real(network, dataset, *rest)
        if len(dataset) == len(rows):
            found[spoiled][2, 1] = np.inf
        return found

    monkeypatch.setattr(cnn, "predict_pictures", predicted)
    first = slices.ids(rows)[2]
    said = (
        f"resnet fold 1: the {spoiled} of 1 of {len(rows)} {split} slices are not finite, the first of {first}; lower"
    )
    before = {path: path.stat().st_mtime_ns for path in task.folder.glob(f"{split}*")}
    with pytest.raises(UserError, match=said):
        cnn.fit_fold(clone, "resnet", 1, "f")
    assert {path: path.stat().st_mtime_ns for path in task.folder.glob(f"{split}*")} == before
    assert (task.folder / CHECKPOINT).is_file() == (split == "test")  # the first epoch ends with a look at valid
    (task.folder / CHECKPOINT).unlink(missing_ok=True)
    with pytest.raises(UserError, match="gauss fold 0: the logits of 1 of"):
        leave_predictions(slices, clone.fold("gauss", 0).folder, 0, "test", rows[:1], np.full((1, 6), np.nan))

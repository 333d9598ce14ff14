"""Networks as ONNX: predictions equal to those of torch, for every head, input and test-time augmentation."""

import copy
from collections import namedtuple
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from onnx import load
from torch import nn

from ich.data.datasets import Views
from ich.data.windowing import Window, Windowing
from ich.errors import UserError
from ich.models import onnx, to_onnx
from ich.models.base import ONNX
from ich.models.cnn import FittedCnn
from ich.models.end_to_end import FittedEndToEnd
from ich.models.network import FittedNetwork
from ich.models.sequence import FittedSequence
from ich.models.slices import Predictions, Slices

CLASSES = ["one", "two", "any"]
LENGTHS = [4, 1, 6]
FEATURES = 8
HEADS = [  # every head, and every cell of each kind of head
    *(("residual", cell) for cell in ("gru", "lstm", "conv_gru", "transformer")),
    *(("plain", "lstm"), ("shortcut", "gru"), ("linear", "gru"), ("sdl", "gru"), ("sdl", "conv")),
    *(("lrnn", "lstm"), ("sdl_lrnn", "lstm"), ("lrnn_sdl", "conv")),
]
WINDOWS = (Window(40, 80), Window(80, 200))


def slices(size: int = 32) -> Slices:
    """Three series with uneven gaps, two of them of the same study."""
    rng = np.random.default_rng(0)
    parts = [
        {
            "image_id": [f"ID_{series}{k}" for k in range(n)],
            "series": series,
            "series_id": f"s{series}",
            "study_id": f"study {series // 2}",
            "index": np.arange(n),
            "n_slices": n,
            "position": np.cumsum(rng.choice([0.6, 5.0, 7.5], n)),
        }
        for series, n in enumerate(LENGTHS)
    ]
    table = pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True)
    images = rng.integers(-100, 250, (len(table), size, size)).astype(np.int16)
    return Slices(table, np.arange(len(table)), CLASSES, images, workers=0)


def fitted(kind: type[FittedNetwork], **spec: Any) -> Any:
    """A fold with random weights."""
    spec = {"batch_size": 2, "precision": "bf16", "tta": {}, **spec}
    torch.manual_seed(0)
    network = kind.build(spec)
    for value in network.parameters():
        value.data.add_(torch.randn_like(value), alpha=0.3)
    return kind(spec, "model fold 0", network=network)


def of_images(kind: type[FittedNetwork], view: Windowing, **spec: Any) -> Any:
    backbone = {"backbone": "resnet10t", "in_channels": view.channels, "classes": len(CLASSES)}
    backbone["kwargs"] = {"channels": [4, 8, 8, FEATURES], "stem_width": 4}
    return fitted(kind, network=backbone, view=asdict(view), **spec)


def head(name: str, cell: str, features: int = FEATURES, **more: Any) -> dict[str, Any]:
    return {"name": name, "cell": cell, "features": features, "classes": len(CLASSES), "hidden": 4, "layers": 2, **more}


def sequence(name: str, cell: str, *, reverse: bool = False, differences: bool = False, **spec: Any) -> FittedSequence:
    shape = head(name, cell, 2 * FEATURES, differences=differences)
    return fitted(FittedSequence, inputs=["a", "b"], head=shape, tta={"reverse": reverse}, **spec)


def inputs() -> dict[str, Predictions]:
    rng, n = np.random.default_rng(1), sum(LENGTHS)
    drawn = {name: (rng.normal(size=(n, 3)), rng.normal(size=(n, FEATURES))) for name in "ab"}
    return {name: Predictions(logits, values.astype(np.float16)) for name, (logits, values) in drawn.items()}


@pytest.mark.parametrize(("name", "cell"), HEADS)
def test_every_head_predicts_the_same_alone_and_in_padded_batches(tmp_path, name, cell):
    model = sequence(name, cell)
    assert to_onnx.write(model, onnx.OnnxSequence, tmp_path, slices(), inputs()) < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / ONNX)
    for lengths in ([2, 7, 1], [1], [3, 3]):
        rng, shape = np.random.default_rng(2), (len(lengths), max(lengths))
        widths = {"features": 2 * FEATURES, "base": 3, "geometry": 2}
        batch = {key: rng.normal(size=(*shape, width)).astype(np.float32) for key, width in widths.items()}
        batch["lengths"] = np.array(lengths)
        expected = model.network(*map(torch.from_numpy, batch.values())).detach()
        (found,) = session.run(None, {one.name: batch[one.name] for one in session.get_inputs()})
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(found[row, :length], expected[row, :length], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("residual", {"reverse": True}),
        ("residual", {"reverse": True, "differences": True}),
        ("residual", {"studies": True}),
        ("sdl_lrnn", {"studies": True, "seeds": 2, "reverse": True}),
    ],
)
def test_reversed_series_study_logits_and_several_seeds(tmp_path, name, spec):
    model = sequence(name, "gru", **spec)
    assert to_onnx.write(model, onnx.OnnxSequence, tmp_path, slices(), inputs()) < 1e-5
    model.save(tmp_path)
    expected = model.predict(slices(), inputs()).studies
    found = onnx.OnnxSequence.load(tmp_path).predict(slices(), inputs()).studies
    assert (found is None) == (expected is None) == ("studies" not in spec)
    if found is not None:
        pd.testing.assert_frame_equal(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("view", "tta"),
    [
        (Windowing("windows", WINDOWS), {}),
        (Windowing("windows", WINDOWS, minmax=True, clahe=2.0), {"flip": True}),
        (Windowing("neighbours", WINDOWS), {"shift": 0.1}),
        (Windowing("grey"), {"flip": True, "shift": 0.1}),
    ],
)
def test_a_cnn_predicts_the_same_logits_and_embeddings(tmp_path, view, tta):
    model = of_images(FittedCnn, view, tta=tta)
    assert to_onnx.write(model, onnx.OnnxCnn, tmp_path, slices(), {}) < 1e-4
    model.save(tmp_path)
    some = replace(slices(), rows=np.array([0, 1, 2, 3, 4]))  # one series and one more
    expected = replace(model, spec={**model.spec, "precision": "fp32"}).predict(some, {})
    found = onnx.OnnxCnn.load(tmp_path).predict(some, {})
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
    np.testing.assert_allclose(found.embeddings, expected.embeddings, rtol=2e-3, atol=1e-3)
    assert found.embeddings.dtype == np.float16


@pytest.mark.parametrize(("name", "cell"), [("residual", "gru"), ("plain", "lstm"), ("lrnn_sdl", "conv")])
def test_an_end_to_end_network_predicts_the_same(tmp_path, name, cell):
    view = Windowing("neighbours", WINDOWS[:1])
    model = of_images(FittedEndToEnd, view, head=head(name, cell), chunk=2, tta={"flip": True})
    assert to_onnx.write(model, onnx.OnnxEndToEnd, tmp_path, slices(), {}) < 1e-4


@pytest.mark.parametrize(
    ("kind", "reader", "spec"),
    [
        (FittedCnn, onnx.OnnxCnn, {"tta": {"flip": True}}),
        (FittedEndToEnd, onnx.OnnxEndToEnd, {"head": head("plain", "gru"), "chunk": 2}),
    ],
)
def test_int8_predicts_nearly_the_same(tmp_path, kind, reader, spec):
    model = of_images(kind, Windowing("windows", WINDOWS), **spec)
    to_onnx.write(model, reader, tmp_path, slices(), {})
    full = reader(model.spec, path=tmp_path / ONNX)
    expected = full.predict(slices(), {})
    path = tmp_path / "int8.onnx"
    to_onnx.to_int8(full, slices(), path)
    found = reader(model.spec, path=path).predict(slices(), {})
    assert 0 < np.abs(found.logits - expected.logits).max() < 0.2 * np.ptp(expected.logits)
    assert {"QuantizeLinear", "Conv"} <= {node.op_type for node in load(path).graph.node}


def test_a_difference_is_an_error_that_names_the_network(tmp_path, monkeypatch):
    model, export = sequence("plain", "gru"), to_onnx.export

    def shifted(network, *arguments):
        network = copy.deepcopy(network)
        network.classifier.bias.data[1] += 2e-4
        export(network, *arguments)

    monkeypatch.setattr(to_onnx, "export", shifted)
    with pytest.raises(UserError, match=r"^model fold 0: its logits by .* differ by 0\.0002, more than 0\.0001\. Omit"):
        to_onnx.write(model, onnx.OnnxSequence, tmp_path, slices(), inputs())


def test_a_network_that_onnx_cannot_express_is_named(tmp_path):
    class Unusual(nn.Module):
        def forward(self, features, *others):
            return torch.linalg.eigvals(features @ features.transpose(1, 2)).real

    model = replace(sequence("plain", "gru"), network=Unusual())
    with pytest.raises(
        UserError, match=r"^model fold 0: the network cannot be written as ONNX \(.*linalg.*Omit --onnx"
    ):
        to_onnx.write(model, onnx.OnnxSequence, tmp_path, slices(), inputs())


@pytest.mark.parametrize("tta", [{}, {"flip": True}, {"shift": 0.3}, {"flip": True, "shift": 0.1}])
def test_test_time_augmentation_is_that_of_torch(tta):
    Batch = namedtuple("Batch", "images")
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 10, 10)).astype(np.uint8)
    expected = [batch.images.numpy() for batch in Views(**tta)(Batch(torch.from_numpy(images)))]
    found = list(onnx.views(images, **tta))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_malformed_file_is_an_error(tmp_path):
    model = sequence("linear", "gru")
    to_onnx.write(model, onnx.OnnxSequence, tmp_path, slices(), inputs())
    model.save(tmp_path)
    path = tmp_path / ONNX
    for content in (b"", b"no model", path.read_bytes()[: path.stat().st_size // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"model\.onnx is malformed .* export the bundle again"):
            onnx.OnnxSequence.load(tmp_path).predict(slices(), inputs())

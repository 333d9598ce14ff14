from typing import Any

import pytest
import torch
from torch import nn

from ich.networks import cnn_lstm
from ich.networks.cnn import Cnn, CnnSpec
from ich.networks.cnn_lstm import EndToEnd
from ich.networks.layers import HeadSpec
from ich.networks.sequence import build_head

SPEC = CnnSpec("resnet10t", 3, 3, {"channels": [8, 8, 16, 16], "stem_width": 8}, dropout=0.3)
LENGTHS = torch.tensor([5, 2])
TARGETS = torch.tensor([[1.0, 0.0, 1.0]])


def network(head: str = "plain", *, new: bool = False, **settings: Any) -> EndToEnd:
    torch.manual_seed(0)
    cnn = Cnn(SPEC)
    name, cell = ("residual", "transformer") if head == "transformer" else (head, "lstm")
    spec = HeadSpec(name, cnn.embedding_size, 3, cell, 4, layers=2, dropout=0.2, differences=cell == "transformer")
    model = EndToEnd(cnn, build_head(spec), **settings)
    if new:
        return model
    for layer in model.modules():  # no weight starts at zero, so that each has a gradient
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.1)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    return model


def images(n: int = 7) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, 32, 32), generator=rng, dtype=torch.uint8)


def geometry(studies: int = 2, slices: int = 6) -> torch.Tensor:
    return torch.randn(studies, slices, 2, generator=torch.Generator().manual_seed(1))


def loss(model: EndToEnd) -> torch.Tensor:
    logits = model(images(), geometry(), LENGTHS)
    inside = torch.arange(6)[None] < LENGTHS[:, None]
    return (logits[inside] - TARGETS).square().mean()


@pytest.mark.parametrize("head", ["residual", "transformer", "shortcut"])
def test_recomputation_changes_no_gradient_and_counts_no_batch_twice(head, monkeypatch):
    plain, saving = (network(head, chunk=3).train() for _ in range(2))
    torch.manual_seed(2)  # of the dropout
    with_checkpoints = loss(saving)
    with_checkpoints.backward()
    monkeypatch.setattr(cnn_lstm, "checkpoint", lambda function, part, **_: function(part))
    torch.manual_seed(2)
    without = loss(plain)
    without.backward()
    assert torch.equal(with_checkpoints, without)
    for (name, ours), theirs in zip(saving.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None and theirs.grad is not None:
            assert torch.equal(ours.grad, theirs.grad), name
            assert ours.grad.any(), name
    for (name, ours), theirs in zip(saving.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_memory_does_not_grow_with_the_activations_of_the_cnn(monkeypatch):
    def kept(model: EndToEnd) -> int:
        sizes: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x)
        with hooks:
            loss(model)
        return sum(sizes)

    saving = kept(network(chunk=3).train())
    monkeypatch.setattr(cnn_lstm, "checkpoint", lambda function, part, **_: function(part))
    assert saving < kept(network(chunk=3).train()) / 10


@pytest.mark.parametrize("head", ["residual", "linear", "sdl"])
def test_a_network_starts_at_the_predictions_of_its_cnn(head):
    donor, model = network().cnn.eval(), network(head, new=True).eval()
    model.start_from(donor.state_dict())
    with torch.no_grad():
        logits, slice_logits = model.logits(images(), geometry(), LENGTHS)
        inside = torch.arange(6)[None] < LENGTHS[:, None]
        torch.testing.assert_close(logits[inside], donor(images()), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(slice_logits[inside], donor(images()), rtol=1e-5, atol=1e-6)


def test_each_chunk_has_slices_of_all_studies(monkeypatch):
    model, chunks = network(chunk=4).train(), list[torch.Tensor]()
    embed = model.cnn.embed
    monkeypatch.setattr(model.cnn, "embed", lambda part: chunks.append(part) or embed(part))
    with torch.no_grad():
        model(images(), geometry(), LENGTHS)
    assert torch.equal(torch.cat(chunks), images()[[0, 2, 4, 6, 1, 3, 5]])


@pytest.mark.parametrize("head", ["residual", "sdl_lrnn"])
def test_a_study_has_the_same_logits_alone_and_in_a_batch(head):
    model = network(head, chunk=4).eval()
    with torch.no_grad():
        together = model(images(), geometry(), LENGTHS)
        assert together.shape == (2, 6, 3)
        for study, part in enumerate((images()[:5], images()[5:])):
            n = len(part)
            embeddings, logits = model.cnn.embed(part)
            expected = model.head(embeddings[None], logits[None], geometry()[study, None, :n], torch.tensor([n]))
            torch.testing.assert_close(together[study, :n], expected[0], rtol=1e-4, atol=1e-5)

"""Attention pooling of the states of a head, and the loss of studies."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.networks.layers import HeadSpec, padding_of
from ich.networks.losses import study_loss
from ich.networks.sequence import build_head
from ich.networks.study import StudyHead
from tests.networks.test_heads import CLASSES, FEATURES, LENGTHS, PADDING, assert_padding_changes_nothing, study

HEADS = [("residual", "gru"), ("plain", "lstm"), ("shortcut", "gru"), ("sdl", "conv"), ("sdl_lrnn", "gru")]


def network(name: str, cell: str, *, trained: bool = True) -> StudyHead:
    torch.manual_seed(0)
    model = StudyHead(build_head(HeadSpec(name, FEATURES, CLASSES, cell, hidden=4)), CLASSES)
    with torch.no_grad():
        for parameter, value in model.named_parameters():
            if trained or not parameter.startswith("residual"):
                value.add_(torch.randn_like(value), alpha=0.5)
    return model.eval()


@pytest.mark.parametrize(("name", "cell"), HEADS)
@settings(max_examples=8)
@given(lengths=LENGTHS, padding=PADDING)
def test_padding_does_not_change_the_logits_of_slices_and_series(name, cell, lengths, padding):
    assert_padding_changes_nothing(network(name, cell), lengths, padding, 2 * CLASSES)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_the_attention_of_a_series_sums_to_1_and_is_0_beyond_it(lengths, seed):
    model, draws = network("plain", "gru"), torch.Generator().manual_seed(seed)
    beyond = padding_of(torch.empty(len(lengths), 7), torch.tensor(lengths))[..., None]
    states = 20 * torch.randn(len(lengths), 7, model.head.width, generator=draws)
    weights = model.weights(states, beyond)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(lengths), CLASSES))
    assert not weights.masked_select(beyond.expand_as(weights)).any()


@pytest.mark.parametrize(("name", "cell"), HEADS)
def test_an_untrained_pooling_is_the_maximum_over_slices_and_a_trained_one_reads_the_states(name, cell):
    inputs, length = study(5, seed=1), torch.tensor([5])
    slices, pooled = network(name, cell, trained=False)(*inputs, length).chunk(2, dim=-1)
    torch.testing.assert_close(pooled, slices.amax(dim=1, keepdim=True).expand_as(slices))
    torch.testing.assert_close(slices, network(name, cell).head(*inputs, length), msg="the head is as without pooling")
    trained = network(name, cell)
    trained(*inputs, length)[..., CLASSES:].square().sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in trained.attention.parameters())


def test_the_study_loss_is_the_cross_entropy_of_the_largest_label():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [-1.0, 3.0]])  # two series, of two slices and of one
    targets = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])

    def terms(*signed: float) -> torch.Tensor:
        return torch.nn.functional.softplus(-torch.tensor(signed))

    expected = terms(2.0, 0.0, 1.0, 3.0)  # labels 1, 0, 0, 1
    torch.testing.assert_close(study_loss(logits, targets, [2, 1]), expected.mean())
    # labels times weights, and weights: the second slice has no label, so the first series counts half
    weights = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.2]])
    expected = terms(-2.0, 0.0, 1.0, 3.0) * torch.tensor([0.5, 0.5, 1.0, 0.2])
    weighted = torch.stack([targets * weights, weights], dim=1)
    torch.testing.assert_close(study_loss(logits, weighted, [2, 1]), expected.mean())

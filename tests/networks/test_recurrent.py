"""Recurrent layers over studies: the cells and their gradients by hand, against torch's own."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ich.networks.cells import Gru, Lstm
from ich.networks.recurrent import CELLS, Places, bidirectional, by_torch, over_slices

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def network(cell: str, *, layers: int = 1) -> nn.LSTM | nn.GRU:
    torch.manual_seed(0)
    made = bidirectional(cell, 5, 3, layers=layers).double()
    for values in made.parameters():  # larger than torch draws them, so that no gate stays linear
        nn.init.normal_(values)
    return made


def slices(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradients(of: Callable[[nn.LSTM | nn.GRU, Tensor], Tensor], rnn: nn.LSTM | nn.GRU, inputs: Tensor) -> list[Tensor]:
    """The states, then the gradients of a sum of them that weighs each differently."""
    inputs = inputs.clone().requires_grad_()
    rnn.zero_grad()
    states = of(rnn, inputs)
    (states * torch.arange(1.0, states.numel() + 1).view_as(states).cos()).sum().backward()
    return [states.detach(), *(value.grad.clone() for value in (inputs, *rnn.parameters()) if value.grad is not None)]


@pytest.mark.parametrize("cell", CELLS)
@settings(max_examples=12)
@given(lengths=LENGTHS, layers=st.integers(1, 2))
def test_states_and_gradients_are_those_of_torch_on_each_study_alone(cell, lengths, layers):
    rnn, inputs = network(cell, layers=layers), slices(sum(lengths))
    places = Places(torch.tensor(lengths), max(lengths) + 2, CPU)

    def alone(rnn: nn.LSTM | nn.GRU, inputs: Tensor) -> Tensor:
        return torch.cat([rnn(study[None])[0][0] for study in inputs.split(lengths)])

    ways = (lambda rnn, x: over_slices(rnn, x, places), lambda rnn, x: by_torch(rnn, x, places))
    expected = gradients(alone, rnn, inputs)
    assert len(expected) == 2 + 8 * layers
    for way in ways:
        for ours, theirs in zip(gradients(way, rnn, inputs), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("cell", "gates"), [(Gru, 3), (Lstm, 4)])
def test_each_cell_s_gradient_is_the_slope_of_its_states(cell, gates):
    places = Places(torch.tensor([3, 1, 4, 3]), 4, CPU)
    shapes = [(11, 2, gates * 2), (2, gates * 2, 2)] + [(2, 2)] * (cell is Gru)
    rng = torch.Generator().manual_seed(2)
    drawn = [torch.randn(shape, dtype=torch.float64, generator=rng).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(lambda *values: cell.apply(*values, places), drawn)


@pytest.mark.parametrize("cell", CELLS)
def test_inputs_that_are_moved_in_the_weights_are_moved(cell):
    rnn, inputs, places = network(cell, layers=2), slices(7), Places(torch.tensor([4, 3]), 4, CPU)
    scale, shift = (torch.tensor(values).double().requires_grad_() for values in (np.arange(5.0), np.ones(5)))
    found = []
    for way in (
        lambda rnn, x: over_slices(rnn, x, places, (scale, shift)),
        lambda rnn, x: over_slices(rnn, x * scale + shift, places),
    ):
        scale.grad = shift.grad = None
        found.append([*gradients(way, rnn, inputs), scale.grad, shift.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_dropout_is_between_the_layers_and_in_training_alone():
    inputs, places = slices(6), Places(torch.tensor([6]), 6, CPU)
    for layers in (1, 2):
        plain = network("gru", layers=layers)
        dropping = network("gru", layers=layers)
        dropping.dropout = 0.5  # which torch's own constructor warns of where there is one layer
        expected = over_slices(plain, inputs, places)
        assert torch.equal(over_slices(dropping.eval(), inputs, places), expected)
        assert torch.equal(over_slices(dropping.train(), inputs, places), expected) == (layers == 1)


@given(LENGTHS, st.integers(0, 2))
def test_what_is_packed_is_every_slice_and_padded_again_stands_at_its_place(lengths, more):
    longest = max(lengths) + more
    places = Places(torch.tensor(lengths), longest, CPU)
    padded = torch.randn(len(lengths), longest, 2)
    packed = places.pack(padded)
    assert torch.equal(packed, torch.cat([study[:n] for study, n in zip(padded, lengths, strict=True)]))
    again = places.pad(packed)
    for study, found, n in zip(padded, again, lengths, strict=True):
        assert torch.equal(found[:n], study[:n])
        assert not found[n:].any()


def test_a_step_reads_the_studies_that_have_a_slice_for_it_longest_first():
    places = Places(torch.tensor([1, 3, 2]), 3, CPU)
    assert places.sizes == [3, 2, 1]
    forwards, backwards = [1, 4, 0, 2, 5, 3], [3, 5, 0, 2, 4, 1]
    assert places.forwards[0].tolist() == forwards
    expected = []
    for begin, end in ((0, 3), (3, 5), (5, 6)):
        expected += [2 * row for row in forwards[begin:end]] + [2 * row + 1 for row in backwards[begin:end]]
    assert places.into.tolist() == expected
    assert places.into[places.back].tolist() == list(range(12))

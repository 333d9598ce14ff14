"""The heads over the slices of a study."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ich.networks.label_rnn import LabelDecoder, SliceContext
from ich.networks.layers import HeadSpec, start_from_prevalence
from ich.networks.sequence import ResidualHead, build_head, neighbour_differences
from ich.networks.transformer import EncoderLayer, SliceTransformer

VARIANTS = [  # every head, and every cell of each kind of head
    *(("residual", "gru"), ("residual", "lstm"), ("residual", "conv_gru"), ("residual", "transformer")),
    *(("residual", "gru, differences"), ("residual", "transformer, differences")),
    *(("plain", "lstm"), ("shortcut", "gru"), ("linear", "gru")),
    *(("sdl", "gru"), ("sdl", "conv"), ("lrnn", "lstm"), ("sdl_lrnn", "lstm"), ("lrnn_sdl", "conv")),
]
FEATURES, CLASSES, HIDDEN = 8, 3, 4
PREVALENCE = np.array([0.1, 0.5, 0.02])


def head(name: str, cell: str, *, trained: bool = True, dropout: float = 0.0, hidden: int = HIDDEN) -> Any:
    torch.manual_seed(0)
    cell, _, differences = cell.partition(", ")
    network = build_head(HeadSpec(name, FEATURES, CLASSES, cell, hidden, 2, dropout, bool(differences)))
    if trained:
        for module in network.modules():
            if isinstance(module, SliceContext):  # it starts at zero
                perturb(module)
        last: Any = network.residual if isinstance(network, ResidualHead) else network.classifier
        nn.init.normal_(last.weight)
    return network


@torch.no_grad()
def perturb(network: nn.Module) -> None:
    """Leave no weight at zero, so that each has a gradient."""
    for value in network.parameters():
        value.add_(torch.randn_like(value), alpha=0.1)


def study(length: int, seed: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(1, length, width, generator=rng) for width in (FEATURES, CLASSES, 2)]


LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=3)
PADDING = st.sampled_from([0.0, -100.0, 1e30, float("nan")])


def assert_padding_changes_nothing(model: nn.Module, lengths: list[int], padding: float, outputs: int) -> None:
    """Each study has the same logits alone and in a batch."""
    longest = max(lengths) + 1
    padded = [torch.full((len(lengths), longest, width), padding) for width in (FEATURES, CLASSES, 2)]
    alone = []
    for place, length in enumerate(lengths):
        parts = study(length, seed=place)
        alone.append(model(*parts, torch.tensor([length])))
        for whole, part in zip(padded, parts, strict=True):
            whole[place, :length] = part[0]
    together = model(*padded, torch.tensor(lengths))
    assert together.shape == (len(lengths), longest, outputs)
    for place, length in enumerate(lengths):
        torch.testing.assert_close(together[place, :length], alone[place][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "cell"), VARIANTS)
@settings(max_examples=8)
@given(lengths=LENGTHS, padding=PADDING)
def test_a_study_has_the_same_logits_alone_and_in_a_batch(name, cell, lengths, padding):
    assert_padding_changes_nothing(head(name, cell).eval(), lengths, padding, CLASSES)


@pytest.mark.parametrize(("name", "cell"), VARIANTS)
def test_an_untrained_head_predicts_the_prevalence_or_the_base_logits(name, cell):
    features, base, geometry = study(5, 1)
    model = head(name, cell, trained=False)
    start_from_prevalence(model, PREVALENCE)
    logits = model(features.half(), base, geometry, torch.tensor([5]))
    expected = base if name == "residual" else torch.from_numpy(PREVALENCE).float().logit().expand(1, 5, 3)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "cell"), VARIANTS)
def test_every_weight_has_a_gradient_and_a_seed_decides_everything(name, cell):
    outs = []
    for _ in range(2):
        model = head(name, cell, dropout=0.3)
        outs.append(model(*study(4, 3), torch.tensor([4])))
        outs[-1].square().sum().backward()
        for parameter, value in model.named_parameters():
            # the input of the decoder is zero, and so is the gradient of its input weights
            unused = "lrnn" in name and value.shape == (4 * HIDDEN, 1)
            assert bool(value.grad.any()) != unused, parameter
    assert torch.equal(*outs)


@pytest.mark.parametrize(("name", "cell"), VARIANTS)
def test_logits_keep_full_precision_under_autocast(name, cell):
    parts = study(4, 3)
    plain = head(name, cell)(*parts, torch.tensor([4]))
    with torch.autocast("cpu", torch.bfloat16):
        out = head(name, cell)(*parts, torch.tensor([4]))
    assert out.dtype == torch.float32
    assert torch.equal(out, plain)


def both_ways(cell: type[nn.LSTMCell] | type[nn.GRUCell], rnn: nn.RNNBase, inputs: torch.Tensor) -> torch.Tensor:
    """States [T, 2 hidden] of inputs [T, d], one cell step at a time in each direction."""
    columns = []
    for suffix, order in (("", range(len(inputs))), ("_reverse", range(len(inputs) - 1, -1, -1))):
        one = cell(rnn.input_size, rnn.hidden_size)
        one.load_state_dict({k: getattr(rnn, f"{k}_l0{suffix}") for k in one.state_dict()})
        state, found = None, {}
        for t in order:
            state = one(inputs[t : t + 1], state)
            found[t] = state[0] if isinstance(state, tuple) else state
        columns.append(torch.cat([found[t] for t in range(len(inputs))]))
    return torch.cat(columns, dim=-1)


def test_residual_head_by_single_cells():
    model = build_head(HeadSpec("residual", FEATURES, CLASSES, "gru", HIDDEN)).eval()
    nn.init.normal_(model.residual.weight)  # pyright: ignore
    inputs = study(6, 4)
    states = both_ways(nn.GRUCell, model.rnn, torch.cat([model.norm(inputs[0]), *inputs[1:]], dim=-1)[0])  # pyright: ignore
    expected = inputs[1][0] + states @ model.residual.weight.T  # pyright: ignore
    torch.testing.assert_close(model(*inputs, torch.tensor([6]))[0], expected, rtol=1e-5, atol=1e-6)


def test_convolution_before_the_gru_by_single_cells():
    model = head("residual", "conv_gru").eval()
    model.rnn = nn.GRU(2 * HIDDEN, HIDDEN, batch_first=True, bidirectional=True)
    inputs, layer = study(5, 4), model.convolution
    below = torch.cat([model.norm(inputs[0]), *inputs[1:]], dim=-1)[0]
    near = [[(k, t + k - 1) for k in range(3) if 0 <= t + k - 1 < 5] for t in range(5)]
    local = torch.stack([sum(layer.weight[:, :, k] @ below[t] for k, t in each) + layer.bias for each in near])
    states = both_ways(nn.GRUCell, model.rnn, local.clamp(min=0))
    expected = inputs[1][0] + states @ model.residual.weight.T
    torch.testing.assert_close(model(*inputs, torch.tensor([5]))[0], expected, rtol=1e-4, atol=1e-5)


def test_differences_to_the_neighbours_are_zero_at_the_ends_and_in_the_padding():
    values = torch.tensor([[1.0, 3.0, 7.0, 99.0], [2.0, 99.0, 99.0, 99.0]])[..., None]
    padding = torch.tensor([[False, False, False, True], [False, True, True, True]])
    before, after = neighbour_differences(values, padding)
    assert before[..., 0].tolist() == [[0, 2, 4, 0], [0, 0, 0, 0]]
    assert after[..., 0].tolist() == [[-2, -4, 0, 0], [0, 0, 0, 0]]


def test_encoder_layer_equals_that_of_torch():
    torch.manual_seed(0)
    layer, bias = EncoderLayer(8, 4, 0.0), torch.randn(2, 4, 5, 5)
    other = nn.TransformerEncoderLayer(8, 4, 16, 0.0, nn.functional.gelu, batch_first=True, norm_first=True)
    ours = [layer.attention, layer.project, layer.wide, layer.narrow, *layer.norms]
    assert isinstance(other.self_attn.in_proj_bias, torch.Tensor)
    attention = (other.self_attn.in_proj_weight, other.self_attn.in_proj_bias)
    theirs = [
        attention,
        *((part.weight, part.bias) for part in (other.self_attn.out_proj, other.linear1, other.linear2)),
    ]
    theirs += [(part.weight, part.bias) for part in (other.norm1, other.norm2)]
    perturb(other)
    for mine, values in zip(ours, theirs, strict=True):
        mine.load_state_dict({"weight": values[0], "bias": values[1]})
    states = torch.randn(2, 5, 8)
    torch.testing.assert_close(layer(states, bias), other(states, bias.flatten(0, 1)), rtol=1e-4, atol=1e-5)


def test_attention_decreases_with_the_distance_before_and_after_a_slice():
    torch.manual_seed(0)
    network, inputs, padding = SliceTransformer(3, 8, 2, 0.0), torch.randn(1, 6, 3), torch.zeros(1, 6).bool()
    gaps = torch.tensor([[1.0, 2.0, 1e6, 0.5, 1.0, 1.0]])
    apart = torch.cat([network(inputs[:, at], gaps[:, at], padding[:, at]) for at in (slice(3), slice(3, 6))], dim=1)
    torch.testing.assert_close(network(inputs, gaps, padding), apart, rtol=1e-4, atol=1e-5)

    gaps, states = torch.tensor([[1.0, 2.0, 3.0, 0.5, 1.0, 0.0]]), network(inputs, torch.ones(1, 6), padding)
    assert (network(inputs, gaps, padding) - states).abs().max() > 1e-3, "gaps matter"
    perturb(network)
    states = network(inputs, gaps, padding)
    network.before, network.after = network.after, network.before
    turned = network(inputs.flip(1), torch.cat([gaps[:, :5].flip(1), gaps[:, 5:]], dim=1), padding)
    torch.testing.assert_close(turned.flip(1), states, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", ["gru", "conv_gru", "transformer", "gru, differences"])
def test_a_residual_head_learns_a_label_that_only_the_next_slice_shows(cell):
    model = head("residual", cell, trained=False)
    optimizer, rng = torch.optim.Adam(model.parameters(), 0.02), torch.Generator().manual_seed(0)
    lengths, geometry = torch.full((16,), 6), torch.zeros(16, 6, 2)
    correct = 0.0
    for _ in range(80):
        features, base = torch.randn(16, 6, FEATURES, generator=rng), torch.zeros(16, 6, CLASSES)
        logits = model(features, base, geometry, lengths)[:, :5, 0]
        target = (features[:, 1:, 0] > 0).float()
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits, target).backward()
        optimizer.step()
        correct = ((logits > 0).float() == target).float().mean()
    assert correct > 0.85


@pytest.mark.parametrize(("name", "cell"), [("lstm", nn.LSTMCell), ("gru", nn.GRUCell)])
def test_stacked_layers_and_their_shortcuts_by_single_cells(name, cell):
    model = head("shortcut", name).eval()
    features, base, geometry = study(6, 4)
    first = both_ways(cell, model.layers[0], features[0])
    second = both_ways(cell, model.layers[1], first)
    for model.shortcuts, states in ((True, first + second), (False, second)):
        expected = states @ model.classifier.weight.T + model.classifier.bias
        found = model(features, base, geometry, torch.tensor([6]))[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def decoded(decoder: LabelDecoder, feature: torch.Tensor) -> torch.Tensor:
    """States [classes, hidden] of the features [D] of one slice: one LSTM step per class, input zero."""
    one = nn.LSTMCell(1, decoder.rnn.hidden_size)
    one.load_state_dict({name: getattr(decoder.rnn, f"{name}_l0") for name in one.state_dict()})
    hidden = memory = decoder.start(feature)[None]
    states = []
    for _ in range(decoder.classes):
        hidden, memory = one(torch.zeros(1, 1), (hidden, memory))
        states.append(hidden[0])
    return torch.stack(states)


@pytest.mark.parametrize("hidden", [HIDDEN, FEATURES])  # FEATURES: no linear layer before the decoder
def test_label_decoder_and_its_combinations_by_single_cells(hidden):
    inputs, length = study(5, 6), torch.tensor([5])
    model = head("lrnn", "lstm", hidden=hidden).eval()
    states = torch.stack([decoded(model.parts[0], one) for one in inputs[0][0]])
    expected = torch.einsum("tch,ch->tc", states, model.classifier.weight)
    torch.testing.assert_close(model(*inputs, length)[0], expected, rtol=1e-4, atol=1e-6)

    model = head("sdl_lrnn", "lstm", hidden=hidden).eval()
    context, decoder = model.parts
    states = torch.stack([decoded(decoder, one) for one in context(inputs[0], length)[0]])
    expected = torch.einsum("tch,ch->tc", states, model.classifier.weight)
    torch.testing.assert_close(model(*inputs, length)[0], expected, rtol=1e-4, atol=1e-6)

    model = head("lrnn_sdl", "lstm", hidden=hidden).eval()
    decoder, context = model.parts
    run_parallel = torch.stack([decoded(decoder, one).flatten() for one in inputs[0][0]])
    expected = context(run_parallel[None], length)[0] @ model.classifier.weight.T
    torch.testing.assert_close(model(*inputs, length)[0], expected, rtol=1e-4, atol=1e-6)


def test_sdl_adds_the_context_to_the_features():
    torch.manual_seed(0)
    features = study(5, 7)[0]
    recurrent = SliceContext(FEATURES, "gru", layers=1, dropout=0.0)
    assert recurrent.rnn is not None
    perturb(recurrent)
    expected = features[0] + both_ways(nn.GRUCell, recurrent.rnn, features[0])
    torch.testing.assert_close(recurrent(features, torch.tensor([5]))[0], expected, rtol=1e-5, atol=1e-6)

    convolved: Any = SliceContext(FEATURES, "conv", layers=2, dropout=0.0)
    perturb(convolved)
    context = features[0]
    for number, layer in enumerate(convolved.convolutions):
        below = context.clamp(min=0) if number else context
        near = [[(k, t + k - 1) for k in range(3) if 0 <= t + k - 1 < 5] for t in range(5)]
        context = torch.stack([sum(layer.weight[:, :, k] @ below[t] for k, t in each) + layer.bias for each in near])
    torch.testing.assert_close(convolved(features, torch.tensor([5]))[0], features[0] + context, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="gru cannot add to 7 features"):
        SliceContext(7, "gru", layers=1, dropout=0.0)


def classifier() -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(FEATURES, CLASSES)


@pytest.mark.parametrize(("name", "cell"), [("linear", "gru"), ("sdl", "gru"), ("sdl", "lstm"), ("sdl", "conv")])
def test_a_head_that_starts_from_a_classifier_returns_its_logits_and_learns(name, cell):
    inputs, last = study(5, 6), classifier()
    model = head(name, cell, trained=False)
    model.take_classifier({f"classifier.{key}": value for key, value in last.state_dict().items()})
    logits = model(*inputs, torch.tensor([5]))
    torch.testing.assert_close(logits, last(inputs[0]), rtol=1e-5, atol=1e-6)
    logits.square().sum().backward()
    for part in model.parts:
        assert any(value.grad.any() for value in part.parameters()), "the context is not stuck at zero"


@pytest.mark.parametrize("name", ["lrnn", "sdl_lrnn", "lrnn_sdl"])
def test_a_decoder_takes_a_classifier_if_its_states_are_as_wide_as_the_features(name):
    last, ones = classifier(), torch.eye(CLASSES)
    state = {f"classifier.{key}": value for key, value in last.state_dict().items()}
    model = head(name, "gru", trained=False, hidden=FEATURES)
    model.take_classifier(state)
    weight = model.classifier.weight.view(CLASSES, -1, FEATURES)
    expected = ones[:, :, None] * last.weight[:, None] if name == "lrnn_sdl" else last.weight[:, None]
    assert torch.equal(weight, expected)
    assert torch.equal(model.classifier.bias, last.bias)
    narrow = head(name, "gru", trained=False)
    narrow.take_classifier(state)
    assert not narrow.classifier.weight.any()


def test_a_new_label_decoder_remembers_the_slice_at_its_last_class():
    torch.manual_seed(0)
    decoder = LabelDecoder(64, 6, 64)
    states = decoder(torch.randn(1, 50, 64), torch.tensor([50]))
    spread = states[0].std(dim=0).norm(dim=-1)
    assert spread[-1] > 0.3 * spread[0]  # with forget gates of 1/2 it is a tenth

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.networks.sequence import SequenceHead


def head(cell: str = "gru", layers: int = 1, dropout: float = 0.0, trained: bool = True) -> SequenceHead:
    torch.manual_seed(0)
    made = SequenceHead(8, 6, cell, hidden=5, layers=layers, dropout=dropout)  # pyright: ignore[reportArgumentType]
    if trained:
        torch.nn.init.normal_(made.residual.weight)
    return made


def study(length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(1, length, width, generator=rng) for width in (8, 6, 2))  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4), rubbish=st.floats(-100, 100))
def test_padding_never_changes_a_study(cell: str, lengths: list[int], rubbish: float):
    model = head(cell, layers=2).eval()
    longest = max(lengths) + 1
    padded = [torch.full((len(lengths), longest, width), rubbish) for width in (8, 6, 2)]
    alone = []
    for place, length in enumerate(lengths):
        parts = study(length, seed=place)
        alone.append(model(*parts, torch.tensor([length])))
        for whole, part in zip(padded, parts, strict=True):
            whole[place, :length] = part[0]
    together = model(*padded, torch.tensor(lengths))
    assert together.shape == (len(lengths), longest, 6)
    for place, length in enumerate(lengths):
        torch.testing.assert_close(together[place, :length], alone[place][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_an_untrained_head_repeats_the_base_logits(cell: str):
    features, base, geometry = study(5, 1)
    out = head(cell, trained=False)(features.half(), base, geometry, torch.tensor([5]))
    assert torch.equal(out, base)


def test_every_slice_sees_both_ends_of_its_study():
    model = head().eval()
    features, base, geometry = study(6, 2)
    plain = model(features, base, geometry, torch.tensor([6]))
    for changed in (0, 5):
        other = features.clone()
        other[0, changed] += torch.arange(8.0)
        moved = (model(other, base, geometry, torch.tensor([6])) - plain).abs().amax(-1)[0]
        assert (moved > 0).all()


def test_every_parameter_gets_a_gradient():
    model = head("lstm", layers=2, dropout=0.1)
    model(*study(4, 3), torch.tensor([4])).square().sum().backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        assert value.grad.abs().sum() > 0, name


def test_logits_keep_full_precision_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        out = head()(*study(4, 3), torch.tensor([4]))
    assert torch.equal(out, head()(*study(4, 3), torch.tensor([4])))


def test_an_unknown_cell_is_refused():
    with pytest.raises(ValueError, match="lstm or gru"):
        head("rnn")

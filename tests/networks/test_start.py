"""Networks that start from the weights of another network, also of one with other classes."""

from typing import Any

import pytest
import torch
from torch import nn

from ich.networks.cnn import Cnn, CnnSpec
from ich.networks.cnn_lstm import EndToEnd
from ich.networks.layers import HeadSpec, SavedClasses
from ich.networks.sequence import build_head
from ich.networks.study import StudyHead

FEATURES, LENGTHS = 8, torch.tensor([5, 3])
SMALL = {"channels": (4, 8, 8, FEATURES), "stem_width": 4}
HEADS = [
    ("residual", {"cell": "gru", "differences": True}),
    ("residual", {"cell": "conv_gru"}),
    ("residual", {"cell": "transformer"}),
    ("shortcut", {"cell": "lstm"}),
    ("sdl", {"cell": "conv"}),
]


def trained(network: nn.Module, seed: int) -> Any:
    torch.manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5 if "running_var" in name else -0.5, 0.6)
    return network.eval()


def cnn(classes: int) -> Cnn:
    return Cnn(CnnSpec("resnet10t", 3, classes, SMALL))


def head(name: str, classes: int, **settings: Any) -> Any:
    return build_head(HeadSpec(name, FEATURES, classes, hidden=4, **settings))


def networks(kind: str, name: str, settings: dict[str, Any], classes: int) -> Any:
    if kind == "cnn":
        return cnn(classes)
    one = head(name, classes, **settings)
    return EndToEnd(cnn(classes), one) if kind == "end_to_end" else StudyHead(one, classes) if kind == "study" else one


def logits(kind: str, network: Any, order: list[int]) -> torch.Tensor:
    """Logits of the same inputs; `order`: the classes of the base logits."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    features, base, geometry = (torch.randn(2, 5, n, generator=generator) for n in (FEATURES, 3, 2))
    with torch.no_grad():
        if kind == "cnn":
            return network(images)
        if kind == "end_to_end":
            return network(images, geometry, LENGTHS)
        return network(features, base[..., order], geometry, LENGTHS)


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [("cnn", "", {}), *(("head", *one) for one in HEADS), ("study", *HEADS[0]), ("end_to_end", *HEADS[0])],
)
def test_the_first_logits_are_those_of_the_saved_network_by_the_names_of_the_classes(kind, name, settings):
    saved, own, order = ["a", "b", "c"], ["c", "a", "b"], [2, 0, 1]
    donor = trained(networks(kind, name, settings, 3), 0)
    expected = logits(kind, donor, [0, 1, 2])
    same, moved = (trained(networks(kind, name, settings, 3), 1) for _ in range(2))
    same.start_from(donor.state_dict(), SavedClasses.by_name(saved, saved))
    assert torch.equal(logits(kind, same, [0, 1, 2]), expected)
    moved.start_from(donor.state_dict(), SavedClasses.by_name(own, saved))
    order += [3 + k for k in order] if kind == "study" else []
    torch.testing.assert_close(logits(kind, moved, order[:3]), expected[..., order], rtol=1e-5, atol=1e-5)


def test_other_classes_start_as_usual():
    donor, other = trained(cnn(3), 0), trained(cnn(2), 1)
    usual = other.classifier.weight[1].clone()
    other.start_from(donor.state_dict(), SavedClasses.by_name(["b", "new"], ["a", "b", "c"]))
    assert torch.equal(other.classifier.weight, torch.stack([donor.classifier.weight[1], usual]))
    assert torch.equal(other.backbone.conv1[0].weight, donor.backbone.conv1[0].weight)
    unknown = trained(cnn(2), 1)
    unknown.start_from(donor.half().state_dict(), SavedClasses.by_name(["b", "new"], []))
    assert torch.equal(unknown.classifier.weight[1], usual)
    assert not torch.equal(unknown.classifier.weight[0], donor.classifier.weight[1])

    donor, other = (trained(head("residual", classes), classes) for classes in (3, 2))
    before = other.rnn.weight_ih_l0[:, FEATURES + 1].clone()
    other.start_from(donor.state_dict(), SavedClasses.by_name(["b", "new"], ["a", "b", "c"]))
    theirs = donor.rnn.weight_ih_l0
    columns = [theirs[:, :FEATURES], theirs[:, FEATURES + 1, None], before[:, None], theirs[:, FEATURES + 3 :]]
    assert torch.equal(other.rnn.weight_ih_l0, torch.cat(columns, dim=1))


@pytest.mark.parametrize(
    ("network", "donor", "message"),
    [
        (
            cnn(3),
            Cnn(CnnSpec("resnet10t", 1, 3, SMALL)),
            r"conv1.0.weight has .* \[3, 1, 3, 3\] in the weights, but \[3, 3,",
        ),
        (cnn(3), cnn(2), r"classifier.weight has the shape \[2, 8\] in the weights, but \[3, 8\] is required"),
        (cnn(3), head("residual", 3), "backbone.* is in the network, but not in the weights; both"),
        (
            head("residual", 3),
            head("residual", 3, layers=2),
            "rnn.bias_hh_l1 is in the weights, but not in the network",
        ),
        (head("lrnn", 3), head("lrnn", 3), "the same classes in the same order"),
    ],
)
def test_weights_that_do_not_fit_are_an_error_with_both_shapes(network, donor, message):
    with pytest.raises(ValueError, match=message):
        network.start_from(donor.state_dict(), SavedClasses.by_name(["c", "b", "a"], ["a", "b", "c"]))

import math
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from ich.networks.losses import asymmetric, balanced, build, nt_xent, pos_weight

RNG = np.random.default_rng(0)
LOGITS = torch.from_numpy(RNG.normal(0, 2, (7, 6)))
TARGETS = torch.from_numpy((RNG.random((7, 6)) < 0.4).astype(np.float64))
LABEL_WEIGHT = [(1.0, 3.0), (1.0, 1.0), (0.6, 2.0), (2.0, 1.0), (1.0, 0.5), (0.5, 0.5)]
SOFT = TARGETS * 0.7 + 0.1
"""Targets of pictures mixed from two."""
SETTINGS = [
    {"name": "bce"},
    {"name": "focal"},
    {"name": "focal", "gamma": 1.0},
    {"name": "focal", "gamma": 0.0},
    {"name": "asymmetric"},
    {"name": "asymmetric", "gamma_pos": 1.0, "gamma_neg": 2.0, "clip": 0.0},
    {"name": "asymmetric", "gamma_pos": 2.0, "gamma_neg": 1.5, "clip": 0.2},
    {"name": "asymmetric", "gamma_pos": 0.0, "gamma_neg": 0.0, "clip": 0.1},
]


def reference(logits, targets, name, gamma=2.0, gamma_pos=0.0, gamma_neg=4.0, clip=0.05, label_weight=None):
    """The formulas as they stand in the papers, in double precision, one element after the other."""
    total, weights = 0.0, label_weight or [(1.0, 1.0)] * 6
    for row in range(7):
        for c, (negative, positive) in enumerate(weights):
            t, p = float(targets[row, c]), 1 / (1 + math.exp(-float(logits[row, c])))
            if name == "bce":
                terms = math.log(p), math.log(1 - p)
            elif name == "focal":
                terms = (1 - p) ** gamma * math.log(p), p**gamma * math.log(1 - p)
            else:
                m = max(p - clip, 0)
                terms = (1 - p) ** gamma_pos * math.log(p), m**gamma_neg * math.log(1 - m)
            total -= t * positive * terms[0] + (1 - t) * negative * terms[1]
    return total / 42


def test_bce_by_hand():
    loss = build("bce", label_weight=[(1.0, 5.0), (1.0, 3.0), (0.5, 7.0)])
    value = loss(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]]))
    assert value.item() == pytest.approx((1 + 3 + 0.5) * math.log(2) / 3, rel=1e-6)


def test_focal_loss_by_hand():
    logits = torch.tensor([[math.log(3), math.log(3)]])  # p = 3/4
    value = build("focal")(logits, torch.tensor([[1.0, 0.0]]))
    assert value.item() == pytest.approx((math.log(4 / 3) / 16 + 9 / 16 * math.log(4)) / 2, rel=1e-6)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("targets", [TARGETS, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("label_weight", [None, LABEL_WEIGHT], ids=["plain", "weighted"])
def test_value_and_gradient_equal_the_formula_and_its_differences(settings, targets, label_weight):
    logits = LOGITS.float().requires_grad_()
    value = build(**settings, label_weight=label_weight)(logits, targets)
    value.backward()
    assert value.item() == pytest.approx(
        reference(logits.detach(), targets, label_weight=label_weight, **settings), rel=1e-5
    )
    assert logits.grad is not None
    for row in range(7):
        for c in range(6):
            step = np.zeros((7, 6))
            step[row, c] = 1e-4
            above, below = (
                reference(
                    logits.detach().numpy().astype(float) + sign * step, targets, label_weight=label_weight, **settings
                )
                for sign in (1, -1)
            )
            assert logits.grad[row, c].item() == pytest.approx((above - below) / 2e-4, rel=1e-3, abs=1e-7)


def test_label_weights_of_one_and_w_are_the_pos_weight_of_torch():
    weights = [3.0, 1.0, 2.0, 1.0, 0.5, 1.0]
    ours = build("bce", label_weight=[(1.0, w) for w in weights])(LOGITS, TARGETS)
    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weights))(LOGITS.float(), TARGETS.float())
    assert torch.equal(ours, theirs)


def test_balanced_weights_are_those_of_scikit_learn():
    labels = (RNG.random((500, 3)) < [0.02, 0.3, 0.9]).astype(float)
    ours = balanced(labels.mean(axis=0))
    theirs = [compute_class_weight("balanced", classes=np.array([0, 1]), y=labels[:, c]) for c in range(3)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_pos_weights_are_the_ratio_up_to_a_limit():
    assert pos_weight(np.array([0.5, 0.2, 0.01]), largest=20) == [(1.0, 1.0), (1.0, 4.0), (1.0, 20.0)]
    assert pos_weight(np.array([0.01]), largest=1000)[0][1] == pytest.approx(99)


@pytest.mark.parametrize("weights", [partial(pos_weight, largest=20), balanced])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_class_of_one_label_has_weights_that_a_loss_takes(weights, dtype):
    found = weights(np.array([0.0, 1.0, 0.3], dtype=dtype))
    for name in ("bce", "focal", "asymmetric"):
        logits = torch.zeros(2, 3, requires_grad=True)
        build(name, label_weight=found)(logits, torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 1.0]])).backward()
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()


def test_bce_with_class_weights_is_the_weighted_log_loss():
    weights = [1.0, 1.0, 1.0, 1.0, 1.0, 2.0]
    value = build("bce", class_weight=weights)(LOGITS, TARGETS).item()
    each = [log_loss(TARGETS[:, c], LOGITS[:, c].sigmoid(), labels=[0, 1]) for c in range(6)]
    assert value == pytest.approx(np.average(each, weights=weights), rel=1e-6)


@pytest.mark.parametrize("name", ["focal", "asymmetric"])
def test_class_weights_count_by_their_ratios_in_every_loss(name):
    weights = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 2.0])
    each = [build(name)(LOGITS[:, [c]], TARGETS[:, [c]]).item() for c in range(6)]
    for factor in (1.0, 10.0):
        value = build(name, class_weight=list(factor * weights))(LOGITS, TARGETS).item()
        assert value == pytest.approx(np.average(each, weights=weights), rel=1e-6)


def test_asymmetric_loss_without_asymmetry_is_bce_and_with_equal_gammas_focal():
    plain = build("asymmetric", gamma_pos=0, gamma_neg=0, clip=0, label_weight=LABEL_WEIGHT)(LOGITS, TARGETS)
    assert plain.item() == pytest.approx(build("bce", label_weight=LABEL_WEIGHT)(LOGITS, TARGETS).item(), rel=1e-6)
    equal = asymmetric(LOGITS.float(), TARGETS.float(), gamma_pos=2, gamma_neg=2, clip=0)
    assert torch.equal(equal.mean(), build("focal")(LOGITS, TARGETS))


@pytest.mark.parametrize("name", ["bce", "focal", "asymmetric"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_confident_logits_give_finite_losses_and_gradients(name, dtype):
    logits = torch.tensor([[-80.0, 80.0, -80.0, 80.0]], dtype=dtype).requires_grad_()
    value = build(name)(logits, torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_unknown_names_gammas_and_weights_are_refused():
    with pytest.raises(ValueError, match="'bce', 'focal' or 'asymmetric'"):
        build("hinge")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="gamma_neg"):
        build("asymmetric", gamma_neg=0.5)
    with pytest.raises(ValueError, match="gamma must"):
        build("focal", gamma=0.5)
    with pytest.raises(ValueError, match="class 1 must be two positive numbers"):
        build("bce", label_weight=[(1.0, 2.0), (0.0, 2.0)])


# ---- SimCLR


def views(pictures: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, pictures, 5, generator=rng, dtype=torch.float64)
    return first, second


def nt_xent_loop(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """Equation 1 of the paper for each of the 2 B views."""
    both, n = [*first, *second], len(first)
    unit = [view / math.sqrt(sum(x * x for x in view)) for view in both]
    total = 0.0
    for i in range(2 * n):
        partner = i + n if i < n else i - n
        others = sum(math.exp(float(unit[i] @ unit[k]) / temperature) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(float(unit[i] @ unit[partner]) / temperature) / others)
    return total / (2 * n)


@pytest.mark.parametrize("pictures", [1, 2, 7])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_equals_a_plain_double_loop(pictures, temperature):
    first, second = views(pictures, seed=pictures)
    expected = nt_xent_loop(first.numpy(), second.numpy(), temperature)
    assert nt_xent(first, second, temperature).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_gradient_of_nt_xent_equals_finite_differences():
    first, second = views(3, seed=0)
    leaf = first.float().requires_grad_()
    nt_xent(leaf, second, 0.5).backward()
    assert leaf.grad is not None
    for row in range(3):
        for d in range(5):
            step = np.zeros((3, 5))
            step[row, d] = 1e-5
            above, below = (nt_xent_loop(first.numpy() + sign * step, second.numpy(), 0.5) for sign in (1, -1))
            assert leaf.grad[row, d].item() == pytest.approx((above - below) / 2e-5, rel=1e-3, abs=1e-6)


def test_nt_xent_keeps_full_precision_under_autocast_and_bears_small_temperatures():
    first, second = (view.bfloat16() for view in views(4, seed=1))
    with torch.autocast("cpu", torch.bfloat16):
        value = nt_xent(first, second, 0.5)
    assert torch.equal(value, nt_xent(first.float(), second.float(), 0.5))
    leaf = (1e3 * first.float()).requires_grad_()
    sharp = nt_xent(leaf, -leaf, 1e-3)  # exp(1000) would be infinite
    sharp.backward()
    assert torch.isfinite(sharp)
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()

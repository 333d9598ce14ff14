import math
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from ich.networks.losses import Loss, balanced, nt_xent, pos_weight

RNG = np.random.default_rng(0)
LOGITS = torch.from_numpy(RNG.normal(0, 2, (7, 6)))
TARGETS = torch.from_numpy((RNG.random((7, 6)) < 0.4).astype(np.float64))
LABEL_WEIGHT = [(1.0, 3.0), (1.0, 1.0), (0.6, 2.0), (2.0, 1.0), (1.0, 0.5), (0.5, 0.5)]
SOFT = TARGETS * 0.7 + 0.1  # targets of slices mixed by CutMix
NAMES = ["bce", "focal", "asymmetric"]
SETTINGS = [
    {"name": "bce"},
    {"name": "focal"},
    {"name": "focal", "gamma": 0.0},
    {"name": "asymmetric"},
    {"name": "asymmetric", "gamma_pos": 2.0, "gamma_neg": 1.5, "clip": 0.2},
    {"name": "asymmetric", "gamma_pos": 0.0, "gamma_neg": 0.0, "clip": 0.1},
]


def assert_gradient(gradient, function, at, step=1e-5):
    """Compare a gradient with the finite differences of the function, element by element."""
    for place in np.ndindex(at.shape):
        moved = np.zeros(at.shape)
        moved[place] = step
        slope = (function(at + moved) - function(at - moved)) / (2 * step)
        assert gradient[place].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)


def reference(logits, targets, name, gamma=2.0, gamma_pos=0.0, gamma_neg=4.0, clip=0.05, label_weight=None):
    """The formulas of the papers in double precision, element by element."""
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


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("targets", [TARGETS, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("label_weight", [None, LABEL_WEIGHT], ids=["plain", "weighted"])
def test_value_and_gradient_equal_the_formula_and_its_differences(settings, targets, label_weight):
    logits = LOGITS.float().requires_grad_()
    value = Loss(**settings, label_weight=label_weight)(logits, targets)
    value.backward()
    at = logits.detach().numpy().astype(float)
    expected = partial(reference, targets=targets, label_weight=label_weight, **settings)
    assert value.item() == pytest.approx(expected(at), rel=1e-5)
    assert_gradient(logits.grad, expected, at)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("label_weight", [None, LABEL_WEIGHT], ids=["plain", "weighted"])
def test_mixed_weighted_targets_have_the_mixed_loss_and_weight_0_hides_a_label(settings, label_weight):
    weight, other = torch.from_numpy(RNG.choice([0.0, 0.3, 1.0], (2, 7, 6)))
    first, second = torch.stack([SOFT * weight, weight], 1), torch.stack([(1 - TARGETS) * other, other], 1)
    loss = Loss(**settings, label_weight=label_weight)
    mixed = loss(LOGITS, 0.3 * first + 0.7 * second)
    assert mixed.item() == pytest.approx((0.3 * loss(LOGITS, first) + 0.7 * loss(LOGITS, second)).item(), rel=1e-5)
    ones, hidden = torch.ones(7, 6), torch.ones(7, 6)
    hidden[2:] = 0
    assert loss(LOGITS, torch.stack([SOFT, ones], 1)).item() == pytest.approx(loss(LOGITS, SOFT).item(), rel=1e-6)
    shown = loss(LOGITS[:2], SOFT[:2]).item() * 2 / 7
    assert loss(LOGITS, torch.stack([SOFT * hidden, hidden], 1)).item() == pytest.approx(shown, rel=1e-6)


def test_balanced_weights_equal_scikit_learn_and_pos_weights_the_limited_ratio():
    labels = (RNG.random((500, 3)) < [0.02, 0.3, 0.9]).astype(float)
    ours = balanced(labels.mean(axis=0))
    theirs = [compute_class_weight("balanced", classes=np.array([0, 1]), y=labels[:, c]) for c in range(3)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert pos_weight(np.array([0.5, 0.2, 0.01]), max_pos_weight=20) == [(1.0, 1.0), (1.0, 4.0), (1.0, 20.0)]


@pytest.mark.parametrize("weights", [partial(pos_weight, max_pos_weight=20), balanced])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_class_with_a_single_label_has_finite_gradients(weights, dtype):
    label_weight = weights(np.array([0.0, 1.0, 0.3], dtype=dtype))
    for name in NAMES:
        logits = torch.zeros(2, 3, requires_grad=True)
        loss = Loss(name, label_weight=label_weight)
        loss(logits, torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 1.0]])).backward()
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_only_the_ratios_of_class_weights_matter(name):
    weights = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 2.0])
    each = [Loss(name)(LOGITS[:, [c]], TARGETS[:, [c]]).item() for c in range(6)]
    for factor in (1.0, 10.0):
        value = Loss(name, class_weight=list(factor * weights))(LOGITS, TARGETS).item()
        assert value == pytest.approx(np.average(each, weights=weights), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_confident_logits_give_finite_losses_and_gradients(name, dtype):
    logits = torch.tensor([[-80.0, 80.0, -80.0, 80.0]], dtype=dtype).requires_grad_()
    value = Loss(name)(logits, torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


# ---- SimCLR


def views(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(images)
    first, second = torch.randn(2, images, 5, generator=rng, dtype=torch.float64)
    return first, second


def nt_xent_loop(first: np.ndarray, second: np.ndarray, temperature: float, studies: list[int]) -> float:
    """Equation 1 of the paper for each of the 2 B views, without other slices of its study."""
    both, n = [*first, *second], len(first)
    unit = [view / math.sqrt(sum(x * x for x in view)) for view in both]
    total = 0.0
    for i in range(2 * n):
        partner = i + n if i < n else i - n
        compared = [k for k in range(2 * n) if k == partner or studies[k % n] != studies[i % n]]
        others = sum(math.exp(float(unit[i] @ unit[k]) / temperature) for k in compared)
        total -= math.log(math.exp(float(unit[i] @ unit[partner]) / temperature) / others)
    return total / (2 * n)


@pytest.mark.parametrize("studies", [[3], [0, 1], [0, 1, 2, 3, 4, 5, 6], [2, 0, 2, 1, 1, 2, 0]])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_a_double_loop_and_its_differences(studies, temperature):
    first, second = views(len(studies))
    leaf = first.float().requires_grad_()
    expected = partial(nt_xent_loop, second=second.numpy(), temperature=temperature, studies=studies)
    value = nt_xent(leaf, second, temperature, torch.tensor(studies))
    value.backward()
    at = leaf.detach().numpy().astype(float)
    assert value.item() == pytest.approx(expected(at), rel=1e-5, abs=1e-6)
    assert_gradient(leaf.grad, expected, at)


def test_slices_of_the_same_study_are_not_negatives():
    first, second = torch.tensor([[[1.0, 0], [0, 1], [1, 0]], [[1, 0], [0, 1], [0, 1]]])
    # partners of the first study have similarity 1, and 1 and 0 to the slice of the second, whose own views have 0
    expected = (4 * math.log((2 * math.e + 1) / math.e) + 2 * math.log(2 * math.e + 3)) / 6
    assert nt_xent(first, second, 1.0, torch.tensor([0, 0, 1])).item() == pytest.approx(expected)


def test_a_batch_of_one_study_has_no_loss_and_a_gradient_of_zero():
    first, second = views(4)
    leaf = first.float().requires_grad_()
    value = nt_xent(leaf, second, 0.5, torch.zeros(4, dtype=torch.int64))
    value.backward()
    assert value.item() == 0
    assert leaf.grad is not None
    assert not leaf.grad.any()


def test_nt_xent_keeps_full_precision_under_autocast_and_is_finite_at_small_temperatures():
    first, second = (view.bfloat16() for view in views(4))
    with torch.autocast("cpu", torch.bfloat16):
        value = nt_xent(first, second, 0.5, torch.arange(4))
    assert torch.equal(value, nt_xent(first.float(), second.float(), 0.5, torch.arange(4)))
    leaf = (1e3 * first.float()).requires_grad_()
    sharp = nt_xent(leaf, -leaf, 1e-3, torch.arange(4))  # exp(1000) would be infinite
    sharp.backward()
    assert torch.isfinite(sharp)
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()

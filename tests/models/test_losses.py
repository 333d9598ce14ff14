import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from ich.models.losses import asymmetric, build

RNG = np.random.default_rng(0)
LOGITS = torch.from_numpy(RNG.normal(0, 2, (7, 6)))
TARGETS = torch.from_numpy((RNG.random((7, 6)) < 0.4).astype(np.float64))
POS_WEIGHT = [3.0, 1.0, 2.0, 1.0, 0.5, 1.0]


def asymmetric_one(x: float, t: float, gamma_pos: float, gamma_neg: float, clip: float) -> float:
    p = 1 / (1 + math.exp(-x))
    shifted = max(p - clip, 0)
    return -(t * (1 - p) ** gamma_pos * math.log(p) + (1 - t) * shifted**gamma_neg * math.log(1 - shifted))


def test_bce_by_hand():
    loss = build("bce", pos_weight=[1.0, 3.0])
    value = loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert value.item() == pytest.approx((math.log(2) + 3 * math.log(2)) / 2, rel=1e-6)


def test_bce_with_class_weights_is_the_weighted_log_loss():
    weights = [1.0, 1.0, 1.0, 1.0, 1.0, 2.0]
    value = build("bce", class_weight=weights)(LOGITS, TARGETS).item()
    each = [log_loss(TARGETS[:, c], LOGITS[:, c].sigmoid(), labels=[0, 1]) for c in range(6)]
    assert value == pytest.approx(np.average(each, weights=weights), rel=1e-6)


@pytest.mark.parametrize(("gamma_pos", "gamma_neg", "clip"), [(0, 4, 0.05), (1, 2, 0), (2, 1.5, 0.2), (0, 0, 0.1)])
@pytest.mark.parametrize("pos_weight", [None, POS_WEIGHT])
def test_asymmetric_loss_equals_a_plain_double_loop(gamma_pos, gamma_neg, clip, pos_weight):
    loss = build("asymmetric", pos_weight=pos_weight, gamma_pos=gamma_pos, gamma_neg=gamma_neg, clip=clip)
    total = 0.0
    for row in range(7):
        for c in range(6):
            t = TARGETS[row, c].item()
            weight = 1.0 if pos_weight is None or t == 0 else pos_weight[c]
            total += weight * asymmetric_one(LOGITS[row, c].item(), t, gamma_pos, gamma_neg, clip)
    assert loss(LOGITS, TARGETS).item() == pytest.approx(total / 42, rel=1e-5)


@pytest.mark.parametrize(("gamma_pos", "gamma_neg", "clip"), [(0, 4, 0.05), (1, 2, 0), (2, 1, 0.2)])
def test_asymmetric_gradient_equals_finite_differences(gamma_pos, gamma_neg, clip):
    logits = LOGITS.clone().requires_grad_()
    asymmetric(logits, TARGETS, gamma_pos=gamma_pos, gamma_neg=gamma_neg, clip=clip).sum().backward()
    assert logits.grad is not None
    for row in range(7):
        for c in range(6):
            x, t = LOGITS[row, c].item(), TARGETS[row, c].item()
            above = asymmetric_one(x + 1e-5, t, gamma_pos, gamma_neg, clip)
            below = asymmetric_one(x - 1e-5, t, gamma_pos, gamma_neg, clip)
            assert logits.grad[row, c].item() == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-8)


def test_asymmetric_loss_without_asymmetry_is_bce():
    plain = build("asymmetric", gamma_pos=0, gamma_neg=0, clip=0, pos_weight=POS_WEIGHT)
    assert plain(LOGITS, TARGETS).item() == pytest.approx(
        build("bce", pos_weight=POS_WEIGHT)(LOGITS, TARGETS).item(), rel=1e-6
    )


@pytest.mark.parametrize("name", ["bce", "asymmetric"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_confident_logits_give_finite_losses_and_gradients(name, dtype):
    logits = torch.tensor([[-80.0, 80.0, -80.0, 80.0]], dtype=dtype).requires_grad_()
    value = build(name)(logits, torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_unknown_names_and_gammas_are_refused():
    with pytest.raises(ValueError, match="'bce' or 'asymmetric'"):
        build("focal")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="gamma_neg"):
        build("asymmetric", gamma_neg=0.5)

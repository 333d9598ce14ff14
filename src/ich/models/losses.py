"""Losses for several yes-or-no labels a slice, always the mean over all elements."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def build(
    name: Literal["bce", "asymmetric"],
    *,
    pos_weight: Sequence[float] | None = None,
    class_weight: Sequence[float] | None = None,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    clip: float = 0.05,
) -> Loss:
    """Return a function of logits and targets, both [..., c], targets within 0..1, to a scalar.

    pos_weight [c]: what a positive counts against a negative. class_weight [c]: what a class counts; only
    the ratios matter, and (1, 1, 1, 1, 1, 2) makes `bce` the weighted log loss of RSNA 2019.
    gamma_pos, gamma_neg and clip are those of the asymmetric loss and mean nothing to `bce`.
    """
    if name not in {"bce", "asymmetric"}:
        raise ValueError(f"unknown loss {name!r}; use 'bce' or 'asymmetric'")
    for label, gamma in (("gamma_pos", gamma_pos), ("gamma_neg", gamma_neg)):
        if gamma != 0 and gamma < 1:  # the slope of p ** gamma has no bound at p = 0
            raise ValueError(f"{label} must be 0 or at least 1, not {gamma}")
    positive = None if pos_weight is None else torch.tensor(pos_weight, dtype=torch.float32)
    weight = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float32)
    weight = None if weight is None else weight / weight.mean()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        logits, targets = logits.float(), targets.float()
        up = None if positive is None else positive.to(logits.device)
        if name == "bce":
            each = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=up, reduction="none")
        else:
            each = asymmetric(logits, targets, gamma_pos=gamma_pos, gamma_neg=gamma_neg, clip=clip, pos_weight=up)
        return (each if weight is None else each * weight.to(logits.device)).mean()

    return loss


def asymmetric(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_pos: float,
    gamma_neg: float,
    clip: float,
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Asymmetric loss of each element (Ridnik et al., arXiv:2009.14119, equations 4 to 6), not reduced.

    Easy negatives count less (gamma_neg), and those under the probability `clip` not at all.
    """
    probability = logits.sigmoid()
    positive = (1 - probability) ** gamma_pos * F.logsigmoid(logits)
    shifted = (probability - clip).clamp(min=0)
    # log(1 - p) from the logit, since 1 - p loses all its digits near p = 1
    log_negative = F.logsigmoid(-logits) if clip == 0 else torch.log(((-logits).sigmoid() + clip).clamp(max=1))
    negative = shifted**gamma_neg * log_negative
    positive = positive if pos_weight is None else positive * pos_weight
    return -(targets * positive + (1 - targets) * negative)

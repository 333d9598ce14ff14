"""Losses for several yes-or-no labels a slice, always the mean over all elements."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
NAMES = ("bce", "focal", "asymmetric")
RAREST = 1e-6
"""Rarer labels count as this rare, so that a class without positives (or negatives) has finite weights."""


def build(
    name: Literal["bce", "focal", "asymmetric"],
    *,
    label_weight: Sequence[tuple[float, float]] | None = None,
    class_weight: Sequence[float] | None = None,
    gamma: float = 2.0,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    clip: float = 0.05,
) -> Loss:
    """Return a function of logits and targets, both [..., c], targets within 0..1, to a scalar.

    label_weight [c]: what a negative and a positive label of a class count, see `pos_weight` and `balanced`.
    class_weight [c]: what a class counts; only the ratios matter, and (1, 1, 1, 1, 1, 2) makes `bce` the
    weighted log loss of RSNA 2019. gamma is that of the focal loss (Lin et al., arXiv:1708.02002: (1 - p)^gamma
    log p and p^gamma log(1 - p)); gamma_pos, gamma_neg and clip are those of the asymmetric loss. They mean
    nothing to the other losses.
    """
    if name not in NAMES:
        raise ValueError(f"unknown loss {name!r}; use 'bce', 'focal' or 'asymmetric'")
    for label, exponent in (("gamma", gamma), ("gamma_pos", gamma_pos), ("gamma_neg", gamma_neg)):
        if exponent != 0 and exponent < 1:  # the slope of p ** gamma has no bound at p = 0
            raise ValueError(f"{label} must be 0 or at least 1, not {exponent}")
    pairs = None if label_weight is None else _pairs(label_weight)
    weight = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float32)
    weight = None if weight is None else weight / weight.mean()
    if name == "focal":
        gamma_pos, gamma_neg, clip = gamma, gamma, 0.0

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        logits, targets = logits.float(), targets.float()
        counts = None if pairs is None else pairs.to(logits.device)
        if name == "bce":
            each = _bce(logits, targets, counts)
        else:
            each = asymmetric(logits, targets, gamma_pos=gamma_pos, gamma_neg=gamma_neg, clip=clip, label_weight=counts)
        return (each if weight is None else each * weight.to(logits.device)).mean()

    return loss


def pos_weight(prevalence: np.ndarray, max_pos_weight: float) -> list[tuple[float, float]]:
    """Label weights (1, negatives / positives) of the classes' frequencies [c], at most `max_pos_weight`.

    These are torch's `pos_weight`: both labels of a class weigh the same in all, and a class weighs what its
    negatives do.
    """
    share = np.asarray(prevalence).clip(RAREST, 1 - RAREST)
    return [(1.0, float(ratio)) for ratio in ((1 - share) / share).clip(max=max_pos_weight)]


def balanced(prevalence: np.ndarray) -> list[tuple[float, float]]:
    """Label weights (n / (2 negatives), n / (2 positives)) of the classes' frequencies [c].

    These are the class weights of Keras' guide to imbalanced data and of scikit-learn: both labels of a class
    weigh the same in all, and the mean weight of a class's slices is 1.
    """
    share = np.asarray(prevalence, dtype=np.float64).clip(RAREST, 1 - RAREST)
    return [(float(0.5 / (1 - part)), float(0.5 / part)) for part in share]


def asymmetric(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_pos: float,
    gamma_neg: float,
    clip: float,
    label_weight: Tensor | None = None,
) -> Tensor:
    """Asymmetric loss of each element (Ridnik et al., arXiv:2009.14119, equations 4 to 6), not reduced.

    Easy negatives count less (gamma_neg), and those under the probability `clip` not at all. Equal gammas and
    no clip make it the focal loss. label_weight [c, 2].
    """
    probability = logits.sigmoid()
    positive = (1 - probability) ** gamma_pos * F.logsigmoid(logits)
    shifted = (probability - clip).clamp(min=0)
    # log(1 - p) from the logit, since 1 - p loses all its digits near p = 1
    log_negative = F.logsigmoid(-logits) if clip == 0 else torch.log(((-logits).sigmoid() + clip).clamp(max=1))
    negative = shifted**gamma_neg * log_negative
    if label_weight is not None:
        negative, positive = negative * label_weight[:, 0], positive * label_weight[:, 1]
    return -(targets * positive + (1 - targets) * negative)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss (Chen et al., arXiv:2002.05709, equation 1) of two views [B, d] of the same B images, a scalar.

    Each of the 2 B views has to find its partner among the 2 B - 1 others by cosine similarity.
    """
    with torch.autocast(first.device.type, enabled=False):
        views = F.normalize(torch.cat([first.float(), second.float()]), dim=-1)
        likeness = views @ views.T / temperature
        itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
        partner = torch.arange(len(views), device=views.device).roll(len(first))
        return F.cross_entropy(likeness.masked_fill(itself, -torch.inf), partner)


def _bce(logits: Tensor, targets: Tensor, label_weight: Tensor | None) -> Tensor:
    if label_weight is None:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    negative, positive = label_weight.unbind(-1)
    ratio = positive / negative
    return negative * F.binary_cross_entropy_with_logits(logits, targets, pos_weight=ratio, reduction="none")


def _pairs(label_weight: Sequence[tuple[float, float]]) -> Tensor:
    """float32 [c, 2]."""
    for c, pair in enumerate(label_weight):
        if len(pair) != 2 or not all(math.isfinite(value) and value > 0 for value in pair):
            raise ValueError(f"label_weight of class {c} must be two positive numbers, not {pair}")
    return torch.tensor(label_weight, dtype=torch.float32)

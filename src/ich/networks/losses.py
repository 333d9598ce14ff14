"""Losses for several binary labels per slice, always the mean over all elements."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RAREST = 1e-6
"""Smallest frequency of a label in `pos_weight` and `balanced`: weights stay finite where a class has one label."""

TINY = 1e-12  # divisor where a weight is 0


@dataclass(frozen=True)
class Loss:
    """Mean loss of logits and targets, both [n, c]; targets are within 0..1.

    Weighted targets are [n, 2, c]: the targets times the weights, and the weights. Since each loss is linear in the
    target, CutMix may mix them as it mixes targets.

    focal: Lin et al., arXiv:1708.02002, (1 - p)^gamma log p and p^gamma log(1 - p). asymmetric: Ridnik et al.,
    arXiv:2009.14119. Each gamma is 0 or at least 1: between them the gradient is unbounded.
    """

    name: Literal["bce", "focal", "asymmetric"]
    gamma: float = 2.0  # focal
    gamma_pos: float = 0.0  # asymmetric, of positives
    gamma_neg: float = 4.0  # asymmetric, of negatives
    clip: float = 0.05  # asymmetric: probability below which negatives do not count
    label_weight: Sequence[tuple[float, float]] | None = None
    """Weights of a negative and a positive label, one pair per class; see `pos_weight` and `balanced`."""
    class_weight: Sequence[float] | None = None
    """Relative weights of the classes; (1, 1, 1, 1, 1, 2) makes `bce` the weighted log loss of RSNA 2019."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits, targets, weights = logits.float(), targets.float(), None
        if targets.ndim > logits.ndim:
            weighted, weights = targets.unbind(-2)
            targets = weighted / weights.clamp(min=TINY)
        pairs = None if self.label_weight is None else torch.tensor(self.label_weight, device=logits.device)
        if self.name == "bce":
            each = _bce(logits, targets, pairs)
        elif self.name == "focal":
            each = _asymmetric(logits, targets, (self.gamma, self.gamma), 0.0, pairs)
        else:
            each = _asymmetric(logits, targets, (self.gamma_neg, self.gamma_pos), self.clip, pairs)
        if self.class_weight is not None:
            weight = torch.tensor(self.class_weight, dtype=torch.float32, device=logits.device)
            each = each * (weight / weight.mean())
        if weights is not None:
            each = each * weights
        return each.mean()


def study_loss(logits: Tensor, targets: Tensor, lengths: Iterable[int]) -> Tensor:
    """Mean cross-entropy of one label per series and class: the maximum over its labelled slices.

    logits [n, c]: of the series, repeated for each of its slices. targets: [n, c], or weighted as in `Loss`: the weight
    of a series is then the mean of its slices. lengths: slices of each series; their sum is n.
    """
    targets, weights = targets.float(), torch.ones_like(logits)
    if targets.ndim > logits.ndim:
        weighted, weights = targets.unbind(-2)
        targets = weighted / weights.clamp(min=TINY)
    sizes = [int(n) for n in lengths]
    series, labels = (torch.stack([part.amax(dim=0) for part in all_.split(sizes)]) for all_ in (logits, targets))
    weight = torch.stack([part.mean(dim=0) for part in weights.split(sizes)])
    return F.binary_cross_entropy_with_logits(series.float(), labels, weight.float())


def pos_weight(prevalence: np.ndarray, max_pos_weight: float) -> list[tuple[float, float]]:
    """Label weights (1, negatives / positives) of class frequencies [c], at most `max_pos_weight`.

    As torch's `pos_weight`: both labels of a class have the same total weight, that of its negatives.
    """
    share = np.asarray(prevalence).clip(RAREST, 1 - RAREST)
    return [(1.0, float(ratio)) for ratio in ((1 - share) / share).clip(max=max_pos_weight)]


def balanced(prevalence: np.ndarray) -> list[tuple[float, float]]:
    """Label weights (n / (2 negatives), n / (2 positives)) of class frequencies [c].

    The class weights of scikit-learn and of Keras' guide to imbalanced data: both labels of a class have the same total
    weight, and the mean weight of its slices is 1.
    """
    share = np.asarray(prevalence, dtype=np.float64).clip(RAREST, 1 - RAREST)
    return [(float(0.5 / (1 - part)), float(0.5 / part)) for part in share]


def _bce(logits: Tensor, targets: Tensor, label_weight: Tensor | None) -> Tensor:
    if label_weight is None:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    negative, positive = label_weight.unbind(-1)
    ratio = positive / negative
    return negative * F.binary_cross_entropy_with_logits(logits, targets, pos_weight=ratio, reduction="none")


def _asymmetric(
    logits: Tensor, targets: Tensor, gammas: tuple[float, float], clip: float, label_weight: Tensor | None
) -> Tensor:
    """Asymmetric loss of each element (arXiv:2009.14119, equations 4 to 6). gammas: of negatives and of positives."""
    gamma_neg, gamma_pos = gammas
    probability = logits.sigmoid()
    positive = (1 - probability) ** gamma_pos * F.logsigmoid(logits)
    shifted = (probability - clip).clamp(min=0)
    # log(1 - p) from the logit, since 1 - p loses all its digits near p = 1
    log_negative = F.logsigmoid(-logits) if clip == 0 else torch.log(((-logits).sigmoid() + clip).clamp(max=1))
    negative = shifted**gamma_neg * log_negative
    if label_weight is not None:
        negative, positive = negative * label_weight[:, 0], positive * label_weight[:, 1]
    return -(targets * positive + (1 - targets) * negative)


def nt_xent(first: Tensor, second: Tensor, temperature: float, studies: Tensor) -> Tensor:
    """Loss of SimCLR (Chen et al., arXiv:2002.05709, equation 1) for two views [B, d] of the same B images, a scalar.

    Each of the 2 B views is to find its partner by cosine similarity, among the views of other studies. studies: one
    number per image, int64 [B]. Slices of the same study are similar, so they are not used as negatives (false negative
    elimination, Huynh et al., arXiv:2011.11765). A batch of a single study has the loss 0 and no gradient.
    """
    with torch.autocast(first.device.type, enabled=False):
        views = F.normalize(torch.cat([first.float(), second.float()]), dim=-1)
        similarity = views @ views.T / temperature
        of_view = studies.repeat(2)
        partner = torch.arange(len(views), device=views.device).roll(len(first))
        excluded = (of_view[:, None] == of_view).scatter(1, partner[:, None], False)
        return F.cross_entropy(similarity.masked_fill(excluded, -torch.inf), partner)

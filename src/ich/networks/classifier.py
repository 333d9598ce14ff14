"""The last layer of every network: from features to one logit a class."""

import numpy as np
import torch
from torch import nn


class Classifier(nn.Linear):
    """A linear layer that starts at zero, so that its bias alone decides the first predictions."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def output_bias(self, prevalence: np.ndarray) -> None:
        """Start from the classes' frequencies [classes], so that training need not first learn them.

        The loss at step 0 is then the entropy of the prevalence. See Karpathy, "A recipe for training
        neural networks", 2019.
        """
        share = torch.as_tensor(prevalence, dtype=torch.float64).clamp(1e-4, 1 - 1e-4)
        self.bias.copy_(torch.logit(share))

"""pretrain: SimCLR on every slice of the competition (labelled, unlabelled and test); no label is read.

Chen et al., arXiv:2002.05709, with slices of other studies as negatives. It is fitted and saved but does not predict:
cnn models start from its weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ich.data.datasets import TwoViews
from ich.errors import UserError
from ich.models.base import Model
from ich.models.data import FoldData
from ich.models.images import image_loader, image_spec, training_dataset, try_backbone
from ich.models.network import FittedNetwork, fit_settings, new_backbone
from ich.models.slices import Predictions, Shape, Slices
from ich.networks.cnn import Cnn, CnnSpec
from ich.networks.losses import nt_xent
from ich.networks.simclr import SimClr as Network
from ich.training.fit import fit
from ich.training.run import Run


class SimClr(Model):
    def fit(self, data: FoldData, run: Run) -> "FittedSimClr":
        settings = self.settings
        views = TwoViews(training_dataset(data, "all", run.seed, labels=False))
        network, spec = image_spec(settings, data.shape)
        fitted = FittedSimClr(spec, run.name, network=Network(new_backbone(network, data, run)))
        fitted.notes["slices"] = len(views)

        studies = torch.from_numpy(data.table.table["study_id"].factorize()[0])
        if len(studies.unique()) < 2:
            raise UserError(
                f"pretrain.{data.model}: SimCLR compares slices of different studies, but there is only one"
            )

        def loss_of(network: nn.Module, batch: Any) -> torch.Tensor:
            of_slice = studies.to(batch.rows.device)[batch.rows]
            return nt_xent(network(batch.first), network(batch.second), settings.temperature, of_slice)

        loader = image_loader(views, settings, "slices")
        fitted.history = fit(fitted.network, loader, loss_of, fit_settings(settings, fitted.network), run)
        return fitted

    def try_network(self, shape: Shape, inputs: Mapping[str, int]) -> int:
        return try_backbone(self.settings, shape)


@dataclass
class FittedSimClr(FittedNetwork):
    @staticmethod
    def build(spec: Mapping[str, Any]) -> nn.Module:
        return Network(Cnn(CnnSpec(**spec["network"])))

    def predict(self, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        raise NotImplementedError("pre-training predicts nothing")

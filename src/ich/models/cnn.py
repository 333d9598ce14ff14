"""cnn: a timm backbone that classifies single slices; it also writes its embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import nn

from ich.console import progress
from ich.data.batches import epoch_loader
from ich.models.base import Model
from ich.models.data import FoldData
from ich.models.images import TrainingLoader, image_spec, slice_dataset, training_dataset, view_of
from ich.models.network import FittedNetwork, fit_on_labels, new_backbone
from ich.models.slices import Predictions, Slices
from ich.networks.cnn import Cnn as Network
from ich.networks.cnn import CnnSpec
from ich.training.device import default_device, loader_workers
from ich.training.predict import predict
from ich.training.run import Run


class Cnn(Model):
    def fit(self, data: FoldData, run: Run) -> "FittedCnn":
        settings, workers = self.settings, loader_workers(self.settings.workers, default_device())
        images = training_dataset(data, "train", run.seed)
        network, spec = image_spec(settings, data, dropout=settings.dropout)
        fitted = FittedCnn(spec, run.name, network=new_backbone(network, data, run))
        loader = TrainingLoader(
            lambda epoch: epoch_loader(images, epoch, settings.batch_size, shuffle=True, workers=workers),
            samples=len(images),
            unit="slices",
            batch_size=settings.batch_size,
            drop_last=True,
        )
        fit_on_labels(fitted, loader, data, run)
        return fitted


@dataclass
class FittedCnn(FittedNetwork):
    @staticmethod
    def build(spec: Mapping[str, Any]) -> nn.Module:
        return Network(CnnSpec(**spec["network"]))

    def predict_with(self, network: nn.Module, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        if not len(slices):  # no test set
            width = cast(Network, network).embedding_size
            return Predictions(np.empty((0, len(slices.classes))), np.empty((0, width), np.float16))
        images = slice_dataset(slices, view_of(self.spec))
        size, workers = 2 * self.spec["batch_size"], loader_workers(slices.workers, default_device())
        batches = epoch_loader(images, 0, size, shuffle=False, workers=workers)
        with progress(f"{self.name}: predicting", len(slices), inner=True) as advance:
            found = predict(network, batches, len(slices), self.spec["precision"], advance)
        return Predictions(found["logits"], found["embeddings"])

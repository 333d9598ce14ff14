"""cnn: a timm backbone that classifies single slices and writes their embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import nn

from ich.models.base import Model
from ich.models.data import FoldData
from ich.models.images import (
    image_loader,
    image_spec,
    predict_images,
    saved_network,
    saved_windowing,
    slice_dataset,
    training_dataset,
    try_backbone,
)
from ich.models.network import FittedNetwork, fit_on_labels, new_backbone
from ich.models.slices import Predictions, Shape, Slices
from ich.networks.cnn import Cnn as Network
from ich.training.run import Run


class Cnn(Model):
    def fit(self, data: FoldData, run: Run) -> "FittedCnn":
        images = training_dataset(data, "train", run.seed)
        network, spec = image_spec(self.settings, data.shape, dropout=self.settings.dropout)
        spec["tta"] = self.settings.tta.model_dump()
        fitted = FittedCnn(spec, run.name, network=new_backbone(network, data, run))
        if self.settings.frozen:
            cast(Network, fitted.network).freeze()
        fit_on_labels(fitted, image_loader(images, self.settings, "slices"), data, run)
        return fitted

    def try_network(self, shape: Shape, inputs: Mapping[str, int]) -> int:
        return try_backbone(self.settings, shape)


@dataclass
class FittedCnn(FittedNetwork):
    @staticmethod
    def build(spec: Mapping[str, Any]) -> nn.Module:
        return Network(saved_network(spec))

    def predict(self, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        if not len(slices):  # no test set
            width = cast(Network, self.network).embedding_size
            return Predictions(np.empty((0, len(slices.classes))), np.empty((0, width), np.float16))
        images = slice_dataset(slices, saved_windowing(self.spec))
        found = predict_images(self, images, slices, 2 * self.spec["batch_size"])
        return Predictions(found["logits"], found["embeddings"])

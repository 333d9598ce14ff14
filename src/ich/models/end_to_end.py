"""end_to_end: a backbone and a head over the slices of a series, trained as one network on whole series."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

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
    series_dataset,
    slice_dataset,
    training_dataset,
    try_backbone,
)
from ich.models.network import FittedNetwork, fit_on_labels, new_backbone
from ich.models.sequence import head_spec
from ich.models.slices import Predictions, Shape, Slices
from ich.networks.cnn import Cnn
from ich.networks.cnn_lstm import EndToEnd as Network
from ich.networks.layers import HeadSpec
from ich.networks.sequence import build_head, try_head
from ich.training.run import Run


class EndToEnd(Model):
    def fit(self, data: FoldData, run: Run) -> "FittedEndToEnd":
        settings = self.settings
        series = series_dataset(data.slices("train"), training_dataset(data, "train", run.seed))
        network, spec = image_spec(settings, data.shape)
        cnn = new_backbone(network, data, run)
        spec["head"] = asdict(head_spec(settings, cnn.embedding_size, len(data.table.classes)))
        spec["chunk"], spec["tta"] = settings.chunk, settings.tta.model_dump()
        fitted = FittedEndToEnd(spec, run.name, network=_joined(cnn, spec))
        fit_on_labels(fitted, image_loader(series, settings, "series"), data, run)
        return fitted

    def try_network(self, shape: Shape, inputs: Mapping[str, int]) -> int:
        size = try_backbone(self.settings, shape)
        try_head(head_spec(self.settings, size, shape.classes))
        return size


def _joined(cnn: Cnn, spec: Mapping[str, Any]) -> Network:
    head = build_head(HeadSpec(**spec["head"]))
    return Network(cnn, head, chunk=spec["chunk"])


@dataclass
class FittedEndToEnd(FittedNetwork):
    @staticmethod
    def build(spec: Mapping[str, Any]) -> nn.Module:
        return _joined(Cnn(saved_network(spec)), spec)

    def predict(self, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        if not len(slices):  # no test set
            return Predictions(np.empty((0, len(slices.classes))))
        series = series_dataset(slices, slice_dataset(slices, saved_windowing(self.spec)))
        return Predictions(predict_images(self, series, slices, self.spec["batch_size"])["logits"])

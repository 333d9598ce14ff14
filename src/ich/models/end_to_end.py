"""end_to_end: a backbone and a recurrent head over the series, trained as one network, whole series at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ich.console import progress
from ich.data.batches import epoch_loader
from ich.models.base import Model
from ich.models.data import FoldData
from ich.models.images import (
    TrainingLoader,
    image_spec,
    slice_dataset,
    study_dataset,
    training_dataset,
    view_of,
)
from ich.models.network import FittedNetwork, fit_on_labels, new_backbone
from ich.models.sequence import head_spec
from ich.models.slices import Predictions, Slices
from ich.networks.cnn import Cnn, CnnSpec
from ich.networks.cnn_lstm import EndToEnd as Network
from ich.networks.sequence import build_head
from ich.training.device import default_device, loader_workers
from ich.training.predict import predict
from ich.training.run import Run


class EndToEnd(Model):
    def fit(self, data: FoldData, run: Run) -> "FittedEndToEnd":
        settings, workers = self.settings, loader_workers(self.settings.workers, default_device())
        studies = study_dataset(data.slices("train"), training_dataset(data, "train", run.seed))
        network, spec = image_spec(settings, data)
        cnn = new_backbone(network, data, run)
        spec["head"] = head_spec(settings, cnn.embedding_size, len(data.table.classes))
        spec |= {"chunk": settings.chunk, "freeze_norm": settings.start is not None}
        fitted = FittedEndToEnd(spec, run.name, network=join(cnn, spec))
        loader = TrainingLoader(
            lambda epoch: epoch_loader(studies, epoch, settings.batch_size, shuffle=True, workers=workers),
            samples=len(studies),
            unit="studies",
            batch_size=settings.batch_size,
        )
        fit_on_labels(fitted, loader, data, run)
        return fitted


def join(cnn: Cnn, spec: Mapping[str, Any]) -> Network:
    """With a start, the norm layers keep the statistics that the cnn model learned."""
    return Network(cnn, build_head(**spec["head"]), chunk=spec["chunk"], freeze_norm=spec["freeze_norm"])


@dataclass
class FittedEndToEnd(FittedNetwork):
    @staticmethod
    def build(spec: Mapping[str, Any]) -> nn.Module:
        return join(Cnn(CnnSpec(**spec["network"])), spec)

    def predict_with(self, network: nn.Module, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        if not len(slices):  # no test set
            return Predictions(np.empty((0, len(slices.classes))))
        studies = study_dataset(slices, slice_dataset(slices, view_of(self.spec)))
        size, workers = self.spec["batch_size"], loader_workers(slices.workers, default_device())
        batches = epoch_loader(studies, 0, size, shuffle=False, workers=workers)
        with progress(f"{self.name}: predicting", len(slices), inner=True) as advance:
            found = predict(network, batches, len(slices), self.spec["precision"], advance)
        return Predictions(found["logits"])

"""sequence: a recurrent network over the slices of a series, on the embeddings and logits of cnn models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ich.console import progress, say
from ich.data.studies import Studies, study_loader
from ich.errors import UserError
from ich.models.base import Model
from ich.models.data import FoldData
from ich.models.images import TrainingLoader
from ich.models.network import FittedNetwork, fit_on_labels
from ich.models.slices import Predictions, Slices
from ich.models.studies import geometry
from ich.networks.sequence import build_head
from ich.recipe import Head
from ich.training.device import default_device
from ich.training.predict import predict
from ich.training.run import Run


class Sequence(Model):
    def fit(self, data: FoldData, run: Run) -> "FittedSequence":
        settings = self.settings
        if settings.features == "aligned" and not len(data.rows["test"]):
            say(f"  {run.name}: no test set to align the embeddings by; each fold's stay in its own space")
        studies = studies_of(data.slices("train"), data.inputs("train"), settings.inputs, data.labels("train"))
        spec = {
            "inputs": list(settings.inputs),
            "head": head_spec(settings, studies.features.shape[1], len(data.table.classes)),
            "reverse": settings.reverse,
            "batch_size": settings.batch_size,
            "precision": settings.precision,
        }
        torch.manual_seed(run.seed)
        try:
            fitted = FittedSequence(spec, run.name, network=FittedSequence.build(spec))
        except ValueError as error:
            raise UserError(f"sequence.{data.model}: {error}") from None
        chosen = np.arange(len(studies.offsets) - 1)
        loader = TrainingLoader(
            lambda epoch: study_loader(studies, chosen, settings.batch_size, shuffle=True, seed=run.seed, epoch=epoch),
            samples=len(chosen),
            unit="studies",
            batch_size=settings.batch_size,
        )
        fit_on_labels(fitted, loader, data, run)
        return fitted


def head_spec(settings: Head, features: int, classes: int) -> dict[str, Any]:
    """Arguments of `build_head`."""
    shape = settings.model_dump(include=set(Head.model_fields) - {"head"})
    return {"name": settings.head, "features": features, "classes": classes, **shape}


def studies_of(
    slices: Slices, inputs: Mapping[str, Predictions], names: tuple[str, ...] | list[str], labels: Any = None
) -> Studies:
    """Embeddings of the inputs side by side, their mean logit and the geometry; each series is a study of its own."""
    features = np.concatenate([_embeddings(name, inputs[name]) for name in names], axis=1)
    logits = np.stack([inputs[name].logits for name in names])
    base = np.asarray(logits.mean(axis=0, dtype=np.float64), dtype=np.float32)
    starts = np.flatnonzero(np.diff(slices.frame["series"].to_numpy(), prepend=-1))
    offsets = np.append(starts, len(slices)).astype(np.int64)
    return Studies(features, base, geometry(slices.frame), labels, offsets).near(default_device())


def _embeddings(name: str, predictions: Predictions) -> np.ndarray:
    if predictions.embeddings is None:
        raise UserError(f"{name} has no embeddings, which a sequence model reads")
    return predictions.embeddings


@dataclass
class FittedSequence(FittedNetwork):
    @staticmethod
    def build(spec: Mapping[str, Any]) -> nn.Module:
        return build_head(**spec["head"])

    def predict_with(self, network: nn.Module, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        """With `reverse`, the mean of each series read forwards and backwards."""
        n = len(slices)
        if not n:  # no test set
            return Predictions(np.empty((0, len(slices.classes))))
        studies = studies_of(slices, inputs, self.spec["inputs"])
        chosen = np.arange(len(studies.offsets) - 1)

        def batches(reverse: bool = False) -> Any:
            return study_loader(studies, chosen, self.spec["batch_size"], shuffle=False, reverse=reverse)

        with progress(f"{self.name}: predicting", n, inner=True) as advance:
            logits = predict(network, batches(), n, self.spec["precision"], advance)["logits"]
            if self.spec["reverse"]:
                backwards = predict(network, batches(reverse=True), n, self.spec["precision"])["logits"]
                logits = (logits + backwards) / 2
        return Predictions(logits)

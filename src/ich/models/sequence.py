"""sequence: a network over the slices of a series, on the embeddings and logits of cnn models."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ich.console import progress, say
from ich.data.series import SeriesArrays, SeriesBatch, series_loader
from ich.errors import UserError
from ich.models.base import Model
from ich.models.data import FoldData
from ich.models.network import FittedNetwork, fit_on_labels
from ich.models.slices import Predictions, Shape, Slices, geometry, series_predictions
from ich.networks.layers import HeadSpec
from ich.networks.sequence import MeanOfNetworks, build_head, try_head
from ich.networks.study import StudyHead
from ich.recipe import Head
from ich.training.device import default_device
from ich.training.fit import Loader
from ich.training.predict import predict
from ich.training.run import Run


class Sequence(Model):
    def fit(self, data: FoldData, run: Run) -> "FittedSequence":
        settings = self.settings
        if settings.features == "aligned" and not len(data.rows["test"]):
            say(f"  {run.name}: without a test set, embeddings cannot be aligned; each fold keeps its own space")
        series = series_of(data.slices("train"), data.inputs("train"), settings.inputs, data.targets)
        width = sum(one.shape[1] for one in series.features)
        spec = {
            "inputs": list(settings.inputs),
            "head": asdict(head_spec(settings, width, len(data.table.classes))),
            "tta": settings.tta.model_dump(),
            "batch_size": settings.batch_size,
            "precision": settings.precision,
        }
        if settings.writes_studies:
            spec["studies"] = True
        members = [_fit(spec, series, data, one, number) for number, one in enumerate(run.seeds(settings.seeds))]
        if settings.seeds == 1:
            return members[0]
        history = [{"seed": number, **row} for number, one in enumerate(members) for row in one.history]
        network = MeanOfNetworks(one.network for one in members)
        return FittedSequence({**spec, "seeds": settings.seeds}, run.name, members[0].notes, network, history)

    def try_network(self, shape: Shape, inputs: Mapping[str, int]) -> int:
        settings = self.settings
        head = head_spec(settings, sum(inputs[name] for name in settings.inputs), shape.classes)
        if isinstance(settings.start, str) and not head.takes_classifier:
            raise ValueError(
                f"start: head {head.name} with hidden: {head.hidden} cannot take the classifier of {settings.start};"
                f" use linear or sdl, or one with lrnn and hidden: {head.features}"
            )
        try_head(head)
        return 0


def _fit(spec: dict[str, Any], series: SeriesArrays, data: FoldData, run: Run, number: int) -> "FittedSequence":
    """Fit the network of one seed."""
    if data.start is not None:
        data = replace(data, start=replace(data.start, seed=number))
    torch.manual_seed(run.seed)
    try:
        fitted = FittedSequence(spec, run.name, network=FittedSequence.build(spec))
    except ValueError as error:
        raise UserError(f"sequence.{data.model}: {error}") from None
    size = spec["batch_size"]

    def epoch(number: int) -> Iterable[SeriesBatch]:
        return series_loader(series, size, shuffle=True, seed=run.seed, epoch=number)

    fit_on_labels(fitted, Loader(epoch, -(-len(series) // size), len(series), "series"), data, run)
    return fitted


def _network(spec: Mapping[str, Any]) -> nn.Module:
    """The network of one seed."""
    head = HeadSpec(**spec["head"])
    network = build_head(head)
    return StudyHead(network, head.classes, head.dropout) if spec.get("studies") else network


def head_spec(settings: Head, features: int, classes: int) -> HeadSpec:
    shape = settings.model_dump(include=set(Head.model_fields) - {"head"})
    return HeadSpec(settings.head, features, classes, **shape)


def series_of(
    slices: Slices, inputs: Mapping[str, Predictions], names: Iterable[str], labels: np.ndarray | None = None
) -> SeriesArrays:
    """Embeddings of the inputs, their mean logit and the geometry. No embedding is copied."""
    features, logits = list[np.ndarray](), list[np.ndarray]()
    for name in names:
        if (embeddings := inputs[name].embeddings) is None:
            raise UserError(f"{name} has no embeddings; a sequence model needs them")
        features.append(embeddings)
        logits.append(inputs[name].logits)
    base = np.asarray(np.mean(logits, axis=0, dtype=np.float64), dtype=np.float32)
    return SeriesArrays(features, base, geometry(slices.frame), labels, slices.offsets).on_device(default_device())


@dataclass
class FittedSequence(FittedNetwork):
    @staticmethod
    def build(spec: Mapping[str, Any]) -> nn.Module:
        networks = [_network(spec) for _ in range(spec.get("seeds", 1))]
        return networks[0] if len(networks) == 1 else MeanOfNetworks(networks)

    def predict(self, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        """With `tta.reverse`, the mean of each series read forwards and backwards."""
        n, precision, pooled = len(slices), self.spec["precision"], bool(self.spec.get("studies"))
        if not n:  # no test set
            return series_predictions(slices, np.empty((0, 2 * len(slices.classes))), pooled=pooled)
        series = series_of(slices, inputs, self.spec["inputs"])

        def batches(*, reverse: bool = False) -> Iterable[SeriesBatch]:
            return series_loader(series, self.spec["batch_size"], shuffle=False, reverse=reverse)

        with progress(f"{self.name}: predicting", n, inner=True) as advance:
            logits = predict(self.network, batches(), n, precision, advance)["logits"]
            if self.spec["tta"].get("reverse"):
                logits = (logits + predict(self.network, batches(reverse=True), n, precision)["logits"]) / 2
        return series_predictions(slices, logits, pooled=pooled)

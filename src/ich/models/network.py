"""What the models that are networks share: fitting on labels, early stopping, weights and history as files."""

import csv
import io
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn

from ich.ensemble import metrics, thresholds
from ich.ensemble.predictions import sigmoid
from ich.errors import UserError, as_written
from ich.models.artifacts import require_finite
from ich.models.base import Fitted
from ich.models.data import FoldData
from ich.models.images import TrainingLoader
from ich.models.slices import Predictions, Slices
from ich.networks import losses
from ich.networks.cnn import Cnn, CnnSpec
from ich.recipe import BETAS, Training
from ich.store.atomic import atomic, write_text
from ich.training.fit import FitSettings, Row, fit
from ich.training.run import Run

WEIGHTS = "model.safetensors"


@dataclass
class FittedNetwork(Fitted):
    """A fitted torch module: model.json rebuilds it, model.safetensors holds its weights."""

    FILE: ClassVar[str] = "model.json"

    network: nn.Module = field(default_factory=nn.Identity)
    history: list[Row] = field(default_factory=list)

    def predict(self, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        return self.predict_with(self.network, slices, inputs)

    @abstractmethod
    def predict_with(self, network: nn.Module, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        """As `predict`, with a network of the same shape, such as the average of its weights."""

    def save(self, folder: Path) -> list[str]:
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        with atomic(folder / WEIGHTS) as temporary:
            temporary.write_bytes(save(weights))
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        write_text(folder / "history.csv", text.getvalue())
        return [*super().save(folder), WEIGHTS, "history.csv"]

    @classmethod
    def load(cls, folder: Path) -> Self:
        spec = cls.read_spec(folder)
        network = cls.build(spec)
        with as_written(folder / WEIGHTS):
            network.load_state_dict(load((folder / WEIGHTS).read_bytes()))
        return cls(spec, network=network)

    @staticmethod
    def build(spec: Mapping[str, Any]) -> nn.Module:
        """The network of a spec with untrained weights."""
        raise NotImplementedError


def new_backbone(spec: CnnSpec, data: FoldData, run: Run) -> Cnn:
    """A new slice network, its backbone with the weights of `data.start` where that is given.

    Raises UserError for a backbone that timm does not have and for weights that do not fit.
    """
    torch.manual_seed(run.seed)
    where = f"{data.settings.stage}.{data.model}"
    try:
        if data.start is None:
            return Cnn(spec)
        network = Cnn(CnnSpec(**{**vars(spec), "pretrained": False, "weights": None}))
        with as_written(data.start):
            state = load(data.start.read_bytes())
        network.load_backbone(state)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return network


def fit_settings(settings: Training, **more: Any) -> FitSettings:
    names = {each.name for each in fields(FitSettings)}
    return FitSettings(**settings.model_dump(include=names), **more)


def loss_for(data: FoldData) -> losses.Loss:
    """The loss of the recipe, its weights computed from the training labels."""
    settings, prevalence = data.settings.loss, data.labels("train").mean(axis=0)
    weights: dict[str, Any] = {}
    if settings.weight == "pos_weight":
        weights = {"label_weight": losses.pos_weight(prevalence, settings.max_pos_weight)}
    elif settings.weight == "balanced":
        weights = {"label_weight": losses.balanced(prevalence)}
    elif settings.weight == "competition":
        weights = {"class_weight": data.table.class_weights}
    return losses.build(**settings.model_dump(exclude={"weight", "max_pos_weight"}), **weights)


def fit_on_labels(fitted: FittedNetwork, loader: TrainingLoader, data: FoldData, run: Run) -> None:
    """Train `fitted.network` in place, and evaluate each epoch on the fold and on the inner rows of early stopping."""
    settings, stop = data.settings, data.settings.early_stopping
    judge = "inner" if "inner" in data.rows else "valid"
    inputs = {split: data.inputs(split) for split in {"valid", judge}}
    criterion = loss_for(data)

    def loss_of(network: nn.Module, batch: Any) -> torch.Tensor:
        return criterion(batch.real(network(*batch.inputs)), batch.targets)

    def evaluate(network: nn.Module) -> dict[str, float]:
        logits: dict[str, np.ndarray] = {}
        for split in dict.fromkeys(("valid", judge)):
            slices = data.slices(split)
            found = fitted.predict_with(network, slices, inputs[split])
            require_finite(run.name, slices.ids, found)
            logits[split] = found.logits
        row = {"valid_loss": data.table.log_loss(data.rows["valid"], logits["valid"])}
        if stop is not None:
            row[f"{judge}_{stop.metric}"] = stopping_metric(stop.metric, data, judge, logits[judge])
        return row

    if settings.output_bias:
        fitted.network.output_bias(data.labels("train").mean(axis=0))  # pyright: ignore[reportCallIssue]
    keep: dict[str, Any] = {}
    if stop is not None:
        larger = stop.metric != "log_loss"
        keep = {"keep_best": f"{judge}_{stop.metric}", "larger_is_better": larger, "patience": stop.patience}
        if stop.split == "fold":
            fitted.notes["warnings"] = [
                f"the best epoch was chosen by {stop.metric} on fold {data.fold} itself: its score is optimistic"
            ]
    fitted.history = fit(fitted.network, loader, loss_of, fit_settings(settings, **keep), run, evaluate)


def stopping_metric(metric: str, data: FoldData, split: str, logits: np.ndarray) -> float:
    """The metric of early stopping: log loss, AUC, or the macro F-beta at each class's best threshold."""
    if metric == "log_loss":
        return data.table.log_loss(data.rows[split], logits)
    truth, probability = data.labels(split), sigmoid(logits)
    if metric == "auc":
        auc = metrics.macro(metrics.class_auc(truth, probability))
        if math.isnan(auc):
            raise UserError("early_stopping.metric auc: no class has both labels in these rows; use log_loss")
        return auc
    columns = zip(truth.T, probability.T, strict=True)
    return metrics.macro([thresholds.exact(y, p, BETAS[metric])[1] for y, p in columns])

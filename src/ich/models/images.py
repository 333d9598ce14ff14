"""Datasets of images out of the Hounsfield cache, for the networks that read them."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ich.data.augment import Augmentation, build
from ich.data.datasets import SliceDataset
from ich.data.study_images import StudyImages
from ich.data.views import View, Window, neighbour_rows
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


def windowing(settings: Backbone, values: str) -> View:
    """How a network sees a slice. hu: by the windows of the settings; grey: as it is, one channel."""
    enhance = settings.model_dump(include={field.name for field in fields(View)} - {"windows"})
    if values == "grey":
        return View("grey", **enhance)
    return View(settings.input, tuple(Window(level, width) for level, width in settings.windows), **enhance)


def view_of(spec: dict[str, Any]) -> View:
    """The windowing that `image_spec` recorded."""
    return View(**{**spec["view"], "windows": tuple(Window(**window) for window in spec["view"]["windows"])})


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


def slice_dataset(slices: Slices, view: View) -> SliceDataset:
    """The images of these slices, without labels and changes."""
    return _dataset(slices, view, None, None, 0, 0.0)


def training_dataset(data: FoldData, split: str, seed: int, *, labels: bool = True) -> SliceDataset:
    """The augmented images of a split."""
    settings = data.settings
    augment = build(Augmentation(**settings.augment.model_dump()))
    targets = data.labels(split) if labels else None
    view = windowing(settings, data.table.values)
    return _dataset(data.slices(split), view, targets, augment, seed, getattr(settings, "cutmix", 0.0))


def _dataset(slices: Slices, view: View, targets: Any, augment: Any, seed: int, cutmix: float) -> SliceDataset:
    neighbours = neighbour_rows(slices.table["series"].to_numpy(), slices.table["index"].to_numpy())
    ids = slices.ids.tolist()
    return SliceDataset(slices.images, slices.rows, neighbours, ids, targets, view, augment, seed, cutmix)


def study_dataset(slices: Slices, dataset: SliceDataset) -> StudyImages:
    """The images of a dataset by series, one series after the other, each in order of position."""
    starts: NDArray[np.int64] = np.flatnonzero(np.diff(slices.frame["series"].to_numpy(), prepend=-1))
    ids = slices.frame["series_id"].iloc[starts].tolist()
    return StudyImages(dataset, np.append(starts, len(slices)), ids, geometry(slices.table))

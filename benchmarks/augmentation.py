"""Pictures changed by the loader or on the device that trains: how fast each is, and how much they agree.

A round loads an epoch of slices in batches, in this process, and makes what the network is shown of them; both ways
draw the same numbers. On a GPU the loader's way ends with the copy to it. The other ways are parts of the first: what
is left out is what it costs.
"""

from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
import torch

from benchmarks.race import OURS, Race, race
from ich.data.augment import Augmentation, build
from ich.data.batches import epoch_loader
from ich.data.datasets import SliceDataset
from ich.data.on_device import OnDevice
from ich.data.views import View, Window, neighbour_rows
from ich.training.device import Mover, default_device

BATCH, SLICES, STUDY = 64, 512, 32
WINDOWS = View("windows", (Window(40, 80), Window(80, 200), Window(600, 2800)))
NEIGHBOURS = View("neighbours", (Window(40, 80), Window(80, 200)))
USUAL = Augmentation()
STRONG = Augmentation(crop=0.5, vertical_flip=0.5, transpose=0.5, optical=0.05, grid=0.2, noise=0.05, dropout=0.5)


def cache(size: int, n: int) -> np.ndarray:
    """Hounsfield units int16 [n, size, size] that look like nothing, but neighbouring pixels are alike."""
    rng = np.random.default_rng(0)
    slices = (cv2.GaussianBlur(rng.normal(0, 1, (size, size)), (0, 0), size / 24) for _ in range(n))
    return np.stack([one / one.std() * 300 for one in slices]).clip(-1024, 3071).astype(np.int16)


def dataset(hu: np.ndarray, view: View, augmentation: Augmentation | None) -> SliceDataset:
    rows = np.arange(len(hu))
    around = neighbour_rows(rows // STUDY, rows % STUDY)
    augment = None if augmentation is None else build(augmentation)
    return SliceDataset(hu, rows, around, [f"ID_{row:09x}" for row in rows], None, view, augment, 7)


def races(*, quick: bool) -> Iterator[Race]:
    """A race a size and a kind of pictures."""
    if quick:
        yield augmentation_race("quick", cache(48, 16), NEIGHBOURS, STRONG, rounds=1)
        return
    for size in (96, 128, 256, 512):
        hu = cache(size, SLICES if size < 512 else SLICES // 2)
        yield augmentation_race(f"3 windows, {size} px", hu, WINDOWS, USUAL)
        yield augmentation_race(f"3 slices in 2 windows, {size} px", hu, NEIGHBOURS, USUAL)
    yield augmentation_race("3 windows, 256 px, every change", cache(256, SLICES), WINDOWS, STRONG)


def augmentation_race(name: str, hu: np.ndarray, view: View, augmentation: Augmentation, rounds: int = 5) -> Race:
    """Ours: on the device. Notes: by how many grey values of 255 the two ways' pictures differ."""
    there, move = replace(augmentation, on="device"), Mover(default_device())
    loaded, drawn, plain = (dataset(hu, view, chosen) for chosen in (augmentation, there, None))
    show = OnDevice(view, there)

    def pictures(of: SliceDataset) -> Iterator[torch.Tensor]:
        for batch in epoch_loader(of, 0, min(BATCH, len(hu)), shuffle=True):
            yield show.pictures(move(batch))

    def epoch(of: SliceDataset) -> None:
        torch.stack([shown[0, 0, 0, 0] for shown in pictures(of)]).sum().item()  # waits for a GPU

    def handed_over() -> None:
        for _ in epoch_loader(drawn, 0, min(BATCH, len(hu)), shuffle=True):
            pass

    ways = {
        OURS: lambda: epoch(drawn),
        "the loader": lambda: epoch(loaded),
        "the loader, no change": lambda: epoch(plain),
        "this, without the device's part": handed_over,
    }
    quiet = replace(augmentation, noise=0.0)  # of which the two draw another
    first = [
        next(pictures(dataset(hu, view, replace(quiet, on=where)))).cpu().float() for where in ("loader", "device")
    ]
    apart = (first[0] - first[1]).abs()
    notes = {
        "grey values apart, mean": round(float(apart.mean()), 3),
        "more than 2 apart": f"{float((apart > 2).float().mean()):.2%}",
        "mean": "loader {:.2f}, device {:.2f}".format(*(float(one.mean()) for one in first)),
        "standard deviation": "loader {:.2f}, device {:.2f}".format(*(float(one.std()) for one in first)),
    }
    count = max(len(hu) // BATCH, 1) * min(BATCH, len(hu))
    return race(name, ways, unit="slices", count=count, rounds=rounds, notes=notes)

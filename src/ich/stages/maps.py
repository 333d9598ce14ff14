"""Grad-CAM and saliency maps of the CNNs, for `ich explain` and the report page."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ich.console import progress, say
from ich.data.cache import HuCache
from ich.ensemble.predictions import sigmoid
from ich.errors import parsing
from ich.models.artifacts import read_logits
from ich.models.images import slice_dataset, windowing
from ich.models.slices import Slices
from ich.models.table import SliceTable
from ich.networks.cnn import Cnn
from ich.phantom.masks import lesion_masks
from ich.pipeline.runner import load_fitted
from ich.pipeline.state import Plan
from ich.report import figures, gradcam
from ich.store.atomic import write_bytes, write_text
from ich.training.device import default_device

SHOWN = 2  # slices with the highest and with the lowest probability, per class of a gallery
POINTED = 100  # slices per class and fold in the pointing game
TOLERANCE = 0.03  # of the image's side: 15 of 500 pixels, as in the paper of the pointing game
RATES = ("rate", "chance", "rate_with_tolerance", "chance_with_tolerance")  # of the pointing game
BATCH = 32  # images per gradient computation


def write_table(path: Path, rows: pd.DataFrame) -> dict[str, Path]:
    """Write a CSV file and return its path by name."""
    write_text(path, rows.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
    return {path.name: path}


def write_image(path: Path, png: bytes) -> dict[str, Path]:
    write_bytes(path, png)
    return {path.name: path}


def fold_network(plan: Plan, model: str, fold: int) -> Cnn:
    fitted: Any = load_fitted(plan, model, fold)
    return fitted.network.to(default_device()).eval()


def images_of(plan: Plan, slices: SliceTable, model: str, rows: np.ndarray) -> torch.Tensor:
    """The images of rows [n] as the model reads them, uint8 [n, C, S, S]."""
    hu = HuCache.open(plan.prepared.folder, slices.table)
    view = windowing(plan.recipe.cnn[model], slices.values)
    images = slice_dataset(Slices(slices.table, rows, slices.classes, hu), view)
    return images.__getitems__([(0, i) for i in range(len(rows))]).images


def cam_model(plan: Plan) -> str | None:
    """The first CNN with a layer for Grad-CAM."""
    size = plan.recipe.image.size
    return next(
        (model for model in plan.recipe.cnn if fold_network(plan, model, 0).feature_layer(size) is not None), None
    )


def cams(plan: Plan, slices: SliceTable, model: str, rows: np.ndarray) -> np.ndarray:
    """Grad-CAM float32 [n, c, h, w] of rows [n] in the cells of the layer, by the network that did not see the row.

    Test rows use the network of fold 0.
    """
    folds = np.nan_to_num(slices.table["fold"].to_numpy(float)[rows]).astype(int)
    classes, found, order = range(len(slices.classes)), [], []
    with progress("report: Grad-CAM", len(rows)) as advance:
        for fold in np.unique(folds).tolist():
            network, places = fold_network(plan, model, fold), np.flatnonzero(folds == fold)
            layer = network.feature_layer(plan.recipe.image.size)
            assert layer is not None, "by cam_model"
            for some in np.array_split(places, range(BATCH, len(places), BATCH)):
                images = images_of(plan, slices, model, rows[some])
                found.append(np.stack([gradcam.cells(network, layer, images, c) for c in classes], axis=1))
                order.append(some)
                advance(len(some))
    return np.concatenate(found)[np.argsort(np.concatenate(order))]


def _masks(plan: Plan, slices: SliceTable, rows: np.ndarray, name: str) -> np.ndarray | None:
    """Masks of a class's bleeds, bool [n, S, S]; None if they are unknown."""
    path = plan.raw_root / "masks.npz"
    if not path.is_file():
        return None
    boxes = slices.table.iloc[rows][["crop_row", "crop_column", "crop_side"]].to_numpy()
    with parsing(path):
        return lesion_masks(path, slices.ids(rows).tolist(), boxes, plan.recipe.image.size, name)


def galleries(plan: Plan, slices: SliceTable, model: str) -> dict[str, Path]:
    """saliency.png and grad_cam.png of positive validation rows of fold 0, the most and the least probable ones."""
    network, rows = fold_network(plan, model, 0), slices.valid_rows(0)
    path = plan.workspace.fold(model, 0) / "valid.parquet"
    probability = sigmoid(read_logits(path, slices.ids(rows), slices.classes))
    view = windowing(plan.recipe.cnn[model], slices.values)
    channel = (view.depth // 2) * (view.channels // view.depth)  # the slice itself in the first window
    layer = network.feature_layer(plan.recipe.image.size)
    if layer is None:
        say(f"explain: {model}: {network.spec.backbone} has no layer for Grad-CAM")
    titles = {"saliency": "Saliency (gradient of the logit)", "grad_cam": "Grad-CAM"}
    galleries: dict[str, list[tuple[str, list[figures.Panel]]]] = {key: [] for key in titles}
    for c, name in enumerate(slices.classes):
        positive = np.flatnonzero(slices.labels[rows, c] == 1)
        if not len(positive):
            continue
        order = positive[np.argsort(-probability[positive, c], kind="stable")]
        chosen = highest_and_lowest(order, slices.table["study_id"].to_numpy()[rows])
        images = images_of(plan, slices, model, rows[chosen])
        gradient = gradcam.saliency(network, images, c)
        largest = np.quantile(gradient, 0.995, (1, 2), keepdims=True)
        overlays: dict[str, np.ndarray] = {"saliency": gradient / np.maximum(largest, 1e-12)}
        if layer is not None:
            overlays["grad_cam"] = gradcam.grad_cam(network, layer, images, c)
        masks = _masks(plan, slices, rows[chosen], name)
        for key, maps in overlays.items():
            shown: list[figures.Panel] = []  # each slice twice, without and with the map
            for k, grey in enumerate(images[:, channel].numpy()):
                mask = None if masks is None else masks[k]
                shown.append(figures.Panel(grey, f"p = {probability[chosen[k], c]:.3f}", None, mask))
                shown.append(figures.Panel(grey, titles[key].split(" (")[0], maps[k], mask))
            galleries[key].append((name, shown))
    files: dict[str, Path] = {}
    for key, gallery in galleries.items():
        if gallery:
            title = f"{titles[key]}, {model}: positive slices of fold 0 with the highest and lowest probability p"
            files |= write_image(plan.explain.folder / f"{key}.png", figures.gallery(gallery, title))
    return files


def highest_and_lowest(order: np.ndarray, studies: np.ndarray) -> np.ndarray:
    """The first and the last SHOWN of `order` [m], indices into studies [n], without repetition.

    The first are of different studies, and so are the last.
    """

    def of_different_studies(some: np.ndarray) -> np.ndarray:
        return some[np.sort(np.unique(studies[some], return_index=True)[1])][:SHOWN]

    first = of_different_studies(order)
    last = of_different_studies(order[~np.isin(order, first)][::-1])
    return np.concatenate([first, last[::-1]])


def pointing_game(plan: Plan, slices: SliceTable) -> dict[str, Path]:
    """pointing_game.csv: hit rate of the maximum of Grad-CAM, per model and class over all folds."""
    size, classes = plan.recipe.image.size, slices.classes
    targets = {(k, c): _targets(plan, slices, k, c) for k in plan.fold_numbers for c in range(len(classes))}
    played: list[dict[str, Any]] = []
    with progress("explain: pointing game", len(plan.recipe.cnn) * len(targets), "classes") as advance:
        for model in plan.recipe.cnn:
            networks = [fold_network(plan, model, k) for k in plan.fold_numbers]
            for c, name in enumerate(classes):
                rates: list[np.ndarray] = []
                for k, network in enumerate(networks):
                    (rows, masks), layer = targets[k, c], network.feature_layer(size)
                    advance(1)
                    if layer is None or not len(rows):
                        continue
                    images = images_of(plan, slices, model, rows)
                    maps = np.concatenate([gradcam.grad_cam(network, layer, part, c) for part in images.split(BATCH)])
                    inside = (images > 0).any(dim=1).numpy()
                    exact = gradcam.pointing_game(maps, masks, inside)
                    near = gradcam.pointing_game(maps, masks, inside, round(TOLERANCE * size))
                    rates.append(np.column_stack([*exact, *near]))
                if rates:
                    found = np.concatenate(rates)
                    means = dict(zip(RATES, found.mean(axis=0), strict=True))
                    played.append({"model": model, "class": name, "slices": len(found), **means})
    columns = pd.Index(["model", "class", "slices", *RATES])
    return write_table(plan.explain.folder / "pointing_game.csv", pd.DataFrame(played, columns=columns))


def _targets(plan: Plan, slices: SliceTable, fold: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    """Positive validation rows with the bleed inside the image, at most POINTED evenly spread ones, and their masks."""
    rows = slices.valid_rows(fold)
    rows = rows[slices.labels[rows, c] == 1]
    rows = rows[np.linspace(0, len(rows) - 1, min(POINTED, len(rows))).round().astype(int)]
    masks = _masks(plan, slices, rows, slices.classes[c])
    assert masks is not None, "masks.npz is there"
    shows = masks.any(axis=(1, 2))
    return rows[shows], masks[shows]

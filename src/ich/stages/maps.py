"""Maps of where the networks look: galleries of them, and how often their maximum meets the bleed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ich.console import progress, say
from ich.pipeline.plan import Plan
from ich.stages.artefacts import as_written, logits_of, pictures_of
from ich.stages.inputs import Slices, pictures, view_of
from ich.stages.member import leave_bytes, leave_table
from ich.stages.networks import with_weights

if TYPE_CHECKING:
    import numpy as np
    import torch

SHOWN = 2  # slices a class in a gallery with the highest probability, and as many with the lowest
POINTED = 100  # slices a class and fold in the pointing game
TOLERANCE = 0.03  # of the picture's side: 15 of 500 pixels, as in the pointing game's paper
RATES = ("rate", "chance", "rate_with_tolerance", "chance_with_tolerance")  # of the pointing game
BATCH = 32  # pictures a time whose gradients are taken


def fold_network(plan: Plan, member: str, fold: int) -> Any:
    """A fold's network where the gradients are to be taken."""
    from ich.networks.cnn import Cnn, CnnSpec
    from ich.training.device import default_device

    return with_weights(plan, member, fold, lambda shape: Cnn(CnnSpec(**shape))).to(default_device())


def images_of(plan: Plan, slices: Slices, member: str, rows: "np.ndarray") -> "torch.Tensor":
    """The rows' pictures as the member sees them, uint8 [n, C, S, S]."""
    hu = pictures_of(plan.prepared.folder / "hu.npy")
    shown = pictures(hu, slices.table, plan.recipe.cnn[member], slices.values)(rows)
    return shown.__getitems__([(0, i) for i in range(len(rows))]).images


def _masks(plan: Plan, slices: Slices, rows: "np.ndarray", name: str) -> "np.ndarray | None":
    """Where a class's bleeds are in the rows' pictures, bool [n, S, S]; None where nobody knows."""
    from ich.phantom.masks import lesion_masks
    from ich.phantom.study import CLASSES

    path = plan.raw_root / "masks.npz"
    if not path.is_file():
        return None
    boxes = slices.table.iloc[rows][["crop_row", "crop_column", "crop_side"]].to_numpy()
    bit = None if name == "any" else CLASSES.index(name)
    with as_written(path):
        return lesion_masks(path, slices.ids(rows).tolist(), boxes, plan.recipe.image.size, bit)


def galleries(plan: Plan, slices: Slices, member: str) -> dict[str, Path]:
    """saliency.png and grad_cam.png: positive validation rows of fold 0, those found most surely and those missed."""
    import numpy as np

    from ich.ensemble.members import sigmoid
    from ich.report import figures, gradcam

    network, rows = fold_network(plan, member, 0), slices.valid_rows(0)
    path = plan.workspace.fold(member, 0) / "valid.parquet"
    probability = sigmoid(logits_of(path, slices.ids(rows), slices.classes))
    view = view_of(plan.recipe.cnn[member], slices.values)
    channel = (view.depth // 2) * (view.channels // view.depth)  # the slice itself, no neighbour, in the first window
    layer = network.feature_layer(plan.recipe.image.size)
    if layer is None:
        say(f"explain: {member}: no layer of {network.spec.backbone} makes a map, so there is no Grad-CAM of it")
    rows_of: dict[str, list[tuple[str, list[figures.Picture]]]] = {}
    for c, name in enumerate(slices.classes):
        positive = np.flatnonzero(slices.labels[rows, c] == 1)
        if not len(positive):
            continue
        order = positive[np.argsort(-probability[positive, c], kind="stable")]
        chosen = ends(order, slices.table["study_id"].to_numpy()[rows])
        images = images_of(plan, slices, member, rows[chosen])
        gradient = gradcam.saliency(network, images, c)
        strength = gradient / np.maximum(np.quantile(gradient, 0.995, axis=(1, 2), keepdims=True), 1e-12)
        overlays: dict[str, np.ndarray] = {"saliency": strength}
        if layer is not None:
            overlays["grad_cam"] = gradcam.grad_cam(network, layer, images, c)
        masks = _masks(plan, slices, rows[chosen], name)
        for key, maps in overlays.items():
            shown = _pairs(images[:, channel].numpy(), probability[chosen, c], maps, masks)
            rows_of.setdefault(key, []).append((name, shown))
    files: dict[str, Path] = {}
    titles = {"saliency": "Saliency (gradient by the grey values)", "grad_cam": "Grad-CAM"}
    for key, gallery in rows_of.items():
        what = (
            f"{titles[key]}, {member}, positive validation slices of fold 0: {SHOWN} found most surely, {SHOWN} least"
        )
        files |= leave_bytes(plan.explain.folder / f"{key}.png", figures.gallery(gallery, what))
    return files


def ends(order: "np.ndarray", studies: "np.ndarray") -> "np.ndarray":
    """SHOWN of the first and SHOWN of the last of `order` [m], numbers into studies [n]; fewer where there are fewer.

    The first are of different studies, and so are the last; none of them is both.
    """
    import numpy as np

    def of_different_studies(some: "np.ndarray") -> "np.ndarray":
        return some[np.sort(np.unique(studies[some], return_index=True)[1])][:SHOWN]

    first = of_different_studies(order)
    last = of_different_studies(order[~np.isin(order, first)][::-1])
    return np.concatenate([first, last[::-1]])


def _pairs(
    greys: "np.ndarray", probability: "np.ndarray", overlays: "np.ndarray", masks: "np.ndarray | None"
) -> list[Any]:
    """Each slice twice: as it is and with the map over it, in both the bleed's outline where it is known."""
    from ich.report.figures import Picture

    pairs: list[Picture] = []
    for k, grey in enumerate(greys):
        outline = None if masks is None else masks[k]
        pairs += [Picture(grey, f"p = {probability[k]:.3f}", None, outline), Picture(grey, "", overlays[k], outline)]
    return pairs


def pointing_game(plan: Plan, slices: Slices) -> dict[str, Path]:
    """pointing_game.csv: how often the maximum of Grad-CAM lies in the bleed, a member and class, over all folds."""
    import numpy as np
    import pandas as pd

    targets = {(k, c): _target(plan, slices, k, c) for k in plan.fold_numbers for c in range(len(slices.classes))}
    played: list[dict[str, Any]] = []
    with progress("explain: pointing game", len(plan.recipe.cnn) * len(targets), "classes") as advance:
        for member in plan.recipe.cnn:
            networks = [fold_network(plan, member, k) for k in plan.fold_numbers]
            if networks[0].feature_layer(plan.recipe.image.size) is None:
                advance(len(targets))
                continue
            for c, name in enumerate(slices.classes):
                folds = [_play(plan, slices, member, networks[k], c, *targets[k, c]) for k in plan.fold_numbers]
                figures = np.concatenate(folds)
                advance(len(folds))
                if len(figures):
                    rates = zip(RATES, figures.mean(axis=0), strict=True)
                    played.append({"member": member, "class": name, "slices": len(figures), **dict(rates)})
    columns = ["member", "class", "slices", *RATES]
    return leave_table(plan.explain.folder / "pointing_game.csv", pd.DataFrame(played, columns=pd.Index(columns)))


def _target(plan: Plan, slices: Slices, fold: int, c: int) -> "tuple[np.ndarray, np.ndarray]":
    """Positive validation rows, at most POINTED and evenly spread, whose bleed shows in the picture; its masks."""
    import numpy as np

    rows = slices.valid_rows(fold)
    rows = rows[slices.labels[rows, c] == 1]
    rows = rows[np.linspace(0, len(rows) - 1, min(POINTED, len(rows))).round().astype(int)]
    masks = _masks(plan, slices, rows, slices.classes[c])
    assert masks is not None, "the masks are there"
    shows = masks.any(axis=(1, 2))
    return rows[shows], masks[shows]


def _play(
    plan: Plan, slices: Slices, member: str, network: Any, c: int, rows: "np.ndarray", masks: "np.ndarray"
) -> "np.ndarray":
    """float64 [n, 4]: RATES of each row."""
    import numpy as np

    from ich.report import gradcam

    if not len(rows):
        return np.empty((0, len(RATES)))
    images = images_of(plan, slices, member, rows)
    layer = network.feature_layer(images.shape[-1])
    maps = np.concatenate([gradcam.grad_cam(network, layer, part, c) for part in images.split(BATCH)])
    inside = (images > 0).any(dim=1).numpy()
    tolerance = round(TOLERANCE * images.shape[-1])
    exact, near = (gradcam.pointing_game(maps, masks, inside, pixels) for pixels in (0, tolerance))
    return np.column_stack([*exact, *near])

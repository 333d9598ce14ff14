"""`ich explain`: what the networks look at, how they arrange the slices, and which labels look wrong.

Maps and figures are of validation rows, by the network that never saw them. How often a map's maximum meets the bleed
can be said where the bleeds are known, in the synthetic competition; so can how well the wrong labels are found.
"""

import csv
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ich.console import progress, say, table
from ich.stages.inputs import Slices, pictures, view_of, with_weights
from ich.stages.member import leave_bytes
from ich.stages.plan import Made, Plan
from ich.workspace import write_text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

MAPPED = 2000  # slices on the embedding map; t-SNE takes longer than their number
SHOWN = 2  # slices a class in a gallery with the highest probability, and as many with the lowest
POINTED = 100  # slices a class and fold in the pointing game
TOLERANCE = 0.03  # of the picture's side: 15 of 500 pixels, as in the pointing game's paper
SUSPECTS = 200  # labels that are listed whatever they look like
PRINTED = 10
BATCH = 32  # pictures a time whose gradients are taken


def run(plan: Plan, *, force: bool = False) -> None:
    made = plan.make(plan.explain, lambda _: _explained(plan), force=force)
    folder = plan.explain.folder
    columns = ["rank", "image_id", "index", "class", "label", "probability", "pattern", "suspicion"]
    suspects = [[row[c] for c in columns] for row in _read(folder / "suspicious_labels.csv")[:PRINTED]]
    table(columns, suspects, "The labels most likely wrong")
    if (folder / "label_audit.csv").is_file():
        judged = _read(folder / "label_audit.csv")
        table(list(judged[0]), [list(row.values()) for row in judged], "Wrong labels, found by three rules")
    say(f"\nexplain: {'wrote' if made else 'done'}, {folder}")


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _explained(plan: Plan) -> Made:
    import torch

    torch.set_num_threads(plan.recipe.compute.threads)
    slices = Slices(plan)
    for left in plan.explain.folder.glob("*.*"):  # by a run that knew more, as where the bleeds are
        if left != plan.explain.record.path:
            left.unlink()
    files = _audit(plan, slices)
    if plan.recipe.cnn:
        first = next(iter(plan.recipe.cnn))
        files |= _embedding_map(plan, slices, first) | _galleries(plan, slices, first)
        if (plan.raw_root / "masks.npz").is_file():
            files |= _pointing(plan, slices)
    return files, {}


def _leave_table(path: Path, rows: "pd.DataFrame") -> dict[str, Path]:
    write_text(path, rows.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
    return {path.name: path}


# ---- the labels


def _audit(plan: Plan, slices: Slices) -> dict[str, Path]:
    """suspicious_labels.csv; where it is known which labels are wrong, label_audit.csv."""
    import pandas as pd

    from ich.ensemble.members import aligned, sigmoid
    from ich.report import label_audit

    rows, folder = slices.labelled.nonzero()[0], plan.explain.folder
    oof = pd.read_parquet(plan.workspace.member("blend") / "oof.parquet")
    labelled, probability = slices.table.iloc[rows], sigmoid(aligned(oof, slices.ids(rows), slices.classes))
    suspects = label_audit.ranked(labelled, slices.classes, probability, SUSPECTS)
    files = _leave_table(folder / "suspicious_labels.csv", suspects)
    if not (plan.raw_root / "mislabelled.csv").is_file():
        return files
    wrong = _wrong(plan.raw_root / "mislabelled.csv", slices, rows)
    labels, series, index = slices.labels[rows], labelled["series"].to_numpy(), labelled["index"].to_numpy()
    odds = label_audit.suspicion(labels, probability, series, index)
    found = {
        "101 and 010": label_audit.judge_set(wrong, label_audit.patterns(labels, series, index)),
        "disagreement": label_audit.judge_ranking(wrong, label_audit.disagreement(labels, probability)),
        "suspicion": label_audit.judge_ranking(wrong, odds),
    }
    judged = pd.DataFrame([{"rule": rule, **asdict(figures)} for rule, figures in found.items()])
    return files | _leave_table(folder / "label_audit.csv", judged)


def _wrong(path: Path, slices: Slices, rows: "np.ndarray") -> "np.ndarray":
    """bool [n, c]: labels of the rows that the synthetic competition wrote wrong on purpose."""
    import numpy as np

    listed = {row["ID"] for row in _read(path)}
    return np.array([[f"{i}_{name}" in listed for name in slices.classes] for i in slices.ids(rows)])


# ---- the embeddings


def _embedding_map(plan: Plan, slices: Slices, member: str) -> dict[str, Path]:
    """Fold 0's validation rows: embedding_map.csv, and its figures coloured by place in the study and by label."""
    import numpy as np
    import pandas as pd

    from ich.report import embedding_map, figures

    parts, folder = plan.workspace.fold(member, 0), plan.explain.folder
    embeddings = np.load(parts / "valid_embeddings.npy", allow_pickle=False)
    ids = pd.read_parquet(parts / "valid.parquet", columns=["image_id"])["image_id"]
    chosen = embedding_map.sample_rows(len(ids), MAPPED, seed=0)
    if len(chosen) < embedding_map.FEWEST:
        return {}
    points = embedding_map.coordinates(embeddings[chosen], seed=0)
    shown = slices.table.set_index("image_id").loc[ids.iloc[chosen]].reset_index()
    names = ["no bleed", *(name for name in slices.classes if name != "any"), "several"]
    count = shown[names[1:-1]].sum(axis=1).to_numpy()
    group = np.where(count > 1, "several", np.where(count == 0, "no bleed", shown[names[1:-1]].idxmax(axis=1)))
    place = ((shown["index"] + 0.5) / shown["n_slices"]).to_numpy()
    mapped = shown[["image_id", "study_id", "index"]].assign(place=place, group=group, x=points[:, 0], y=points[:, 1])
    title = f"t-SNE of {len(points)} embeddings, {member}, validation rows of fold 0"
    positions = figures.scatter_values(points, place, title, "place in the study (0 first slice, 1 last)")
    return (
        _leave_table(folder / "embedding_map.csv", mapped)
        | leave_bytes(folder / "embedding_map_position.png", positions)
        | leave_bytes(folder / "embedding_map_label.png", figures.scatter_groups(points, group.tolist(), names, title))
    )


# ---- the maps


def _network(plan: Plan, member: str, fold: int) -> Any:
    """A fold's network where the gradients are to be taken."""
    from ich.models.cnn import Cnn, CnnSpec
    from ich.training.device import default_device

    return with_weights(plan, member, fold, lambda shape: Cnn(CnnSpec(**shape))).to(default_device())


def _images(plan: Plan, slices: Slices, member: str, rows: "np.ndarray") -> "torch.Tensor":
    """The rows' pictures as the member sees them, uint8 [n, C, S, S]."""
    import numpy as np

    hu = np.load(plan.prepared.folder / "hu.npy", mmap_mode="r", allow_pickle=False)
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
    return lesion_masks(path, slices.ids(rows).tolist(), boxes, plan.recipe.image.size, bit)


def _galleries(plan: Plan, slices: Slices, member: str) -> dict[str, Path]:
    """saliency.png and grad_cam.png: positive validation rows of fold 0, those found most surely and those missed."""
    import numpy as np
    import pandas as pd

    from ich.ensemble.members import aligned, sigmoid
    from ich.report import figures, gradcam

    network, rows = _network(plan, member, 0), slices.valid_rows(0)
    valid = pd.read_parquet(plan.workspace.fold(member, 0) / "valid.parquet")
    probability = sigmoid(aligned(valid, slices.ids(rows), slices.classes))
    view = view_of(plan.recipe.cnn[member], slices.values)
    channel = (view.depth // 2) * (view.channels // view.depth)  # the slice itself, no neighbour, in the first window
    galleries: dict[str, list[tuple[str, list[figures.Picture]]]] = {"saliency": [], "grad_cam": []}
    for c, name in enumerate(slices.classes):
        positive = np.flatnonzero(slices.labels[rows, c] == 1)
        if not len(positive):
            continue
        order = positive[np.argsort(-probability[positive, c], kind="stable")]
        studies = slices.table["study_id"].to_numpy()[rows]
        ends = [end[_firsts(studies[end])][:SHOWN] for end in (order, order[::-1])]
        chosen = np.concatenate([ends[0], ends[1][::-1]])
        images = _images(plan, slices, member, rows[chosen])
        gradient = gradcam.saliency(network, images, c)
        strength = gradient / np.maximum(np.quantile(gradient, 0.995, axis=(1, 2), keepdims=True), 1e-12)
        maps = gradcam.grad_cam(network, network.feature_layer(images.shape[-1]), images, c)
        masks = _masks(plan, slices, rows[chosen], name)
        for key, overlays in (("saliency", strength), ("grad_cam", maps)):
            shown = _pairs(images[:, channel].numpy(), probability[chosen, c], overlays, masks)
            galleries[key].append((name, shown))
    if not galleries["saliency"]:
        return {}
    files: dict[str, Path] = {}
    for key, title in (("saliency", "Saliency (gradient by the grey values)"), ("grad_cam", "Grad-CAM")):
        what = f"{title}, {member}, positive validation slices of fold 0: {SHOWN} found most surely, {SHOWN} least"
        files |= leave_bytes(plan.explain.folder / f"{key}.png", figures.gallery(galleries[key], what))
    return files


def _firsts(values: "np.ndarray") -> "np.ndarray":
    """Where each value occurs first, ascending."""
    import numpy as np

    return np.sort(np.unique(values, return_index=True)[1])


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


def _pointing(plan: Plan, slices: Slices) -> dict[str, Path]:
    """pointing_game.csv: how often the maximum of Grad-CAM lies in the bleed, a member and class, over all folds."""
    import numpy as np
    import pandas as pd

    targets = {(k, c): _target(plan, slices, k, c) for k in plan.fold_numbers for c in range(len(slices.classes))}
    played: list[dict[str, Any]] = []
    with progress("explain: pointing game", len(plan.recipe.cnn) * len(targets), "classes") as advance:
        for member in plan.recipe.cnn:
            networks = [_network(plan, member, k) for k in plan.fold_numbers]
            for c, name in enumerate(slices.classes):
                folds = [_play(plan, slices, member, networks[k], c, *targets[k, c]) for k in plan.fold_numbers]
                figures = np.concatenate(folds)
                advance(len(folds))
                if len(figures):
                    rates = zip(RATES, figures.mean(axis=0), strict=True)
                    played.append({"member": member, "class": name, "slices": len(figures), **dict(rates)})
    columns = ["member", "class", "slices", *RATES]
    return _leave_table(plan.explain.folder / "pointing_game.csv", pd.DataFrame(played, columns=pd.Index(columns)))


RATES = ("rate", "chance", "rate_with_tolerance", "chance_with_tolerance")


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
    images = _images(plan, slices, member, rows)
    layer = network.feature_layer(images.shape[-1])
    maps = np.concatenate([gradcam.grad_cam(network, layer, part, c) for part in images.split(BATCH)])
    inside = (images > 0).any(dim=1).numpy()
    tolerance = round(TOLERANCE * images.shape[-1])
    exact, near = (gradcam.pointing_game(maps, masks, inside, pixels) for pixels in (0, tolerance))
    return np.column_stack([*exact, *near])

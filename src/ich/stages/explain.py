"""`ich explain`: Grad-CAM and saliency maps, a map of the embeddings, and labels that are likely wrong.

Maps are of validation rows, by the network that did not see them. The pointing game and the audit of the suspicious
labels need known bleeds and wrong labels, as in a synthetic competition.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ich.console import say, table
from ich.ensemble.predictions import sigmoid
from ich.errors import parsing
from ich.models.artifacts import read_logits
from ich.models.table import SliceTable, read_parquet
from ich.pipeline.state import Made, Plan
from ich.report import embedding_map, figures, label_audit
from ich.stages.maps import RATES, galleries, pointing_game, write_image, write_table

MAPPED = {"valid": 1000, "train": 300, "test": 300}  # maximum number of slices on the embedding map: t-SNE is slow
SUSPECTS = 200  # suspicious labels, in addition to those that break a pattern
PRINTED = 10
NO_BLEED, NO_SUBTYPE, SEVERAL, TEST = "no bleed", "no subtype", "several", "test"  # groups of the embedding map


def run(plan: Plan, *, force: bool = False) -> None:
    made = plan.make(plan.explain, lambda _: _explained(plan), force=force)
    folder = plan.explain.folder
    columns = ["rank", "image_id", "index", "class", "label", "probability", "pattern", "suspicion"]
    suspects = _read(folder / "suspicious_labels.csv")[columns].head(PRINTED)
    table(columns, suspects.to_numpy().tolist(), "Labels that are most likely wrong")
    if (folder / "label_audit.csv").is_file():
        audit = _read(folder / "label_audit.csv")
        table(audit.columns.tolist(), audit.to_numpy().tolist(), "Wrong labels found by each rule")
    if (folder / "pointing_game.csv").is_file():
        played = pd.read_csv(folder / "pointing_game.csv", dtype={"class": str}).groupby("class", sort=False)
        means = played[list(RATES)].mean()
        rows = [
            [name, f"{n}", *(f"{rate:.3f}" for rate in rates)]
            for name, n, rates in zip(means.index, played["slices"].first(), means.to_numpy(), strict=True)
        ]
        title = "Pointing game: share of Grad-CAM maxima inside the bleed, mean over models"
        table(["class", "slices", *RATES], rows, title)
    say(f"\nexplain: {'wrote' if made else 'up to date,'} {folder}")


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _explained(plan: Plan) -> Made:
    torch.set_num_threads(plan.recipe.compute.threads)
    slices = SliceTable.read(plan.workspace, plan.prepared.folder)
    files = _audit(plan, slices)
    if plan.recipe.cnn:
        first = next(iter(plan.recipe.cnn))
        files |= _embedding_map(plan, slices, first) | galleries(plan, slices, first)
        if (plan.raw_root / "masks.npz").is_file():
            files |= pointing_game(plan, slices)
    for outdated in plan.files_of(plan.explain).keys() - files.keys():  # of a run that had masks or wrong labels
        (plan.explain.folder / outdated).unlink(missing_ok=True)
    return files, {}


def _audit(plan: Plan, slices: SliceTable) -> dict[str, Path]:
    """suspicious_labels.csv, and label_audit.csv if the wrong labels are known."""
    rows, classes, folder = slices.labelled.nonzero()[0], slices.classes, plan.explain.folder
    labelled, labels = slices.table.iloc[rows], slices.labels[rows]
    probability = sigmoid(read_logits(plan.workspace.model("blend") / "oof.parquet", slices.ids(rows), classes))
    suspects = label_audit.rank_labels(labelled, classes, probability, SUSPECTS)
    files = write_table(folder / "suspicious_labels.csv", slices.pseudonyms.hidden(suspects))
    if not (plan.raw_root / "mislabelled.csv").is_file():
        return files
    listed = set(_read(plan.raw_root / "mislabelled.csv")["ID"])
    wrong = np.array([[f"{image}_{name}" in listed for name in classes] for image in slices.ids(rows)])
    series, index = labelled["series"].to_numpy(), labelled["index"].to_numpy()
    odds = label_audit.suspicion(labels, probability, series, index)
    found = {
        "101 and 010": label_audit.evaluate_flags(wrong, label_audit.patterns(labels, series, index)),
        "disagreement": label_audit.evaluate_ranking(wrong, label_audit.disagreement(labels, probability)),
        "suspicion": label_audit.evaluate_ranking(wrong, odds),
    }
    audit = pd.DataFrame([{"rule": rule, **scores} for rule, scores in found.items()])
    return files | write_table(folder / "label_audit.csv", audit)


def _embedding_map(plan: Plan, slices: SliceTable, model: str) -> dict[str, Path]:
    """embedding_map.csv of all splits by the network of fold 0, and figures of the validation rows."""
    fold = plan.workspace.fold(model, 0)
    folders = {"valid": fold, "train": fold / "train", "test": fold}
    if model not in plan.read_in_sample:
        del folders["train"]
    labelled = slices.ids(slices.labelled.nonzero()[0])
    ids: list[str] = []
    parts: list[np.ndarray] = []
    for split, folder in folders.items():
        with parsing(folder / f"{split}_embeddings.npy"):
            embeddings = np.load(folder / f"{split}_embeddings.npy", mmap_mode="r", allow_pickle=False)
        there = read_parquet(folder / f"{split}.parquet", ["image_id"])["image_id"]
        mapped = np.flatnonzero((split == "test") | there.isin(labelled))  # no slices that a label table adds
        chosen = mapped[embedding_map.sample_rows(len(mapped), MAPPED[split], seed=0)]
        ids += there.iloc[chosen].tolist()
        parts.append(embeddings[chosen])

    shown = slices.table.set_index("image_id").loc[ids].reset_index()
    valid = (shown["fold"] == 0).to_numpy()
    if valid.sum() < embedding_map.FEWEST:
        return {}
    points, folder = embedding_map.coordinates(np.concatenate(parts), seed=0), plan.explain.folder
    group, subtypes = _groups(shown, slices.classes)
    place = ((shown["index"] + 0.5) / shown["n_slices"]).to_numpy()
    folds = [TEST if np.isnan(k) else f"{k:.0f}" for k in shown["fold"]]
    mapped = shown[["image_id", "study_id", "index"]].assign(place=place, fold=folds, group=group)
    mapped = slices.pseudonyms.hidden(mapped).assign(x=points[:, 0], y=points[:, 1])
    files = write_table(folder / "embedding_map.csv", mapped)

    points, group, place = points[valid], group[valid], place[valid]
    names = [NO_BLEED, *subtypes, *(name for name in (NO_SUBTYPE, SEVERAL) if name in group)]
    title = f"t-SNE of {len(points)} embeddings, {model}, validation slices of fold 0"
    labels = figures.scatter_groups(points, group.tolist(), names, title)
    files |= write_image(folder / "embedding_map_label.png", labels)
    if (shown["n_slices"] == 1).all():  # single images have no position
        return files
    positions = figures.scatter_values(points, place, title, "position in the study (0 first slice, 1 last)")
    return files | write_image(folder / "embedding_map_position.png", positions)


def _groups(shown: pd.DataFrame, classes: list[str]) -> tuple[np.ndarray, list[str]]:
    """The group of each slice, its subtype if it has exactly one; and all subtypes."""
    subtypes = [name for name in classes if name != "any"] or classes
    labels = shown[classes].fillna(0)
    count, bleeds = labels[subtypes].sum(axis=1).to_numpy(), labels.max(axis=1).to_numpy() > 0
    reasons = {TEST: (shown["split"] == "test").to_numpy(), NO_BLEED: ~bleeds, NO_SUBTYPE: count == 0}
    reasons[SEVERAL] = count > 1
    return np.select(list(reasons.values()), list(reasons), labels[subtypes].idxmax(axis=1)), subtypes

"""Embeddings: a t-SNE map of one network's embeddings by class, by position in the study and by fold."""

from math import isnan

import numpy as np
import pandas as pd

from ich.report.embedding_map import mixed
from ich.report.evidence import Evidence
from ich.report.page import charts
from ich.report.page.blocks import Block, Chart, Notes, Panels, Section

NO_BLEED = "no bleed"
VALID, TRAINED, TEST = "validation (fold 0)", "trained on", "test set"
APART = 0.15  # excess over chance of neighbours in the same split, above which the splits are separate


def section(evidence: Evidence) -> Section:
    title, mapped = "Embeddings", evidence.embedding_map
    if evidence.mapped_by is None:
        return Section("embeddings", title, [Notes(["This recipe has no CNN, so there are no embeddings of slices."])])
    if mapped is None:
        return Section("embeddings", title, [Notes(["Fold 0 has too few slices for a map."])])
    lead = (
        f"t-SNE of the embeddings by {evidence.mapped_by} of fold 0: one dot per slice, similar slices close together."
        " Axes, group sizes and distances between groups have no meaning."
    )

    def hover(some: pd.DataFrame) -> list[str]:
        return [f"{study}, slice {k + 1}" for study, k in zip(some["study_id"], some["index"], strict=True)]

    def points(some: pd.DataFrame) -> np.ndarray:
        return some[["x", "y"]].to_numpy("float64")

    valid = mapped[mapped["fold"] == "0"]
    groups = valid["group"].tolist()
    order = list(dict.fromkeys(name for name in (NO_BLEED, *evidence.classes, *groups) if name in groups))
    caption = (
        f"{len(valid):,} validation slices; slices with several types of bleed are a separate group. The network"
        " separates classes that form clusters."
    )
    figure = charts.map_by_group(points(valid), groups, order, hover(valid))
    panels: dict[str, list[Block]] = {"By class": [Chart("embedding-class", "By class", caption, figure)]}
    if (mapped["place"] != 0.5).any():  # single images have no position
        caption = "0 is the first slice of the study, 1 the last. The position is not an input of the network."
        figure = charts.map_by_value(points(valid), valid["place"].to_numpy(), "position in the study", hover(valid))
        panels["By position"] = [Chart("embedding-place", "By position in the study", caption, figure)]
    splits = np.array([{"0": VALID, "test": TEST}.get(fold, TRAINED) for fold in mapped["fold"]])
    names = [
        f"{split} (fold {k})" if split == TRAINED else split for split, k in zip(splits, mapped["fold"], strict=True)
    ]
    figure = charts.map_by_group(points(mapped), names, sorted(set(names)), hover(mapped))
    caption = _mixing(points(mapped), splits, mapped["study_id"].to_numpy(str))
    panels["By fold"] = [Chart("embedding-fold", "By fold", caption, figure)]
    return Section("embeddings", title, [Panels("embedding-maps", panels)], lead)


def _mixing(points: np.ndarray, splits: np.ndarray, studies: np.ndarray) -> str:
    """The sizes of the splits, and whether they are mixed as they should be."""
    counts = [f"{(splits == name).sum():,} {name}" for name in (VALID, TRAINED, TEST) if (splits == name).any()]
    sizes = f"{', '.join(counts)}."
    found, chance = mixed(points, splits, studies)
    if len(counts) == 1 or isnan(found):
        return sizes
    verdict = "separate, so memorised or different" if found - chance > APART else "mixed, as they should be"
    return (
        f"{sizes} Of the ten nearest slices of other studies {found:.0%} are of the same split (chance: {chance:.0%});"
        f" the splits are {verdict}."
    )

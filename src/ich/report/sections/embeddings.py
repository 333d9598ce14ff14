"""The embedding map: which slices the first CNN places close together, coloured by class, position and fold."""

from math import isnan

import numpy as np
import pandas as pd

from ich.report.embedding_map import mixed
from ich.report.evidence import Evidence
from ich.report.page import charts
from ich.report.page.blocks import Block, Chart, Notes, Panels, Section

NO_BLEED = "no bleed"
VALID, TRAINED, TEST = "validation (fold 0)", "trained on", "test set"
APART = 0.15  # excess over chance of neighbours in the same split, above which the splits lie apart


def section(evidence: Evidence) -> Section:
    title, mapped = "Embeddings", evidence.embedding_map
    if evidence.mapped_by is None:
        return Section("embeddings", title, [Notes(["This recipe has no CNN, so there are no embeddings of slices."])])
    if mapped is None:
        return Section("embeddings", title, [Notes(["Fold 0 has too few slices for a map."])])
    lead = (
        f"Each dot is a slice: its embedding by {evidence.mapped_by} of fold 0, reduced to two dimensions by t-SNE."
        " Slices that are similar to the network lie close together. Distances between groups, their sizes and the axes"
        " have no meaning."
    )
    valid = mapped[mapped["fold"] == "0"]
    groups = valid["group"].tolist()
    order = list(dict.fromkeys(name for name in (NO_BLEED, *evidence.classes, *groups) if name in groups))
    says = (
        f"{len(valid):,} validation slices. Where a colour gathers, the network has learnt that kind of bleed; single"
        " coloured dots among those without a bleed are slices that it confuses with these. Slices with several kinds"
        " are a group of their own."
    )
    figure = charts.map_by_group(_points(valid), groups, order, _hover(valid))
    panels: dict[str, list[Block]] = {"By class": [Chart("embedding-class", "By class", says, figure)]}
    if (mapped["place"] != 0.5).any():  # single images have no position
        says = (
            "The same slices by their position in the study: 0 is the first slice, 1 the last. The position is no input"
            " of the network; a run of shades means that it has learnt the anatomy that changes with it."
        )
        figure = charts.map_by_value(_points(valid), valid["place"].to_numpy(), "position in the study", _hover(valid))
        panels["By position"] = [Chart("embedding-place", "By position in the study", says, figure)]
    splits = np.array([{"0": VALID, "test": TEST}.get(fold, TRAINED) for fold in mapped["fold"]])
    names = [
        f"{split} (fold {k})" if split == TRAINED else split for split, k in zip(splits, mapped["fold"], strict=True)
    ]
    figure = charts.map_by_group(_points(mapped), names, sorted(set(names)), _hover(mapped))
    panels["By fold"] = [Chart("embedding-fold", "By fold", _mixing(mapped, splits), figure)]
    return Section("embeddings", title, [Panels("embedding-maps", panels)], lead)


def _points(mapped: pd.DataFrame) -> np.ndarray:
    return mapped[["x", "y"]].to_numpy("float64")


def _hover(mapped: pd.DataFrame) -> list[str]:
    return [f"{study}, slice {k + 1}" for study, k in zip(mapped["study_id"], mapped["index"], strict=True)]


def _mixing(mapped: pd.DataFrame, splits: np.ndarray) -> str:
    """The text below the map by fold: how well the splits are mixed."""
    counts = [f"{(splits == name).sum():,} {name}" for name in (VALID, TRAINED, TEST) if (splits == name).any()]
    said = (
        f"{', '.join(counts)}. The colours should be mixed. If slices trained on lay apart from validation slices, the"
        " network would have memorised them; if the test set lay apart, its scans would differ from these."
    )
    found, chance = mixed(_points(mapped), splits, mapped["study_id"].to_numpy(str))
    if len(set(splits)) > 1 and not isnan(found):
        verdict = "they lie apart, which needs a closer look" if found - chance > APART else "they are mixed"
        said += (
            f" Of the ten nearest slices of other studies {found:.0%} are of the same split, by chance {chance:.0%}:"
            f" {verdict}."
        )
    if TRAINED not in splits:
        said += " The embeddings of training slices are not stored: no sequence model reads them."
    return said

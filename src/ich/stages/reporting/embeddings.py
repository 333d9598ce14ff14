"""The map of the embeddings: which slices the first network finds alike, coloured in three ways."""

from math import isnan
from typing import TYPE_CHECKING

from ich.report.page import Block, Chart, Notes, Panels, Section
from ich.stages.reporting.evidence import Evidence

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

NOTHING = "no bleed"
UNSEEN, TRAINED, TEST = "unseen (fold 0)", "trained on", "test set"
APART = 0.15  # so much more often than by chance in one's own part: then the parts lie apart


def section(evidence: Evidence) -> Section:
    title = "The map of the embeddings"
    cnns = list(evidence.plan.recipe.cnn)
    if not cnns:
        return _none(title, "This recipe has no network that reads single slices, so there are no embeddings of them.")
    mapped = evidence.explained("embedding_map.csv")
    if mapped is None:
        return _none(title, "Fold 0 has too few slices for a map.")
    lead = (
        f"Each dot is a slice as {cnns[0]} of fold 0 sees it, brought from its embedding to two dimensions by t-SNE:"
        " slices that the network finds alike lie close together. Distances between groups, their sizes and the axes"
        " mean nothing."
    )
    return Section("embeddings", title, [Panels("embedding-maps", _panels(mapped, evidence.classes))], lead)


def _none(title: str, why: str) -> Section:
    return Section("embeddings", title, [Notes([why])])


def _panels(mapped: "pd.DataFrame", classes: list[str]) -> dict[str, list[Block]]:
    from ich.report.page import charts

    unseen = mapped[mapped["fold"] == "0"]
    there = unseen["group"].tolist()
    order = [name for name in (NOTHING, *classes, *dict.fromkeys(there)) if name in there]
    says = (
        f"{len(unseen):,} slices that the network was not trained on. Where a colour gathers, the network has found"
        " that kind of bleed; coloured dots strewn among those without a bleed are slices that it takes for these."
        " Slices with several kinds are a group of their own."
    )
    figure = charts.map_by_group(_points(unseen), there, list(dict.fromkeys(order)), _told(unseen))
    panels: dict[str, list[Block]] = {"By class": [Chart("embedding-class", "By class", says, figure)]}
    if (mapped["place"] != 0.5).any():  # single pictures have no place
        says = (
            "The same slices by their place in the study: 0 is the first slice, 1 the last. Nobody told the network"
            " the place; a run of shades means that it has learnt the anatomy that changes with it."
        )
        figure = charts.map_by_value(_points(unseen), unseen["place"].to_numpy(), "place in the study", _told(unseen))
        panels["By place in the study"] = [Chart("embedding-place", "By place in the study", says, figure)]
    folds = _folds(mapped)
    figure = charts.map_by_group(_points(mapped), folds, sorted(set(folds)), _told(mapped))
    panels["By fold"] = [Chart("embedding-fold", "By fold", _on_folds(mapped), figure)]
    return panels


def _points(mapped: "pd.DataFrame") -> "np.ndarray":
    return mapped[["x", "y"]].to_numpy("float64")


def _told(mapped: "pd.DataFrame") -> list[str]:
    return [f"{study}, slice {k + 1}" for study, k in zip(mapped["study_id"], mapped["index"], strict=True)]


def _part(fold: str) -> str:
    return {"0": UNSEEN, "test": TEST}.get(fold, TRAINED)


def _folds(mapped: "pd.DataFrame") -> list[str]:
    return [f"{TRAINED} (fold {k})" if _part(k) == TRAINED else _part(k) for k in mapped["fold"]]


def _on_folds(mapped: "pd.DataFrame") -> str:
    """What the map by fold shows, and how mixed it is."""
    from ich.report.embedding_map import mixed

    parts, studies = mapped["fold"].map(_part).to_numpy(str), mapped["study_id"].to_numpy(str)
    counts = ", ".join(f"{(parts == name).sum():,} {name}" for name in (UNSEEN, TRAINED, TEST) if (parts == name).any())
    said = f"{counts}. The colours should be mixed. If trained and unseen slices lay apart, the network would have"
    said += " learnt its training slices by heart; if the test set lay apart, its scans would differ from these."
    found, chance = mixed(_points(mapped), parts, studies)
    if len(set(parts)) > 1 and not isnan(found):
        verdict = "they lie apart, which asks for a closer look" if found - chance > APART else "they are mixed"
        said += (
            f" Of the ten nearest slices of other studies {found:.0%} are of the same part, by chance {chance:.0%}:"
            f" {verdict}."
        )
    if TRAINED not in parts:
        said += " The embeddings of training slices were not kept: no sequence member reads them."
    return said

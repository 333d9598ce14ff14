"""Examples: one bleed that the blend finds and one that it misses, as the first images of the page."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.report.evidence import Evidence
from ich.report.page.blocks import Block, Case, Cases, Image, Notes
from ich.report.page.images import png
from ich.report.sections.errors import Found, card
from ich.report.sections.viewer import Study

KINDS = {
    "Found": "The true positive with the highest probability.",
    "Missed": "The most probable slice of the bleed that is missed most clearly.",
}


def select_examples(evidence: Evidence) -> dict[str, Found]:
    """The example of each kind that occurs, among labels 1 of `any`, or of all classes if there is no `any`.

    Missed is of the study with the smallest share of slices found; of several studies, that with the most labelled
    slices, then that with the lowest probability.
    """
    names = ["any"] if "any" in evidence.classes else evidence.classes
    place, c = np.nonzero((evidence.labels == 1) & np.isin(evidence.classes, names))
    p, decided = (values[place, c] for values in (evidence.probability, evidence.decided))
    study = evidence.table["study_id"].to_numpy()[evidence.rows[place]]
    bleeds = pd.DataFrame({"place": place, "class": c, "study": study, "p": p, "decided": decided})
    of_study = bleeds.groupby(["study", "class"])["decided"]
    bleeds = bleeds.assign(found=of_study.transform("sum"), labelled=of_study.transform("size"))
    bleeds = bleeds.assign(share=bleeds["found"] / bleeds["labelled"]).sort_values("p", ascending=False, kind="stable")
    missed = bleeds[~bleeds["decided"]].drop_duplicates(["study", "class"])
    missed = missed.sort_values(["share", "labelled", "p"], ascending=[True, False, True])
    examples: dict[str, Found] = {}
    for (kind, reason), some in zip(KINDS.items(), (bleeds[bleeds["decided"]], missed), strict=True):
        for one in some.head(1).to_dict("records"):
            row, name = int(evidence.rows[one["place"]]), evidence.classes[one["class"]]
            counts = f" {one['found']} of {one['labelled']} slices labelled {name} are found in this study."
            examples[kind] = Found(one["place"], row, [row], one["class"], reason + counts * evidence.has_studies)
    return examples


def blocks(
    evidence: Evidence,
    found: Mapping[str, Found],
    greys: Sequence[NDArray[np.uint8]],
    studies: Mapping[str, Study],
    errors: Sequence[Found],
) -> list[Block]:
    """Make a card from each example and its windowed slice [1, S, S]. errors: those in the section of that name."""
    ids = evidence.table["study_id"].to_numpy()
    in_errors = {ids[one.row] for one in errors}
    cards = [
        replace(_card(evidence, kind, one, grey[0], studies), section="errors" if ids[one.row] in in_errors else "")
        for (kind, one), grey in zip(found.items(), greys, strict=True)
    ]
    missing = [f"No labelled bleed is {kind.lower()} out of fold." for kind in KINDS if kind not in found]
    return [Cases(cards, beside=True), Notes(missing)]


def _card(evidence: Evidence, kind: str, one: Found, grey: NDArray[np.uint8], studies: Mapping[str, Study]) -> Case:
    c, name = one.class_number, evidence.classes[one.class_number]
    subtypes = [n for n, y in zip(evidence.classes, evidence.labels[one.place], strict=True) if y == 1 and n != "any"]
    bleed = ", ".join(subtypes) if name == "any" and subtypes else name
    p, cut = (float(table[one.place, c]) for table in (evidence.probability, evidence.cross_fitted))
    lines = [f"{name}: probability {p:.4f}, threshold of the other folds {cut:.4f}."]
    caption = "Brain window, WL 40 WW 80" if evidence.values == "hu" else ""
    images = [Image(png(grey), f"Slice labelled {bleed}, {kind.lower()} by the blend", caption)]
    return card(evidence, one, f"{kind}: {bleed}", lines, images, cut, studies)

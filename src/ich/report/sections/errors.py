"""Errors and suspicious labels: the slices that cost the blend most out of fold, one card each, with images."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.report.evidence import Evidence
from ich.report.page.blocks import Block, Case, Cases, Image, Notes, Panels, Section, Strip
from ich.report.page.images import overlaid, png, sized
from ich.report.sections.viewer import Study

SHOWN, PER_CLASS, SUSPECTS = 6, 2, 8  # errors of a kind, of these per class, and suspicious labels
KINDS = {"False negatives": 1, "False positives": 0}  # by the label that the blend contradicts
SUSPICIOUS = "Suspicious labels"


@dataclass(frozen=True)
class Found:
    """A labelled slice: its place in `evidence.rows`, its row, this and the neighbouring rows, the class, and why."""

    place: int
    row: int
    beside: list[int]
    class_number: int
    says: str


def chosen(evidence: Evidence) -> dict[str, list[Found]]:
    """The cards to show, by kind."""
    found = {kind: list(_worst(evidence, label)) for kind, label in KINDS.items()}
    return found | {SUSPICIOUS: list(_suspects(evidence))}


def _found(evidence: Evidence, place: int, class_number: int, says: str) -> Found:
    row, series = int(evidence.rows[place]), evidence.series
    beside = [other for other in (row - 1, row, row + 1) if 0 <= other < len(series) and series[other] == series[row]]
    return Found(place, row, beside, class_number, says)


def _worst(evidence: Evidence, label: int) -> Iterator[Found]:
    """The slices with the largest weighted log loss at that label; of each slice the class that costs most."""
    y, p = evidence.labels, evidence.probability.clip(1e-7, 1 - 1e-7)
    loss = -np.log(np.where(y == 1, p, 1 - p)) * evidence.weights
    cost = np.where(y == label, loss, 0.0)
    total, mean = cost.sum(axis=1), loss.sum(axis=1).mean()
    studies = evidence.table["study_id"].to_numpy()[evidence.rows]
    seen: set[str] = set()
    classes: Counter[int] = Counter()
    for place in np.argsort(-total, kind="stable").tolist():
        c = int(cost[place].argmax())
        if len(seen) == SHOWN or total[place] == 0:
            return
        if studies[place] not in seen and classes[c] < PER_CLASS:
            seen.add(studies[place])
            classes[c] += 1
            yield _found(evidence, place, c, f"Log loss {total[place]:.2f}; the mean over all slices is {mean:.2f}.")


def _suspects(evidence: Evidence) -> Iterator[Found]:
    """The first labels of suspicious_labels.csv, at most one per study."""
    first = evidence.suspicious.drop_duplicates("study_id").head(SUSPECTS)
    ids = pd.Index(evidence.table["image_id"].iloc[evidence.rows])
    for place, one in zip(ids.get_indexer(pd.Index(first["image_id"])).tolist(), first.to_dict("records"), strict=True):
        says = f"Rank {one['rank']} of the suspicious labels: log odds {one['suspicion']:.1f} that the label is wrong."
        yield _found(evidence, place, evidence.classes.index(one["class"]), says)


def section(
    evidence: Evidence,
    found: Mapping[str, Sequence[Found]],
    greys: Sequence[NDArray[np.uint8]],
    maps: Sequence[NDArray[np.uint8]] | None,
    studies: Mapping[str, Study],
) -> Section:
    """greys: windowed slices [k, S, S] of `beside`, per card in order; maps: Grad-CAM [c, h, w] of the slice itself."""
    panels: dict[str, list[Block]] = {}
    number = 0
    for kind, ones in found.items():
        cases: list[Case] = []
        for one in ones:
            cases.append(_case(evidence, one, greys[number], None if maps is None else maps[number], studies))
            number += 1
        panels[kind] = [Notes([_picked(evidence, kind, len(ones))]), Cases(cases)]
    lead = "CT slices in the brain window (level 40, width 80 HU). " if evidence.values == "hu" else ""
    lead += (
        "No network of this recipe has a layer for Grad-CAM."
        if evidence.cam_by is None
        else f"The coloured map is Grad-CAM of {evidence.cam_by} of the fold that did not see the slice: bright where"
        " the region raises the class's score, in coarse cells. It is not the outline of a bleed."
    )
    return Section("errors", "Errors and suspicious labels", [Panels("cases", panels)], lead)


def _picked(evidence: Evidence, kind: str, count: int) -> str:
    if kind != SUSPICIOUS:
        return (
            f"The {count} slices with a class labelled {KINDS[kind]} that add most to the blend's log loss out of fold,"
            f" at most one per study and {PER_CLASS} per class. They are selected because they are wrong."
        )
    said = (
        f"The {count} labels that are most likely wrong, at most one per study, by the out-of-fold probability and by"
        " the labels of the neighbouring slices."
    )
    rules = {} if evidence.audit is None else evidence.audit.set_index("rule").to_dict("index")
    if rules and not isnan(rules["suspicion"]["precision"]):
        said += (
            f" In this synthetic competition the wrong labels are known: of the first"
            f" {rules['suspicion']['flagged']:.0f} of the list {rules['suspicion']['precision']:.0%} are wrong."
        )
    return f"{said} Review them; do not correct labels by this list alone."


def _case(
    evidence: Evidence,
    one: Found,
    greys: NDArray[np.uint8],
    cam: NDArray[np.uint8] | None,
    studies: Mapping[str, Study],
) -> Case:
    c, name = one.class_number, evidence.classes[one.class_number]
    here, label = evidence.table.iloc[one.row], int(evidence.labels[one.place, c])
    p, cut = float(evidence.probability[one.place, c]), float(evidence.tuned["thresholds"][name])
    where = f"Study {here['study_id']}, slice {here['index'] + 1} of {here['n_slices']}"
    lines = [
        f"{where if evidence.has_studies else here['image_id']}, fold {evidence.folds[one.place]}.",
        f"Label {label}, probability {p:.4f}, threshold {cut:.4f}.",
    ]
    if len(one.beside) > 1:
        beside = {row: evidence.all_labels[row, c] for row in one.beside if row != one.row}
        told = [
            f"{'unknown' if isnan(other) else f'{other:.0f}'} {'before' if row < one.row else 'after'}"
            for row, other in beside.items()
        ]
        lines.append(f"Labels of the neighbours: {', '.join(told)}.")
        lines.append(meaning(label == 1, p >= cut, 1 in beside.values(), 0 in beside.values()))
    outcome = {(1, False): "false negative", (0, True): "false positive", (1, True): "found", (0, False): "negative"}
    title = f"{name}: {outcome[label, p >= cut]}, probability {p:.2f} at label {label}"
    places = np.flatnonzero(evidence.series[evidence.rows] == evidence.series[one.row])
    strip = Strip(
        name,
        evidence.probability[places, c].tolist(),
        [int(label) for label in evidence.labels[places, c]],
        int(np.flatnonzero(places == one.place)[0]),
        cut,
    )
    images = [sized(grey) for grey in greys]
    what = "CT" if evidence.values == "hu" else "Image"
    shown: list[Image] = []
    for row, grey in zip(one.beside, images, strict=True):
        caption = "this slice" if row == one.row else "slice before" if row < one.row else "slice after"
        shown.append(Image(png(grey), f"{what}, {caption}", caption))
    if cam is not None:
        alt = f"Grad-CAM for {name} over this slice: bright where a region raises the score"
        shown.append(Image(png(overlaid(images[one.beside.index(one.row)], cam[c])), alt, f"Grad-CAM for {name}"))
    study = studies.get(here["study_id"])
    at = [] if study is None else np.flatnonzero(study.rows == one.row).tolist()
    return Case(title, [*lines, one.says], shown, strip, here["study_id"] if at else "", at[0] if at else 0)


def meaning(labelled: bool, predicted: bool, beside_1: bool, beside_0: bool) -> str:
    """What the label, the prediction and the labels of the neighbours may mean together."""
    if labelled and predicted:
        return "The network finds it, though with a low probability."
    if labelled == predicted:
        return "The network finds no bleed either; the labels of the neighbours make this one suspicious."
    if labelled and beside_1 and beside_0:
        return "The end of a labelled run: a bleed is thin there, and readers differ in where it ends."
    if beside_1 and beside_0:
        return "Just beyond a labelled run: perhaps the bleed extends farther than its labels."
    if labelled:
        return (
            "Inside a labelled run that the network misses here."
            if beside_1
            else "Labelled 1 alone, and the network finds nothing: perhaps a wrong label, or a very thin bleed."
        )
    return (
        "Labelled 0 between labels 1, and the network finds a bleed: perhaps a wrong label."
        if beside_1
        else "Labelled 0 like its neighbours: a look-alike, or a bleed that is not labelled."
    )

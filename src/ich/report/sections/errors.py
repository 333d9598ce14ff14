"""Errors and suspicious labels: one card with images per slice with a high out-of-fold loss or a doubtful label."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from math import isnan

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.report.evidence import Evidence
from ich.report.page.blocks import Block, Case, Cases, Image, Notes, Panels, Section, Strip
from ich.report.page.images import overlaid, png, resized
from ich.report.sections.viewer import Study

SHOWN, PER_CLASS, SUSPECTS = 6, 2, 8  # errors per kind, of these per class, and suspicious labels
KINDS = {"False negatives": 1, "False positives": 0}  # the label of each kind
SUSPICIOUS = "Suspicious labels"
AGREEMENT = {
    True: "The network detects it, with a low probability.",
    False: "The network finds no bleed either; the labels of the neighbours make this one suspicious.",
}
CONTRADICTION = {  # by the label and by those of its neighbours
    (True, "edge"): "The end of a labelled run: bleeds are thin there, and readers disagree about where they end.",
    (True, 1): "Inside a labelled run, missed by the network.",
    (True, 0): "The only positive label here: it may be wrong, or the bleed very thin.",
    (False, "edge"): "Just beyond a labelled run: the bleed may extend farther than its labels.",
    (False, 1): "Labelled 0 between labels 1: the label may be wrong.",
    (False, 0): "Labelled 0 like its neighbours: a look-alike, or a bleed without a label.",
}


@dataclass(frozen=True)
class Found:
    """A slice to show: its place in `evidence.rows`, the rows of its images, the class, and the reason."""

    place: int
    row: int
    beside: list[int]
    class_number: int
    reason: str


def select_slices(evidence: Evidence) -> dict[str, list[Found]]:
    """The slices to show, by kind."""
    found = {kind: list(_worst(evidence, label)) for kind, label in KINDS.items()}
    return found | {SUSPICIOUS: list(_suspects(evidence))}


def _found(evidence: Evidence, place: int, class_number: int, reason: str) -> Found:
    row, series = int(evidence.rows[place]), evidence.series
    beside = [other for other in (row - 1, row, row + 1) if 0 <= other < len(series) and series[other] == series[row]]
    return Found(place, row, beside, class_number, reason)


def _worst(evidence: Evidence, label: int) -> Iterator[Found]:
    """The slices with the largest weighted log loss at that label, each with the class of the largest loss."""
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
            yield _found(evidence, place, c, f"Log loss {total[place]:.2f}; mean over all slices {mean:.2f}.")


def _suspects(evidence: Evidence) -> Iterator[Found]:
    """The first labels of suspicious_labels.csv, at most one per study."""
    first = evidence.suspicious.drop_duplicates("study_id").head(SUSPECTS)
    ids = pd.Index(evidence.table["image_id"].iloc[evidence.rows])
    for place, one in zip(ids.get_indexer(pd.Index(first["image_id"])).tolist(), first.to_dict("records"), strict=True):
        reason = f"Rank {one['rank']} of the suspicious labels: log odds {one['suspicion']:.1f} of a wrong label."
        yield _found(evidence, place, evidence.classes.index(one["class"]), reason)


def section(
    evidence: Evidence,
    found: Mapping[str, Sequence[Found]],
    greys: Sequence[NDArray[np.uint8]],
    maps: Sequence[NDArray[np.uint8]] | None,
    studies: Mapping[str, Study],
) -> Section:
    """Make one card per slice found.

    greys: windowed slices [k, S, S] of `beside`, per card in order; maps: Grad-CAM [c, h, w] of the slice itself.
    """
    panels: dict[str, list[Block]] = {}
    images = zip(greys, maps or repeat(None), strict=False)
    for kind, ones in found.items():
        cases = [_case(evidence, one, *next(images), studies) for one in ones]
        panels[kind] = [Notes(_selection(evidence, kind, len(ones))), Cases(cases)]
    lead = "CT slices in the brain window (level 40, width 80 HU). " if evidence.values == "hu" else ""
    lead += (
        "No network of this recipe has a layer for Grad-CAM."
        if evidence.cam_by is None
        else f"Grad-CAM is computed by {evidence.cam_by} of the fold that did not see the slice; it is not a"
        " segmentation."
    )
    return Section("errors", "Errors and suspicious labels", [Panels("cases", panels)], lead)


def _selection(evidence: Evidence, kind: str, count: int) -> list[str]:
    """Selection rule of the slices of a kind."""
    if kind != SUSPICIOUS:
        return [
            f"The {count} slices labelled {KINDS[kind]} with the highest out-of-fold log loss, at most one per study"
            f" and {PER_CLASS} per class. They are selected because they are wrong."
        ]
    notes = [
        f"The {count} labels that are most likely wrong, at most one per study. Review them; do not correct labels by"
        " this list alone."
    ]
    rules = {} if evidence.audit is None else evidence.audit.set_index("rule").to_dict("index")
    if rules and not isnan(rules["suspicion"]["precision"]):
        flagged, precision = (rules["suspicion"][key] for key in ("flagged", "precision"))
        notes.append(
            f"The wrong labels of this synthetic competition are known: {precision:.0%} of the first {flagged:.0f}"
            " labels of the list are wrong."
        )
    return notes


def _case(
    evidence: Evidence,
    one: Found,
    greys: NDArray[np.uint8],
    cam: NDArray[np.uint8] | None,
    studies: Mapping[str, Study],
) -> Case:
    c, name = one.class_number, evidence.classes[one.class_number]
    label, p = int(evidence.labels[one.place, c]), float(evidence.probability[one.place, c])
    cut = float(evidence.tuned["thresholds"][name])
    lines = [f"Label {label}, probability {p:.4f}, threshold {cut:.4f}."]
    if len(one.beside) > 1:
        beside = {row: evidence.all_labels[row, c] for row in one.beside if row != one.row}
        words = [
            f"{'unknown' if isnan(other) else f'{other:.0f}'} {'before' if row < one.row else 'after'}"
            for row, other in beside.items()
        ]
        lines.append(f"Labels of the neighbours: {', '.join(words)}.")
        lines.append(interpretation(label == 1, p >= cut, 1 in beside.values(), 0 in beside.values()))
    outcome = {(1, False): "false negative", (0, True): "false positive", (1, True): "true positive"}
    title = f"{name}: {outcome.get((label, p >= cut), 'true negative')}, probability {p:.2f}, label {label}"
    images = [resized(grey) for grey in greys]
    captions = [
        "this slice" if row == one.row else f"slice {'before' if row < one.row else 'after'}" for row in one.beside
    ]
    shown = [Image(png(grey), caption, caption) for caption, grey in zip(captions, images, strict=True)]
    if cam is not None:
        alt = f"Grad-CAM for {name} over this slice: bright where a region raises the score"
        shown.append(Image(png(overlaid(images[one.beside.index(one.row)], cam[c])), alt, f"Grad-CAM for {name}"))
    return card(evidence, one, title, lines, shown, cut, studies)


def card(
    evidence: Evidence,
    one: Found,
    title: str,
    lines: Sequence[str],
    images: Sequence[Image],
    threshold: float,
    studies: Mapping[str, Study],
) -> Case:
    """Make a card with the place of the slice as its first line, and the strip of the class along the series."""
    here, c = evidence.table.iloc[one.row], one.class_number
    where = f"Study {here['study_id']}, slice {here['index'] + 1} of {here['n_slices']}"
    first = f"{where if evidence.has_studies else here['image_id']}, fold {evidence.folds[one.place]}."
    places = np.flatnonzero(evidence.series[evidence.rows] == evidence.series[one.row])
    strip = Strip(
        evidence.classes[c],
        evidence.probability[places, c].tolist(),
        [int(label) for label in evidence.labels[places, c]],
        int(np.flatnonzero(places == one.place)[0]),
        threshold,
    )
    study = studies.get(here["study_id"])
    at = [] if study is None else np.flatnonzero(study.rows == one.row).tolist()
    return Case(title, [first, *lines, one.reason], images, strip, here["study_id"] if at else "", at[0] if at else 0)


def interpretation(labelled: bool, predicted: bool, beside_1: bool, beside_0: bool) -> str:
    """A possible explanation of the label, the prediction and the labels of the neighbours."""
    if labelled == predicted:
        return AGREEMENT[labelled]
    return CONTRADICTION[labelled, "edge" if beside_1 and beside_0 else int(beside_1)]

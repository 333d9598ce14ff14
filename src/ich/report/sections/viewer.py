"""Study viewer: the selection of its studies, and the data for viewer.js."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.ensemble.metrics import row_losses
from ich.report.evidence import Evidence
from ich.report.page.blocks import Notes, Section, Viewer
from ich.report.page.images import planes
from ich.report.page.traces import numbers

WORST = 3
MOST_WRONG, BEST, OF_CLASS, NAMED = GROUPS = ("Most wrong", "Best", "One of each class", "Named in the recipe")
PRESETS = {
    "hu": [
        {"id": "brain", "name": "Brain", "level": 40, "width": 80},
        {"id": "subdural", "name": "Subdural", "level": 80, "width": 200},
        {"id": "bone", "name": "Bone", "level": 600, "width": 2800},
        {"id": "stroke", "name": "Stroke", "level": 32, "width": 8},
    ],
    "grey": [{"id": "full", "name": "Full", "level": 127.5, "width": 255}],
}
BOUNDS = {"hu": {"low": -1024, "high": 3071, "unit": "HU"}, "grey": {"low": 0, "high": 255, "unit": "grey levels"}}


@dataclass(frozen=True)
class Study:
    """A study, the reasons for showing it by group (GROUPS), and the rows [n] of its longest series in order."""

    id: str
    reasons: dict[str, str]
    rows: NDArray[np.intp]


@dataclass(frozen=True)
class Images:
    """Slices of a series for the page: HU or grey values int16 [n, S, S], and a text about their source."""

    values: NDArray[np.int16]
    source: str


def select_studies(evidence: Evidence, named: Sequence[str] = ()) -> dict[str, Study]:
    """The studies of the viewer by id, in the order of its list. `named` studies must be in the slice table."""
    studies = evidence.table["study_id"].to_numpy()
    losses = row_losses(evidence.labels, evidence.probability) @ evidence.weights
    reasons = rank_studies(studies[evidence.rows], losses, evidence.labels, evidence.classes)
    for study in named:
        reasons.setdefault(study, {})[NAMED] = "named in the recipe"
    found: dict[str, Study] = {}
    for study, why in reasons.items():
        rows = np.flatnonzero(studies == study)
        series, first, counts = np.unique(evidence.series[rows], return_index=True, return_counts=True)
        longest = series[np.lexsort((first, -counts))[0]]
        found[study] = Study(study, why, rows[evidence.series[rows] == longest])
    return found


def rank_studies(
    studies: NDArray[np.str_], losses: NDArray[np.float64], labels: NDArray[np.float64], classes: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Ids and reasons of the studies with the highest and the lowest loss, and of one more study per class.

    studies [n], losses [n] and labels [n, c] are of labelled slices; the loss of a study is the mean over its slices.
    The study with the lowest loss has a bleed, if any study has one. For each class, the study with most positive
    slices is added. Ties go to the smaller id.
    """
    positive = pd.DataFrame(labels, columns=pd.Index(classes)).groupby(studies, sort=True).sum()
    loss = pd.Series(losses).groupby(studies, sort=True).mean()
    found: dict[str, dict[str, str]] = {}
    by_loss = loss.sort_values(kind="stable", ascending=False)
    for rank, (study, value) in zip(("", "2nd ", "3rd "), by_loss.items(), strict=False):
        found[str(study)] = {MOST_WRONG: f"{rank}worst log loss of {len(loss)} studies: {value:.3f}"}
    bleeding = loss[positive.max(axis=1) > 0]
    candidates, whose = (bleeding, "studies with a bleed") if len(bleeding) else (loss, "studies")
    best = str(candidates.sort_values(kind="stable").index[0])
    found.setdefault(best, {})[BEST] = f"best log loss of {len(candidates)} {whose}: {candidates[best]:.3f}"
    for name in [name for name in classes if name != "any"] or classes:
        counts = positive.loc[~positive.index.isin(list(found)), name].sort_values(kind="stable", ascending=False)
        if len(counts) and counts.iloc[0] > 0:
            study = str(counts.index[0])
            found[study] = {OF_CLASS: f"{name} on {counts.iloc[0]:.0f} slices, log loss {loss[study]:.3f}"}
    return found


def section(
    evidence: Evidence, studies: Sequence[Study], images: Sequence[Images], maps: Sequence[NDArray[np.uint8]] | None
) -> Section:
    """Make the section from the images and the Grad-CAM maps uint8 [n, c, h, w] of each study."""
    data = {
        "classes": evidence.classes,
        "thresholds": [round(float(evidence.tuned["thresholds"][name]), 6) for name in evidence.classes],
        "presets": PRESETS[evidence.values],
        **BOUNDS[evidence.values],
        "studies": [
            _study(evidence, study, images[k], None if maps is None else maps[k]) for k, study in enumerate(studies)
        ],
    }
    lead = (
        f"The {WORST} studies with the highest mean log loss, the one with the lowest, and one more per class. They are"
        " not a random sample."
    )
    notes: list[str] = []
    if maps is not None:
        height, width = maps[0].shape[-2:]
        notes.append(
            f"Grad-CAM shows the regions that raise the score of a class, in {height} x {width} cells, for the network"
            f" {evidence.cam_by} of the fold that did not see the study. It is not a segmentation."
        )
    elif evidence.mapped_by is not None:
        notes.append("No network of this recipe has a layer for Grad-CAM.")
    return Section("studies", "Study viewer", [Viewer(data), Notes(notes)], lead)


def _study(evidence: Evidence, study: Study, images: Images, maps: NDArray[np.uint8] | None) -> dict[str, Any]:
    rows, low = evidence.table.iloc[study.rows], BOUNDS[evidence.values]["low"]
    probability = np.full((len(evidence.table), len(evidence.classes)), np.nan)
    probability[evidence.rows], probability[evidence.test_rows] = evidence.probability, evidence.test_probability
    labels, probability = evidence.all_labels[study.rows], probability[study.rows]
    wrong = np.abs(np.nan_to_num(labels) - probability).max(axis=1)
    across = rows["crop_side"].to_numpy() * rows["column_spacing"].to_numpy()  # mm
    square = np.allclose(rows["row_spacing"], rows["column_spacing"], rtol=0.01)
    known = square and np.isfinite(across).all() and np.ptp(across) <= 0.01 * across.max() and across.max() > 0
    cam = None
    if maps is not None:
        n, classes, height, width = maps.shape
        cam = {"height": height, "width": width, "cells": maps.reshape(n, classes, -1).tolist()}
    return {
        "id": study.id,
        "group": next(iter(study.reasons)),
        "reasons": list(study.reasons.values()),
        "patient": str(rows["patient_id"].iloc[0]),
        "split": str(rows["split"].iloc[0]),
        "folds": sorted({int(fold) for fold in rows["fold"].dropna()}),
        "start": int(np.nan_to_num(wrong, nan=-1.0).argmax()),
        "millimetres": round(float(across[0]), 2) if known else None,
        "source": images.source,
        "images": rows["image_id"].astype(str).tolist(),
        "positions": numbers(rows["position"].astype(float), 2),
        "labels": numbers(labels, 0),
        "probabilities": numbers(probability, 4),
        "side": images.values.shape[1],
        "pixels": [planes(values, low) for values in images.values],
        "sum": int((images.values.astype(np.int64) - low).sum()),
        "cam": cam,
    }

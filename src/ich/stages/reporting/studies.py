"""The study viewer: which studies it holds and why, and what it is given of each."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ich.console import progress
from ich.errors import UserError
from ich.report.page import Notes, Section, Viewer
from ich.stages.reporting.evidence import Evidence

if TYPE_CHECKING:
    import numpy as np

WORST = 3
GROUPS = ("Most wrong", "Best", "One of each class", "Named in the recipe")
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
    id: str
    reasons: Mapping[str, str]
    """Why it is shown, by GROUPS; the first one is the group under which it stands."""
    rows: "np.ndarray"
    """Row numbers [n] in the slice table, in order: of its longest series."""


@lru_cache(maxsize=1)
def chosen(evidence: Evidence) -> dict[str, Study]:
    """The studies that the viewer holds, by id, in the order in which it offers them."""
    import numpy as np

    table, rows = evidence.slices.table, evidence.rows
    studies = table["study_id"].to_numpy()
    reasons = picked(studies[rows], _losses(evidence), evidence.labels, evidence.classes)
    known = sorted(set(studies.tolist()))
    for study in evidence.plan.recipe.report.studies:
        if study not in known:
            near = difflib.get_close_matches(study, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"report.studies: there is no study {study} among the readable slices{hint}")
        reasons.setdefault(study, {})[GROUPS[3]] = "named in the recipe"
    found: dict[str, Study] = {}
    for study, why in reasons.items():
        of_study = np.flatnonzero(studies == study)
        series, first, counts = np.unique(table["series"].to_numpy()[of_study], return_index=True, return_counts=True)
        longest = series[np.lexsort((first, -counts))[0]]
        found[study] = Study(study, why, of_study[table["series"].to_numpy()[of_study] == longest])
    return found


def picked(
    studies: "np.ndarray", losses: "np.ndarray", labels: "np.ndarray", classes: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Study ids with why they are shown, by GROUPS: the worst, the best, and one more of each class.

    studies [n], losses [n] and labels [n, c] of labelled slices. A study's loss is the mean of its slices. Best is one
    with a bleed if there is one. Of a class: the study with most positive slices that is not shown yet. Ties go to the
    smaller id.
    """
    import pandas as pd

    slices = pd.DataFrame(labels, columns=pd.Index(classes)).groupby(studies, sort=True)
    positive, loss = slices.sum(), pd.Series(losses).groupby(studies, sort=True).mean()
    by_loss = loss.sort_values(kind="stable", ascending=False)
    found: dict[str, dict[str, str]] = {}
    for rank, (study, value) in enumerate(by_loss.head(WORST).items()):
        rest = "worst" if rank == 0 else ("2nd worst", "3rd worst")[rank - 1]
        found[str(study)] = {GROUPS[0]: f"{rest} log loss of {len(loss)} studies: {value:.3f}"}
    bleeding = loss[positive.max(axis=1) > 0]
    candidates, whose = (bleeding, "studies with a bleed") if len(bleeding) else (loss, "studies")
    best = str(candidates.sort_values(kind="stable").index[0])
    found.setdefault(best, {})[GROUPS[1]] = f"best log loss of {len(candidates)} {whose}: {candidates[best]:.3f}"
    for name in [name for name in classes if name != "any"] or classes:
        counts = positive.loc[~positive.index.isin(list(found)), name].sort_values(kind="stable", ascending=False)
        if len(counts) and counts.iloc[0] > 0:
            study = str(counts.index[0])
            found[study] = {GROUPS[2]: f"{name} on {counts.iloc[0]:.0f} slices, log loss {loss[study]:.3f}"}
    return found


def _losses(evidence: Evidence) -> "np.ndarray":
    """The blend's weighted log loss [n] of each labelled slice, out of fold."""
    import numpy as np

    from ich.ensemble.metrics import row_losses

    weights = np.array(evidence.slices.class_weights)
    return row_losses(evidence.labels, evidence.probability("blend")) @ (weights / weights.sum())


# ---- the section


def section(evidence: Evidence) -> Section:
    from ich.stages.reporting.pixels import cam_member

    data = _data(evidence)
    size = next((study["cam"]["shape"][-2:] for study in data["studies"] if study["cam"]), None)
    lead = (
        f"The {WORST} studies that the blend gets most wrong, the one it gets best, and one more of each class; by the"
        " mean log loss of their slices, out of fold. They are no sample: most studies look less wrong than these."
    )
    says: list[str] = []
    if size is not None:
        says.append(
            f"Grad-CAM shows which parts of a slice raise the class's score in the network {cam_member(evidence)} of"
            f" the fold that did not see the study, in {size[0]} x {size[1]} cells; within a study the colours of a"
            " class can be compared. It points at a region, not at the outline of a bleed, and says nothing of why."
        )
    elif evidence.plan.recipe.cnn:
        says.append("There is no Grad-CAM, for no network of this recipe has a layer that is a map.")
    return Section("studies", "Study viewer", [Viewer(data), Notes(says)], lead)


def _data(evidence: Evidence) -> dict[str, Any]:
    """What templates/viewer.js reads."""
    import numpy as np

    from ich.stages.reporting.pixels import cams

    values, held = evidence.slices.values, list(chosen(evidence).values())
    ends = np.cumsum([len(study.rows) for study in held])
    maps = cams(evidence, np.concatenate([study.rows for study in held]))
    parts = [None] * len(held) if maps is None else np.split(maps, ends[:-1])
    with progress("report: studies", int(ends[-1])) as advance:
        studies: list[dict[str, Any]] = []
        for study, part in zip(held, parts, strict=True):
            studies.append(_study(evidence, study, part))
            advance(len(study.rows))
    tuned = evidence.tuned["thresholds"]
    return {
        "classes": evidence.classes,
        "thresholds": [round(float(tuned[name]), 6) for name in evidence.classes],
        "presets": PRESETS[values],
        **BOUNDS[values],
        "studies": studies,
    }


def _study(evidence: Evidence, study: Study, maps: "np.ndarray | None") -> dict[str, Any]:
    import numpy as np

    from ich.report.page.packing import packed
    from ich.stages.reporting.pixels import shown

    rows, slices = evidence.slices.table.iloc[study.rows], evidence.slices
    pictures = shown(evidence, study.rows)
    labels, probability = slices.labels[study.rows].astype(float), _probability(evidence, study.rows)
    across = rows["crop_side"].to_numpy() * rows["column_spacing"].to_numpy()
    square = np.allclose(rows["row_spacing"], rows["column_spacing"], rtol=0.01)
    known = square and np.isfinite(across).all() and np.ptp(across) <= 0.01 * across.max() and across.max() > 0
    wrong = np.abs(np.nan_to_num(labels) - probability).max(axis=1)
    return {
        "id": study.id,
        "group": next(iter(study.reasons)),
        "reasons": list(study.reasons.values()),
        "patient": str(rows["patient_id"].iloc[0]),
        "split": str(rows["split"].iloc[0]),
        "folds": sorted({int(fold) for fold in rows["fold"].dropna()}),
        "start": int(np.nan_to_num(wrong, nan=-1.0).argmax()),
        "millimetres": round(float(across[0]), 2) if known else None,
        "pictures": pictures.says,
        "images": [str(name) for name in rows["image_id"]],
        "positions": [_number(value, 2) for value in rows["position"].astype(float)],
        "labels": [_row(values, 0) for values in labels],
        "probabilities": [_row(values, 4) for values in probability],
        "pixels": packed(pictures.values, BOUNDS[slices.values]["low"]),
        "cam": None if maps is None else packed(maps),
    }


def _probability(evidence: Evidence, rows: "np.ndarray") -> "np.ndarray":
    """The blend's probabilities float64 [n, c] of rows: out of fold, or of the test set; NaN where it has none."""
    import numpy as np

    test = bool(np.isin(rows[0], evidence.slices.test_rows))
    some = evidence.slices.test_rows if test else evidence.rows
    probability = evidence.test_probability if test else evidence.probability("blend")
    there, found = np.isin(rows, some), np.full((len(rows), len(evidence.classes)), np.nan)
    found[there] = probability[np.searchsorted(some, rows[there])]  # both are in the table's order
    return found


def _number(value: float, digits: int) -> float | None:
    """Rounded, and None for what JSON has no number for."""
    import math

    return round(value, digits) if math.isfinite(value) else None


def _row(values: "np.ndarray", digits: int) -> list[float | None]:
    return [_number(value, digits) for value in values.tolist()]

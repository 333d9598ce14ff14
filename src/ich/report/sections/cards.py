"""Cards of single slices, with their place in the study and in the viewer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ich.report.evidence import Evidence
from ich.report.page.blocks import Case, Image, Strip
from ich.report.sections.viewer import Study


@dataclass(frozen=True)
class Found:
    """A slice to show: its place in `evidence.rows`, the rows of its images, the class, and the reason."""

    place: int
    row: int
    beside: list[int]
    class_number: int
    reason: str


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

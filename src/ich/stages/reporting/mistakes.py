"""The worst mistakes of the blend out of fold, and the labels that look wrong: a card each, with pictures."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isnan
from typing import TYPE_CHECKING

from ich.report.page import Block, Case, Cases, Notes, Panels, Picture, Section, Strip
from ich.stages.reporting.evidence import Evidence

if TYPE_CHECKING:
    import numpy as np

WORST, A_CLASS = 6, 2  # mistakes of a kind that are shown, and of one class
KINDS = {"Overlooked": 1, "False alarms": 0}  # by the label that the blend contradicts
SUSPECTS = 8
LEVEL, WIDTH = 40.0, 80.0  # the brain window, Hounsfield units
BEFORE, HERE, AFTER = "slice before", "this slice", "slice after"


@dataclass(frozen=True)
class Found:
    """A row among the labelled ones, the class in question, and what else is to be said of it."""

    place: int
    class_number: int
    says: str


def section(evidence: Evidence) -> Section:
    from ich.stages.reporting import pixels

    worst = {kind: list(_worst(evidence, label)) for kind, label in KINDS.items()}
    suspects = list(_suspects(evidence))
    cases = iter(_cases(evidence, [*(one for found in worst.values() for one in found), *suspects]))
    panels: dict[str, list[Block]] = {}
    for kind, found in worst.items():
        picked = (
            f"The {len(found)} slices with a class labelled {KINDS[kind]} that cost the blend most log loss out of"
            f" fold, at most one a study and {A_CLASS} a class. They are here because they are wrong; how often that"
            " happens, the figures above say."
        )
        panels[kind] = [Notes([picked]), Cases(list(islice(cases, len(found))))]
    listed = (
        f"The {len(suspects)} labels that look most wrong, at most one a study: by the picture, of which the"
        f" probability speaks, and by the labels beside it.{_precision(evidence)} To be looked through, not to correct"
        " by."
    )
    panels["Likely wrong labels"] = [Notes([listed]), Cases(list(cases))]
    lead = "Pictures in the brain window (level 40, width 80 Hounsfield units). " if _has_units(evidence) else ""
    member = pixels.cam_member(evidence)
    lead += (
        "No network of this recipe makes a map of where it looks."
        if member is None
        else f"The coloured map is Grad-CAM of {member}, of the fold that never saw the slice: bright where the region"
        " spoke for the class, in coarse cells. It is no outline of a bleed."
    )
    return Section("mistakes", "Worst mistakes and likely wrong labels", [Panels("cases", panels)], lead)


def _has_units(evidence: Evidence) -> bool:
    return evidence.slices.values == "hu"


# ---- which ones


def _worst(evidence: Evidence, label: int) -> Iterator[Found]:
    """The slices of the largest weighted log loss at labels of that kind, and of each the class that costs most."""
    import numpy as np

    y, p = evidence.labels, evidence.probability("blend").clip(1e-7, 1 - 1e-7)
    weights = np.asarray(evidence.slices.class_weights)
    loss = -np.log(np.where(y == 1, p, 1 - p)) * (weights / weights.sum())
    cost = np.where(y == label, loss, 0.0)
    total, mean = cost.sum(axis=1), loss.sum(axis=1).mean()
    studies = evidence.slices.table["study_id"].to_numpy()[evidence.rows]
    seen: set[str] = set()
    classes: Counter[int] = Counter()
    for place in np.argsort(-total, kind="stable").tolist():
        c = int(cost[place].argmax())
        if len(seen) == WORST or total[place] == 0:
            return
        if studies[place] not in seen and classes[c] < A_CLASS:
            seen.add(studies[place])
            classes[c] += 1
            yield Found(place, c, f"It costs a log loss of {total[place]:.2f}; the mean over all slices is {mean:.2f}.")


def _suspects(evidence: Evidence) -> Iterator[Found]:
    """The first of `ich explain`'s list."""
    import pandas as pd

    listed = evidence.explained("suspicious_labels.csv")
    assert listed is not None, "`ich explain` leaves it always"
    first = listed.drop_duplicates("study_id").head(SUSPECTS)
    places = evidence.slices.ids(evidence.rows).get_indexer(pd.Index(first["image_id"])).tolist()
    for place, row in zip(places, first.to_dict("records"), strict=True):
        says = f"Rank {row['rank']} of the suspicious labels: log odds {row['suspicion']:.1f} that it is wrong."
        yield Found(place, evidence.classes.index(row["class"]), says)


def _precision(evidence: Evidence) -> str:
    """How much such a list holds, where it is known which labels are wrong."""
    judged = evidence.explained("label_audit.csv")
    if judged is None:
        return ""
    rule = next(row for row in judged.to_dict("records") if row["rule"] == "suspicion")
    if isnan(rule["precision"]):
        return ""
    return (
        f" In this synthetic competition it is known which labels were written wrong on purpose: of the first"
        f" {rule['flagged']:.0f} of the list {rule['precision']:.0%} are among them."
    )


# ---- their cards


def _cases(evidence: Evidence, found: Sequence[Found]) -> list[Case]:
    import numpy as np

    from ich.stages.reporting import pixels

    rows = [_beside(evidence, int(evidence.rows[one.place])) for one in found]
    wanted = np.array(sorted({row for some in rows for row in some}), dtype=np.int64)
    maps = pixels.cams(evidence, wanted)
    cases: list[Case] = []
    for one, some in zip(found, rows, strict=True):
        row = int(evidence.rows[one.place])
        strength = None if maps is None else maps[np.searchsorted(wanted, row), one.class_number]
        cases.append(_case(evidence, one, some, strength))
    return cases


def _beside(evidence: Evidence, row: int) -> list[int]:
    """The row, and the rows of the slices just before and after it; the table holds a series together and in order."""
    series = evidence.slices.table["series"].to_numpy()
    return [other for other in (row - 1, row, row + 1) if 0 <= other < len(series) and series[other] == series[row]]


def _case(evidence: Evidence, one: Found, rows: list[int], strength: "np.ndarray | None") -> Case:
    row, name = int(evidence.rows[one.place]), evidence.classes[one.class_number]
    here, label = evidence.slices.table.iloc[row], int(evidence.labels[one.place, one.class_number])
    p, cut = float(evidence.probability("blend")[one.place, one.class_number]), _cut(evidence, one)
    where = f"Study {here['study_id']}, slice {here['index'] + 1} of {here['n_slices']}"
    lines = [
        f"{where if evidence.has_studies else here['image_id']}, fold {evidence.folds[one.place]}.",
        f"Label {label}, probability {p:.4f}, threshold {cut:.4f}.",
        *_neighbourhood(evidence, one, rows),
        one.says,
    ]
    verdict = {(1, False): "overlooked", (0, True): "false alarm", (1, True): "found", (0, False): "left alone"}
    title = f"{name}: {verdict[label, p >= cut]}, probability {p:.2f} at label {label}"
    pictures = _pictures(evidence, row, rows, strength, name)
    return Case(title, lines, pictures, _strip(evidence, one), *_in_viewer(evidence, here["study_id"], row))


def _cut(evidence: Evidence, one: Found) -> float:
    return float(evidence.tuned["thresholds"][evidence.classes[one.class_number]])


def _in_viewer(evidence: Evidence, study: str, row: int) -> tuple[str, int]:
    """The study and the slice's number where the viewer holds it; else no study."""
    from ich.stages.reporting.studies import chosen

    held = chosen(evidence).get(study)
    places = [] if held is None else (held.rows == row).nonzero()[0].tolist()
    return (study, places[0]) if places else ("", 0)


def _neighbourhood(evidence: Evidence, one: Found, rows: list[int]) -> Iterator[str]:
    """The neighbours' labels, and what it may mean."""
    if len(rows) == 1:
        return
    row, c = int(evidence.rows[one.place]), one.class_number
    beside = {"before" if other < row else "after": evidence.slices.labels[other, c] for other in rows if other != row}
    told = [f"{'unknown' if isnan(label) else f'{label:.0f}'} {where}" for where, label in beside.items()]
    yield f"Labels beside it: {', '.join(told)}."
    sees = evidence.probability("blend")[one.place, c] >= _cut(evidence, one)
    yield _meaning(evidence.labels[one.place, c] == 1, sees, 1 in beside.values(), 0 in beside.values())


def _meaning(labelled: bool, sees: bool, beside_1: bool, beside_0: bool) -> str:
    """What a label, the network's word and the labels beside it may mean together."""
    if labelled == sees:
        if sees:
            return "The network sees it, though less surely than it should."
        return "The network sees no bleed either; it is the labels beside it that make this one suspicious."
    alone, inside = {
        True: (
            "Labelled 1 alone, and the network sees nothing: perhaps the label, or a very thin bleed.",
            "Inside a labelled run that the network overlooks here.",
        ),
        False: (
            "Labelled 0 here and beside: a look-alike, or a bleed that nobody marked.",
            "Labelled 0 beside labels 1, and the network sees a bleed: perhaps the label.",
        ),
    }[labelled]
    if not (beside_1 and beside_0):
        return inside if beside_1 else alone
    if labelled:
        return "The end of a labelled run: a bleed is thin there, and readers differ in where it ends."
    return "Just beyond a labelled run: perhaps the bleed goes on farther than its labels."


def _strip(evidence: Evidence, one: Found) -> Strip:
    """The class along the series; the blend speaks of the labelled slices only."""
    series = evidence.slices.table["series"].to_numpy()[evidence.rows]
    places = (series == series[one.place]).nonzero()[0]
    return Strip(
        evidence.classes[one.class_number],
        evidence.probability("blend")[places, one.class_number].tolist(),
        [int(label) for label in evidence.labels[places, one.class_number]],
        int((places == one.place).nonzero()[0][0]),
        _cut(evidence, one),
    )


def _pictures(evidence: Evidence, row: int, rows: list[int], strength: "np.ndarray | None", name: str) -> list[Picture]:
    import numpy as np

    from ich.data.views import View, Window, render
    from ich.report.page.pictures import overlaid, png, sized
    from ich.stages.reporting import pixels

    view = View("windows", (Window(LEVEL, WIDTH),)) if _has_units(evidence) else View("grey")
    values = pixels.shown(evidence, np.asarray(rows)).values
    greys = [sized(picture) for picture in render(values[:, None], view)[..., 0]]
    found: list[Picture] = []
    for other, grey in zip(rows, greys, strict=True):
        what = HERE if other == row else BEFORE if other < row else AFTER
        found.append(Picture(png(grey), f"CT, {what}" if _has_units(evidence) else f"Picture, {what}", what))
    if strength is not None:
        alt = f"Grad-CAM for {name} over this slice: bright where the network's word for it comes from"
        found.append(Picture(png(overlaid(greys[rows.index(row)], strength)), alt, f"Grad-CAM for {name}"))
    return found

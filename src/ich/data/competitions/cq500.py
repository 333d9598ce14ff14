"""CQ500: external validation on scans of other hospitals; folders CQ500CT<n>, and reads.csv of three readers.

Chilamkurthy et al., "Deep learning algorithms for detection of critical findings in head CT scans", The Lancet 392
(2018). A scan has several series: thin slices, with contrast, bone. The one that is most similar to RSNA 2019 is
scored. Files of another patient in the folder of a scan are refused.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from ich.data import files as found_files
from ich.data.competitions import layout
from ich.data.competitions.layout import SUBTYPES, LayoutError, Raw, Selection
from ich.data.dicom import Reason

SUBMITS = "probabilities"
PUBLIC_IDS = True
CLASSES = (*SUBTYPES, "any")
FINDINGS = {
    "ICH": "any",
    "IPH": "intraparenchymal",
    "IVH": "intraventricular",
    "SDH": "subdural",
    "EDH": "epidural",
    "SAH": "subarachnoid",
}
OTHER = (".csv", ".md", ".zip")  # suffixes of files that are not slices
READERS = ("R1", "R2", "R3")
SCAN = re.compile(r"CQ500-?CT-?(\d+)", re.IGNORECASE)
SPACING, MIN_SPACING, MAX_SPACING = 5.0, 2.0, 6.0  # mm between slices: of RSNA 2019, and similar ones
MAX_TILT = 45.0  # degrees; of axial slices
MIN_SLICES = 8  # of a series that shows a head
CONTRAST = re.compile(r"contrast|cect|post|angio|cta\b|ce\b|perfusion", re.IGNORECASE)
BONE = re.compile(r"bone|sharp", re.IGNORECASE)


def raw(root: Path) -> Raw:
    """Read the scans below `root`. Their labels are in `reads`."""
    layout.require_folder(root)
    reads(root)
    found = layout.find(root, "", lambda name: not name.startswith(".") and not name.lower().endswith(OTHER))
    inside = [path for path in found.names if scan_of(path)]
    if not inside:
        raise LayoutError(f"{root}: no file below a folder CQ500CT<number>; unpack the scans there")
    outside = len(found.names) - len(inside)
    notes = (f"{outside} files in no folder of a scan are ignored",) if outside else ()
    files = layout.file_table(found_files.image_ids(inside), "test", inside)
    labels = pd.DataFrame({"image_id": pd.Series(dtype="str")} | {c: pd.Series(dtype="float32") for c in CLASSES})
    weights: dict[str, float] = dict.fromkeys(CLASSES, 1.0)
    return Raw(files, labels, [], weights, "", notes, select=select, refused=layout.refused(found, "test"))


def submission_ids(root: Path) -> list[str]:
    """Return nothing: there is no sample submission."""
    return []


def solution(root: Path) -> None:
    """None: labels are of scans, not of slices (`reads`)."""


def submission(root: Path, values: pd.DataFrame) -> pd.DataFrame:
    raise LayoutError("cq500 is for external validation; there is nothing to submit")


def scan_of(text: str) -> str:
    """CQ500-CT-<n> for a path or patient id with the number of a scan; empty for others."""
    found = SCAN.search(text)
    return f"CQ500-CT-{int(found[1])}" if found else ""


def reads(root: Path) -> pd.DataFrame:
    """Labels per scan by majority of three readers: scan, and 0 or 1 for ICH, IPH, IVH, SDH, EDH and SAH."""
    path = layout.first_existing(root, ("reads.csv",), "table of the readers")
    names = [f"{reader}:{finding}" for finding in FINDINGS for reader in READERS]
    table = layout.read_columns(path, ("name", *names))
    scans = table["name"].map(lambda name: scan_of(str(name)))
    layout.refuse_rows(path, scans == "", table["name"], "a name CQ500-CT-<number>")
    layout.refuse_rows(path, scans.duplicated(keep=False), table["name"], "each scan once")
    for name in names:
        table[name] = layout.digits(path, table[name], f"in column {name!r}")
    found = pd.DataFrame({"scan": scans})
    for finding in FINDINGS:
        found[finding] = (table[[f"{reader}:{finding}" for reader in READERS]].sum(axis=1) >= 2).astype("int8")
    return found.sort_values("scan", ignore_index=True)


def select(table: pd.DataFrame) -> Selection:
    """Select one series per scan. `table` has series together, in order of position.

    Files of other patients are refused: those whose patient id is of another scan, or, where ids are of no scan, of
    the patients with fewer files. A series is preferred that is axial, without contrast by its folders' names, has 2
    to 6 mm between slices, is not a bone series, and has the most slices, in this order. Of a series of thin slices,
    every k-th is selected, so that they are about 5 mm apart.
    """
    table = table.reset_index(drop=True)
    scan = table["path"].map(scan_of)
    foreign = _foreign(table, scan)
    keep = pd.Series(False, index=table.index)
    other_patient, other_series = (r.name.lower() for r in (Reason.OTHER_PATIENT, Reason.OTHER_SERIES))
    patients = table["patient_id"].astype(str)
    reasons = {i: (other_patient, patients[i]) for i in np.flatnonzero(foreign).tolist()}
    counts: Counter[str] = Counter()
    for _, rows in table[~foreign].groupby(scan[~foreign], sort=True):
        (rank, best, gap), *others = sorted(_series(rows), key=lambda series: series[0])
        counts["scans without an axial series"] += rank[0]
        step = max(1, round(SPACING / gap)) if 0 < gap < MIN_SPACING else 1
        counts["scans with thin slices only, thinned to about 5 mm"] += step > 1
        keep[best[::step]] = True
        reasons |= dict.fromkeys(best[~keep[best].to_numpy()].tolist(), (other_series, "between two selected slices"))
        for other, index, spacing in others:
            why = _why(other, spacing)
            counts[f"series not used: {why}"] += 1
            reasons |= dict.fromkeys(index.tolist(), (other_series, why))
    notes = [f"{count} {what}" for what, count in sorted(counts.items()) if count]
    if foreign.any():
        where = ", ".join(sorted(set(scan[foreign]))[:5])
        notes.append(f"{int(foreign.sum())} files of other patients refused, in {where}")
    return Selection(keep, reasons, tuple(notes))


def _foreign(table: pd.DataFrame, scan: pd.Series) -> pd.Series:
    """bool [n]: the file belongs to another patient than its folder."""
    named = table["patient_id"].map(scan_of)
    foreign = (named != "") & (named != scan)
    unnamed = ~foreign & (named == "")
    for _, patients in table[unnamed]["patient_id"].groupby(scan[unnamed]):
        owner = patients.value_counts().sort_index(kind="stable").idxmax()
        foreign[patients.index] = patients != owner
    return foreign


def _series(rows: pd.DataFrame) -> list[tuple[tuple, np.ndarray, float]]:
    """Rank, row labels and gap in mm of each series of a scan; the lowest rank is the best."""
    found = []
    for series, part in rows.groupby("series_id", sort=True):
        gap = abs(float(part["position"].diff().iloc[1:].median(skipna=False)))
        folders = part["path"].iloc[0].rpartition("/")[0]
        rank = (
            not (part["tilt"].median() < MAX_TILT and len(part) >= MIN_SLICES),
            bool(CONTRAST.search(folders)),
            not MIN_SPACING <= gap <= MAX_SPACING,
            bool(BONE.search(folders)),
            -len(part),
            abs(gap - SPACING) if np.isfinite(gap) else np.inf,
            str(series),
        )
        found.append((rank, part.index.to_numpy(), gap))
    return found


def _why(rank: tuple, gap: float) -> str:
    if rank[0]:
        return "not axial, or too few slices"
    if rank[1]:
        return "with contrast"
    if rank[2]:
        return "thin" if gap < MIN_SPACING else "slices far apart or without position"
    return "bone" if rank[3] else "shorter or further from 5 mm"

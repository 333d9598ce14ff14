"""CQ500: outside validation on the scans of other hospitals; folders CQ500CT<n>, reads.csv of three readers.

Chilamkurthy et al., "Deep learning algorithms for detection of critical findings in head CT scans", The Lancet 392
(2018). A scan has several series: thin ones, with contrast, bone. One is scored, the one most like the series that the
ensemble was trained on; another patient's files that lie in a scan's folder are refused.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from ich.data import files as found_files
from ich.data.competitions import layout
from ich.data.competitions.layout import SUBTYPES, Choice, LayoutError, Raw
from ich.data.dicom import Reason

SUBMITS = "probabilities"
CLASSES = (*SUBTYPES, "any")
FINDINGS = {
    "ICH": "any",
    "IPH": "intraparenchymal",
    "IVH": "intraventricular",
    "SDH": "subdural",
    "EDH": "epidural",
    "SAH": "subarachnoid",
}
OTHER = (".csv", ".md", ".zip")  # files that are no slices
READERS = ("R1", "R2", "R3")
SCAN = re.compile(r"CQ500-?CT-?(\d+)", re.IGNORECASE)
USUAL, LEAST, MOST = 5.0, 2.0, 6.0  # mm between slices: of RSNA 2019, and what counts as like it
STEEPEST = 45.0  # degrees; further tilted planes are no axial ones
FEWEST = 8  # slices of a series that shows a head
CONTRAST = re.compile(r"contrast|cect|post|angio|cta\b|ce\b|perfusion", re.IGNORECASE)
BONE = re.compile(r"bone|sharp", re.IGNORECASE)


def raw(root: Path) -> Raw:
    """Read the layout below `root`: every file below a folder of a scan; the labels are the readers' (`reads`)."""
    layout.require_folder(root)
    reads(root)
    paths = layout.find(
        root, "", lambda name: not name.startswith(".") and not name.lower().endswith((".csv", ".md", ".zip"))
    )
    scans = [scan_of(path) for path in paths]
    inside = [path for path, scan in zip(paths, scans, strict=True) if scan]
    if not inside:
        raise LayoutError(f"{root}: no file below a folder CQ500CT<number>; unpack the scans there")
    notes = [f"{len(paths) - len(inside)} files lie in no scan's folder and are left aside"]
    files = layout.file_table(found_files.image_ids(inside), "test", inside)
    labels = pd.DataFrame({"image_id": pd.Series(dtype="str")} | {c: pd.Series(dtype="float32") for c in CLASSES})
    weights: dict[str, float] = dict.fromkeys(CLASSES, 1.0)
    return Raw(files, labels, [], weights, "", tuple(notes[: len(paths) > len(inside)]), choose=choose)


def solution(root: Path) -> None:
    """None: the truth is a scan's, not a slice's (`reads`)."""


def submission(root: Path, values: pd.DataFrame) -> pd.DataFrame:
    raise LayoutError("cq500 is for outside validation; there is nothing to submit")


def scan_of(text: str) -> str:
    """CQ500-CT-<n> for a path or a patient's id that names a scan; nothing for another."""
    found = SCAN.search(text)
    return f"CQ500-CT-{int(found[1])}" if found else ""


def reads(root: Path) -> pd.DataFrame:
    """The truth a scan: scan, and 0 or 1 a finding (ICH, IPH, IVH, SDH, EDH, SAH), by majority of three readers."""
    path = layout.first_existing(root, ("reads.csv",), "table of the readers")
    names = [f"{reader}:{finding}" for finding in FINDINGS for reader in READERS]
    table = layout.read_columns(path, ("name", *names))
    scans = table["name"].map(lambda name: scan_of(str(name)))
    layout.refuse_rows(path, scans == "", table["name"], "a name CQ500-CT-<number>")
    layout.refuse_rows(path, scans.duplicated(), table["name"], "each scan once")
    for name in names:
        table[name] = layout.digits(path, table[name], f"in column {name!r}")
    found = pd.DataFrame({"scan": scans})
    for finding in FINDINGS:
        found[finding] = (table[[f"{reader}:{finding}" for reader in READERS]].sum(axis=1) >= 2).astype("int8")
    return found.sort_values("scan", ignore_index=True)


def choose(table: pd.DataFrame) -> Choice:
    """Of each scan's folder the slices of one series; `table` holds series together, in order of position.

    Refused are files of another patient than the scan's: one whose id names another scan, or, where ids name none, one
    of the patients with fewer files. Of the rest that series stays which is axial, 2 to 6 mm from slice to slice,
    without contrast and no bone series by its folders' names, in this order of weight, and then has the most slices.
    Where only thin slices are left, every k-th stays, so that they are about 5 mm apart.
    """
    table = table.reset_index(drop=True)
    scan = table["path"].map(scan_of)
    foreign = _foreign(table, scan)
    keep = pd.Series(False, index=table.index)
    reasons = {
        int(i): (Reason.OTHER_PATIENT.name.lower(), str(table.at[i, "patient_id"])) for i in table.index[foreign]
    }
    counts: Counter[str] = Counter()
    for _, rows in table[~foreign].groupby(scan[~foreign], sort=True):
        ranked = sorted(_series(rows), key=lambda s: s[0])
        (rank, wanted, gap), *others = ranked
        if rank[0]:
            counts["scans without an axial series"] += 1
        step = max(1, round(USUAL / gap)) if np.isfinite(gap) and 0 < gap < LEAST else 1
        counts["scans of thin slices alone, thinned to about 5 mm"] += step > 1
        keep[wanted[::step]] = True
        reasons |= {
            int(i): (Reason.OTHER_SERIES.name.lower(), "between two that stay") for i in wanted if not keep[int(i)]
        }
        for other, index, distance in others:
            why = _why(other, distance)
            counts[f"series left aside: {why}"] += 1
            reasons |= {int(i): (Reason.OTHER_SERIES.name.lower(), why) for i in index}
    notes = [f"{count} {what}" for what, count in sorted(counts.items()) if count]
    if foreign.any():
        where = ", ".join(sorted(set(scan[foreign]))[:5])
        notes.append(f"{int(foreign.sum())} files of other patients refused, in {where}")
    return Choice(keep, reasons, tuple(notes))


def _foreign(table: pd.DataFrame, scan: pd.Series) -> pd.Series:
    """bool [n]: the file is of another patient than its folder."""
    named = table["patient_id"].map(scan_of)
    foreign = (named != "") & (named != scan)
    unnamed = ~foreign & (named == "")
    for _, patients in table[unnamed]["patient_id"].groupby(scan[unnamed]):
        owner = patients.value_counts().sort_index(kind="stable").idxmax()
        foreign[patients.index] = patients != owner
    return foreign


def _series(rows: pd.DataFrame) -> list[tuple[tuple, np.ndarray, float]]:
    """(rank, row labels, gap in mm) of each series of a scan; the lowest rank is the best."""
    found = []
    for series, part in rows.groupby("series_id", sort=True):
        gap = float(np.median(np.diff(part["position"].to_numpy("float64")))) if len(part) > 1 else float("nan")
        gap = abs(gap)
        folders = part["path"].iloc[0].rpartition("/")[0]
        rank = (
            not (part["tilt"].median() < STEEPEST and len(part) >= FEWEST),
            bool(CONTRAST.search(folders)),
            not LEAST <= gap <= MOST,
            bool(BONE.search(folders)),
            -len(part),
            abs(gap - USUAL) if np.isfinite(gap) else np.inf,
            str(series),
        )
        found.append((rank, part.index.to_numpy(), gap))
    return found


def _why(rank: tuple, gap: float) -> str:
    if rank[0]:
        return "not axial, or a few slices"
    if rank[1]:
        return "with contrast"
    if rank[2]:
        return "thin" if gap < LEAST else "slices far apart or without position"
    return "bone" if rank[3] else "shorter or further from 5 mm"

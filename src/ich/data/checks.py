"""Checks of a competition's tables for `ich check`; each returns findings (see `ich.data.findings`)."""

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from ich.data import folds as folding
from ich.data import rules
from ich.data.dicom import Reason
from ich.data.files import INSIDE, SUFFIXES, escaped
from ich.data.findings import findings, joined
from ich.data.rules import Fault
from ich.data.slice_table import SERIES, Quarantined

TILTED = 1.0  # degrees above which a series is tilted
NOT_AXIAL = 45.0
SAME_TILT = 0.5  # maximum difference in degrees within a series
IRREGULAR = 0.1  # maximum difference of the gaps of a series, as a share of their median
LONG_GAP = 2.0  # in median gaps: a slice may be missing


# ---- columns and values that do not belong


def misfits(table: pd.DataFrame, faults: Iterable[Fault], where: str, *, lines: bool = False) -> pd.DataFrame:
    """The cells of a table that break a rule of `ich.data.rules`.

    where: name of the table.
    lines: the table is a file; its rows are numbered as in an editor.
    """
    key = "image_id" if "image_id" in table else table.columns[0]
    found = [findings("value_out_of_place", [])]
    for fault in faults:
        rows, column, expected = fault
        if len(rows):
            names, cells = where + ": " + table[key].iloc[rows].astype(str), table[column].iloc[rows].astype(str)
            details = column + ": " + cells + "; " + expected
        else:
            names, details, rows = [where], [f"{column}: {expected}"], np.array([-1])  # the header
        found.append(findings("value_out_of_place", names, details, rows + 2 if lines else ""))
    return joined(*found)


# ---- files and labels


def extra_files(present: Iterable[str], known: Iterable[str]) -> pd.DataFrame:
    """Files below the competition's folder that its format does not read; at the top level, image files only."""

    def reported(name: str) -> bool:
        path = PurePosixPath(name)
        return len(path.parts) > 1 or path.suffix.lower() in ("", *SUFFIXES)

    read = {part for name in known for part in (name, name.rpartition(INSIDE)[0])}
    return findings("extra_file", sorted(name for name in set(map(escaped, present)) - read if reported(name)))


def quarantined(refused: Sequence[Quarantined]) -> pd.DataFrame:
    """Files that prepare would quarantine, with the reason, and listed images without a file."""
    without_file, other_series = (r.name.lower() for r in (Reason.LABEL_WITHOUT_FILE, Reason.OTHER_SERIES))
    missing = [q for q in refused if q.reason == without_file]
    files = [q for q in refused if q.reason not in (without_file, other_series)]
    return joined(
        findings("other_series", [q.path for q in refused if q.reason == other_series]),
        findings("quarantined", [q.path for q in files], [f"{q.reason}: {q.detail}".rstrip(": ") for q in files]),
        findings("label_without_file", [q.image_id for q in missing if q.split == "train"]),
        findings("test_image_without_file", [q.image_id for q in missing if q.split == "test"]),
    )


def coverage(
    table: pd.DataFrame, classes: Sequence[str], test_ids: Sequence[str], splits: Sequence[str] = ("train", "test")
) -> pd.DataFrame:
    """Readable slices and studies without label or not in the sample submission; `splits` without readable slice."""
    train, test = table["split"] == "train", table["split"] == "test"
    missing = table[list(classes)].isna()
    bare = missing.all(axis=1).groupby(table["study_id"]).transform("all")  # no label in the study
    unlisted = table.loc[test & ~table["image_id"].isin(test_ids), "path"] if test_ids else []
    return joined(
        findings("nothing_to_read", [s for s in splits if not (table["split"] == s).any()], "no readable slice"),
        findings("file_without_label", table.loc[train & missing.any(axis=1) & ~bare, "path"]),
        findings("unlabelled_study", table.loc[train & bare, "study_id"].unique()),
        findings("test_file_not_asked_for", unlisted),
    )


# ---- duplicates


def duplicates(rule: str, table: pd.DataFrame, column: str, remarks: pd.Series | None = None) -> pd.DataFrame:
    """Rows that repeat an earlier value of `column`, with the path of the first row with that value."""
    first = table.groupby(column, sort=False)["path"].transform("first")
    again = table[column].duplicated()
    detail = "the same as " + first + ("" if remarks is None else remarks)
    return findings(rule, table.loc[again, "path"], detail[again])


def duplicate_images(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Slices that share SOPInstanceUID or pixels; table: the slice table with instance_uid, digest and blank."""
    named = table[table["instance_uid"] != ""]
    images = table[~table["blank"]]
    groups, names = images.groupby("digest", sort=False), list(classes)
    differ = (groups[names].transform("min") != groups[names].transform("max")) & images[names].notna()
    remarks = pd.Series("", index=images.index)
    remarks[groups["patient_id"].transform("nunique") > 1] += "; of another patient"
    remarks[groups["split"].transform("nunique") > 1] += "; in train and test"
    remarks[differ.any(axis=1)] += "; with other labels"
    return joined(
        duplicates("duplicate_uid", named, "instance_uid"),
        duplicates("duplicate_pixels", images, "digest", remarks),
        findings("blank_image", table.loc[table["blank"], "path"]),
    )


# ---- patients and classes


def patients(table: pd.DataFrame, *, excluded: bool) -> pd.DataFrame:
    """Patients in both splits (`excluded`: prepare excludes their training studies), studies of two patients."""
    studies = table.drop_duplicates(["split", "study_id", "patient_id"])
    counts = studies.groupby(["patient_id", "split"]).size().unstack(fill_value=0).reindex(columns=["train", "test"])
    both = counts[(counts > 0).all(axis=1)]
    detail = both["train"].astype(str) + " training studies, " + both["test"].astype(str) + " test studies"
    owners = table.groupby("study_id")["patient_id"].agg(["nunique", "min", "max"])
    owners = owners[owners["nunique"] > 1]
    return joined(
        findings("overlap_left_out" if excluded else "patient_in_train_and_test", both.index, detail),
        findings("study_of_two_patients", owners.index, owners["min"] + ", " + owners["max"]),
    )


def patients_for_folds(table: pd.DataFrame, classes: Sequence[str], n: int) -> pd.DataFrame:
    """Check that the labelled patients can fill `n` folds."""
    fault = folding.too_few_patients(folding.labelled_slices(table, classes), n)
    return findings("too_few_patients", ["training set"] if fault else [], fault)


def prevalence(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Positives per class among the labelled training slices, and classes without positives or negatives."""
    labelled = folding.labelled_slices(table, classes)
    if labelled.empty:
        return findings("prevalence", [])
    slices, n = labelled[list(classes)].sum().astype(int), len(labelled)
    studies = labelled.groupby("study_id")[list(classes)].max()
    detail = [
        f"{slices[c]} of {n} slices ({slices[c] / n:.2%}), {int(studies[c].sum())} of {len(studies)} studies"
        for c in classes
    ]
    return joined(
        findings("class_without_positives", [c for c in classes if slices[c] == 0]),
        findings("class_without_negatives", [c for c in classes if slices[c] == n]),
        findings("prevalence", classes, detail),
    )


def folds(assigned: pd.DataFrame, table: pd.DataFrame, classes: Sequence[str], n: int, where: str) -> pd.DataFrame:
    """Check the fold table (all columns as text) against rules and slices; prevalence per class and fold."""
    if faults := list(rules.fold_cells(assigned, classes, n)):
        return misfits(assigned, faults, where, lines=True)
    assigned = assigned.astype({"fold": int} | dict.fromkeys(classes, int))
    labelled, key = folding.labelled_slices(table, classes), rules.fold_key(assigned)
    if faults := list(rules.folds(assigned, labelled, n)):
        return findings("folds", [where] * len(faults), [rules.describe(one, assigned, key) for one in faults])
    shares = labelled.groupby(labelled[key].map(assigned.set_index(key)["fold"]))[list(classes)].mean()
    gaps = folding.missing_classes(assigned, list(classes), n)
    details = [", ".join(f"fold {k} {share:.2%}" for k, share in shares[c].items()) for c in classes]
    return joined(
        findings("fold_without_class", [c for _, c in gaps], [f"fold {k} has no positive study" for k, _ in gaps]),
        findings("fold_prevalence", classes, details),
    )


# ---- studies and series


def lengths(table: pd.DataFrame) -> pd.DataFrame:
    """Shortest, median and longest study, and studies of one slice."""
    sizes = table.groupby("study_id").size()
    if sizes.empty:
        return findings("study_lengths", [])
    short, long = sizes.idxmin(), sizes.idxmax()
    detail = (
        f"{len(sizes)} studies of {sizes.min()} to {sizes.max()} slices, median {sizes.median():g};"
        f" shortest {short}, longest {long}"
    )
    return joined(findings("single_slice", sizes.index[sizes == 1]), findings("study_lengths", ["all studies"], detail))


def positions(table: pd.DataFrame) -> pd.DataFrame:
    """Positions, gaps and tilt of the series of the slice table."""
    series = table.groupby(SERIES, sort=False)
    code = series.ngroup()
    of = series[["study_id", "series_id"]].first().agg("/".join, axis=1).reset_index(drop=True)
    placed = table["position"].notna().groupby(code).all()
    tilt = table["tilt"].groupby(code).agg(["min", "max"])
    step = series["position"].diff().abs().where(code.map(placed))
    same = step < rules.SAME_PLACE
    gaps = step[~same].groupby(code).agg(["min", "median", "max"])
    long = gaps["max"] > LONG_GAP * gaps["median"] * 0.99  # 0.99: positions are rounded
    uneven = ~long & (gaps["max"] - gaps["min"] > IRREGULAR * gaps["median"])
    spread = _rounded(gaps["min"]) + " to " + _rounded(gaps["max"]) + " mm, median " + _rounded(gaps["median"])
    mixed = tilt["max"] - tilt["min"] > SAME_TILT
    across = ~mixed & (tilt["min"] > NOT_AXIAL)
    tilted = ~mixed & ~across & (tilt["max"] > TILTED)
    angle = _rounded(tilt["min"]) + " to " + _rounded(tilt["max"]) + " degrees"
    before = table["image_id"].shift()
    return joined(
        findings("no_position", of[~placed & (code.value_counts(sort=False) > 1)]),
        findings("duplicate_position", table.loc[same, "path"], "same position as " + before[same].astype(str)),
        findings("gap", of[long], spread[long]),
        findings("irregular_spacing", of[uneven], spread[uneven]),
        findings("mixed_tilt", of[mixed], angle[mixed]),
        findings("not_axial", of[across], angle[across]),
        findings("tilted", of[tilted], angle[tilted]),
    )


def _rounded(values: pd.Series) -> pd.Series:
    return values.round(2).astype(str)


def mixtures(table: pd.DataFrame) -> pd.DataFrame:
    """Studies with several series, or with slices of several sizes."""
    studies = table.groupby(["split", "study_id"], sort=False)
    series = studies["series_id"].nunique()
    size = table["rows"].astype(str) + " x " + table["columns"].astype(str)
    sizes = size.groupby([table["split"], table["study_id"]], sort=False).agg(["nunique", "min", "max"])
    sizes = sizes[sizes["nunique"] > 1]
    series = series[series > 1]
    return joined(
        findings("mixed_series", series.index.get_level_values(1), series.astype(str) + " series"),
        findings("mixed_sizes", sizes.index.get_level_values(1), sizes["min"] + ", " + sizes["max"]),
    )

"""Folds by patient, stratified by all classes; and random subsets of the patients."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.data import rules

# Measured on tables of 84 to 17,079 patients: with 1, the rarest class deviates by 1 to 24 % in the worst fold; with 4,
# by 0.3 to 2.5 %, and every fold still has the same number of its patients, give or take one.
SLICES_OVER_PATIENTS = 4


def labelled_slices(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """The training slices with a label for every class."""
    return table[table[list(classes)].notna().all(axis=1) & (table["split"] == "train")]


def assign(table: pd.DataFrame, classes: list[str], n: int, seed: int) -> pd.DataFrame:
    """Assign each labelled study to a fold: study_id, patient_id, fold, and per class 1 if any slice is positive.

    Greedy: patients are sorted by their share of all classes, largest first, so that rare classes come first. Each is
    put where the sum over classes of squared shares grows least. A class is measured by its positive slices and, with
    less weight, by its positive patients, which spreads a class with few patients over all folds. `seed` breaks ties.

    Raises ValueError if there are fewer patients than folds.
    """
    labelled = labelled_slices(table, classes)
    owners = labelled.groupby("study_id")["patient_id"].nunique()
    if (owners > 1).any():
        raise ValueError(f"study {owners.index[owners > 1][0]} belongs to two patients")
    slices = labelled.groupby("patient_id", sort=True)[classes].sum()
    if fault := too_few_patients(labelled, n):
        raise ValueError(fault)
    size = labelled.groupby("patient_id", sort=True).size()
    by_slice, by_patient = np.column_stack([slices, size]), np.column_stack([slices > 0, np.ones(len(slices))])
    load = np.hstack([SLICES_OVER_PATIENTS * _shares(by_slice), _shares(by_patient)])
    fold = _greedy(load, n, np.random.default_rng(seed))
    of_patient = pd.Series(fold, index=slices.index, name="fold")

    studies = labelled.groupby("study_id", sort=True)
    result = studies[["patient_id"]].first()
    result["fold"] = of_patient.loc[result["patient_id"]].to_numpy()
    result[classes] = studies[classes].max().astype("int8")
    result = result.reset_index()
    rules.require(rules.folds(result, labelled, n), result, "study_id")
    return result


def assign_slices(table: pd.DataFrame, classes: list[str], n: int, seed: int) -> pd.DataFrame:
    """Assign each labelled slice to a random fold: image_id, study_id, patient_id, fold and the labels.

    For comparison only: similar slices of a patient are in several folds, so that the scores are too optimistic for
    new patients. (docs/background/seeds.md, dual path: training data split 8:2 at random.)

    Fold sizes differ by at most one slice. Raises ValueError if there are fewer slices than folds.
    """
    labelled = labelled_slices(table, classes).sort_values("image_id")
    if len(labelled) < n:
        raise ValueError(
            f"{len(labelled)} labelled slices cannot fill {n} folds; set folds.n to {max(len(labelled), 2)}"
        )
    fold = np.random.default_rng(seed).permutation(np.arange(len(labelled)) % n)
    result = labelled[["image_id", "study_id", "patient_id"]].reset_index(drop=True).assign(fold=fold)
    result[classes] = labelled[classes].to_numpy().astype("int8")
    return result


def patient_share(patients: Sequence[str], positive: NDArray[np.bool_], share: float, seed: int) -> NDArray[np.bool_]:
    """Select the rows [n] of a random `share` of the patients: for an inner validation set, or a part of the labels.

    patients [n]: the patient of each row. positive [n]: rows with a bleed. The draw is stratified: patients with and
    without a bleed are drawn separately and rounded to whole patients, of two or more at least one but not all. A
    share of 1 selects everyone. The order of the rows does not matter; a larger share includes the smaller.

    Raises ValueError if there are too few patients to draw some but not all.
    """
    names, of_row = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    bleeds = np.bincount(of_row, weights=positive, minlength=len(names)) > 0
    random = np.random.default_rng(seed)
    drawn = np.full(len(names), share == 1)
    for kind in (bleeds, ~bleeds):
        order = random.permutation(np.flatnonzero(kind))
        wanted = round(share * len(order))
        drawn[order[: min(max(wanted, 1), len(order) - 1) if len(order) > 1 else wanted]] = True
    if share < 1 and (drawn.all() or not drawn.any()):
        raise ValueError(f"{len(names)} patients are too few to draw some but not all of them")
    return drawn[of_row]


def _shares(counts: np.ndarray) -> np.ndarray:
    """Scale each column to a sum of 1; a column of zeros stays 0."""
    return counts / np.maximum(counts.sum(axis=0), 1)


def _greedy(load: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """Assign each row of `load` [patients, measures] to a fold."""
    order = np.lexsort((random.permutation(len(load)), -load.sum(axis=1)))
    filled = np.zeros((n, load.shape[1]))
    fold = np.empty(len(load), dtype=np.int64)
    for patient in order:
        # (f + x)^2 - f^2 without x^2, which is the same for every fold
        growth = filled @ load[patient]
        best = int(np.flatnonzero(growth <= growth.min() + 1e-15)[0])
        fold[patient] = best
        filled[best] += load[patient]
    return fold


def fold_of(assigned: pd.DataFrame, labelled: pd.DataFrame) -> pd.Series:
    """The fold of each labelled slice by image_id, NaN if it has none; of a duplicate key, the first row counts."""
    key = rules.fold_key(assigned)
    fold = assigned.drop_duplicates(key).set_index(key)["fold"].astype("float64")
    return pd.Series(labelled[key].map(fold).to_numpy(), index=labelled["image_id"], dtype="float64")


def too_few_patients(labelled: pd.DataFrame, n: int) -> str:
    """Why the labelled slices cannot fill `n` folds, and what to do; empty if they can."""
    patients, studies = labelled["patient_id"].nunique(), labelled["study_id"].nunique()
    if patients >= n:
        return ""
    if patients == 1 and studies > 1:
        remedy = "add a column patient_id to labels.csv, or set one PatientID per patient in the files"
        return f"all {studies} labelled studies have the same PatientID; {remedy}"
    remedy = f"set folds.n to {patients}" if patients > 1 else "label studies of more patients"
    return f"{patients} labelled patients cannot fill {n} folds; {remedy}"


def unknown_patients(table: pd.DataFrame) -> list[str]:
    """The studies without PatientID, each of which counts as a patient of its own."""
    return table.loc[table["patient_id"] == table["study_id"], "study_id"].unique().tolist()


def missing_classes(folds: pd.DataFrame, classes: list[str], n: int) -> list[tuple[int, str]]:
    """List the (fold, class) pairs without a positive study, for classes with at least `n` positive patients."""
    counts = folds.groupby("fold")[classes].sum().reindex(range(n), fill_value=0)
    patients = folds.groupby("patient_id")[classes].max().sum()
    return [(k, c) for c in classes for k in range(n) if patients[c] >= n and counts.loc[k, c] == 0]

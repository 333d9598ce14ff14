"""A random slice table of RSNA 2019's size; the competition's own table cannot be redistributed."""

import numpy as np
import pandas as pd

SLICES, PATIENTS, STUDIES = 752_803, 17_079, 19_530
REPEATED, MOST_STUDIES = 1_536, 15  # patients with several studies, and the most that one has
POSITIVES = {
    "epidural": 3_145,
    "intraparenchymal": 36_118,
    "intraventricular": 26_205,
    "subarachnoid": 35_675,
    "subdural": 47_166,
}
BLEEDING = 0.4  # share of the studies with any bleed
RUN = 9.0  # mean number of adjacent slices that show the same bleed


def rsna_sized(seed: int = 7) -> pd.DataFrame:
    """Draw image_id, study_id, patient_id, split and one 0/1 column per class; bleeds are runs of slices."""
    random = np.random.default_rng(seed)
    owner = np.concatenate([np.arange(PATIENTS), np.arange(REPEATED), np.zeros(MOST_STUDIES - 2, dtype=int)])
    spare = STUDIES - len(owner)
    owner = np.sort(np.concatenate([owner, 1 + random.integers(REPEATED - 1, size=spare)]))
    length = random.integers(20, 58, size=STUDIES).astype(float)
    length = np.floor(length * SLICES / length.sum()).astype(int)
    length[: SLICES - length.sum()] += 1
    study = np.repeat(np.arange(STUDIES), length)
    first = np.cumsum(length) - length
    bleeding = np.flatnonzero(random.random(STUDIES) < BLEEDING)
    columns = {name: np.zeros(SLICES) for name in POSITIVES}
    for name, count in POSITIVES.items():
        columns[name][_runs(random, count, first, length, random.permutation(bleeding))] = 1
    table = pd.DataFrame(
        {
            "image_id": np.arange(SLICES),  # numbers: tables of text of this size are slow
            "study_id": study,
            "patient_id": owner[study],
            "split": "train",
        }
    )
    table[list(columns)] = pd.DataFrame(columns)
    table["any"] = table[list(columns)].max(axis=1)
    return table


def _runs(
    random: np.random.Generator, count: int, first: np.ndarray, length: np.ndarray, studies: np.ndarray
) -> np.ndarray:
    """Choose `count` rows: one run of adjacent slices per study, in the first of `studies`."""
    run = np.minimum(random.geometric(1 / RUN, size=len(studies)), length[studies])
    studies = studies[: np.searchsorted(np.cumsum(run), count) + 1]
    run = run[: len(studies)]
    start = first[studies] + random.integers(length[studies] - run + 1)
    rows = np.repeat(start - (np.cumsum(run) - run), run) + np.arange(run.sum())
    return rows[:count]

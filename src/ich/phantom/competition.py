"""The synthetic competition's files: DICOM slices, label tables and the hidden solution, laid out like RSNA 2019.

masks.npz and mislabelled.csv contain the bleeds and the wrong labels. Only a CNN with `masks` is trained on the former.
"""

import csv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ich.data import dicom
from ich.phantom.bleeds import draw_kinds
from ich.phantom.masks import add_mask
from ich.phantom.scanner import Scanners
from ich.phantom.study import CLASSES, LABELS, make_study, stream
from ich.processes import run_parallel

REAL_SIZE = 512  # rows of RSNA 2019; files of this size have its two kinds of file meta information
RATES = {"rsna2019": 0.37, "raised": 0.62}  # share of the patients with a bleed
QUOTA = (0.13, 0.26, 0.22, 0.25, 0.27)  # raised: minimum share of the patients, per subtype
WRONG = 0.035  # rate of wrong labels in bleeding studies
PLAN = 7  # a random stream that no study uses

Labels = NDArray[np.uint8]
Prevalence = Literal["raised", "rsna2019"]


@dataclass(frozen=True)
class PlannedStudy:
    """A study to be made. kinds: the subtypes that bleed (indices into CLASSES)."""

    patient: int
    study: int
    split: str  # train or test
    kinds: tuple[int, ...]


def plan_competition(
    *, train_studies: int, test_studies: int, seed: int, prevalence: Prevalence = "raised"
) -> list[PlannedStudy]:
    """Plan the studies and bleeds of each patient; no patient is in both splits.

    About an eighth of the patients have two studies. prevalence: rsna2019 makes subtypes as frequent as in RSNA 2019;
    raised makes the rare ones more frequent, so that every class has patients in each of a few folds.
    """
    if train_studies < 1 or test_studies < 1:
        raise ValueError(f"train_studies and test_studies must be at least 1, got {train_studies} and {test_studies}")
    planned: list[PlannedStudy] = []
    patient = 0
    for split, count in (("train", train_studies), ("test", test_studies)):
        sizes: list[int] = []
        while sum(sizes) < count:
            twice = stream(seed, patient + len(sizes), 0, PLAN).random() < 0.13
            sizes.append(2 if twice and sum(sizes) + 2 <= count else 1)
        streams = [stream(seed, patient + p, 1, PLAN) for p in range(len(sizes))]
        kinds = [draw_kinds(rng, RATES[prevalence]) for rng in streams]
        if prevalence == "raised":
            # More patients get the rare subtypes: first those that bleed already, last the healthy ones.
            for kind, share in enumerate(QUOTA):
                missing = int(np.ceil(share * len(kinds))) - sum(kind in k for k in kinds)
                without = sorted((k for k in kinds if kind not in k), key=lambda k: (not k, len(k)))
                for chosen in without[: max(missing, 0)]:
                    chosen.append(kind)
        for p, count_of in enumerate(sizes):
            planned += [PlannedStudy(patient + p, s, split, tuple(sorted(kinds[p]))) for s in range(count_of)]
        patient += len(sizes)
    return planned


def wrong_labels(labels: Labels, rng: np.random.Generator) -> Labels:
    """Add errors to labels [slices, 6]: ends of a lesion missed or extended, one subtype taken for another.

    The two labels at an end of a lesion are wrong with probability 2 WRONG each; in a positive slice, a subtype is
    replaced with probability WRONG / 3.
    """
    written = labels.copy()
    for k in range(5):
        for end in np.flatnonzero(np.diff(labels[:, k].astype(np.int8))):
            for row in (end, end + 1):
                if rng.random() < 2 * WRONG:
                    written[row, k] ^= 1
    for row in np.flatnonzero(labels[:, 5]):
        if rng.random() < WRONG / 3:
            taken, given = rng.choice(np.flatnonzero(labels[row, :5])), rng.integers(5)
            written[row, taken], written[row, given] = 0, 1
    written[:, 5] = written[:, :5].max(1)
    return written


def _write_study(
    root: Path, planned: PlannedStudy, seed: int, slices: int, size: int, scanners: Scanners
) -> tuple[tuple[str, ...], Labels, Labels, dict[str, NDArray[np.uint8]]]:
    """Make and write one study; returns image ids, written labels, true labels, masks of the slices with a bleed."""
    cv2.setNumThreads(1)  # studies are made in parallel
    of = planned.patient, planned.study
    study = make_study(seed, *of, slices=slices, size=size, kinds=planned.kinds, scanners=scanners)
    scan = study.scan
    for image_id, hu, (x, y, z) in zip(study.image_ids, study.hu, scan.positions.tolist(), strict=True):
        header = dicom.SliceHeader(
            image_id=image_id,
            patient_id=study.patient_id,
            study_id=study.study_id,
            series_id=study.series_id,
            position=(x, y, z),
            orientation=scan.orientation,
            pixel_spacing=(scan.pixel, scan.pixel),
            bits_stored=16 if scan.signed else 12,
            signed=scan.signed,
            slope=1.0,
            intercept=scan.intercept,
            window_center=(30.0,) if scan.signed else (36.0, 36.0),
            window_width=(80.0,) if scan.signed else (80.0, 80.0),
            explicit_vr=scan.explicit_vr,
            short_meta=size == REAL_SIZE and not scan.explicit_vr,
        )
        values = hu.astype(np.int32) - int(scan.intercept)
        stored = values.astype(np.int16) if scan.signed else np.clip(values, 0, 4095).astype(np.uint16)
        dicom.write(root / f"stage_2_{planned.split}" / f"{image_id}.dcm", stored, header)
    written = study.labels
    if planned.split == "train":
        written = wrong_labels(study.labels, stream(seed, *of, LABELS))
    masks = {study.image_ids[k]: study.masks[k] for k in np.flatnonzero(study.labels[:, 5])}
    return study.image_ids, written, study.labels, masks


def write_competition(
    root: Path,
    *,
    train_studies: int,
    test_studies: int,
    slices: int,
    size: int,
    seed: int,
    prevalence: Prevalence = "raised",
    scanners: Scanners = "usual",
    jobs: int = 1,
    on_progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Write a competition into the new or empty folder `root`; the same bytes with any number of `jobs`.

    slices: mean number per study. size: rows and columns. prevalence: see `plan_competition`. scanners: see
    `ich.phantom.scanner.draw_scan`. `on_progress(1)` is called after each study.
    Raises ValueError if `root` is not empty.
    """
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        raise ValueError(f"{root} is not empty; choose a new folder for the competition")
    for split in ("train", "test"):
        (root / f"stage_2_{split}").mkdir()
    planned = plan_competition(train_studies=train_studies, test_studies=test_studies, seed=seed, prevalence=prevalence)
    made = run_parallel(_write_study, [(root, p, seed, slices, size, scanners) for p in planned], jobs)
    slices_of: dict[str, list[tuple[str, list[int], list[int]]]] = {"train": [], "test": []}
    with zipfile.ZipFile(root / "masks.npz", "w") as archive:
        for p, (image_ids, written, true, masks) in zip(planned, made, strict=True):
            slices_of[p.split] += zip(image_ids, written.tolist(), true.tolist(), strict=True)
            for image_id, mask in masks.items():
                add_mask(archive, image_id, mask)
            on_progress(1)
    # Six rows per slice: name, label as written, true label. Sorted by random ids, they do not show the slices' order.
    train, test = (
        [
            (f"{image_id}_{name}", label, truth)
            for image_id, *labels in sorted(slices_of[split])
            for name, label, truth in zip(CLASSES, *labels, strict=True)
        ]
        for split in ("train", "test")
    )
    tables = {
        "stage_2_train.csv": [("ID", "Label"), *((name, label) for name, label, _ in train)],
        "stage_2_sample_submission.csv": [("ID", "Label"), *((name, 0.5) for name, _, _ in test)],
        "solution.csv": [("ID", "Label"), *((name, truth) for name, _, truth in test)],
        "mislabelled.csv": [("ID", "Label_written", "Label_true"), *(row for row in train if row[1] != row[2])],
    }
    for name, rows in tables.items():
        with (root / name).open("w", newline="", encoding="ascii") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

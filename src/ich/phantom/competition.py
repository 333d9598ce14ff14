"""The synthetic competition on disk: DICOM slices, label tables and the hidden solution, as RSNA 2019 lays them out.

Beside them masks.npz says where the bleeds are, which no stage reads that trains.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ich.data import dicom
from ich.phantom.masks import Masks, mask_writer
from ich.phantom.study import CLASSES, LABELS, Study, draw_kinds, make_study, stream
from ich.processes import side_by_side

__all__ = [
    "CLASSES",
    "CompetitionSummary",
    "PlannedStudy",
    "Study",
    "make_study",
    "plan_competition",
    "write_competition",
]

LARGE = 1000  # training studies from which on prevalence is the real one and no quota holds
REAL_RATE, DEMO_RATE = 0.39, 0.62  # share of studies with a bleed
QUOTA = (0.13, 0.26, 0.22, 0.25, 0.27)  # of a small competition's studies, a subtype
WRONG = 0.035  # chance that the labels near a lesion's end are written wrong, a slice of a bleeding study
PLAN = 7  # random streams: the competition's own purposes follow a study's

_Written = tuple[tuple[str, ...], NDArray[np.uint8], NDArray[np.uint8], Masks]  # image ids, labels as written, true


@dataclass(frozen=True)
class PlannedStudy:
    """One study to be made: whose, which, where it goes and what bleeds in it (indices into CLASSES)."""

    patient: int
    study: int
    split: str
    kinds: tuple[int, ...]


@dataclass(frozen=True)
class CompetitionSummary:
    """What was written."""

    train_slices: int
    test_slices: int
    train_positives: dict[str, int]  # true ones, slices a class
    test_positives: dict[str, int]
    mislabelled: int  # rows of mislabelled.csv


def _fill_quota(kinds: list[list[int]]) -> None:
    """Give rare subtypes to more patients, in place: first to those that bleed already, last to healthy ones."""
    for kind, share in enumerate(QUOTA):
        needed = int(np.ceil(share * len(kinds))) - sum(kind in k for k in kinds)
        order = sorted(range(len(kinds)), key=lambda p: (not kinds[p], len(kinds[p]), p))
        for p in [p for p in order if kind not in kinds[p]][: max(needed, 0)]:
            kinds[p].append(kind)


def plan_competition(*, train_studies: int, test_studies: int, seed: int) -> list[PlannedStudy]:
    """Which patient has which studies and bleeds; nobody is in both splits.

    About an eighth of the patients have two studies. From LARGE training studies on, subtypes are as frequent as in
    RSNA 2019; below, QUOTA raises the rare ones so that every class has patients in each of a few folds.
    """
    if train_studies < 1 or test_studies < 1:
        raise ValueError(f"{train_studies} training and {test_studies} test studies: both must be at least 1")
    large = train_studies > LARGE
    planned: list[PlannedStudy] = []
    patient = 0
    for split, count in (("train", train_studies), ("test", test_studies)):
        sizes: list[int] = []
        while sum(sizes) < count:
            twice = stream(seed, patient + len(sizes), 0, PLAN).random() < 0.13
            sizes.append(2 if twice and sum(sizes) + 2 <= count else 1)
        kinds = [
            draw_kinds(stream(seed, patient + p, 1, PLAN), REAL_RATE if large else DEMO_RATE) for p in range(len(sizes))
        ]
        if not large:
            _fill_quota(kinds)
        for p, studies in enumerate(sizes):
            planned += [PlannedStudy(patient + p, s, split, tuple(sorted(kinds[p]))) for s in range(studies)]
        patient += len(sizes)
    return planned


def wrong_labels(labels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Labels as a hurried reader writes them: ends of a lesion missed or drawn out, one subtype taken for another."""
    written = labels.copy()
    if not labels[:, 5].any():
        return written
    for k in range(5):
        present = labels[:, k]
        edge = np.flatnonzero(np.diff(present.astype(np.int8)))
        for e in edge:
            for row in (e, e + 1):
                if rng.random() < 2 * WRONG:
                    written[row, k] ^= 1
    for row in np.flatnonzero(labels[:, 5]):
        if rng.random() < WRONG / 3:
            seen = np.flatnonzero(labels[row, :5])
            taken, given = int(rng.choice(seen)), int(rng.integers(5))
            written[row, taken], written[row, given] = 0, 1
    written[:, 5] = written[:, :5].max(1)
    return written


def _stored(study: Study, index: int) -> NDArray[np.uint16] | NDArray[np.int16]:
    values = study.hu[index].astype(np.int32) - int(study.intercept)
    return values.astype(np.int16) if study.signed else np.clip(values, 0, 4095).astype(np.uint16)


def _write_study(root: Path, planned: PlannedStudy, seed: int, slices: int, size: int) -> _Written:
    """Make and write one study: its image ids, written labels, true labels, masks of the slices with a bleed."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        study = make_study(
            seed,
            planned.patient,
            planned.study,
            slices=slices,
            size=size,
            bleed_rate=0.0,
            kinds=planned.kinds,
        )
    finally:
        cv2.setNumThreads(threads)
    folder = root / f"stage_2_{planned.split}"
    for k, image_id in enumerate(study.image_ids):
        x, y, z = study.positions[k]
        header = dicom.SliceHeader(
            image_id=image_id,
            patient_id=study.patient_id,
            study_id=study.study_id,
            series_id=study.series_id,
            position=(float(x), float(y), float(z)),
            orientation=study.orientation,
            pixel_spacing=study.pixel_spacing,
            bits_stored=16 if study.signed else 12,
            signed=study.signed,
            slope=1.0,
            intercept=study.intercept,
            window_center=(30.0,) if study.signed else (36.0, 36.0),
            window_width=(80.0,) if study.signed else (80.0, 80.0),
            explicit_vr=study.explicit_vr,
        )
        dicom.write(folder / f"{image_id}.dcm", _stored(study, k), header)
    written = study.labels
    if planned.split == "train":
        written = wrong_labels(study.labels, stream(seed, planned.patient, planned.study, LABELS))
    masks = {study.image_ids[k]: study.masks[k] for k in np.flatnonzero(study.labels[:, 5])}
    return study.image_ids, written, study.labels, masks


def _write_rows(path: Path, header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _long(labels: dict[str, NDArray[np.uint8]]) -> Iterator[tuple[str, int]]:
    """Six rows a slice, in the order of the image ids, which says nothing about the order of the slices."""
    for image_id in sorted(labels):
        for name, value in zip(CLASSES, labels[image_id], strict=True):
            yield f"{image_id}_{name}", int(value)


def _positives(labels: dict[str, NDArray[np.uint8]]) -> dict[str, int]:
    total = np.sum(list(labels.values()), axis=0, dtype=int)
    return {name: int(n) for name, n in zip(CLASSES, total, strict=True)}


def write_competition(
    root: Path,
    *,
    train_studies: int,
    test_studies: int,
    slices: int,
    size: int,
    seed: int,
    jobs: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> CompetitionSummary:
    """Write a competition into the new or empty folder `root`; the same bytes whatever `jobs` is.

    `slices` is the mean number a study, `size` the matrix. `on_progress(done, total)` is called after each study.
    Raises ValueError where `root` holds anything.
    """
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        raise ValueError(f"{root} is not empty; name a new folder for the competition")
    planned = plan_competition(train_studies=train_studies, test_studies=test_studies, seed=seed)
    for split in ("train", "test"):
        (root / f"stage_2_{split}").mkdir()
    tasks = ((root, p, seed, slices, size) for p in planned)
    made: Iterator[_Written] = side_by_side(_write_study, tasks, jobs)
    written: dict[str, dict[str, NDArray[np.uint8]]] = {"train": {}, "test": {}}
    true: dict[str, dict[str, NDArray[np.uint8]]] = {"train": {}, "test": {}}
    with mask_writer(root / "masks.npz") as add_masks:
        for done, (p, (ids, as_written, as_true, masks)) in enumerate(zip(planned, made, strict=True), start=1):
            written[p.split].update(zip(ids, as_written, strict=True))
            true[p.split].update(zip(ids, as_true, strict=True))
            add_masks(masks)
            if on_progress is not None:
                on_progress(done, len(planned))
    wrong = [
        (name, label, truth)
        for (name, label), (_, truth) in zip(_long(written["train"]), _long(true["train"]), strict=True)
        if label != truth
    ]
    _write_rows(root / "stage_2_train.csv", ("ID", "Label"), _long(written["train"]))
    _write_rows(root / "stage_2_sample_submission.csv", ("ID", "Label"), ((n, 0.5) for n, _ in _long(true["test"])))
    _write_rows(root / "solution.csv", ("ID", "Label"), _long(true["test"]))
    _write_rows(root / "mislabelled.csv", ("ID", "Label_written", "Label_true"), wrong)
    return CompetitionSummary(
        len(true["train"]), len(true["test"]), _positives(true["train"]), _positives(true["test"]), len(wrong)
    )

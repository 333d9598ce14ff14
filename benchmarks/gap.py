"""`python -m benchmarks.gap REAL`: how well can a classifier tell a real series from phantom series?

REAL: a folder of DICOM files. Any patient can be told from others. So each phantom series is told from the other
phantom series in the same way, and the table shows whether the real one, the longest in REAL, stands out more.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.fft import idctn
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.phantom import LEAST, REAL, Image, Mask, head_mask, slice_statistics
from ich.data import dicom
from ich.phantom.anatomy import draw_head
from ich.phantom.bleeds import draw_bleeds
from ich.phantom.competition import plan_competition
from ich.phantom.lookalikes import draw_extras
from ich.phantom.scanner import draw_scan
from ich.phantom.study import ANATOMY, BLEEDS, NOISE, SCAN, render, stream

STATISTICS = list(REAL)[3:-1]  # not those of the series, and not the aspect, which fewer slices have
SERIES, SLICES, SIZE = 40, 36, 512  # of phantoms
PATIENTS = 1000  # enough for SERIES with a contrast agent
SHORTEST = 12  # slices with statistics
BLOCKS = 4  # of slices along a head; each is tested by a classifier that was trained on the others
SIDE = 6  # pixels of 1 mm: the filters are the 6 x 6 cosines but the constant one
FILTERS = [idctn(row.reshape(SIDE, SIDE), norm="ortho") for row in np.eye(SIDE * SIDE)[1:]]
GREYS = np.linspace(0, 1, 11)  # edges of a histogram

Features = NDArray[np.float64]  # [slices, features], from base to vertex


class Series(NamedTuple):
    statistics: Features  # of slices with at least 40 cm2 inside the skull
    grey: Features  # of slices with at least 40 cm2 of head
    detail: Features


def pixel_features(hu: Image, pixel: float) -> tuple[Features, Features]:
    """Shares of grey levels, and logarithms of filter responses, in the head: in the brain window at 1 mm per pixel."""
    size = round(hu.shape[1] * pixel), round(hu.shape[0] * pixel)
    head = cv2.resize(head_mask(hu, pixel).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    image = np.clip(cv2.resize(hu, size, interpolation=cv2.INTER_AREA) / 80, 0, 1)
    responses = [np.abs(cv2.filter2D(image, -1, kernel)[head]) for kernel in FILTERS]
    found = [level for one in responses for level in (one.mean(), np.sqrt(np.mean(one**2)))]
    return np.histogram(image[head], GREYS)[0] / head.sum(), np.log(np.array(found) + 1e-3)


def read(root: Path) -> Series | None:
    """Measure the longest series of a patient, in the order of its positions."""
    files = defaultdict[str, list[tuple[float, float, Path]]](list)
    for path in sorted(root.rglob("*.dcm")):
        found = dicom.geometry(path)
        files[found.series_id].append((found.position or 0.0, found.row_spacing, path))
    longest = sorted(max(files.values(), key=len, default=[]))
    return measured((dicom.hounsfield(path), pixel) for _, pixel, path in longest)


def rendered(seed: int, enhanced: bool, changes: dict[str, float]) -> Iterator[Series]:
    """Measure phantom series with bleeds as in RSNA 2019. enhanced: with a contrast agent. changes: of their scans."""
    for planned in plan_competition(train_studies=PATIENTS, test_studies=1, seed=seed, prevalence="rsna2019"):
        patient, rng = planned.patient, stream(seed, planned.patient, 0, ANATOMY)
        head = draw_head(rng)
        if planned.study == 0 and (head.agent > 0 or not enhanced):
            scan = replace(draw_scan(stream(seed, patient, 0, SCAN), head, SLICES, SIZE), **changes)
            drawn = draw_bleeds(stream(seed, patient, 0, BLEEDS), planned.kinds)
            hu, _ = render(head, draw_extras(rng, head), scan, drawn, stream(seed, patient, 0, NOISE))
            if series := measured((image, scan.pixel) for image in hu):
                yield series


def measured(slices: Iterable[tuple[NDArray[np.int16], float]]) -> Series | None:
    """Measure slices in Hounsfield units, each with its pixel size in mm; None if too few of them have a brain."""
    statistics, pixels = [], []
    for image, pixel in slices:
        hu = image.astype(np.float32)
        found = slice_statistics(hu, pixel)
        if found["head area, cm2"] >= LEAST:
            pixels.append(pixel_features(hu, pixel))
        if all(name in found for name in STATISTICS):
            statistics.append([found[name] for name in STATISTICS])
    if len(statistics) < SHORTEST:
        return None
    return Series(np.array(statistics), *map(np.array, zip(*pixels, strict=True)))


def splits(count: int) -> Iterator[tuple[Mask, Mask]]:
    """Training and test slices of a series, for each block. The neighbours of a test block are in neither."""
    block = np.arange(count) * BLOCKS // count
    for k in range(BLOCKS):
        test = block == k
        yield np.convolve(test, np.ones(3), "same") == 0, test


def separation(one: Features, others: Sequence[Features]) -> tuple[float, float]:
    """How well a logistic regression tells the slices of one series from those of others: means over the blocks.

    Returns the AUC, and the distance of the mean scores in standard deviations of the others' scores.
    """
    everything, found = [one, *others], []
    x, y = np.concatenate(everything), np.repeat([True, False], [len(one), sum(map(len, others))])
    for parts in zip(*(splits(len(series)) for series in everything), strict=True):
        train, test = (np.concatenate(masks) for masks in zip(*parts, strict=True))
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))
        scores, of_one = model.fit(x[train], y[train]).decision_function(x[test]), y[test]
        distance = (scores[of_one].mean() - scores[~of_one].mean()) / scores[~of_one].std()
        found.append((roc_auc_score(of_one, scores), distance))
    return tuple(np.mean(found, axis=0).tolist())


def single(one: Features, others: Sequence[Features]) -> tuple[float]:
    """AUC of the values of one feature themselves, from 0.5 in either direction."""
    y = np.repeat([True, False], [len(one), sum(map(len, others))])
    auc = float(roc_auc_score(y, np.concatenate([one, *others])))
    return (max(auc, 1 - auc),)


def compared(measure: Callable, real: Features, phantoms: Sequence[Features]) -> Iterator[str]:
    """Cells of a table: the measure of the real series, those of the phantoms, how many of these are as high."""
    each = [measure(one, [*phantoms[:k], *phantoms[k + 1 :]]) for k, one in enumerate(phantoms)]
    for value, values in zip(measure(real, phantoms), np.array(each).T, strict=True):
        yield f"{value:.2f}"
        yield " ".join(f"{level:.2f}" for level in np.percentile(values, (5, 50, 95)))
        yield f"{np.sum(values >= value)}"


def tables(real: Series, phantoms: Sequence[Series]) -> Iterator[str]:
    """The classifiers, that of statistics also without the most telling one; then each statistic on its own."""
    yield f"{len(real.grey)} real slices, {len(real.statistics)} with a brain; {len(phantoms)} phantom series\n"
    rows = {
        name: list(compared(single, real.statistics[:, k], [p.statistics[:, k] for p in phantoms]))
        for k, name in enumerate(STATISTICS)
    }
    ordered = sorted(rows, key=lambda name: rows[name][0], reverse=True)
    rest = [k for k, name in enumerate(STATISTICS) if name != ordered[0]]
    yield "| | AUC | phantoms: 5, 50, 95 % | as high | distance | phantoms: 5, 50, 95 % | as far |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for name, of in {
        "statistics": lambda series: series.statistics,
        f"without {ordered[0]}": lambda series: series.statistics[:, rest],
        "grey levels": lambda series: series.grey,
        "fine detail": lambda series: series.detail,
    }.items():
        yield f"| {name} | {' | '.join(compared(separation, of(real), [of(p) for p in phantoms]))} |"
    yield "\n| one statistic | AUC | phantoms: 5, 50, 95 % | as high |\n|---|--:|--:|--:|"
    yield from (f"| {name} | {' | '.join(rows[name])} |" for name in ordered)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gap", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("real", type=Path, help="DICOM files of a patient")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--enhanced", action="store_true", help="only phantoms with a contrast agent")
    parser.add_argument("--thickness", type=float, help="of all phantom slices, mm")
    parser.add_argument("--noise", type=float, help="of all phantom slices, HU")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    changes = {name: value for name in ("thickness", "noise") if (value := getattr(given, name)) is not None}
    real = read(given.real)
    if real is None:
        parser.error(f"{given.real}: no series has {SHORTEST} slices of a brain")
    phantoms = list(islice(rendered(given.seed, given.enhanced, changes), SERIES))
    print("\n".join(tables(real, phantoms)))


if __name__ == "__main__":
    main()

"""`python -m benchmarks.phantom [--folder DIR]`: statistics of phantom slices, next to those of real RSNA 2019 slices.

Prints a Markdown table. With --folder, it compares a folder of DICOM files instead of phantoms.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ich.data import dicom
from ich.phantom.competition import plan_competition
from ich.phantom.study import make_study

# 5th, 50th and 95th percentile of 300 slices of 60 studies of RSNA 2019, measured outside this repository.
REAL = {
    "pixel size at 512 px, mm": (0.43, 0.49, 0.49),
    "slices per study": (28, 34, 52),
    "tilt, degrees": (0, 0, 23),
    "head area, cm2": (43, 216, 264),
    "HU inside: 25th percentile": (18, 26, 33),
    "HU inside: median": (25, 30, 39),
    "HU inside: 75th percentile": (30, 36, 48),
    "HU inside: 95th percentile": (42, 65, 192),
    "share 0 to 15 HU": (0.001, 0.036, 0.169),
    "share 45 to 80 HU": (0.018, 0.056, 0.278),
    "share above 80 HU": (0.019, 0.037, 0.117),
    "local noise, HU": (1.5, 2.5, 3.9),
    "noise correlation": (0.51, 0.61, 0.73),
    "bone: median HU": (616, 920, 1426),
    "bone: 95th percentile, HU": (938, 1389, 1740),
    "skull thickness, mm": (5.7, 8.8, 17.7),
    "aspect of the inside": (1.06, 1.20, 1.40),
}
LEVELS = (5, 50, 95)
PER_STUDY = 5  # slices of a phantom study that are measured
AIR, BONE = -300, 300  # HU
OPENING, CLOSING = 2.5, 6.0  # mm: removes the head-rest; closes sutures and foramina
LEAST = 40  # cm2 inside the skull; with less, only the head's area is measured
WIDE = 80  # cm2 inside the skull; with less, the aspect is that of the posterior fossa and is not measured

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


def head_mask(hu: Image, pixel: float) -> Mask:
    """The largest object above -300 HU after opening by 2.5 mm, holes filled."""
    return _filled(_largest(_morphology(hu > AIR, cv2.MORPH_OPEN, OPENING / pixel)))


def slice_statistics(hu: Image, pixel: float) -> dict[str, float]:
    """Measure one slice, `hu` [rows, columns] with square pixels of `pixel` mm.

    Bone: above 300 HU in the head. Skull: the largest object of bone after closing by 6 mm. Inside: the largest hole of
    the skull. All its pixels count, also bleeds and the partial volume next to bone.
    """
    head = head_mask(hu, pixel)
    found = {"head area, cm2": _area(head, pixel)}
    bone = head & (hu > BONE)
    skull = _largest(_morphology(bone, cv2.MORPH_CLOSE, CLOSING / pixel))
    whole = _filled(skull)
    inside = _largest(whole & ~skull)
    if _area(inside, pixel) < LEAST:
        return found
    values = hu[inside]
    for name, level in (("25th percentile", 25), ("median", 50), ("75th percentile", 75), ("95th percentile", 95)):
        found[f"HU inside: {name}"] = float(np.percentile(values, level))
    for name, low, high in (("0 to 15", 0, 15), ("45 to 80", 45, 80), ("above 80", 80, np.inf)):
        found[f"share {name} HU"] = float(np.mean((values >= low) & (values <= high)))
    # Pixels of brain whose 5 x 5 neighbours are all inside the skull.
    brain = (cv2.erode(inside.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0) & (hu > 0) & (hu < 80)
    if brain.any():
        _, deviation = _neighbourhood(hu, hu, 5)
        found["local noise, HU"] = float(np.percentile(deviation[brain], 25))
        found["noise correlation"] = _noise_correlation(hu, brain)
    found["bone: median HU"], found["bone: 95th percentile, HU"] = np.percentile(hu[bone], (50, 95)).tolist()
    # The difference of the radii of two discs with the areas of the skull with and without its inside.
    found["skull thickness, mm"] = 10 * float(
        np.sqrt(_area(whole, pixel) / np.pi) - np.sqrt(_area(whole & ~skull, pixel) / np.pi)
    )
    if _area(inside, pixel) >= WIDE:
        rows, columns = np.nonzero(inside)
        found["aspect of the inside"] = float((np.ptp(rows) + 1) / (np.ptp(columns) + 1))
    return found


def _noise_correlation(hu: Image, brain: Mask) -> float:
    """Median correlation of horizontal neighbours in 9 x 9 windows: in the quarter with the least deviation."""
    covariance, deviation = _neighbourhood(hu[:, :-1], hu[:, 1:], 9)
    _, other = _neighbourhood(hu[:, 1:], hu[:, 1:], 9)
    usable = brain[:, :-1] & (deviation > 0) & (other > 0)
    flat = usable & (deviation <= np.percentile(deviation[usable], 25))
    return float(np.median(covariance[flat] / (deviation * other)[flat]))


def _neighbourhood(a: Image, b: Image, side: int) -> tuple[Image, Image]:
    """Covariance of a and b, and standard deviation of a, in a square window around each pixel."""
    mean = cv2.blur(a, (side, side))
    covariance = cv2.blur(a * b, (side, side)) - mean * cv2.blur(b, (side, side))
    return covariance, np.sqrt(np.maximum(cv2.blur(a * a, (side, side)) - mean * mean, 0))


def _morphology(mask: Mask, operation: int, radius: float) -> Mask:
    side = 2 * max(1, round(radius)) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return cv2.morphologyEx(mask.astype(np.uint8), operation, disc) > 0


def _largest(mask: Mask) -> Mask:
    count, labels, found, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    return labels == 1 + np.argmax(found[1:, cv2.CC_STAT_AREA]) if count > 1 else np.zeros_like(mask)


def _filled(mask: Mask) -> Mask:
    """The mask with everything that is not connected to the border of the image."""
    around = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(around, None, (0, 0), 2)
    return around[1:-1, 1:-1] != 2


def _area(mask: Mask, pixel: float) -> float:
    return float(mask.sum()) * pixel * pixel / 100


Found = dict[str, list[float]]


def phantoms(studies: int, slices: int, size: int, seed: int) -> Found:
    """Measure PER_STUDY random slices of each study of a synthetic competition."""
    rng, found, seconds, made = np.random.default_rng(seed), defaultdict(list), 0.0, 0
    plan = plan_competition(train_studies=studies, test_studies=1, seed=seed, prevalence="rsna2019")
    for planned in plan[:studies]:
        started = time.process_time()
        study = make_study(seed, planned.patient, planned.study, slices=slices, size=size, kinds=planned.kinds)
        seconds, made = seconds + time.process_time() - started, made + len(study.hu)
        _add_study(found, study.scan.pixel * size / 512, len(study.hu), float(np.degrees(study.scan.tilt)))
        for k in rng.choice(len(study.hu), PER_STUDY, replace=False):
            _add(found, slice_statistics(study.hu[k].astype(np.float32), study.scan.pixel))
    print(f"{made} slices of {size} x {size} pixels, {1000 * seconds / made:.1f} ms per slice and core\n")
    return found


def folder(root: Path) -> Found:
    """Measure all CT slices below a folder."""
    found, series = defaultdict(list), defaultdict(list)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        try:
            hu, geometry = dicom.hounsfield(path), dicom.geometry(path)
        except dicom.Unreadable:
            continue
        series[geometry.series_id].append(geometry)
        _add(found, slice_statistics(hu.astype(np.float32), geometry.row_spacing))
    for slices in series.values():
        _add_study(found, slices[0].row_spacing * slices[0].rows / 512, len(slices), slices[0].tilt)
    return found


def _add(found: Found, values: dict[str, float]) -> None:
    for name, value in values.items():
        found[name].append(value)


def _add_study(found: Found, pixel: float, slices: int, tilt: float) -> None:
    _add(found, dict(zip(list(REAL)[:3], (pixel, slices, tilt), strict=True)))


def table(found: Found) -> Iterator[str]:
    """One row per statistic: percentiles of both, and how well they agree.

    middle: is the median between the real quartiles? They are interpolated: 0.41 of the way from the real median to the
    5th or 95th percentile, as in a normal distribution. overlap: the common part of both ranges from the 5th to the
    95th percentile, divided by the longer one. distance: the largest difference of the two distribution functions at
    the three real percentiles, a lower bound of the Kolmogorov-Smirnov distance.
    """
    yield "| | real: 5, 50, 95 % | found: 5, 50, 95 % | middle | overlap | distance |"
    yield "|---|--:|--:|---|--:|--:|"
    for name, real in REAL.items():
        values = np.array(found[name])
        low, median, high = np.percentile(values, LEVELS).tolist()
        step = 10.0 ** -max(len(str(value).partition(".")[2]) for value in real)  # they are rounded to this
        within = real[1] - 0.41 * (real[1] - real[0]), real[1] + 0.41 * (real[2] - real[1])
        middle = within[0] - step / 2 <= median <= within[1] + step / 2
        common = min(high, real[2]) - max(low, real[0])
        overlap = max(common, 0.0) / max(high - low, real[2] - real[0])
        below = [[np.mean(values < x - step / 2), np.mean(values <= x + step / 2)] for x in real]
        distance = max(max(a - p / 100, p / 100 - b, 0) for (a, b), p in zip(below, LEVELS, strict=True))
        shown = (" ".join(f"{v:.3g}" for v in row) for row in (real, (low, median, high)))
        yield f"| {name} | {' | '.join(shown)} | {'yes' if middle else 'no'} | {overlap:.0%} | {distance:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.phantom", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="DICOM files to measure instead of phantoms")
    parser.add_argument("--studies", type=int, default=60)
    parser.add_argument("--slices", type=int, default=36, help="mean number per phantom study")
    parser.add_argument("--size", type=int, default=512, help="rows and columns of a phantom slice")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    found = folder(given.folder) if given.folder else phantoms(given.studies, given.slices, given.size, given.seed)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()

"""Draw docs/images/phantom_slices.png, 24 slices of synthetic heads: `python docs/images/phantom_slices.py [FOLDER]`.

FOLDER: DICOM files of a real series. Eight of its slices form a fourth row, and the image is written to
phantom_and_real.png in the current folder instead.
"""

import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from demo_slices import BRAIN, tile

from ich.data import dicom
from ich.phantom.study import CLASSES, make_study

SEED, COLUMNS = 12, 8
LEVELS = (0.22, 0.32, 0.4, 0.47, 0.54, 0.62, 0.72, 0.84)  # of the slices without a bleed: base 0, vertex 1
BLEEDS = (1, 4, 3, 2, 0, 1, 4, 3, 4, 1, 2, 3, 1, 4, 3, 0)  # of the others: numbers in CLASSES
MIN_AREA = 300  # mm2 of a bleed that is large enough to show


def real_tiles(folder: Path) -> list[np.ndarray]:
    """Slices of the patient with most files in a folder, from base to vertex."""
    found = [(dicom.geometry(path), path) for path in sorted(folder.rglob("*.dcm"))]
    patient = Counter(geometry.patient_id for geometry, _ in found).most_common(1)[0][0]
    placed = sorted((g.position or 0.0, path) for g, path in found if g.patient_id == patient)
    return [tile(dicom.hounsfield(placed[int(level * len(placed))][1]), BRAIN, "real") for level in LEVELS]


def main() -> None:
    tiles = []
    for patient, level in enumerate(LEVELS):
        hu = make_study(SEED, patient, 0, slices=32, size=512).hu
        tiles.append(tile(hu[int(level * len(hu))], BRAIN, "no bleed"))
    patient = len(LEVELS)
    for kind in BLEEDS:
        while True:
            study = make_study(SEED, patient, 0, slices=32, size=512, kinds=[kind])
            area = ((study.masks >> kind) & 1).sum(axis=(1, 2)) * study.scan.pixel**2
            patient += 1
            if area.max() >= MIN_AREA:
                break
        tiles.append(tile(study.hu[int(area.argmax())], BRAIN, CLASSES[kind]))
    path = Path(__file__).with_suffix(".png")
    if len(sys.argv) > 1:
        tiles += real_tiles(Path(sys.argv[1]))
        path = Path("phantom_and_real.png")
    rows = [np.hstack(tiles[first : first + COLUMNS]) for first in range(0, len(tiles), COLUMNS)]
    cv2.imwrite(str(path), np.vstack(rows))


if __name__ == "__main__":
    main()

"""Draw docs/images/demo_slices.png, slices of the synthetic competition: `python docs/images/demo_slices.py`."""

from pathlib import Path

import cv2
import numpy as np

from ich.data.windowing import Window, Windowing, render
from ich.phantom.study import CLASSES, make_study

BRAIN, SUBDURAL = Window(40, 80), Window(60, 160)
TILE = 200  # pixels
LEVELS = (0.06, 0.18, 0.27, 0.36, 0.44, 0.52, 0.66, 0.82)  # first row: from the skull base (0) to the vertex (1)
KINDS = (0, 0, 1, 2, 3, 3, 4, 4)  # second row: numbers in CLASSES
MIN_AREA = 1500  # pixels of a bleed that is large enough to show


def tile(hu: np.ndarray, window: Window, caption: str) -> np.ndarray:
    grey = cv2.resize(
        render(hu[None], Windowing("windows", (window,)))[..., 0], (TILE, TILE), interpolation=cv2.INTER_AREA
    )
    return cv2.putText(grey, caption, (6, TILE - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.42, 235, 1, cv2.LINE_AA)


def main() -> None:
    hu = make_study(7, 4, 0, slices=32, size=256).hu
    captions = ["one study, no bleed"] + [""] * (len(LEVELS) - 1)
    healthy = [tile(hu[int(level * len(hu))], BRAIN, text) for level, text in zip(LEVELS, captions, strict=True)]
    bleeding, patient = [], 200
    for kind in KINDS:
        area = np.zeros(1)
        while area.max() < MIN_AREA:
            patient += 1
            study = make_study(7, patient, 0, slices=32, size=256, kinds=[kind])
            area = ((study.masks >> kind) & 1).sum(axis=(1, 2))
        window = SUBDURAL if CLASSES[kind] == "subdural" else BRAIN
        bleeding.append(tile(study.hu[int(area.argmax())], window, CLASSES[kind]))
    image = np.vstack([np.hstack(healthy), np.hstack(bleeding)])
    cv2.imwrite(str(Path(__file__).with_name("demo_slices.png")), image)


if __name__ == "__main__":
    main()

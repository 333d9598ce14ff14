"""Draws docs/demo_slices.png, the README's picture of the synthetic competition: python docs/demo_slices.py"""

from pathlib import Path

import cv2
import numpy as np

from ich.data.views import View, Window, render
from ich.phantom.competition import CLASSES, make_study

BRAIN, SUBDURAL = Window(40, 80), Window(60, 160)
TILE = 200
LEVELS = (0.06, 0.18, 0.27, 0.36, 0.44, 0.52, 0.66, 0.82)  # of a study's slices, skull base to vertex
KINDS = (0, 0, 1, 2, 3, 3, 4, 4)  # classes of the second row


def tile(hu: np.ndarray, window: Window, caption: str) -> np.ndarray:
    grey = cv2.resize(render(hu[None], View("windows", (window,)))[..., 0], (TILE, TILE), interpolation=cv2.INTER_AREA)
    return cv2.putText(grey, caption, (6, TILE - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.42, 235, 1, cv2.LINE_AA)


def main() -> None:
    study = make_study(7, 4, 0, slices=32, size=256, bleed_rate=0)
    rows = [
        [tile(study.hu[int(f * len(study.hu))], BRAIN, "one study, no bleed" if f == LEVELS[0] else "") for f in LEVELS]
    ]
    bleeding, patient = [], 200
    for kind in KINDS:
        area = np.zeros(1)
        while area.max() < 1500:  # pixels: the next patient whose bleed is plain to see
            patient += 1
            study = make_study(7, patient, 0, slices=32, size=256, bleed_rate=0, kinds=[kind])
            area = ((study.masks >> kind) & 1).sum(axis=(1, 2))
        bleeding.append(tile(study.hu[int(area.argmax())], SUBDURAL if kind == 4 else BRAIN, CLASSES[kind]))
    rows.append(bleeding)
    cv2.imwrite(str(Path(__file__).with_name("demo_slices.png")), np.vstack([np.hstack(row) for row in rows]))


if __name__ == "__main__":
    main()

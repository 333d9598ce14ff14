"""Draw docs/images/cq500_series.png, the probabilities of two ensembles over one series.

`python docs/images/cq500_series.py FORMER.csv NOW.csv`: tables of `ich predict`. Only their longest series is drawn.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from ich.phantom.study import CLASSES

ENSEMBLES = (("trained on the former phantom", "#d55e00"), ("trained on this phantom", "#0072b2"))


def longest_series(path: str) -> pd.DataFrame:
    """Slices of the longest series in a table of `ich predict`, from base to vertex."""
    table = pd.read_csv(path)
    return table[table["series_id"] == table["series_id"].mode()[0]].sort_values("index")


def main() -> None:
    tables = [longest_series(path) for path in sys.argv[1:3]]
    figure, axes = plt.subplots(2, 3, sharex=True, sharey=True, figsize=(9, 4.6), dpi=100, layout="constrained")
    for ax, name in zip(axes.flat, ("any", *CLASSES[:-1]), strict=True):
        means, others = [], []
        for table, (label, colour) in zip(tables, ENSEMBLES, strict=True):
            values = table[f"prob_{name}"].to_numpy()
            ax.plot(range(1, len(values) + 1), values, color=colour, label=label, lw=1.8)
            means.append(f"{values.mean():.2f}")
            others.append(f"largest {values.max():.2f}, {table[f'positive_{name}'].sum()} slices positive")
        ax.set_title(f"{name}: mean {' → '.join(means)}", fontsize=10)
        print(f"{name}: mean {' → '.join(means)}; {' → '.join(others)}")
        ax.set(ylim=(0, 1.03), yticks=(0, 0.5, 1), xlim=(1, len(tables[0])))
        ax.grid(color="0.9")
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.supxlabel("slice, from base to vertex", fontsize=10)
    figure.supylabel("probability", fontsize=10)
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    image.quantize(32).save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()

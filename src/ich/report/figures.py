"""Figures as PNG files with reproducible bytes. The only module that imports matplotlib."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, cycle

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Colours for all kinds of colour vision (Okabe and Ito, Color universal design, 2008)
OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#000000", "#F0E442")
GREY, OUTLINE = "#BBBBBB", "#56B4E9"
DPI = 130
TILE = 1.35  # inches


@dataclass(frozen=True)
class Panel:
    """One image of a gallery, uint8 [S, S], optionally with a map [S, S] of 0..1 over it and the outline of a mask."""

    grey: NDArray[np.uint8]
    title: str
    overlay: NDArray[np.floating] | None = None
    mask: NDArray[np.bool_] | None = None


def scatter_values(points: NDArray[np.floating], values: NDArray[np.floating], title: str, scale: str) -> bytes:
    """Points [n, 2] coloured by a value each; `scale` is the title of the colour bar."""
    with _figure((6.4, 5.2)) as figure:
        axes = _map(figure, title)
        dots = axes.scatter(points[:, 0], points[:, 1], c=values, cmap="viridis", s=14, linewidths=0)
        bar = figure.colorbar(dots, ax=axes, shrink=0.85)
        bar.set_label(scale)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        return _png(figure)


def scatter_groups(points: NDArray[np.floating], groups: Sequence[str], names: Sequence[str], title: str) -> bytes:
    """Points [n, 2] coloured by group, the first of `names` in grey below the others; eight colours in turn."""
    with _figure((7.4, 5.2)) as figure:
        axes, group = _map(figure, title), np.asarray(groups)
        for name, colour in zip(names, chain((GREY,), cycle(OKABE_ITO)), strict=False):
            some = points[group == name]
            label = f"{name} ({len(some)})"
            axes.scatter(some[:, 0], some[:, 1], c=colour, s=14 if colour != GREY else 8, linewidths=0, label=label)
        figure.legend(loc="outside right center", frameon=False, markerscale=1.8)
        return _png(figure)


def gallery(rows: Sequence[tuple[str, Sequence[Panel]]], title: str) -> bytes:
    """Rows of images, each with its name on the left."""
    most = max(len(panels) for _, panels in rows)
    with _figure((TILE * most + 0.5, (TILE + 0.2) * len(rows) + 0.5)) as figure:
        grid = figure.subplots(len(rows), most, squeeze=False)
        for cells, (name, panels) in zip(grid, rows, strict=True):
            cells[0].set_ylabel(name, fontsize=9)
            for axes in cells:
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            for axes, panel in zip(cells, panels, strict=False):
                axes.imshow(panel.grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                axes.set_title(panel.title, fontsize=7, pad=2)
                if panel.overlay is not None:
                    heat = panel.overlay.clip(0, 1)
                    axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.75 * heat**0.5, interpolation="bilinear")
                if panel.mask is not None and panel.mask.any():
                    axes.contour(panel.mask.astype(float), levels=[0.5], colors=[OUTLINE], linewidths=0.9)
        figure.suptitle(title, fontsize=10)
        return _png(figure)


def _map(figure: Figure, title: str) -> Axes:
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_color(GREY)
    return axes


@contextmanager
def _figure(inches: tuple[float, float]) -> Iterator[Figure]:
    """An empty figure in matplotlib's default style, independent of the user's settings."""
    with style.context("default"):
        figure = Figure(figsize=inches, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def _png(figure: Figure) -> bytes:
    """The PNG file, without matplotlib's version in its metadata."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()

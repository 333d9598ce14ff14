"""Figures as PNG files: the same data, the same bytes. The one module that knows matplotlib."""

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

# Colours that the colour-blind tell apart (Okabe and Ito, Color universal design, 2008); grey is for "nothing here".
OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#000000", "#F0E442")
GREY, OUTLINE = "#BBBBBB", "#56B4E9"
DPI = 130
TILE = 1.35  # inches


@dataclass(frozen=True)
class Picture:
    """One picture of a gallery, uint8 [S, S]; a map [S, S] from 0 to 1 may lie over it, and an outline around bool."""

    grey: NDArray[np.uint8]
    title: str = ""
    overlay: NDArray[np.floating] | None = None
    outline: NDArray[np.bool_] | None = None


def scatter_values(points: NDArray[np.floating], values: NDArray[np.floating], title: str, scale: str) -> bytes:
    """Points [n, 2] coloured by a number each, with a bar that the text `scale` explains."""
    with _figure((6.4, 5.2)) as figure:
        axes = _map(figure, title)
        dots = axes.scatter(points[:, 0], points[:, 1], c=values, cmap="viridis", s=14, linewidths=0)
        bar = figure.colorbar(dots, ax=axes, shrink=0.85)
        bar.set_label(scale)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        return _png(figure)


def scatter_groups(points: NDArray[np.floating], groups: Sequence[str], names: Sequence[str], title: str) -> bytes:
    """Points [n, 2] coloured by the group each belongs to. The first of `names` is grey and lies below the others.

    There are eight colours besides; of more groups some share theirs.
    """
    with _figure((7.4, 5.2)) as figure:
        axes, member = _map(figure, title), np.asarray(groups)
        for name, colour in zip(names, chain((GREY,), cycle(OKABE_ITO)), strict=False):
            chosen = points[member == name]
            label = f"{name} ({len(chosen)})"
            axes.scatter(chosen[:, 0], chosen[:, 1], c=colour, s=14 if colour != GREY else 8, linewidths=0, label=label)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, markerscale=1.8)
        return _png(figure)


def gallery(rows: Sequence[tuple[str, Sequence[Picture]]], title: str) -> bytes:
    """Rows of pictures, each row with its name at the left."""
    most = max(len(pictures) for _, pictures in rows)
    with _figure((TILE * most + 0.5, (TILE + 0.2) * len(rows) + 0.5)) as figure:
        grid = figure.subplots(len(rows), most, squeeze=False)
        for cells, (name, pictures) in zip(grid, rows, strict=True):
            for axes, picture in zip(cells, [*pictures, *[None] * (most - len(pictures))], strict=True):
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if picture is not None:
                    _draw(axes, picture)
            cells[0].set_ylabel(name, fontsize=9)
        figure.suptitle(title, fontsize=10)
        return _png(figure)


def _draw(axes: Axes, picture: Picture) -> None:
    axes.imshow(picture.grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    if picture.overlay is not None:
        strength = picture.overlay.clip(0, 1)
        axes.imshow(strength, cmap="inferno", vmin=0, vmax=1, alpha=0.75 * strength**0.5, interpolation="bilinear")
    if picture.outline is not None and picture.outline.any():
        axes.contour(picture.outline.astype(float), levels=[0.5], colors=[OUTLINE], linewidths=0.9)
    axes.set_title(picture.title, fontsize=7, pad=2)


def _map(figure: Figure, title: str) -> Axes:
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_color(GREY)
    return axes


@contextmanager
def _figure(inches: tuple[float, float]) -> Iterator[Figure]:
    """An empty figure in matplotlib's own style, whatever the user's settings are; no window, no state left behind."""
    with style.context("default"):
        figure = Figure(figsize=inches, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def _png(figure: Figure) -> bytes:
    """The file, without the program's name and version in it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()

"""The blocks of the page. All texts are plain text: the templates escape them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias


@dataclass(frozen=True)
class Notes:
    """Paragraphs."""

    lines: Sequence[str]
    kind: Literal["text", "warning"] = "text"


@dataclass(frozen=True)
class Code:
    """Preformatted text."""

    text: str


@dataclass(frozen=True)
class Tile:
    """One score in large type, with a note below it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    tiles: Sequence[Tile]


class Table(NamedTuple):
    """A table for the page or the terminal. The page aligns columns of numbers to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """A plotly figure {"data": [...], "layout": {...}} with its title and its caption."""

    id: str
    title: str
    caption: str
    figure: Mapping[str, Any]

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.figure.get("layout", {}).get("height", 360))


@dataclass(frozen=True)
class Panels:
    """Groups of blocks behind tabs. Printing shows all of them."""

    id: str
    panels: Mapping[str, Sequence["Block"]]


@dataclass(frozen=True)
class Details:
    """Blocks that a click on the title shows."""

    title: str
    blocks: Sequence["Block"]


@dataclass(frozen=True)
class Image:
    """A PNG file with its alternative text."""

    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Strip:
    """Probabilities and labels (None: unlabelled) of one class along a study, with slice `at` marked."""

    name: str
    probabilities: Sequence[float]
    labels: Sequence[int | None]
    at: int
    threshold: float

    @property
    def text(self) -> str:
        """The text alternative of the plot."""
        here = f"slice {self.at + 1} of {len(self.probabilities)} has {self.probabilities[self.at]:.2f}"
        return f"{here}, the threshold is {self.threshold:.2f}"


@dataclass(frozen=True)
class Case:
    """A slice with its images and one class along its study; `study` and `index` are its place in the viewer.

    section: the id of a section that also shows the study, if the viewer does not.
    """

    title: str
    lines: Sequence[str]
    images: Sequence[Image]
    strip: Strip
    study: str
    index: int
    section: str = ""


@dataclass(frozen=True)
class Cases:
    """Cards one below the other, or side by side on wide screens."""

    cases: Sequence[Case]
    beside: bool = False


@dataclass(frozen=True)
class Viewer:
    """The study viewer with the data of its script: {"studies": [{"id": ...}, ...], ...}."""

    data: Mapping[str, Any]


Block: TypeAlias = Notes | Code | Tiles | Table | Chart | Panels | Details | Cases | Viewer


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: str
    sections: Sequence[Section]

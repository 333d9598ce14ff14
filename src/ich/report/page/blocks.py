"""What the page is made of. Every text here is plain text: the templates escape it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

ID = re.compile(r"[a-z][a-z0-9-]*")


def _checked(name: str) -> None:
    if not ID.fullmatch(name):
        raise ValueError(f"{name!r} cannot be an id on the page: lower-case letters, digits and -")


@dataclass(frozen=True)
class Notes:
    """Paragraphs, a text each."""

    lines: Sequence[str]
    kind: Literal["text", "warning"] = "text"


@dataclass(frozen=True)
class Code:
    """A text whose lines and spaces stay as they are."""

    text: str


@dataclass(frozen=True)
class Tile:
    """One figure to be seen from afar, with its interval or reason below it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Table:
    """Cells are texts as they are shown; columns of numbers stand right-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


@dataclass(frozen=True)
class Chart:
    """A plotly figure {"data": [...], "layout": {...}} with its title, and what it means and how far to trust it."""

    id: str
    title: str
    says: str
    figure: Mapping[str, Any]

    def __post_init__(self) -> None:
        _checked(self.id)

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.figure.get("layout", {}).get("height", 360))


@dataclass(frozen=True)
class Panels:
    """Blocks of which one group is seen at a time, on paper all: a tab each."""

    id: str
    panels: Mapping[str, Sequence["Block"]]

    def __post_init__(self) -> None:
        _checked(self.id)


@dataclass(frozen=True)
class Details:
    """Blocks behind a title, to be opened."""

    title: str
    blocks: Sequence["Block"]


@dataclass(frozen=True)
class Picture:
    """A PNG file, and what a reader who does not see it is told."""

    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Strip:
    """A class's probability and label (None: unlabelled) along a study, the slice in question, and the threshold."""

    name: str
    probabilities: Sequence[float]
    labels: Sequence[int | None]
    at: int
    threshold: float

    @property
    def says(self) -> str:
        """The slice in question, in words."""
        here = f"slice {self.at + 1} of {len(self.probabilities)} has {self.probabilities[self.at]:.2f}"
        return f"{here}, the threshold is {self.threshold:.2f}"


@dataclass(frozen=True)
class Case:
    """A slice worth a look: pictures of it, and where it stands in its study."""

    title: str
    lines: Sequence[str]
    pictures: Sequence[Picture]
    strip: Strip
    study: str
    index: int


@dataclass(frozen=True)
class Cases:
    cases: Sequence[Case]


@dataclass(frozen=True)
class Viewer:
    """The study viewer, and what its script reads: {"studies": [{"id": ...}, ...], ...}."""

    data: Mapping[str, Any]

    @property
    def holds(self) -> frozenset[str]:
        """The ids of its studies."""
        return frozenset(study["id"] for study in self.data["studies"])


Block: TypeAlias = Notes | Code | Tiles | Table | Chart | Panels | Details | Cases | Viewer


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""

    def __post_init__(self) -> None:
        _checked(self.id)


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: str
    sections: Sequence[Section] = field(default_factory=tuple)

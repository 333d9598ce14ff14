"""The blocks of the page. All texts are plain text: the templates escape them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

ID = re.compile(r"[a-z][a-z0-9-]*")


def _checked(name: str) -> None:
    if not ID.fullmatch(name):
        raise ValueError(f"{name!r} cannot be an id on the page: use lower-case letters, digits and -")


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


@dataclass(frozen=True)
class Table:
    """Columns that hold numbers only are right-aligned."""

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
class Image:
    """A PNG file with its alternative text."""

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
    """A slice with its images, the class along its study, and where the viewer shows it."""

    title: str
    lines: Sequence[str]
    images: Sequence[Image]
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

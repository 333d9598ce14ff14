"""Competition formats: one adapter per module."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pandas as pd

from ich.data.competitions import cq500, folder, ntu_dlmi, rsna2019, unibuc
from ich.data.competitions.layout import LayoutError, Raw, Selection

__all__ = ["ADAPTERS", "Adapter", "LayoutError", "Raw", "Selection"]


class Adapter(Protocol):
    """Functions of a format's module. `root` is the competition's folder."""

    @property
    def SUBMITS(self) -> str:
        """The values of a submission: probabilities | decisions (0 and 1)."""
        ...

    @property
    def PUBLIC_IDS(self) -> bool:
        """False: ids come from the user's own scans, and shared files have pseudonyms instead."""
        ...

    def raw(self, root: Path) -> Raw: ...

    def submission_ids(self, root: Path) -> list[str]: ...

    def solution(self, root: Path) -> pd.DataFrame | None: ...

    def submission(self, root: Path, values: pd.DataFrame) -> pd.DataFrame: ...


ADAPTERS: Mapping[str, Adapter] = {
    "rsna2019": rsna2019,
    "ntu_dlmi": ntu_dlmi,
    "unibuc": unibuc,
    "folder": folder,
    "cq500": cq500,
}

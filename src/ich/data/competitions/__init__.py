"""Competition formats: one adapter a file, each a module that offers `Adapter`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pandas as pd

from ich.data.competitions import rsna2019
from ich.data.competitions.layout import LayoutError, Raw

__all__ = ["ADAPTERS", "Adapter", "LayoutError", "Raw"]


class Adapter(Protocol):
    """What a format offers. `root` is the competition's folder."""

    def raw(self, root: Path) -> Raw: ...

    def solution(self, root: Path) -> pd.DataFrame | None: ...

    def submission(self, root: Path, values: pd.DataFrame) -> pd.DataFrame: ...


ADAPTERS: Mapping[str, Adapter] = {"rsna2019": rsna2019}

"""What models over the slices of a series read: geometry, positions, and the predictions of their inputs."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

USUAL_GAP = 5.0  # mm between slices; networks read gaps as multiples of it


def geometry(table: pd.DataFrame) -> NDArray[np.float32]:
    """[n, 2]: the gap to the next slice, in usual gaps less one, and the place in the series, -1..1."""
    gap = table.groupby("series")["position"].diff(-1).abs().to_numpy() / USUAL_GAP - 1
    place = 2 * (table["index"] + 0.5).to_numpy() / table["n_slices"].to_numpy() - 1
    return np.column_stack([np.nan_to_num(gap).clip(-1, 3), place]).astype(np.float32)


def positions(table: pd.DataFrame) -> NDArray[np.float64]:
    """[n]: mm along the series; usual gaps in a series where a slice has no position."""
    placed = table["position"].notna().groupby(table["series"]).transform("all")
    return table["position"].where(placed, USUAL_GAP * table["index"]).to_numpy("float64")

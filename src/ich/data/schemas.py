"""What the columns of the label table, the slice table and the fold table may hold: pandera schemas, written once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa


def label_schema(classes: Sequence[str], key: str = "image_id") -> pa.DataFrameSchema:
    """image_id (or another key) and a 0/1 column a class; an empty cell is an unlabelled one."""
    return pa.DataFrameSchema({key: _name(unique=True)} | {c: _binary() for c in classes}, strict=True)


def slice_schema(classes: Sequence[str]) -> pa.DataFrameSchema:
    """The slice table as `cache.slice_table` documents it."""
    whole = {"index": _within(0, 1e5, nullable=False), "n_slices": _within(1, 1e5, nullable=False)}
    return pa.DataFrameSchema(
        {name: _name() for name in ("patient_id", "study_id", "series_id", "path")}
        | {"image_id": _name(unique=True), "split": pa.Column(checks=_one_of(["train", "test"]))}
        | {"frame": _within(0, 1e5, nullable=False), "position": _within(-1e4, 1e4), "tilt": _within(0, 90), **whole}
        | {name: _within(0.05, 5) for name in ("row_spacing", "column_spacing")}
        | {c: _binary() for c in classes}
    )


def fold_schema(classes: Sequence[str], n: int) -> pa.DataFrameSchema:
    """The fold table as text: one row a study."""
    digits = {"fold": [str(k) for k in range(n)]} | {c: ["0", "1"] for c in classes}
    return pa.DataFrameSchema(
        {"study_id": _name(unique=True), "patient_id": _name()}
        | {name: pa.Column(checks=_one_of(values)) for name, values in digits.items()},
        strict=True,
    )


def _name(*, unique: bool = False) -> pa.Column:
    return pa.Column(checks=pa.Check(lambda s: s.astype(str).str.strip() != "", error="a name"), unique=unique)


def _one_of(values: Sequence[Any]) -> pa.Check:
    return pa.Check.isin(values, error=f"one of {', '.join(map(str, values))}")


def _binary() -> pa.Column:
    return pa.Column(checks=_one_of([0, 1]), nullable=True)


def _within(low: float, high: float, *, nullable: bool = True) -> pa.Column:
    return pa.Column(checks=pa.Check.in_range(low, high, error=f"{low:g} to {high:g}"), nullable=nullable)


def broken(table: pd.DataFrame, schema: pa.DataFrameSchema) -> pd.DataFrame:
    """What of the table the schema refuses: index (row number from 0, -1: a whole column) and told, in words."""
    try:
        schema.validate(table.reset_index(drop=True), lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases
    else:
        return pd.DataFrame({"index": pd.Series(dtype="int64"), "told": pd.Series(dtype="str")})
    words = {
        "column_in_schema": f"a column that does not belong; expected {', '.join(schema.columns)}",
        "column_in_dataframe": "this column is missing",
        "not_nullable": "expected a value",
        "field_uniqueness": "expected each once",
    }
    index = pd.to_numeric(cases["index"]).fillna(-1).astype("int64")
    check, value = cases["check"].astype(str), cases["failure_case"].astype(str)
    said = check.map(words).fillna("expected " + check)
    told = np.where(index < 0, value + ": " + said, cases["column"].astype(str) + ": " + value + "; " + said)
    found = pd.DataFrame({"index": index, "told": told})
    return found.sort_values("index", kind="stable", ignore_index=True)

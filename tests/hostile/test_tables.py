"""Hostile tables are refused at once, with one line."""

import time
from pathlib import Path

import pytest

from ich.data.competitions import LayoutError, layout

NAMES = [f"c{i}" for i in range(200_000)]
HEADERS = {
    "many columns": ",".join(NAMES),
    "many columns after a quoted line break": '"a\nb",' + ",".join(NAMES),
    "many columns of one name": "a," * 200_000,
    "many quotes": '"",' * 200_000,
    "a long name": "a" * 200_000,
    "an open quote": '"' + ",".join(NAMES),
}


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_is_refused_within_a_second(tmp_path: Path, name: str, header: bool):
    (tmp_path / "labels.csv").write_text(f"{HEADERS[name]}\nx,1\n")
    started = time.process_time()
    with pytest.raises(LayoutError, match=r"labels\.csv: not a whole CSV file \(") as error:
        layout.read_text(tmp_path / "labels.csv", header=header)
    assert time.process_time() - started < 1
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("header", [True, False])
def test_a_later_row_with_many_columns_is_refused_within_a_second(tmp_path: Path, header: bool):
    (tmp_path / "labels.csv").write_text(f"a,b\nx,1\n{','.join(NAMES)}\n")
    started = time.process_time()
    with pytest.raises(LayoutError, match=r"labels\.csv: not a whole CSV file \("):
        layout.read_text(tmp_path / "labels.csv", header=header)
    assert time.process_time() - started < 1

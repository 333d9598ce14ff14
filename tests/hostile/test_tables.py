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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,class,class\na,0,1\n", "column 'class' occurs twice; remove one"),
        ("id,class\na,0,5\n", "row 2 has 3 cells, the header 2; remove the surplus"),
    ],
)
def test_a_column_that_occurs_twice_and_cells_without_a_column_are_refused(tmp_path: Path, text: str, says: str):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(LayoutError, match=says):
        layout.read_text(tmp_path / "labels.csv")

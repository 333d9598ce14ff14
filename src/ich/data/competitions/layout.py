"""The common form of all competition formats, and helpers to read tables and folders into it."""

import codecs
import csv
import difflib
import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from ich.data import files
from ich.data.refusal import Quarantined, Reason, Unreadable
from ich.errors import UserError
from ich.inputs import MAX_TABLE, content

EXCEL = (b"PK\3\4", b"\xd0\xcf\x11\xe0")  # the first bytes of .xlsx and .xls
MOST_COLUMNS = 1000
SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")


class LayoutError(UserError, ValueError):
    """A table or folder of a competition does not have its format; the text names file, row and remedy."""


@dataclass(frozen=True)
class Selection:
    """The rows of a slice table that are used: keep, bool [n]; reason and detail of the others, by row; notes."""

    keep: pd.Series
    reasons: Mapping[int, tuple[str, str]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Raw:
    """A competition as downloaded.

    files: image_id, split (train | test), path relative to the competition's root; one row per file, sorted by path.
        A member of an archive is `archive.zip!/name` (see `ich.data.files`).
    labels: image_id (study_id where `level` is study) and one float column per class; sorted by id.
    test_ids: the images that a submission must cover, in the order of the sample submission; empty without a test set.
    classes: weight of each class in the competition's log loss.
    template: path of the sample submission, relative to the competition's root; empty where there is none.
    notes: what was dropped or repaired while reading.
    no_labels: why there are no labels, and what to do; empty if there are some.
    values: hu: DICOM files with Hounsfield units; grey: PNG images with grey values 0..255, each a study of its own.
    level: labels are of slices or of studies. Those of a study are given to each of its slices: weak labels.
    test_studies: studies in the test set, wherever their files are.
    patients: the patient by image_id or study_id, as `labels`; of others, PatientID.
    select: selects slices by their headers, where not all are used.
    refused: files that are not in `files`: their name, archive or folder cannot be read (see `refused`).
    """

    files: pd.DataFrame
    labels: pd.DataFrame
    test_ids: list[str]
    classes: Mapping[str, float]
    template: str
    notes: tuple[str, ...]
    values: Literal["hu", "grey"] = "hu"
    level: Literal["slice", "study"] = "slice"
    test_studies: frozenset[str] = frozenset()
    patients: Mapping[str, str] = field(default_factory=dict)
    no_labels: str = ""
    select: Callable[[pd.DataFrame], Selection] | None = None
    refused: Sequence[Quarantined] = ()


# ---- folders


def require_folder(root: Path) -> None:
    if not root.is_dir():
        raise LayoutError(f"{root}: no such folder; put the competition there (see input/README.md)")


def first_existing(root: Path, names: tuple[str, ...], what: str) -> Path:
    for name in names:
        if (root / name).exists():
            return root / name
    raise LayoutError(f"{root}: no {what}; expected {' or '.join(names)}")


def find(root: Path, folder: str, wanted: Callable[[str], bool]) -> files.Found:
    """Find the files at any depth below one of the folders of `root`. Raises LayoutError."""
    try:
        found = files.below(root / folder, wanted)
    except OSError as error:
        raise LayoutError(f"{error.filename}: cannot read this folder ({error.strerror})") from None
    start = f"{folder}/" if folder else ""
    return files.Found(
        [start + name for name in found.names], {start + name: why for name, why in found.refused.items()}
    )


def refused(found: files.Found, split: str) -> list[Quarantined]:
    """`Raw.refused`."""
    reason = Reason.UNREADABLE
    return [
        Quarantined("", split, p, reason.name.lower(), Unreadable(reason, why).detail)
        for p, why in found.refused.items()
    ]


def file_table(ids: Sequence[str], split: str | Sequence[str], paths: Sequence[str]) -> pd.DataFrame:
    """`Raw.files`."""
    return pd.DataFrame({"image_id": ids, "split": split, "path": paths}).astype("str")


def images(root: Path, folder: str, suffix: str, split: str) -> tuple[pd.DataFrame, list[Quarantined]]:
    """`Raw.files` and `Raw.refused` of the files with a suffix at any depth below a folder; an id is a name without it.

    Hidden files (as `._1.dcm` in archives of a Mac) are ignored.
    """
    found = find(root, folder, lambda name: not name.startswith(".") and name.lower().endswith(suffix))
    if not found.names:
        raise LayoutError(f"{root / folder}: no {suffix} file at any depth below it; unpack the competition there")
    ids = [path.rpartition("/")[2][: -len(suffix)] for path in found.names]
    return file_table(ids, split, found.names), refused(found, split)


def refuse_same_id(table: pd.DataFrame) -> None:
    """Raise LayoutError if two files are the same image."""
    twice = table["image_id"].duplicated(keep=False)
    if twice.any():
        first = table.loc[twice, "image_id"].iloc[0]
        paths = ", ".join(table.loc[table["image_id"] == first, "path"][:2])
        raise LayoutError(f"image {first} is in two places ({paths}); keep one of its files")


# ---- tables


def dialect(path: Path) -> tuple[str, str]:
    """Separator and encoding of a CSV that a spreadsheet or a script wrote. Raises LayoutError for an Excel file."""
    try:
        data = content(path, MAX_TABLE)
    except OSError as error:
        raise LayoutError(f"{path}: cannot be read ({error.strerror})") from None
    if data.startswith(EXCEL):
        raise LayoutError(f"{path}: this is an Excel file; save it as CSV")
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        first = data.decode(encoding).partition("\n")[0]
    except UnicodeDecodeError:
        first, encoding = data.decode("cp1252", errors="replace").partition("\n")[0], "cp1252"
    return max(",;\t", key=first.count), encoding


def read_text(path: Path, *, header: bool = True, separator: str = ",", encoding: str = "utf-8-sig") -> pd.DataFrame:
    """A CSV as text. Row r of an editor has index r - 2, with and without a header."""
    try:
        data = io.BytesIO(content(path, MAX_TABLE))
        first = io.TextIOWrapper(data, encoding, newline="")
        columns = next(csv.reader(first, delimiter=separator), [])
        if len(columns) > MOST_COLUMNS:  # pandas takes minutes for 200,000
            raise ValueError(f"{len(columns):,} columns, more than {MOST_COLUMNS:,}")
        first.detach().seek(0)
        with warnings.catch_warnings(record=True, action="always", category=pd.errors.ParserWarning) as longer:
            table = pd.read_csv(
                data,
                sep=separator,
                dtype=str,
                keep_default_na=False,
                encoding=encoding,
                header=0 if header else None,
                index_col=False,
                skip_blank_lines=False,
            )
        if longer:  # the rows are longer than the header; a separator at their end is accepted
            data.seek(0)
            rows = csv.reader(io.TextIOWrapper(data, encoding, newline=""), delimiter=separator)
            if row := next((row for row in rows if any(row[len(columns) :])), None):
                raise LayoutError(
                    f"{path}: row {rows.line_num} has {len(row)} cells, the header {len(columns)}; remove the surplus"
                )
    except LayoutError:
        raise
    except (ValueError, csv.Error) as error:  # of pandas' parser too
        raise LayoutError(f"{path}: not a whole CSV file ({' '.join(str(error).split())}); download it again") from None
    except OSError as error:
        raise LayoutError(f"{path}: cannot be read ({error.strerror})") from None
    if header and (twice := [name for name in columns if name and columns.count(name) > 1]):
        raise LayoutError(f"{path}: column {twice[0]!r} occurs twice; remove one")  # pandas has renamed it
    if not header:
        table.index = pd.RangeIndex(-1, len(table) - 1)
    table = table.rename(columns=str)
    blank = (table.isna() | (table == "")).all(axis=1)
    if blank.all():
        raise LayoutError(f"{path}: not a whole CSV file (it has no rows); download it again")
    return table[~blank]


def read_columns(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """The named columns of a CSV as text; others (an index, for example) are ignored."""
    table = read_text(path)
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise LayoutError(f"{path}: no column {missing[0]!r}; it has {', '.join(map(repr, table.columns))}")
    return table[list(columns)]


def refuse_rows(path: Path, bad: pd.Series, values: pd.Series, expected: str) -> None:
    """Raise LayoutError with the first `bad` rows, numbered as in an editor. The index is that of `read_text`."""
    if bad.any():
        shown = [(int(i) + 2, values.loc[i]) for i in bad.index[bad][:3]]
        rows = ", ".join(f"row {row}: {'nothing' if pd.isna(value) else repr(value)}" for row, value in shown)
        more = f" ({int(bad.sum())} such rows)" if bad.sum() > len(shown) else ""
        cut = ". It is the last row: is the file truncated?" if bad.sum() == 1 and bad.iloc[-1] else ""
        raise LayoutError(f"{path}: {rows}; expected {expected}{more}{cut}")


def require_ids(path: Path, ids: pd.Series, expected: str, *, once: bool = False) -> None:
    """Raise LayoutError for rows with an empty id, or, with `once`, with the id of another row."""
    refuse_rows(path, ids.isna() | (ids == ""), ids, expected)
    if once:
        refuse_rows(path, ids.duplicated(keep=False), ids, f"each {ids.name} once")


def digits(path: Path, values: pd.Series, what: str) -> pd.Series:
    """Labels 0 and 1 as float32. Raises LayoutError for the rows of other values."""
    refuse_rows(path, ~values.isin(["0", "1", "0.0", "1.0"]), values, f"{what} 0 or 1")
    return values.astype("float32")


def one_of(words: Iterable[str], known: Sequence[str]) -> str:
    """`one of a, b, c`, with a suggestion for the first unknown word."""
    unknown = next((str(word) for word in words if word not in known), "")
    close = difflib.get_close_matches(unknown, known, n=1, cutoff=0.6)
    return f"one of {', '.join(known)}" + (f" (did you mean {close[0]}?)" if close else "")


def agreed(path: Path, table: pd.DataFrame, key: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The table without repeated rows, and a note if there were any. Raises LayoutError for contradicting rows."""
    unique = table.drop_duplicates()
    conflict = unique.duplicated(list(key), keep=False)
    if conflict.any():
        pairs = unique.loc[conflict, list(key)].astype(str).agg("_".join, axis=1)
        names = ", ".join(sorted(set(pairs))[:3])
        rows = ", ".join(str(int(i) + 2) for i in conflict.index[conflict][:4])
        raise LayoutError(f"{path}: the same ID with Label 0 and 1: {names} (rows {rows}); keep one row of each")
    dropped = len(table) - len(unique)
    return unique, [f"{path.name}: {dropped} repeated rows dropped"] if dropped else []


def parts_of(path: Path, ids: pd.Series, classes: Sequence[str]) -> pd.DataFrame:
    """image_id and class of ids `<image>_<class>`. Raises LayoutError for other ids."""
    parts = ids.str.rsplit("_", n=1, expand=True).reindex(columns=[0, 1]).set_axis(["image_id", "class"], axis=1)
    bad = ~parts["class"].isin(classes)
    refuse_rows(path, bad, ids, f"<image>_<class>, class {one_of(parts.loc[bad, 'class'].dropna(), classes)}")
    return parts


def sample_rows(path: Path, column: str, classes: Sequence[str]) -> pd.DataFrame:
    """The ids of a sample submission, with image_id and class. Raises LayoutError for duplicates."""
    table = read_columns(path, (column,))
    refuse_rows(path, table[column].duplicated(keep=False), table[column], f"each {column} once")
    return pd.concat([table, parts_of(path, table[column], classes)], axis=1)


def in_sample_order(sample: pd.DataFrame, values: pd.DataFrame, label: str) -> pd.DataFrame:
    """`values` (image_id and one column per class) as id and label, in the order of `sample_rows`."""
    long = values.melt(id_vars="image_id", var_name="class", value_name=label)
    table = sample.merge(long, on=["image_id", "class"], how="left", validate="one_to_one")
    return table[[sample.columns[0], label]]


def wide(path: Path, long: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Rows of image_id, class and label as image_id and one column per class, sorted.

    Raises LayoutError for an image without a row for each class.
    """
    table = long.pivot(index="image_id", columns="class", values="label").reindex(columns=list(classes))
    if table.isna().any(axis=None):
        image, name = table.isna().stack().pipe(lambda missing: missing[missing].index[0])
        raise LayoutError(
            f"{path}: image {image} has no row for {name}; expected {len(classes)} rows per image"
            " (a cut-off file? then download it again)"
        )
    return table.rename_axis(columns=None).sort_index().reset_index()

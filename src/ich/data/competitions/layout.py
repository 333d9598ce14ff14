"""What every competition format is brought to, and the checks on the way."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from ich.data import files
from ich.errors import UserError

SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")


class LayoutError(UserError, ValueError):
    """The competition's folder is not laid out as its format says; the text names file and row and what to do."""


@dataclass(frozen=True)
class Raw:
    """A competition as downloaded.

    files: image_id, split (train | test), path relative to the competition's root; one row a file, sorted by path.
        A member of an archive is `archive.zip!/name` (see `ich.data.files`).
    labels: image_id (study_id where `level` is study) and a float column a class; one row a labelled image (study),
        sorted by its id.
    test_ids: the images that a submission must cover, in the sample submission's order; none without a test set.
    classes: and what each of them counts in the competition's log loss.
    template: path of the sample submission, relative to the competition's root; empty where there is none.
    notes: what was dropped or repaired while reading, in words.
    values: hu: DICOM files, Hounsfield units; grey: pictures (PNG), grey values 0..255, each a study of its own.
    level: what the labels speak of. Those of a study are given to each of its slices: weak labels.
    test_studies: studies that belong to the test set wherever their files lie.
    choose: which of the slices whose headers could be read stay, where not all of them do (see `Choice`).
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
    choose: "Callable[[pd.DataFrame], Choice] | None" = None


@dataclass(frozen=True)
class Choice:
    """Which rows of a slice table stay: keep, bool [n]; reason and detail, by row, of those that do not; notes."""

    keep: pd.Series
    reasons: Mapping[int, tuple[str, str]]
    notes: tuple[str, ...]


def require_folder(root: Path) -> None:
    if not root.is_dir():
        raise LayoutError(f"{root}: no such folder; put the competition there (see input/README.md)")


def first_existing(root: Path, names: tuple[str, ...], what: str) -> Path:
    for name in names:
        if (root / name).exists():
            return root / name
    raise LayoutError(f"{root}: no {what}; expected {' or '.join(names)}")


def find(root: Path, folder: str, wanted: Callable[[str], bool]) -> list[str]:
    """Paths, relative to `root`, of the files below one of its folders at any depth, sorted. Raises LayoutError."""
    try:
        names = files.below(root / folder, wanted)
    except OSError as error:
        raise LayoutError(f"{error.filename}: this folder cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise LayoutError(str(error)) from None
    return [f"{folder}/{name}" for name in names] if folder else names


def with_suffix(*suffixes: str) -> Callable[[str], bool]:
    """Whether a file name ends so, in either case; hidden files (as `._1.dcm` of a Mac's archive) never do."""
    return lambda name: not name.startswith(".") and name.lower().endswith(suffixes)


def file_table(ids: Sequence[str], split: str | Sequence[str], paths: Sequence[str]) -> pd.DataFrame:
    table = pd.DataFrame({"image_id": pd.Series(list(ids), dtype="str"), "path": pd.Series(list(paths), dtype="str")})
    table.insert(1, "split", split if isinstance(split, str) else list(split))
    return table.astype({"split": "str"})


def refuse_same_id(table: pd.DataFrame) -> None:
    """Raise LayoutError where two files would be the same image."""
    twice = table["image_id"].duplicated(keep=False)
    if twice.any():
        first = table.loc[twice, "image_id"].iloc[0]
        paths = ", ".join(table.loc[table["image_id"] == first, "path"][:2])
        raise LayoutError(f"image {first} lies in two places ({paths}); keep one of its files")


def read_text(path: Path, *, header: bool = True) -> pd.DataFrame:
    """A CSV as text. Its index is such that the row an editor calls r has index r - 2, with and without a header."""
    try:
        table = pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            header=0 if header else None,
            index_col=False,
            skip_blank_lines=False,
        )
    except (ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise LayoutError(f"{path}: not a whole CSV file ({' '.join(str(error).split())}); download it again") from None
    except OSError as error:
        raise LayoutError(f"{path}: cannot be read ({error.strerror})") from None
    if not header:
        table.index = pd.RangeIndex(-1, len(table) - 1)
    table = table.rename(columns=str)
    blank = (table.isna() | (table == "")).all(axis=1)
    if blank.all():
        raise LayoutError(f"{path}: not a whole CSV file (it has no rows); download it again")
    return table[~blank] if blank.any() else table


def read_columns(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """The named columns of a CSV as text; others (an index column, say) are left aside."""
    table = read_text(path)
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise LayoutError(f"{path}: no column {missing[0]!r}; it has {', '.join(map(repr, table.columns))}")
    return table[list(columns)]


def refuse_rows(path: Path, bad: pd.Series, values: pd.Series, expected: str) -> None:
    """Raise LayoutError naming the first rows where `bad`, as an editor numbers them; the index is `read_text`'s."""
    if bad.any():
        shown = [(int(i) + 2, values.loc[i]) for i in bad.index[bad][:3]]
        rows = ", ".join(f"row {row}: {'nothing' if pd.isna(value) else repr(value)}" for row, value in shown)
        cut = "; it is the last row: a file cut off in download?" if bad.sum() == 1 and bad.iloc[-1] else ""
        raise LayoutError(f"{path}: {int(bad.sum())} bad rows ({rows}); expected {expected}{cut}")


def digits(path: Path, values: pd.Series, what: str) -> pd.Series:
    """0 and 1 as float32; anything else is refused with its rows."""
    refuse_rows(path, ~values.isin(["0", "1", "0.0", "1.0"]), values, f"{what} 0 or 1")
    return values.astype("float32")


def one_of(words: Iterable[str], known: Sequence[str]) -> str:
    """`one of a, b, c`, with the one that the first unknown word may have meant."""
    unknown = next((str(word) for word in words if word not in known), "")
    close = difflib.get_close_matches(unknown, known, n=1, cutoff=0.6)
    return f"one of {', '.join(known)}" + (f" (did you mean {close[0]}?)" if close else "")


def agreed(path: Path, table: pd.DataFrame, key: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """The table without its repeated rows, and how many those were; rows with one key that disagree are refused."""
    unique = table.drop_duplicates()
    conflict = unique.duplicated(list(key), keep=False)
    if conflict.any():
        pairs = unique.loc[conflict, list(key)].astype(str).agg("_".join, axis=1)
        names = ", ".join(sorted(set(pairs))[:3])
        rows = ", ".join(str(int(i) + 2) for i in conflict.index[conflict][:4])
        raise LayoutError(f"{path}: the same ID with Label 0 and 1: {names} (rows {rows}); keep one row of each")
    return unique, len(table) - len(unique)


def parts_of(path: Path, ids: pd.Series, classes: Sequence[str]) -> pd.DataFrame:
    """image_id and class of ids `<image>_<class>`; others are refused."""
    parts = ids.str.rsplit("_", n=1, expand=True).reindex(columns=[0, 1]).set_axis(["image_id", "class"], axis=1)
    bad = ~parts["class"].isin(classes)
    refuse_rows(path, bad, ids, f"<image>_<class>, class {one_of(parts.loc[bad, 'class'].dropna(), classes)}")
    return parts


def sample_rows(path: Path, column: str, classes: Sequence[str]) -> pd.DataFrame:
    """The ids of a sample submission, with image_id and class; duplicates are refused."""
    table = read_columns(path, (column,))
    refuse_rows(path, table[column].duplicated(), table[column], f"each {column} once")
    return pd.concat([table, parts_of(path, table[column], classes)], axis=1)


def in_sample_order(sample: pd.DataFrame, values: pd.DataFrame, label: str) -> pd.DataFrame:
    """`values` (image_id and one column per class) as id and label, in the rows of `sample_rows`."""
    long = values.melt(id_vars="image_id", var_name="class", value_name=label)
    table = sample.merge(long, on=["image_id", "class"], how="left", validate="one_to_one")
    return table[[sample.columns[0], label]]


def wide(path: Path, long: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """image_id and a column a class, sorted, of rows image_id, class, label; an image that lacks a class is refused."""
    table = long.pivot(index="image_id", columns="class", values="label").reindex(columns=list(classes))
    if table.isna().any(axis=None):
        image, kind = table.isna().stack().pipe(lambda missing: missing[missing].index[0])
        lines = {5: "five", 6: "six"}.get(len(classes), str(len(classes)))
        raise LayoutError(
            f"{path}: image {image} has no row for {kind}; {lines} rows an image are expected"
            " (a cut-off file? then download it again)"
        )
    return table.rename_axis(columns=None).sort_index().reset_index()

"""The verdict: how good the ensemble is, how sure that is, what speaks against it, and on what data it was found."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from ich.report import scores, thresholds
from ich.report.page import Block, Details, Notes, Section, Table, Tile, Tiles
from ich.stages.artefacts import as_written
from ich.stages.reporting.evidence import Evidence

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

WIDE = 10**6  # characters a line: tables are not cut into parts here
NAMED = 10  # patients at most that a warning names
FEW = 200  # patients: with fewer, the intervals are the first thing to look at
WARNING = "warning: "


def section(evidence: Evidence) -> Section:
    tables = list(scores.tables(evidence.scores, WIDE))
    warnings = list(_warnings(evidence))
    alarm = Notes(warnings, "warning") if warnings else Notes(["No stage of this run has warned of anything."])
    blocks: list[Block] = [*_tiles(evidence.scores, tables), Notes([_sure(evidence.scores)]), alarm]
    blocks += [Table(t.columns, t.rows, t.title) for t in tables]
    blocks.append(Notes(scores.sentences(evidence.scores)))
    details = {
        "Classes: how common each is": list(_classes(evidence.scores)),
        "Folds: who was judged by whom": _folds(evidence),
        "Files that were left out": _quarantined(evidence),
        "Thresholds": list(_thresholds(evidence.tuned)),
    }
    blocks += [Details(title, inner) for title, inner in details.items() if inner]
    return Section("verdict", "The verdict", blocks, _lead(evidence))


# ---- in plain words


def _lead(evidence: Evidence) -> str:
    """What was predicted, how good it is, and what it may not be used for."""
    recipe, rows, found = evidence.plan.recipe, evidence.scores["rows"]["oof"], evidence.scores
    auc, level = found["members"]["blend"]["oof"]["auc"], f"{found['level']:.0%}"
    seen = "no slice of that patient"
    if recipe.folds.by == "slice":
        seen = "other slices of that patient, though not this one"
    what = f"CT slices of {rows['patients']:,} patients"
    if not evidence.has_studies:
        what, seen = "pictures", "other pictures only"
    kinds = f", and of which kind ({', '.join(evidence.classes)})" if len(evidence.classes) > 1 else ""
    said = [
        f"For each of {rows['slices']:,} labelled {what} the ensemble says how likely it shows a bleed inside the"
        f" skull{kinds}. It is judged by networks that had seen {seen}."
    ]
    if auc["value"] is not None:
        value, ends = _parts(scores.span(auc))
        said.append(
            f"Given a slice with a finding and one without, it ranks the right one first with probability {value}"
            f" (mean over classes; {level} interval {ends}; a coin reaches 0.5)."
        )
    if recipe.demo is not None:
        said.append("The scans are synthetic, drawn by a program: no figure here holds for real patients.")
    said.append("Not to be used to decide about anybody's care: nobody has tested it for that.")
    return " ".join(said)


def _sure(found: dict[str, Any]) -> str:
    """How sure the figures are."""
    patients = found["rows"]["oof"]["patients"]
    many = f", and with {patients} patients that is wide" if patients < FEW else ""
    return (
        f"An interval says how far a figure may move if other patients of the same kind are drawn{many}. It says"
        " nothing of other scanners, hospitals or readers."
    )


def _parts(span: str) -> tuple[str, str]:
    """A figure and its interval, as `ich score` prints them; no interval is an empty one."""
    value, _, ends = span.partition(" ")
    return value, ends


def _tiles(found: dict[str, Any], tables: list[scores.Table]) -> Iterator[Tiles]:
    """The blend's line of each table, and what is handed in."""
    level = f"{found['level']:.0%}"
    for table, where in zip(tables, found["rows"], strict=True):
        blend = next(row for row in table.rows if row[0] == "blend")
        tiles: list[Tile] = []
        for title, cell in list(zip(table.columns, blend, strict=True))[1:4]:
            value, ends = _parts(cell)
            interval = f"{level} interval {ends}" if ends else "no interval"
            tiles.append(Tile(f"{title}, {scores.PLACES[where]}", value, f"{interval}; {_reading(title)}"))
        if where == "test":
            handed_in = found["submission"]
            title = f"{handed_in['average']} {found['metric'].upper()}"
            value, ends = _parts(scores.span(handed_in["f"]))
            tiles.append(Tile(f"{title}, as submitted", value, f"{level} interval {ends}; by the submitted thresholds"))
            tiles.append(Tile("log loss, as submitted", scores.number(handed_in["log_loss"]), "lower is better"))
        yield Tiles(tiles)


def _reading(title: str) -> str:
    if title.endswith("log loss"):
        return "lower is better"
    return "0.5 is a guess, 1 is perfect" if title.endswith("AUC") else "1 is perfect"


# ---- warnings


def _warnings(evidence: Evidence) -> Iterator[str]:
    """What the stages warned of, and what the tables show to be wrong; the gravest first."""
    plan, table = evidence.plan, evidence.slices.table
    yield from _overlap(table)
    for name, counts in evidence.scores["rows"]["oof"]["classes"].items():
        if not counts["positives"]:
            yield f"{name}: no labelled slice has it, so nothing was learnt of it and its figures mean nothing"
    yield from evidence.scores["warnings"]
    yield from (f"folds: {warning}" for warning in evidence.recorded(plan.folds).get("warnings", []))
    for _, sentences in thresholds.parts(evidence.tuned):
        said = (sentence.removeprefix(WARNING) for sentence in sentences if sentence.startswith(WARNING))
        yield from (f"thresholds: {sentence}" for sentence in said)
    train = (table["split"] == "train").to_numpy()
    unlabelled = int((train & ~evidence.slices.labelled).sum())
    if unlabelled:
        yield (
            f"{unlabelled:,} of {int(train.sum()):,} training slices have no label, or not all: they train nothing, and"
            " no figure here knows them"
        )
    filled = evidence.recorded(plan.submit).get("filled_with_prior", 0)
    if filled:
        yield f"{filled} test images could not be read; they got the training prevalence"


def _overlap(table: "pd.DataFrame") -> Iterator[str]:
    """Patients who are in training and test."""
    train = table["split"] == "train"
    both = sorted(set(table.loc[train, "patient_id"]) & set(table.loc[~train, "patient_id"]))
    if both:
        more = f" and {len(both) - NAMED} more" if len(both) > NAMED else ""
        yield (
            f"patients in training and test: {len(both)} ({', '.join(both[:NAMED])}{more}). The networks have seen"
            " them, so figures on the test set flatter; competition.exclude_overlap: true leaves them out of training"
        )


# ---- the data


def _classes(found: dict[str, Any]) -> Iterator[Block]:
    columns = ["class", "slices with it", "patients with it", "prevalence", "weight in the log loss"]
    for where, rows in found["rows"].items():
        cells = [
            [
                name,
                f"{counts['positives']:,}",
                f"{counts['patients']:,}",
                scores.number(counts["prevalence"]),
                f"{found['class_weights'][name]:g}",
            ]
            for name, counts in rows["classes"].items()
        ]
        yield Table(
            columns, cells, f"{scores.TITLES[where]}: {rows['slices']:,} slices of {rows['patients']:,} patients"
        )


def _folds(evidence: Evidence) -> list[Block]:
    import numpy as np

    patients = evidence.slices.table["patient_id"].to_numpy()[evidence.rows]
    rows: list[list[str]] = []
    for k in evidence.plan.fold_numbers:
        there = evidence.folds == k
        cells = (_count(evidence.labels[there, c] > 0, patients[there]) for c in range(len(evidence.classes)))
        rows.append([str(k), f"{len(np.unique(patients[there])):,}", f"{int(there.sum()):,}", *cells])
    columns = ["fold", "patients", "slices", *evidence.classes]
    how = "Each fold's slices are judged by networks trained on the other folds. In brackets: patients with the class."
    return [Table(columns, rows, "Slices a fold, and how many of them have each class"), Notes([how])]


def _count(positive: "np.ndarray", patients: "np.ndarray") -> str:
    return f"{int(positive.sum()):,} ({len(set(patients[positive])):,})"


def _quarantined(evidence: Evidence) -> list[Block]:
    import pandas as pd

    path = evidence.plan.prepared.folder / "quarantine.csv"
    with as_written(path):
        reasons = pd.read_csv(path, dtype=str, keep_default_na=False)["reason"]
    if not len(reasons):
        return [Notes(["None: every file could be read, and every label has its file."])]
    rows = [[reason.replace("_", " "), f"{count:,}"] for reason, count in sorted(Counter(reasons).items())]
    title = f"{len(reasons):,} files were put aside, or are named without being there"
    return [Table(["reason", "files"], rows, title), Notes(["docs/quarantine.md says what each reason means."])]


def _thresholds(tuned: dict[str, Any]) -> Iterator[Block]:
    parts = ([Table(t.columns, t.rows, t.title), Notes(lines)] for t, lines in thresholds.parts(tuned))
    yield from chain.from_iterable(parts)

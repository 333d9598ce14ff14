"""The summary: how good the ensemble is, how certain that is, all warnings, and the data that it was evaluated on."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from ich.report import scores, thresholds
from ich.report.evidence import Evidence
from ich.report.page.blocks import Block, Details, Notes, Section, Table, Tile, Tiles

WIDE = 10**6  # characters per line: tables are not split here
NAMED = 10  # patients that a warning names
FEW = 200  # patients; with fewer, the intervals are wide
WARNING = "warning: "


def section(evidence: Evidence) -> Section:
    found = evidence.scores
    tables = list(scores.tables(found, WIDE))
    warnings = list(_warnings(evidence))
    blocks: list[Block] = [*_tiles(evidence, tables), Notes([_certainty(evidence)])]
    blocks.append(Notes(warnings, "warning") if warnings else Notes(["No stage of this run has a warning."]))
    blocks += [Table(columns, rows, title) for title, columns, rows in tables]
    blocks.append(Notes(scores.sentences(found)))
    blocks.append(Details("Classes", list(_classes(evidence))))
    blocks.append(Details("Folds", _folds(evidence)))
    blocks.append(Details("Quarantined files", _quarantined(evidence)))
    tuned: list[Block] = []
    for (title, columns, rows), sentences in thresholds.parts(evidence.tuned):
        tuned += [Table(columns, rows, title), Notes(sentences)]
    blocks.append(Details("Thresholds", tuned))
    return Section("summary", "Summary", blocks, _lead(evidence))


def _lead(evidence: Evidence) -> str:
    """What is predicted, how good it is, and what it must not be used for."""
    counts, auc = evidence.scores["rows"]["oof"], evidence.scores["models"]["blend"]["oof"]["auc"]
    what, seen = f"CT slices of {counts['patients']:,} patients", "no slice of that patient"
    if evidence.folds_by_slice:
        seen = "other slices of that patient, though not this one"
    if not evidence.has_studies:
        what, seen = "images", "other images only"
    kinds = f", and of which kind ({', '.join(evidence.classes)})" if len(evidence.classes) > 1 else ""
    said = [
        f"For each of {counts['slices']:,} labelled {what} the ensemble predicts the probability of an intracranial"
        f" hemorrhage{kinds}. It is evaluated with networks that were trained on {seen}."
    ]
    if auc["value"] is not None:
        value, interval = scores.split(scores.span(auc))
        said.append(
            f"Given one slice with a finding and one without, it ranks the right one first with probability {value}"
            f" (mean over classes; {evidence.scores['level']:.0%} confidence interval {interval}; chance is 0.5)."
        )
    if evidence.synthetic:
        said.append("The scans are synthetic: no score here holds for real patients.")
    return " ".join([*said, "It is not tested for, and must not be used for, decisions about anybody's care."])


def _certainty(evidence: Evidence) -> str:
    patients = evidence.scores["rows"]["oof"]["patients"]
    many = f", and with {patients} patients that is wide" if patients < FEW else ""
    return (
        f"A confidence interval shows how far a score may move if other patients of the same kind are drawn{many}. It"
        " does not cover other scanners, hospitals or readers."
    )


def _tiles(evidence: Evidence, tables: list[scores.Table]) -> Iterator[Tiles]:
    """The blend's row of each table, and the scores as submitted."""
    found = evidence.scores
    level = f"{found['level']:.0%} CI"
    for (_, columns, rows), where in zip(tables, found["rows"], strict=True):
        blend = next(row for row in rows if row[0] == "blend")
        tiles: list[Tile] = []
        for title, cell in list(zip(columns, blend, strict=True))[1:4]:
            value, interval = scores.split(cell)
            reading = "1 is perfect"
            if title.endswith("log loss"):
                reading = "lower is better"
            elif title.endswith("AUC"):
                reading = "0.5 is chance, 1 is perfect"
            note = f"{level} {interval}; {reading}" if interval else reading
            tiles.append(Tile(f"{title}, {scores.PLACES[where]}", value, note))
        if where == "test":
            submitted = found["submission"]
            value, interval = scores.split(scores.span(submitted["f"]))
            title = f"{submitted['average']} {found['metric'].upper()}, as submitted"
            tiles.append(Tile(title, value, f"{level} {interval}; by the submitted thresholds"))
            tiles.append(Tile("log loss, as submitted", scores.number(submitted["log_loss"]), "lower is better"))
        yield Tiles(tiles)


def _warnings(evidence: Evidence) -> Iterator[str]:
    """All warnings of the stages and of the tables, the most serious first."""
    table = evidence.table
    train = (table["split"] == "train").to_numpy()
    both = sorted(set(table["patient_id"][train]) & set(table["patient_id"][~train]))
    if both:
        more = f" and {len(both) - NAMED} more" if len(both) > NAMED else ""
        yield (
            f"patients in training and test: {len(both)} ({', '.join(both[:NAMED])}{more}). The networks have seen"
            " them, so test scores are optimistic; competition.exclude_overlap: true leaves them out of training"
        )
    for name, counts in evidence.scores["rows"]["oof"]["classes"].items():
        if not counts["positives"]:
            yield f"{name}: no labelled slice is positive, so nothing was learnt and its scores mean nothing"
    yield from evidence.scores["warnings"]
    for _, sentences in thresholds.parts(evidence.tuned):
        yield from (f"thresholds: {one.removeprefix(WARNING)}" for one in sentences if one.startswith(WARNING))
    unlabelled = int((train & ~evidence.labelled).sum())
    if unlabelled:
        yield (
            f"{unlabelled:,} of {int(train.sum()):,} training slices lack some label: they are neither trained on nor"
            " evaluated"
        )
    yield from evidence.warnings


def _classes(evidence: Evidence) -> Iterator[Table]:
    columns = ["class", "positive slices", "positive patients", "prevalence", "weight in the log loss"]
    weights = evidence.scores["class_weights"]
    for where, rows in evidence.scores["rows"].items():
        cells = [
            [name, f"{n['positives']:,}", f"{n['patients']:,}", scores.number(n["prevalence"]), f"{weights[name]:g}"]
            for name, n in rows["classes"].items()
        ]
        title = f"{scores.TITLES[where]}: {rows['slices']:,} slices of {rows['patients']:,} patients"
        yield Table(columns, cells, title)


def _folds(evidence: Evidence) -> list[Block]:
    patients = evidence.table["patient_id"].to_numpy()[evidence.rows]
    rows: list[list[str]] = []
    for k in evidence.fold_numbers:
        there = evidence.folds == k
        cells = [str(k), f"{len(np.unique(patients[there])):,}", f"{int(there.sum()):,}"]
        positive = (evidence.labels[there] > 0).T
        rows.append([*cells, *(f"{int(one.sum()):,} ({len(set(patients[there][one])):,})" for one in positive)])
    columns = ["fold", "patients", "slices", *evidence.classes]
    how = "Each fold is predicted by networks trained on the other folds. In brackets: patients with the class."
    return [Table(columns, rows, "Slices per fold, and positive slices per class"), Notes([how])]


def _quarantined(evidence: Evidence) -> list[Block]:
    if not evidence.quarantined:
        return [Notes(["None: every file could be read, and every label has its file."])]
    rows = [[reason.replace("_", " "), f"{count:,}"] for reason, count in sorted(Counter(evidence.quarantined).items())]
    title = f"{len(evidence.quarantined):,} files are quarantined or missing"
    return [Table(["reason", "files"], rows, title), Notes(["docs/reference/quarantine.md explains each reason."])]

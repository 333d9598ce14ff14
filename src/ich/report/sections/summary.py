"""Summary: the scores of the ensemble and their certainty, all warnings, and the data of the evaluation."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from ich.report import scores, thresholds
from ich.report.evidence import Evidence
from ich.report.page import charts
from ich.report.page.blocks import Block, Chart, Details, Notes, Section, Table, Tile, Tiles

WIDE = 10**6  # characters per line: tables are not split here
NAMED = 10  # patients listed in a warning
FEW = 200  # patients; with fewer, the intervals are wide
WARNING = "warning: "


def section(evidence: Evidence, examples: Sequence[Block]) -> Section:
    """Make the section with the cards of the examples below the plot of the scores."""
    warnings = list(_warnings(evidence))
    tuned = [block for table, notes in thresholds.parts(evidence.tuned) for block in (table, Notes(notes))]
    blocks: list[Block] = [
        _scores(evidence),
        *examples,
        *_tiles(evidence),
        Notes(_reading(evidence)),
        Notes(warnings, "warning") if warnings else Notes(["No stage of this run has a warning."]),
        *scores.tables(evidence.scores, WIDE),
        Notes(list(scores.sentences(evidence.scores))),
        Details("Classes", list(_classes(evidence))),
        Details("Folds", _folds(evidence)),
        Details("Quarantined files", _quarantined(evidence)),
        Details("Thresholds", tuned),
    ]
    return Section("summary", "Summary", blocks, _lead(evidence))


def _lead(evidence: Evidence) -> str:
    counts = evidence.scores["rows"]["oof"]
    slices = f"CT slices of {counts['patients']:,} patients" if evidence.has_studies else "images"
    said = f"The ensemble predicts intracranial hemorrhage on {counts['slices']:,} labelled {slices}."
    return f"{said} The scans are synthetic: no score holds for real patients." if evidence.synthetic else said


def _scores(evidence: Evidence) -> Chart:
    """The metric of the recipe for each model, the blend last."""
    found, metric = evidence.scores, evidence.scores["metric"]
    cells = {scores.TITLES[rows]: [model[rows][metric] for model in found["models"].values()] for rows in found["rows"]}
    title = f"Macro {metric.upper()} of each model"
    caption = (
        f"Bars are {found['level']:.0%} confidence intervals over patients; the dashed line is the blend. All models"
        " are evaluated on the same patients, so models whose bars overlap may still differ."
    )
    return Chart("scores", title, caption, charts.scores(cells, list(found["models"]), f"macro {metric.upper()}"))


def _tiles(evidence: Evidence) -> Iterator[Tiles]:
    """The blend's scores per set of rows, and the scores of the submission."""
    found, metric = evidence.scores, evidence.scores["metric"]

    def tile(title: str, cell: scores.Cell, note: str) -> Tile:
        interval = scores.interval(cell)
        return Tile(
            title, scores.number(cell["value"]), f"{found['level']:.0%} CI {interval}; {note}" if interval else note
        )

    for where in found["rows"]:
        cells, place = found["models"]["blend"][where], scores.PLACES[where]
        constant = {key: scores.number(found["baseline"][where][key]["value"]) for key in ("log_loss", "auc", metric)}
        tiles = [
            tile(f"log loss, {place}", cells["log_loss"], f"lower is better, baseline {constant['log_loss']}"),
            tile(f"macro AUC, {place}", cells["auc"], f"1 is perfect, baseline {constant['auc']}"),
            tile(f"macro {metric.upper()}, {place}", cells[metric], f"1 is perfect, baseline {constant[metric]}"),
        ]
        if where == "test":
            submitted = found["submission"]
            title = f"{submitted['average']} {metric.upper()}, as submitted"
            tiles.append(tile(title, submitted["f"], "by the submitted thresholds"))
            tiles.append(Tile("log loss, as submitted", scores.number(submitted["log_loss"]), "lower is better"))
        yield Tiles(tiles)
        if where in found["studies"]:
            cells = found["studies"][where]["models"]["blend"]
            name = "any" if "any" in cells["classes"] else "macro"
            cells = cells["classes"].get(name, cells)
            titles = ((f"{title} per study, {name}, {place}", key) for key, title in scores.STUDY_SCORES.items())
            yield Tiles([tile(title, cells[key], "1 is perfect") for title, key in titles])


def _reading(evidence: Evidence) -> list[str]:
    """Independence and uncertainty of the scores."""
    patients = evidence.scores["rows"]["oof"]["patients"]
    seen = "Each slice is predicted by networks that were trained on no slice of its patient."
    if evidence.folds_by_slice:
        seen = "Each slice is predicted by networks that saw other slices of its patient, so the scores are optimistic."
    elif not evidence.has_studies:
        seen = "Each image is predicted by networks that were trained on other images only."
    wide = f"; with {patients} patients they are wide" if patients < FEW else ""
    return [
        seen,
        f"Confidence intervals show how far a score may move for other patients of the same kind{wide}. They do not"
        " cover other scanners, hospitals or readers.",
    ]


def _warnings(evidence: Evidence) -> Iterator[str]:
    """The warnings of all stages, the most serious first."""
    table = evidence.table
    train = (table["split"] == "train").to_numpy()
    both = sorted(set(table["patient_id"][train]) & set(table["patient_id"][~train]))
    if both:
        more = f" and {len(both) - NAMED} more" if len(both) > NAMED else ""
        yield (
            f"{len(both)} patients are in both the training and the test set ({', '.join(both[:NAMED])}{more}), so test"
            " scores are optimistic. Set competition.exclude_overlap to true to exclude them from training."
        )
    for name, counts in evidence.scores["rows"]["oof"]["classes"].items():
        if not counts["positives"]:
            yield f"{name}: no labelled slice is positive, so nothing is learnt and its scores have no meaning."
    yield from evidence.scores["warnings"]
    for _, notes in thresholds.parts(evidence.tuned):
        yield from (f"thresholds: {one.removeprefix(WARNING)}" for one in notes if one.startswith(WARNING))
    unlabelled = int((train & ~evidence.labelled).sum())
    if unlabelled:
        yield (
            f"{unlabelled:,} of {int(train.sum()):,} training slices lack a label. They are used neither for training"
            " nor for evaluation."
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
        yield Table(title, columns, cells)


def _folds(evidence: Evidence) -> list[Block]:
    patients = evidence.table["patient_id"].to_numpy()[evidence.rows]
    rows: list[list[str]] = []
    for k in evidence.fold_numbers:
        there = evidence.folds == k
        cells = [str(k), f"{len(np.unique(patients[there])):,}", f"{int(there.sum()):,}"]
        positive = (evidence.labels[there] > 0).T
        rows.append([*cells, *(f"{int(one.sum()):,} ({len(set(patients[there][one])):,})" for one in positive)])
    columns = ["fold", "patients", "slices", *evidence.classes]
    return [
        Table("Slices per fold, and positive slices per class", columns, rows),
        Notes(["In brackets: patients with the class."]),
    ]


def _quarantined(evidence: Evidence) -> list[Block]:
    if not evidence.quarantined:
        return [Notes(["None: every file could be read, and every label has its file."])]
    rows = [[reason.replace("_", " "), f"{count:,}"] for reason, count in sorted(Counter(evidence.quarantined).items())]
    title = f"{len(evidence.quarantined):,} files are quarantined or missing"
    return [Table(title, ["reason", "files"], rows), Notes(["docs/reference/quarantine.md explains each reason."])]

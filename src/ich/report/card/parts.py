"""The parts of the model card, for the README of a bundle and for the page."""

from collections.abc import Iterator, Sequence
from math import isnan

from ich.report import thresholds
from ich.report.card import checklists
from ich.report.card.facts import Facts, Spread
from ich.report.page import markdown
from ich.report.page.blocks import Block, Details, Notes, Section, Table
from ich.report.scores import PLACES, STUDY_SCORES, TITLES, Cell, bracketed, deviation, number
from ich.report.sections.models import blend_method
from ich.report.sections.provenance import effort, versions

FEW = 30  # positive patients of a class; with fewer, one patient can change its scores
SETS = {"labelled": "labelled, for cross-validation", "unlabelled": "training set without labels", "test": "test set"}
NO_SCORES = "not made: run `ich score`"


def text(facts: Facts) -> str:
    """Return the card as Markdown."""
    return markdown.render(f"Model card: {facts.name}", _lead(facts), sections(facts))


def section(facts: Facts) -> Section:
    """Return the card as one section of the page."""
    return Section("card", "Model card", [Details(one.title, one.blocks) for one in sections(facts)], _lead(facts))


def _lead(facts: Facts) -> str:
    return (
        f"Ensemble of the recipe {facts.name}, trained by ich {facts.version}. The numbers of this card are from the"
        " records of the run."
    )


def sections(facts: Facts) -> list[Section]:
    parts = {
        "Intended use": [Notes(_use(facts))],
        "Limits": [Notes(list(_limits(facts)))],
        "Data": list(_data(facts)),
        "Folds": list(_folds(facts)),
        "Exclusions": list(_exclusions(facts)),
        "Leak checks": [Table("", ["check", "result", "evidence"], list(_leaks(facts)))],
        "Performance": list(_performance(facts)),
        "Calibration": list(_calibration(facts)),
        "Thresholds": list(_thresholds(facts)),
        "Models and training": list(_models(facts)),
        "Time and hardware": list(_effort(facts)),
        "TRIPOD+AI": checklists.tripod(facts),
        "CLAIM 2024": checklists.claim(facts),
    }
    return [Section(title.lower().replace(" ", "-"), title, blocks) for title, blocks in parts.items()]


def _use(facts: Facts) -> list[str]:
    files = "axial head CT as DICOM files in Hounsfield units" if facts.values == "hu" else "greyscale images"
    return [
        "For research and teaching. This is not a medical device: do not use it for diagnosis or triage.",
        f"Input: {files}. Whole series: slices without neighbours get less accurate scores."
        if facts.values == "hu"
        else f"Input: {files}.",
        f"Output: the probability of {', '.join(facts.classes)} per slice, and decisions by one threshold per class. A"
        " study has the maximum probability of its slices, and a calibrated probability.",
        "Users, patients and the place in the care pathway are not defined.",
        *([facts.exported] if facts.exported else []),
    ]


def _limits(facts: Facts) -> Iterator[str]:
    if facts.synthetic:
        yield "The scans are synthetic: no score holds for real patients."
    yield "No external test is recorded. Performance on other scanners, hospitals and readers is unknown."
    rare = [name for name, count in facts.positives.items() if count.patients < FEW]
    if rare:
        yield f"Fewer than {FEW} patients are positive for {', '.join(rare)}, so their scores are uncertain."
    yield "Age, sex, scanner, hospital and dates are not read, so performance by subgroup is unknown."
    if facts.burned_in:
        yield f"Text in the pixels: {facts.burned_in}"
    if facts.scores is not None:
        yield from facts.scores["warnings"]


# ---- data


def _data(facts: Facts) -> Iterator[Block]:
    rows = [[SETS[name], *(f"{n:,}" for n in count)] for name, count in facts.counts.items() if count.slices]
    yield Table("", ["", "patients", "studies", "series", "slices"], rows)
    known = facts.scores["rows"] if facts.scores else {}
    columns = ["class", "positive slices", "prevalence", "positive studies", "positive patients"]
    if "test" in known:
        columns += ["test: positive slices", "prevalence", "positive patients"]
    rows = []
    for name, count in facts.positives.items():
        share = count.slices / max(facts.counts["labelled"].slices, 1)
        row = [name, f"{count.slices:,}", f"{share:.4f}", f"{count.studies:,}", f"{count.patients:,}"]
        if "test" in known:
            test = known["test"]["classes"][name]
            row += [f"{test['positives']:,}", number(test["prevalence"]), f"{test['patients']:,}"]
        rows.append(row)
    yield Table("Classes", columns, rows)
    sets = list(next(iter(facts.acquisition.values()), ()))
    rows = [[name, *map(_spread, of_sets.values())] for name, of_sets in facts.acquisition.items()]
    yield Table("Acquisition: median (5th to 95th percentile) over series", ["", *(SETS[name] for name in sets)], rows)
    if facts.labels:
        yield Notes([facts.labels])


def _spread(one: Spread) -> str:
    return "-" if isnan(one.median) else f"{one.median:.4g} ({one.low:.4g} to {one.high:.4g})"


def _folds(facts: Facts) -> Iterator[Block]:
    settings, positives = facts.folds["settings"], facts.folds["positives"]
    unit = "patients, balanced over the classes" if settings["by"] == "patient" else "slices at random, which leaks"
    yield Notes(
        [
            f"{settings['n']}-fold cross-validation. The folds divide {unit} (seed {settings['seed']}).",
            "Each labelled slice is predicted by models that were not trained on its fold. A test slice gets the mean"
            " over folds.",
        ]
    )
    rows = [
        [str(k), str(studies), f"{slices:,}", *(str(positives[name][k]) for name in facts.classes)]
        for k, (studies, slices) in enumerate(zip(facts.folds["studies"], facts.folds["slices"], strict=True))
    ]
    yield Table("Slices per fold, and positive slices per class", ["fold", "studies", "slices", *facts.classes], rows)


def _exclusions(facts: Facts) -> Iterator[Block]:
    unlabelled = facts.counts["unlabelled"].slices
    yield Notes(
        [
            f"{unlabelled:,} training slices without all labels: not used for training on labels or for evaluation.",
            "Files are excluded for technical reasons only. There are no clinical criteria.",
            *(["No file was quarantined."] if not facts.quarantined else []),
        ]
    )
    if facts.quarantined:
        rows = [[reason.replace("_", " "), split, f"{n:,}"] for (split, reason), n in facts.quarantined.items()]
        yield Table("Files that were not used (quarantine.csv)", ["reason", "set", "files"], rows)


def _leaks(facts: Facts) -> Iterator[Sequence[str]]:
    by = facts.folds["settings"]["by"]
    yield ["Patients in more than one fold", str(facts.in_several_folds), f"folds file, folds by {by}"]
    yield ["Patients in the training and the test set", str(facts.in_train_and_test), "slices.parquet"]
    if facts.values == "hu":
        found = str(facts.unknown_patients)
        yield ["Labelled studies without PatientID, each counted as a patient", found, "slices.parquet"]
    copies = "not made: run `ich check`"
    if facts.checked is not None:
        copies = str(facts.checked.get(("warning", "duplicate_pixels"), 0))
    yield ["Slices with the same pixels as another", copies, "check.csv"]
    slices = f"{facts.counts['labelled'].slices:,} slices, each exactly once"
    yield ["Labelled slices predicted out of fold", slices, "oof.parquet of each model, refused otherwise"]
    tuned, optimism = facts.tuned, "not made: run `ich thresholds`"
    if tuned is not None:
        f, inside, outside = tuned["metric"].upper(), number(tuned["score"]), number(tuned["score_cross_fitted"])
        optimism = f"{f} {outside}, in-sample {inside}"
    yield ["Thresholds evaluated on other folds than they are tuned on", optimism, "thresholds.json"]
    warned = NO_SCORES if facts.scores is None else str(len(facts.scores["warnings"]))
    yield ["Warnings of optimistic scores (listed under Limits)", warned, "scores.json"]


# ---- scores


def _performance(facts: Facts) -> Iterator[Block]:
    found = facts.scores
    if found is None:
        yield Notes([NO_SCORES])
        return
    metric = found["metric"]
    keys = {"auc": "AUC", "ap": "average precision", metric: metric.upper(), "log_loss": "log loss"}
    yield Notes(
        [
            f"In brackets: {found['level']:.0%} confidence interval (bootstrap over patients,"
            f" {found['resamples']:,} resamples). {metric.upper()} uses the thresholds of the other folds.",
            "The baseline predicts the prevalence of each class for all slices.",
        ]
    )
    for where, counts in found["rows"].items():
        blend, baseline = found["models"]["blend"][where], found["baseline"][where]
        rows = [[name, *(_score(cells[key]) for key in keys)] for name, cells in blend["classes"].items()]
        rows.append(["mean (log loss: weighted)", *(_score(blend[key]) for key in keys)])
        rows.append(["baseline", *(_score(baseline[key]) for key in keys)])
        size = f"{counts['slices']:,} slices of {counts['patients']:,} patients"
        yield Table(f"{TITLES[where]}, {size}", ["class", *keys.values()], rows)
        yield Table(f"Slices, {PLACES[where]}, at the thresholds", *_decisions(facts, where))
        if where in found["studies"]:
            studies = found["studies"][where]
            classes = studies["models"]["blend"]["classes"]
            rows = [
                [name, f"{studies['positives'][name]:,}", *(_score(cells[key]) for key in STUDY_SCORES)]
                for name, cells in classes.items()
            ]
            columns = ["class", "positive studies", *STUDY_SCORES.values()]
            yield Table(f"Studies, {PLACES[where]}: {studies['studies']:,} studies", columns, rows)
    rows = [
        [name, _score(one["oof"]["log_loss"]), _score(one["oof"]["auc"]), deviation(one["oof"]["auc"])]
        for name, one in found["models"].items()
    ]
    yield Table("Each model, out of fold", ["model", "log loss", "macro AUC", "AUC, mean of folds ± deviation"], rows)


def _score(cell: Cell) -> str:
    return number(cell["value"]) if cell["low"] is None else bracketed(cell)


def _decisions(facts: Facts, where: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of counts and shares per class."""
    shares = {"sensitivity": ("tp", "fn"), "specificity": ("tn", "fp"), "PPV": ("tp", "fp"), "NPV": ("tn", "fn")}
    columns = ["class", "TP", "FP", "FN", "TN", *shares]
    rows = []
    for name in facts.classes:
        n = (facts.decisions or {})[where, name]
        parts = [number(n[a] / (n[a] + n[b]) if n[a] + n[b] else None) for a, b in shares.values()]
        rows.append([name, *(f"{n[key]:,}" for key in ("tp", "fp", "fn", "tn")), *parts])
    return columns, rows


def _calibration(facts: Facts) -> Iterator[Block]:
    methods = [[name, *(blend_method(one["classes"][name]) for one in facts.blends)] for name in facts.classes]
    columns = ["class", *(f"fold {k}" for k in range(len(facts.blends)))]
    yield Table("Combination and calibration of the blend", columns, methods)
    if facts.scores is None:
        yield Notes([f"Calibration error: {NO_SCORES}"])
        return
    errors = facts.scores["calibration_error"]
    rows = [[name, *(number(of_rows[name]) for of_rows in errors.values())] for name in facts.classes]
    yield Table("Expected calibration error of the blend", ["class", *(PLACES[where] for where in errors)], rows)
    yield Notes(["Reliability curves are in report.html (Per class), their points in reliability.csv."])


def _thresholds(facts: Facts) -> Iterator[Block]:
    if facts.tuned is None:
        yield Notes(["not made: run `ich thresholds`"])
        return
    for table, notes in thresholds.parts(facts.tuned):
        yield table
        yield Notes(notes)


# ---- models


def _models(facts: Facts) -> Iterator[Block]:
    rows = []
    for name, one in facts.models.items():
        parameters = f"{one.parameters:,}" if one.parameters else ""
        rows.append([name, one.stage, ", ".join(one.inputs), parameters, one.weights, one.settings])
    columns = ["model", "kind", "reads", "parameters per fold", "initial weights", "settings"]
    yield Table("", columns, rows)
    yield Notes(
        [
            f"Settings that are not listed have the defaults of ich {facts.version}. Images: {facts.image}.",
            f"{len(facts.blends)} fits of each model, one per fold. The prediction is the mean of the blends.",
        ]
    )


def _effort(facts: Facts) -> Iterator[Block]:
    yield effort(facts.artifacts)
    machines = sorted({one.machine for one in facts.artifacts if one.machine})
    libraries = ", ".join(f"{name} {number}" for name, number in versions(facts.artifacts))
    yield Notes([f"Hardware: {'; '.join(machines) or 'not recorded'}.", f"Versions: {libraries}."])

"""`ich check`: find faults in the raw files before training.

Prints one table and writes submissions/<recipe>/check.csv with one row per finding. Exit code: 0 clean, 1 warnings,
2 errors.
"""

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from ich.console import progress, say, table
from ich.data import checks, examine, findings, folds, rules, slice_table
from ich.data.competitions import ADAPTERS, LayoutError, Raw
from ich.data.dicom import Geometry
from ich.models.pseudonyms import Pseudonyms
from ich.pipeline.state import Plan
from ich.pipeline.tasks import NOT_RAW
from ich.pipeline.untrainable import untrainable
from ich.store.atomic import write_text
from ich.store.raw import listing

CODES = {"error": 2, "warning": 1}


def run(plan: Plan) -> int:
    """Print the findings, write check.csv and return the exit code."""
    found = pd.concat(list(_findings(plan)), ignore_index=True)
    path = plan.workspace.submissions / "check.csv"
    write_text(path, found.to_csv(index=False))
    table(["finding", "severity", "count", "examples", "what to do"], findings.summary(found), always=True)
    counts = found["severity"].value_counts()
    said = ", ".join(f"{kind}s: {counts.get(kind, 0)}" for kind in CODES)
    say(f"\ncheck: {said}; all findings are in {path}", always=True)
    return max((CODES[kind] for kind in CODES if counts.get(kind, 0)), default=0)


def _findings(plan: Plan) -> Iterator[pd.DataFrame]:
    root = plan.raw_root
    try:
        if not root.is_dir() and plan.recipe.demo:
            raise LayoutError(f"{root}: no such folder. Run `ich demo` first")
        raw = ADAPTERS[plan.recipe.competition.format].raw(root)
    except LayoutError as error:
        yield findings.layout(str(error))
        return
    if plan.recipe.competition.trained_by is None and raw.classes:
        faults = untrainable(plan, len(raw.classes), raw.values)
        yield findings.findings("network", faults, list(faults.values()))
    key = slice_table.ID_OF[raw.level]
    yield findings.findings("note", raw.notes)
    if raw.no_labels:
        name, _, why = raw.no_labels.partition(": ")
        yield findings.findings("no_labels", [name], why)
    yield checks.misfits(raw.labels, rules.label_table(raw.labels, list(raw.classes), key), "labels")
    yield checks.extra_files(
        listing(root, NOT_RAW), [*raw.files["path"], *(file.path for file in raw.refused), raw.template]
    )
    yield checks.duplicates("duplicate_id", raw.files, "image_id")
    # duplicates are reported above; the slice table takes the first
    files, labels = raw.files.drop_duplicates("image_id", ignore_index=True), raw.labels.drop_duplicates(key)
    yield from _of_slices(plan, replace(raw, files=files, labels=labels))


def _of_slices(plan: Plan, raw: Raw) -> Iterator[pd.DataFrame]:
    """Yield findings about the content of the files."""
    classes, paths = list(raw.classes), raw.files["path"].tolist()
    with progress("check: files", len(paths), "files") as advance:
        examined = examine.examine(plan.raw_root, paths, plan.cores, advance, raw.values)
    slices, refused = slice_table.slice_table(raw, [header for header, _ in examined])
    if raw.select is not None:
        selection = raw.select(slices)
        slices, others = slice_table.apply_selection(slices, selection)
        refused += others
        yield findings.findings("note", selection.notes)
    headers = [(path, header) for path, (header, _) in zip(paths, examined, strict=True)]
    marked = {path: header.burned_in for path, header in headers if isinstance(header, Geometry) and header.burned_in}
    yield findings.findings("burned_in", marked, list(marked.values()))
    yield checks.misfits(slices, rules.slice_values(slices, classes), "slices")
    slices, unread = examine.with_images(slices, paths, examined)
    # an outside validation has no training set, and the test set may be absent
    outside = plan.recipe.competition.trained_by is not None
    tested = outside or bool(raw.test_ids) or (raw.files["split"] == "test").any()
    yield checks.quarantined(refused + unread)
    yield checks.coverage(slices, classes, raw.test_ids, ["train"] * (not outside) + ["test"] * bool(tested))
    if slices.empty:
        return
    if (slices["split"] == "train").any() and (why := slice_table.without_labels(raw, slices)):
        yield findings.findings("nothing_to_read", ["train"], why)
    yield checks.duplicate_images(slices, classes)
    left_out = plan.recipe.competition.exclude_overlap
    yield checks.patients(slices, excluded=left_out)
    if raw.values == "hu":  # images have neither a patient nor a study nor a position
        yield findings.findings("no_patient_id", folds.unknown_patients(slices))
        yield checks.lengths(slices)
        yield checks.positions(slices)
        yield checks.mixtures(slices)
    if left_out:
        slices, _ = slice_table.without_overlap(slices)
    if not classes:
        return
    yield checks.prevalence(slices, classes)
    if not outside and plan.recipe.folds.by == "patient":
        yield checks.patients_for_folds(slices, classes, plan.recipe.folds.n)
    path = plan.workspace.folds
    if not outside and path.is_file():
        try:
            assigned = pd.read_csv(path, dtype=str, keep_default_na=False)
        except ValueError as error:
            yield findings.findings("folds", [path.name], [f"malformed CSV ({' '.join(str(error).split())})"])
            return
        pseudonyms = Pseudonyms.of(plan.workspace, plan.recipe.competition.format)
        assigned = pseudonyms.revealed(assigned, slices)
        yield checks.folds(assigned, slices, classes, plan.recipe.folds.n, path.name)

"""`ich predict`: score DICOM files with a trained ensemble, that of a workspace or an exported bundle.

Per fold, all models that the blend needs predict by `Fitted.predict`, as in training. The mean over folds gets the
thresholds and the prevalence of the submission. Four tables are written: slices, series, studies and files.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.console import progress, say, table, warn
from ich.data import cache
from ich.data.competitions import ADAPTERS, LayoutError
from ich.data.competitions.cq500 import scan_of
from ich.data.dicom import Geometry
from ich.data.rules import SAME_PLACE
from ich.data.slice_table import SERIES, Quarantined
from ich.errors import UserError
from ich.models.bundle import Bundle
from ich.models.ensemble import Ensemble, mean_logits, pooled_probabilities
from ich.models.slices import Slices
from ich.models.table import read_parquet, series_codes
from ich.pipeline.chunks import Chunks, ChunkScores, RunSteps, score_chunks, show_share, split
from ich.pipeline.state import Made, Plan
from ich.pipeline.trained import of_workspace
from ich.processes import cores
from ich.stages.scans import read_scans
from ich.stages.score_tables import file_table, largest_by, reason_of, scored_slices, study_probabilities, write_tables
from ich.stages.submit import submissions
from ich.store.atomic import require_writable, write_text

FORMATS = (".csv", ".parquet", ".zip")  # of the output
LISTED = 20  # quarantined files that are listed


@dataclass(frozen=True)
class Scores:
    """Tables of scored scans, without patients."""

    slices: pd.DataFrame
    series: pd.DataFrame
    studies: pd.DataFrame
    files: pd.DataFrame
    quarantined: list[Quarantined]
    folds: Sequence[int]  # folds whose models were used


def run(
    bundle: Bundle,
    source: Path,
    out: Path,
    *,
    run_steps: RunSteps | None = None,
    time_limit: float | None = None,
    submission: Path | None = None,
    then: Callable[[Path, Scores], object] | None = None,
) -> None:
    """Score the DICOM files of `source` and write the table `out`, with those of series, studies and files next to it.

    source: a DICOM file, a .zip archive, or a folder of both at any depth. out: .csv, .parquet, or .zip of CSV files.
    run_steps: makes the chunks of studies; this process without it. time_limit: seconds for all; as many folds as fit
    are used, at least one. submission: a file to write in the format of the competition, whose sample submission is in
    `source` or a folder above it. then: called with source and scores. Finished chunks are kept in `<out>.unfinished`
    until all is written.
    """
    if out.suffix.lower() not in ("", *FORMATS):
        raise UserError(f"{out}: the name must end with {', '.join(FORMATS)}")
    require_writable(out)
    if submission is not None:
        require_writable(submission)
    sample = None if submission is None else _sample(bundle, source)
    folder = out.with_name(f"{out.name}.unfinished")
    found = score(bundle, source, folder, run_steps=run_steps, time_limit=time_limit)
    if found.slices.empty:
        path, first = out.with_suffix(".files.csv"), found.quarantined[0]
        write_text(path, found.files.to_csv(index=False))
        why = f"{first.path}: {reason_of(first)}"
        raise UserError(f"{source}: no readable slice in {len(found.files)} files; {why}. {path} lists all files")
    tables = {"files": found.files, "studies": found.studies, "series": found.series, "": found.slices}
    written = write_tables(out, tables)
    if submission is not None and sample is not None:
        write_text(submission, _submission(bundle, *sample, found).to_csv(index=False))
        written.append(str(submission))
    if then is not None:
        then(source, found)
    shutil.rmtree(folder)
    _show(found.studies, found.quarantined, bundle.spec.classes)
    if len(found.folds) < len(bundle.spec.folds):
        used, all_folds = (", ".join(map(str, folds)) for folds in (found.folds, bundle.spec.folds))
        warn(f"the time limit allowed the models of folds {used} of {all_folds}")
    said = f"{len(found.slices)} slices, {len(found.quarantined)} files quarantined"
    say(f"\npredict: wrote {', '.join(written)}: {said}")


def score(
    bundle: Bundle, source: Path, folder: Path, *, run_steps: RunSteps | None = None, time_limit: float | None = None
) -> Scores:
    """Return the scores of the DICOM files of `source`; arguments as in `run`. folder: of the chunks."""
    end = None if time_limit is None else time.monotonic() + time_limit
    scans = read_scans(source, bundle.spec.classes, bundle.spec.values)
    parts, folds = list[ChunkScores](), list[int]()
    if not scans.slices.empty:
        _warn_of_series(scans.slices, bundle.spec.values)
        jobs = cores() if run_steps is None else bundle.spec.threads
        chunks = Chunks(bundle, scans.root.absolute(), scans.identities(), folder.absolute(), jobs)
        parts = score_chunks(chunks, scans.slices, run_steps, end)
        scored = [part.folds.keys() for part in parts if len(part.slices)]
        folds = [k for k in bundle.spec.folds if all(k in keys for keys in scored)]
    quarantined = [*scans.quarantined, *(item for part in parts for item in part.unread)]
    read = [part for part in parts if len(part.slices)]
    slices = pd.concat([part.slices for part in read], ignore_index=True) if read else scans.slices.iloc[:0]
    files = file_table(scans.headers, slices, quarantined)
    if slices.empty:
        return Scores(slices, slices, slices, files, quarantined, folds)
    logits = np.concatenate([mean_logits([part.folds[k] for k in folds]) for part in read])
    scored = scored_slices(bundle, slices, logits)
    studies = largest_by(scored, ["study_id"], series=("series_id", "nunique"))
    studies = studies.join(study_probabilities(bundle, slices["study_id"], logits), on="study_id")
    pooled = [pooled_probabilities(bundle, [part.folds[k] for k in folds]) for part in read]
    if tables := [one for one in pooled if one is not None]:
        studies = studies.join(pd.concat(tables).add_prefix("pooled_"), on="study_id")
    series = largest_by(scored, ["study_id", "series_id"])
    uids = {path: header.instance_uid for path, header in scans.headers.items() if isinstance(header, Geometry)}
    scored = scored.assign(sop_instance_uid=slices["path"].map(uids), path=slices["path"])
    return Scores(scored, series, studies, files, quarantined, folds)


def run_outside(plan: Plan, *, force: bool = False) -> None:
    """Score the prepared scans of an outside validation with the ensemble of the recipe in trained_by."""
    trained, path = plan.trained, plan.workspace.submissions / "slices.csv"
    if trained.recipe.image != plan.recipe.image:
        raise UserError(f"image: must be the same as in {plan.recipe.competition.trained_by}")
    if not plan.state(plan.outside).done:
        try:
            of_workspace(trained)
        except UserError as error:
            raise UserError(f"{plan.recipe.competition.trained_by}: {error}") from None

    def made_scores(_fingerprint: str) -> Made:
        folder, bundle = plan.prepared.folder, of_workspace(trained)
        table = read_parquet(folder / "slices.parquet")
        table["series"] = series_codes(table)
        images, spec = cache.HuCache.open(folder, table), bundle.spec
        slices = Slices(table, np.arange(len(table)), list(spec.classes), images, spec.values)
        ensemble, logits = Ensemble(bundle), list[NDArray]()
        with progress("predict: ensemble", len(slices)) as work:
            for rows in split(table["study_id"], spec.image.size):
                share = partial(show_share, work, rows[0], len(rows))
                folds = [scores for _, scores in ensemble.predict(replace(slices, rows=rows), share)]
                logits.append(mean_logits(folds))
        scored = scored_slices(bundle, table, np.concatenate(logits))
        scored.insert(0, "scan", table["path"].map(scan_of))
        write_text(path, scored.to_csv(index=False))
        return {path.name: path}, {"slices": len(scored)}

    made = plan.make(plan.outside, made_scores, force=force)
    say(f"predict: {'wrote' if made else 'up to date,'} {path}")


def _sample(bundle: Bundle, source: Path) -> tuple[Path, list[str]]:
    """Return the folder of the sample submission, `source` or up to two folders above it, and its images."""
    if bundle.spec.thresholds is None:
        raise UserError("--submission needs thresholds. Run `ich thresholds`, and export the bundle again")
    errors = list[str]()
    for root in (source.absolute(), *source.absolute().parents)[:3]:
        try:
            return root, ADAPTERS[bundle.spec.competition].submission_ids(root)
        except LayoutError as error:
            errors.append(str(error))
        except KeyError:
            raise UserError("--submission needs the format of the competition. Export the bundle again") from None
    raise UserError(errors[0])


def _submission(bundle: Bundle, root: Path, image_ids: Sequence[str], found: Scores) -> pd.DataFrame:
    """Return the submission that `ich submit` writes. image_ids: those of the sample submission in `root`."""
    classes, adapter = list(bundle.spec.classes), ADAPTERS[bundle.spec.competition]
    values = found.slices[[f"prob_{name}" for name in classes]].set_axis(classes, axis=1)
    unread = sorted(set(image_ids) - set(found.slices["image_id"]))
    if unread:
        warn(f"{len(unread)} test images could not be read; the training prevalence was predicted")
    values, tuned = values.assign(image_id=found.slices["image_id"]), bundle.spec.thresholds or {}
    probabilities, decisions = submissions(adapter, root, values, unread, tuned)
    return probabilities if adapter.SUBMITS == "probabilities" else decisions


# ---- messages


def _warn_of_series(slices: pd.DataFrame, values: str) -> None:
    """Warn of single and repeated slices, unless each image is a series of its own, as in training."""
    if values != "hu":
        return
    alone = slices[slices["n_slices"] == 1]
    if len(alone):
        warn(
            f"{len(alone)} series with a single slice, such as {alone['path'].iloc[0]}. Slices without neighbours get"
            " less accurate scores. Use a PATH with the whole series"
        )
    again = slices[slices.groupby(SERIES, sort=False)["position"].diff().abs() < SAME_PLACE]
    if len(again):
        warn(
            f"{len(again)} of {len(slices)} slices have the position of the slice before, such as"
            f" {again['path'].iloc[0]}. Copies change the scores of their neighbours. Use a PATH without copies"
        )


def _show(studies: pd.DataFrame, quarantined: Sequence[Quarantined], classes: Sequence[str]) -> None:
    for item in quarantined[:LISTED]:
        say(f"quarantined: {item.path}: {reason_of(item)}", always=True)
    if len(quarantined) > LISTED:
        rest = Counter(item.reason for item in quarantined[LISTED:])
        say(f"quarantined: also {', '.join(f'{n} x {reason}' for reason, n in sorted(rest.items()))}", always=True)
    largest = studies[[f"prob_{name}" for name in classes]].to_numpy()
    rows = [
        [str(study), str(count), *(f"{p:.3f}" for p in values)]
        for study, count, values in zip(studies["study_id"], studies["slices"], largest, strict=True)
    ]
    table(["study", "slices", *classes], rows, "Maximum probability per study")

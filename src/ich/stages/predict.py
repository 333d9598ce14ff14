"""`ich predict`: score DICOM files with a trained ensemble, that of a workspace or an exported bundle.

Per fold, all models that the blend needs predict by `Fitted.predict`, as in training. The mean over folds gets the
thresholds and the prevalence of the submission. Four tables are written: slices, series, studies and files.
"""

import math
import shutil
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.console import Work, progress, say, table, warn
from ich.data import cache
from ich.data.competitions import ADAPTERS, LayoutError, Raw
from ich.data.competitions.cq500 import scan_of
from ich.data.competitions.layout import refused
from ich.data.dicom import Geometry, Reason, Unreadable
from ich.data.files import INSIDE, below, checked, escaped, image_ids, with_members
from ich.data.slice_table import Quarantined, read_geometries, slice_table
from ich.ensemble import thresholds
from ich.ensemble.calibration import Calibrator
from ich.ensemble.final import final_probabilities
from ich.ensemble.hierarchy import project_any
from ich.ensemble.predictions import sigmoid
from ich.errors import UserError, parsing
from ich.models.bundle import Bundle, read
from ich.models.ensemble import Ensemble, mean_logits, pooled_probabilities
from ich.models.slices import Slices
from ich.models.table import read_parquet, series_codes
from ich.pipeline import engines
from ich.pipeline.chunks import Chunks, ChunkScores, split
from ich.pipeline.state import Made, Plan
from ich.pipeline.trained import of_workspace
from ich.processes import cores
from ich.stages.submit import submissions
from ich.store import raw
from ich.store.atomic import atomic, require_writable, write_text

LISTED = 20  # quarantined files that are listed
MARGIN = 1.1  # of the time that the next fold is expected to take
Then = Callable[[Bundle, Path, "Scores"], object]
RunSteps = Callable[[Sequence[engines.Step], engines.Make], Iterator[engines.Result]]


@dataclass(frozen=True)
class Scores:
    """Tables of scored scans, without patients."""

    slices: pd.DataFrame
    series: pd.DataFrame
    studies: pd.DataFrame
    files: pd.DataFrame
    quarantined: list[Quarantined]
    folds: Sequence[int]
    """Folds whose models were used."""


def run(
    plan: Plan,
    source: Path,
    out: Path,
    *,
    fold: int | None = None,
    engine: str | None = None,
    time_limit: float | None = None,
    then: Then | None = None,
    submission: Path | None = None,
) -> None:
    """Score scans with the ensemble of a workspace, or its models of one fold. engine: scores chunks of studies."""
    run_steps = None
    if engine is not None:
        run_on = engines.engine(engine)
        run_steps = lambda steps, make: run_on(steps, make, plan.recipe, plan.root)
    require_writable(out)
    bundle = of_workspace(plan, None if fold is None else [fold])
    write_scores(bundle, source, out, run_steps=run_steps, time_limit=time_limit, submission=submission, then=then)


def run_bundle(
    folder: Path,
    source: Path,
    out: Path,
    *,
    fold: int | None = None,
    time_limit: float | None = None,
    runtime: str = "torch",
    submission: Path | None = None,
    then: Then | None = None,
) -> None:
    """Score scans with an exported bundle."""
    require_writable(out)
    bundle = read(folder, runtime)
    bundle = bundle if fold is None else bundle.only(fold)
    write_scores(bundle, source, out, time_limit=time_limit, submission=submission, then=then)


def write_scores(
    bundle: Bundle,
    source: Path,
    out: Path,
    *,
    run_steps: RunSteps | None = None,
    time_limit: float | None = None,
    submission: Path | None = None,
    then: Then | None = None,
) -> None:
    """Score the DICOM files of `source` and write the table `out`, with those of series, studies and files next to it.

    source: a DICOM file, a .zip archive, or a folder of both at any depth. out: .csv, .parquet, or .zip of CSV files.
    run_steps: makes the chunks of studies; this process without it. time_limit: seconds for all; as many folds as fit
    are used, at least one. submission: a file to write in the format of the competition, whose sample submission is in
    `source` or a folder above it. then: called with bundle, source and scores. Finished chunks are kept in
    `<out>.unfinished` until all is written.
    """
    if submission is not None:
        require_writable(submission)
    sample = None if submission is None else _sample(bundle, source)
    folder = out.with_name(f"{out.name}.unfinished")
    found = score(bundle, source, folder, run_steps=run_steps, time_limit=time_limit)
    if found.slices.empty:
        path, first = out.with_suffix(".files.csv"), found.quarantined[0]
        write_text(path, found.files.to_csv(index=False))
        why = f"{first.path}: {_why(first)}"
        raise UserError(f"{source}: no readable slice in {len(found.files)} files; {why}. {path} lists all files")
    tables = {"files": found.files, "studies": found.studies, "series": found.series, "": found.slices}
    written = _write(out, tables)
    if submission is not None and sample is not None:
        write_text(submission, _submission(bundle, *sample, found).to_csv(index=False))
        written.append(str(submission))
    if then is not None:
        then(bundle, source, found)
    shutil.rmtree(folder)
    _show(found.studies, found.quarantined, bundle.spec.classes)
    if len(found.folds) < len(bundle.spec.folds):
        used, all_folds = (", ".join(map(str, folds)) for folds in (found.folds, bundle.spec.folds))
        warn(f"the time limit allowed the models of folds {used} of {all_folds}")
    said = f"{len(found.slices)} slices, {len(found.quarantined)} files quarantined"
    say(f"\npredict: wrote {', '.join(written)}: {said}")


def score(
    bundle: Bundle,
    source: Path,
    folder: Path,
    *,
    run_steps: RunSteps | None = None,
    time_limit: float | None = None,
) -> Scores:
    """Return the scores of the DICOM files of `source`; arguments as in `write_scores`. folder: of the chunks."""
    end = None if time_limit is None else time.monotonic() + time_limit
    root, real, names, unusable = _files(source)
    slices, quarantined, headers = _headers(bundle, source, root, names)
    parts, folds = list[ChunkScores](), list[int]()
    if not slices.empty:
        _warn_of_single_slices(slices, bundle.spec.values)
        chunks = Chunks(
            bundle,
            scans=root.absolute(),
            identities=_identities(root, real),
            folder=folder.absolute(),
            jobs=cores() if run_steps is None else bundle.spec.threads,
        )
        parts = _chunk_scores(chunks, slices, run_steps, end)
        scored = [part.folds.keys() for part in parts if len(part.slices)]
        folds = [k for k in bundle.spec.folds if all(k in keys for keys in scored)]
    quarantined += [item for part in parts for item in part.unread] + unusable
    read = [part for part in parts if len(part.slices)]
    slices = pd.concat([part.slices for part in read], ignore_index=True) if read else slices.iloc[:0]
    files = _file_table(headers, slices, quarantined)
    if slices.empty:
        return Scores(slices, slices, slices, files, quarantined, folds)
    logits = np.concatenate([mean_logits([part.folds[k] for k in folds]) for part in read])
    scored = _scored(bundle, slices, logits)
    studies = _largest(scored, ["study_id"], series=("series_id", "nunique"))
    studies = studies.join(_study_probabilities(bundle, slices["study_id"], logits), on="study_id")
    pooled = [pooled_probabilities(bundle, [part.folds[k] for k in folds]) for part in read]
    if tables := [one for one in pooled if one is not None]:
        studies = studies.join(pd.concat(tables).add_prefix("pooled_"), on="study_id")
    series = _largest(scored, ["study_id", "series_id"])
    uids = {path: header.instance_uid for path, header in headers.items() if isinstance(header, Geometry)}
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
                share = partial(_advance, work, rows[0], len(rows))
                folds = [scores for _, scores in ensemble.predict(replace(slices, rows=rows), share)]
                logits.append(mean_logits(folds))
        scored = _scored(bundle, table, np.concatenate(logits))
        scored.insert(0, "scan", table["path"].map(scan_of))
        write_text(path, scored.to_csv(index=False))
        return {path.name: path}, {"slices": len(scored)}

    made = plan.make(plan.outside, made_scores, force=force)
    say(f"predict: {'wrote' if made else 'up to date,'} {path}")


# ---- the slices


def _files(source: Path) -> tuple[Path, list[str], list[str], list[Quarantined]]:
    """Return a folder, its files, these with the members of archives (relative paths, sorted), and the refused ones."""
    shown = escaped(str(source))
    if not source.exists():
        raise UserError(f"{shown}: no such file or folder")
    try:
        root, found = (source, below(source)) if source.is_dir() else (source.parent, checked([source.name]))
    except OSError as error:
        raise UserError(f"{shown}: cannot read the folder ({error.strerror})") from None
    real = found.names
    found = with_members(root, found)
    if not found.names:
        why = "".join(f" ({name}: {why})" for name, why in [*found.refused.items()][:1])
        raise UserError(f"{shown}: no files in this {'folder' if source.is_dir() else 'archive'}{why}")
    return root, real, found.names, refused(found, "test")


def _headers(
    bundle: Bundle, source: Path, root: Path, names: Sequence[str]
) -> tuple[pd.DataFrame, list[Quarantined], dict[str, Geometry | Unreadable]]:
    """Read the headers of the files; return their slice table, the quarantined files, and the headers.

    The slice table is empty if no file is readable.
    """
    classes, values = bundle.spec.classes, bundle.spec.values
    ids = image_ids([name.replace(INSIDE, "/") for name in names])
    files = pd.DataFrame({"image_id": ids, "split": "test", "path": list(names)})
    labels = pd.DataFrame({"image_id": pd.Series(dtype="str")} | {name: pd.Series(dtype="float") for name in classes})
    with progress("predict: headers", len(names), "files") as advance:
        geometries = read_geometries(root, names, cores(), advance, values)
    try:
        slices, quarantined = slice_table(Raw(files, labels, [], dict.fromkeys(classes, 1.0), "", ()), geometries)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    return slices, quarantined, dict(zip(names, geometries, strict=True))


def _why(item: Quarantined) -> str:
    return f"{Reason[item.reason.upper()]}{f' ({item.detail})' if item.detail else ''}"


# ---- the chunks


def _identities(root: Path, files: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Return size and sample of each file."""
    found: dict[str, tuple[int, str]] = {}
    with progress("predict: raw files", len(files), "files", inner=True) as advance:
        for name, sample in raw.samples(root, files):
            found[name] = ((root / name).stat().st_size if sample else 0, sample)
            advance(1)
    return found


@dataclass
class _Clock:
    """Decides how many folds fit into a time limit, by the time per slice and fold so far."""

    end: float
    """On the monotonic clock."""
    most: int
    """Folds of each earlier chunk; more of a later one would not be used."""
    begun: float
    done: int = 0
    """Slices times folds."""

    def enough(self, size: int, later: int, folds: int) -> bool:
        """Return whether `folds` are enough for a chunk of `size` slices. later: slices of the chunks after it."""
        now = time.monotonic()
        self.done += size
        pace = MARGIN * (now - self.begun) / self.done
        if now + pace * (size + later * (folds + 1)) > self.end:
            self.most = min(self.most, folds)
        return folds >= self.most


def _chunk_scores(
    chunks: Chunks, slices: pd.DataFrame, run_steps: RunSteps | None, end: float | None
) -> list[ChunkScores]:
    """Make the missing chunks and return the scores of all. end: of the time limit, on the monotonic clock.

    Raises UserError if a chunk could not be made. The others are kept.
    """
    sizes, folds = chunks.write(slices), len(chunks.bundle.spec.folds)
    kept = {name: len(scores.folds) for name in sizes if (scores := chunks.scores(name)) is not None}
    missing = [name for name in sizes if name not in kept or (end is None and 0 < kept[name] < folds)]
    left = sum(sizes[name] for name in missing)
    if left < len(slices):
        say(f"predict: {len(sizes) - len(missing)} of {len(sizes)} chunks are kept from an earlier run")
    failed: dict[str, list[str]] = {}
    with progress("predict: ensemble", len(slices)) as work:
        work.begin(len(slices) - left)
        if run_steps is not None:
            steps = [engines.Step(name, cores=chunks.bundle.spec.threads, on_gpu=True) for name in missing]
            for result in run_steps(steps, chunks.make) if steps else ():
                if result.error:
                    failed.setdefault(result.error, []).append(result.name)
                    continue
                left -= sizes[result.name]
                work.at(len(slices) - left)
        else:  # here, an error ends the command
            clock = _Clock(end or math.inf, min([folds, *filter(None, kept.values())]), time.monotonic())
            for name in missing:
                share = partial(_advance, work, len(slices) - left, sizes[name])
                left -= sizes[name]
                chunks.make(name, share, partial(clock.enough, sizes[name], left))
    found = {name: chunks.scores(name) for name in sizes}
    if missing := [name for name, scores in found.items() if scores is None]:
        reasons = [
            f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {why}" for why, names in failed.items()
        ]
        last = f"{len(missing)} of {len(sizes)} chunks are missing. Rerun the same command to make only these"
        raise UserError("\n".join([*reasons, last]))
    return [scores for scores in found.values() if scores is not None]


def _advance(work: Work, first: int, count: int, share: float) -> None:
    """Show the progress of a chunk of `count` slices after `first` finished ones."""
    work.at(first + round(share * count))


# ---- the tables


def _scored(bundle: Bundle, slices: pd.DataFrame, logits: NDArray) -> pd.DataFrame:
    """Return ids without the patient's, prob_<class> and positive_<class>, equal to those of `ich submit`."""
    classes, tuned = list(bundle.spec.classes), bundle.spec.thresholds
    scored = slices[["image_id", "study_id", "series_id", "index"]].copy()
    if tuned is None:
        say("predict: no thresholds, so no columns positive_<class>. Run `ich thresholds` to tune them")
        scored[[f"prob_{name}" for name in classes]] = sigmoid(logits)
        return scored
    with parsing("thresholds.json", "run `ich thresholds`"):
        probability, cuts = final_probabilities(tuned, logits, classes, bundle.spec.class_weights)
    scored[[f"prob_{name}" for name in classes]] = probability
    scored[[f"positive_{name}" for name in classes]] = thresholds.apply(probability, cuts).astype(int)
    return scored


def _study_probabilities(bundle: Bundle, studies: pd.Series, logits: NDArray) -> pd.DataFrame:
    """Return study_prob_<class> by study id: the calibrated maximum over the slices. Without columns if not tuned."""
    classes, tuned = list(bundle.spec.classes), bundle.spec.thresholds
    largest = pd.DataFrame(logits, columns=classes).groupby(studies.to_numpy(), sort=False).max()
    if tuned is None:
        return largest[[]]
    with parsing("thresholds.json", "run `ich thresholds`"):
        found = [Calibrator.from_dict(tuned["studies"][name]).apply(largest[name]) for name in classes]
    projected = project_any(np.column_stack(found), classes, bundle.spec.class_weights)
    return pd.DataFrame(sigmoid(projected), largest.index, [f"study_prob_{name}" for name in classes])


def _file_table(
    headers: Mapping[str, Geometry | Unreadable], slices: pd.DataFrame, quarantined: Sequence[Quarantined]
) -> pd.DataFrame:
    """Return one row per file and refused member of an archive, sorted by path.

    status: scored, quarantined, or partly scored if frames of a multi-frame file are quarantined.
    """
    counts, refused = slices["path"].value_counts(), {item.path: item for item in reversed(quarantined)}
    rows: list[dict[str, object]] = []
    for path, header in headers.items():
        ids = vars(header) if isinstance(header, Geometry) else {}
        rows.append(_file_row(path, int(counts.get(path, 0)), refused.get(path), ids))
    rows += [_file_row(item.path, 0, item, {}) for item in quarantined if item.path not in headers]
    return pd.DataFrame(rows).sort_values("path", kind="stable", ignore_index=True)


def _file_row(path: str, scored: int, refused: Quarantined | None, ids: Mapping[str, object]) -> dict[str, object]:
    status = "quarantined" if not scored else "scored" if refused is None else "partly scored"
    reason, detail = ("", "") if refused is None else (refused.reason, _why(refused))
    found = {"path": path, "status": status, "reason": reason, "detail": detail, "slices": scored}
    names = {"sop_instance_uid": "instance_uid", "study_id": "study_id", "series_id": "series_id"}
    return found | {name: ids.get(key, "") for name, key in names.items()}


def _largest(scored: pd.DataFrame, keys: list[str], **more: tuple[str, str]) -> pd.DataFrame:
    """Return one row per study or series: slices, and the maximum of each prob_<class> and positive_<class>.

    more: further columns, as in `DataFrameGroupBy.agg`.
    """
    groups = scored.groupby(keys, sort=False)
    largest = groups[[name for name in map(str, scored) if name.startswith(("prob_", "positive_"))]].max()
    return groups.agg(**more, slices=("image_id", "size")).join(largest).reset_index()


def _write(out: Path, tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Write the tables as `out` (the name ""), and as out.<name>.csv next to it. Return the paths.

    They are Parquet if `out` is a .parquet file, and CSV otherwise. A .zip archive holds all of them.
    """
    suffix = out.suffix.lower()
    texts = {name: table.to_csv(index=False) for name, table in tables.items() if suffix != ".parquet"}
    if suffix == ".zip":
        with atomic(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, text in texts.items():
                member = Path(out.stem).with_suffix(f".{name}.csv" if name else ".csv")
                archive.writestr(zipfile.ZipInfo(str(member)), text, zipfile.ZIP_DEFLATED)
        return [str(out)]
    paths = {name: out.with_suffix(f".{name}{out.suffix or '.csv'}") if name else out for name in tables}
    for name, path in paths.items():
        if suffix == ".parquet":
            with atomic(path) as temporary:
                tables[name].to_parquet(temporary, index=False)
        else:
            write_text(path, texts[name])
    return [str(path) for path in reversed(paths.values())]


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


def _warn_of_single_slices(slices: pd.DataFrame, values: str) -> None:
    """Warn of series of one slice, unless each image is a series of its own, as in training."""
    alone = slices[slices["n_slices"] == 1]
    if values == "hu" and len(alone):
        first = alone.iloc[0]
        warn(
            f"{len(alone)} series with a single slice, such as {first['path']}. Slices without neighbours get less"
            " accurate scores. Use a PATH with the whole series"
        )


def _show(studies: pd.DataFrame, quarantined: Sequence[Quarantined], classes: Sequence[str]) -> None:
    for item in quarantined[:LISTED]:
        say(f"quarantined: {item.path}: {_why(item)}", always=True)
    if len(quarantined) > LISTED:
        rest = Counter(item.reason for item in quarantined[LISTED:])
        say(f"quarantined: also {', '.join(f'{n} x {reason}' for reason, n in sorted(rest.items()))}", always=True)
    largest = studies[[f"prob_{name}" for name in classes]].to_numpy()
    rows = [
        [str(study), str(count), *(f"{p:.3f}" for p in values)]
        for study, count, values in zip(studies["study_id"], studies["slices"], largest, strict=True)
    ]
    table(["study", "slices", *classes], rows, "Maximum probability per study")

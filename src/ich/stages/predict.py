"""`ich predict`: score DICOM files with the trained ensemble.

Per fold, all models that the blend needs predict by `Fitted.predict`, as in training. The mean over folds gets the
thresholds and the prevalence of the submission. Three tables are written: slices, files and studies.
"""

import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ich.console import Work, progress, say, table, warn
from ich.data import cache
from ich.data.competitions import Raw
from ich.data.competitions.cq500 import scan_of
from ich.data.competitions.layout import refused
from ich.data.dicom import Geometry, Reason, Unreadable
from ich.data.files import INSIDE, below, checked, escaped, image_ids, with_members
from ich.data.slice_table import Quarantined, read_geometries, slice_table
from ich.ensemble import thresholds
from ich.ensemble.final import final_probabilities
from ich.ensemble.predictions import logit_columns, sigmoid
from ich.errors import UserError, parsing
from ich.models.slices import Slices
from ich.models.table import read_parquet, series_codes
from ich.pipeline import engines
from ich.pipeline.chunks import Chunks, ensemble_of, fingerprint, needed, split
from ich.pipeline.graph import STUDIES, Task
from ich.pipeline.state import Made, Plan
from ich.store import raw
from ich.store.atomic import atomic, read_json, require_writable, write_text
from ich.store.records import Record

LISTED = 20  # quarantined files that are listed


def run(plan: Plan, source: Path, out: Path, *, fold: int | None = None, engine: str | None = None) -> None:
    """Score the DICOM files of `source` and write the table `out`, with those of files and studies next to it.

    source: a DICOM file, a .zip archive, or a folder of both at any depth. out: .csv, .parquet, or .zip of CSV files.
    fold: use the models of this fold only, which were not trained on it. engine: scores chunks of studies; this process
    without one. Finished chunks are kept in `<out>.unfinished` until the tables are written.
    """
    run_steps = None if engine is None else engines.engine(engine)
    require_writable(out)
    plan.require(_task(plan, out, fold))
    for name in needed(plan):
        if not plan.settings_of(name).scores_new_scans:
            raise UserError(f"{name} cannot score new scans. Remove it from blend.inputs")
    root, real, names, unusable = _files(source)
    slices, quarantined, headers = _headers(plan, source, root, names)
    folder = out.with_name(f"{out.name}.unfinished")
    if not slices.empty:
        _warn_of_single_slices(slices, plan.record_of(plan.prepared)["values"])
        chunks = Chunks(
            plan.recipe,
            plan.root.absolute(),
            scans=root.absolute(),
            folder=folder.absolute(),
            fold=fold,
            fingerprint=fingerprint(plan, fold, _identity(root, real)),
            jobs=plan.cores if engine is None else plan.recipe.compute.threads,
        )
        slices, unread = _score(plan, chunks, slices, run_steps)
        quarantined += unread
    quarantined += unusable
    files = _file_table(headers, slices, quarantined)
    if slices.empty:
        path, first = out.with_suffix(".files.csv"), quarantined[0]
        write_text(path, files.to_csv(index=False))
        shutil.rmtree(folder, ignore_errors=True)
        why = f"{first.path}: {_why(first)}"
        raise UserError(f"{source}: no readable slice in {len(files)} files; {why}. {path} lists all files")
    scored = _scored(plan, slices, slices[logit_columns(_classes(plan))].to_numpy())
    studies = _study_table(scored)
    if pooled := [name for name in slices if str(name).startswith("pooled_")]:
        studies = studies.join(slices.groupby("study_id")[pooled].first(), on="study_id")
    uids = {path: header.instance_uid for path, header in headers.items() if isinstance(header, Geometry)}
    scored = scored.assign(sop_instance_uid=slices["path"].map(uids), path=slices["path"])
    written = _write(out, {"files": files, "studies": studies, "": scored})
    shutil.rmtree(folder)
    _show(studies, quarantined, _classes(plan))
    say(f"\npredict: wrote {', '.join(written)}: {len(scored)} slices, {len(quarantined)} files quarantined")


def run_outside(plan: Plan, *, force: bool = False) -> None:
    """Score the prepared scans of an outside validation with the ensemble of the recipe in trained_by."""
    trained, path = plan.trained, plan.workspace.submissions / "slices.csv"
    if trained.recipe.image != plan.recipe.image:
        raise UserError(f"image: must be the same as in {plan.recipe.competition.trained_by}")
    if not plan.state(plan.outside).done:
        try:
            trained.require(_task(trained, path))
        except UserError as error:
            raise UserError(f"{plan.recipe.competition.trained_by}: {error}") from None

    def score(_fingerprint: str) -> Made:
        folder = plan.prepared.folder
        table = read_parquet(folder / "slices.parquet")
        table["series"] = series_codes(table)
        values, images = trained.record_of(trained.prepared)["values"], cache.HuCache.open(folder, table)
        slices = Slices(table, np.arange(len(table)), _classes(trained), images, values)
        ensemble, logits = ensemble_of(trained), list[NDArray]()
        torch.set_num_threads(trained.recipe.compute.threads)
        with progress("predict: ensemble", len(slices)) as work:
            for rows in split(table["study_id"], trained.recipe.image.size):
                share = partial(_advance, work, rows[0], len(rows))
                logits.append(ensemble.predict(replace(slices, rows=rows), share)[0])
        scored = _scored(trained, table, np.concatenate(logits))
        scored.insert(0, "scan", table["path"].map(scan_of))
        write_text(path, scored.to_csv(index=False))
        return {path.name: path}, {"slices": len(scored)}

    made = plan.make(plan.outside, score, force=force)
    say(f"predict: {'wrote' if made else 'up to date,'} {path}")


def _task(plan: Plan, out: Path, fold: int | None = None) -> Task:
    """Task with the inputs of a prediction: the folds of the blend, and the thresholds if there are any."""
    upstream = tuple((task, ()) for task in plan.tasks_of("blend", fold=fold))
    if fold is None:  # their calibration needs all folds
        names = (name for name in needed(plan) if plan.settings_of(name).writes_studies)
        upstream += tuple((plan.assembled(name), (STUDIES,)) for name in names)
    if plan.record_of(plan.thresholds):
        upstream += ((plan.thresholds, ()),)
    return Task("predict", "predict", Record(out), {}, upstream)


def _classes(plan: Plan) -> list[str]:
    return plan.record_of(plan.prepared)["classes"]


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
    plan: Plan, source: Path, root: Path, names: Sequence[str]
) -> tuple[pd.DataFrame, list[Quarantined], dict[str, Geometry | Unreadable]]:
    """Read the headers of the files; return their slice table, the quarantined files, and the headers.

    The slice table is empty if no file is readable.
    """
    classes, values = _classes(plan), plan.record_of(plan.prepared)["values"]
    ids = image_ids([name.replace(INSIDE, "/") for name in names])
    files = pd.DataFrame({"image_id": ids, "split": "test", "path": list(names)})
    labels = pd.DataFrame({"image_id": pd.Series(dtype="str")} | {name: pd.Series(dtype="float") for name in classes})
    with progress("predict: headers", len(names), "files") as advance:
        geometries = read_geometries(root, names, plan.cores, advance, values)
    try:
        slices, quarantined = slice_table(Raw(files, labels, [], dict.fromkeys(classes, 1.0), "", ()), geometries)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    return slices, quarantined, dict(zip(names, geometries, strict=True))


def _why(item: Quarantined) -> str:
    return f"{Reason[item.reason.upper()]}{f' ({item.detail})' if item.detail else ''}"


# ---- the chunks


def _identity(root: Path, files: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Return size and sample of each file."""
    found: dict[str, tuple[int, str]] = {}
    with progress("predict: raw files", len(files), "files", inner=True) as advance:
        for name, sample in raw.samples(root, files):
            found[name] = ((root / name).stat().st_size if sample else 0, sample)
            advance(1)
    return found


def _score(
    plan: Plan, chunks: Chunks, slices: pd.DataFrame, run_steps: engines.Engine | None
) -> tuple[pd.DataFrame, list[Quarantined]]:
    """Make the missing chunks; return the scored slices with their logits, and the unreadable ones.

    Raises UserError if a chunk could not be made. The others are kept.
    """
    sizes = chunks.write(slices)
    missing = [name for name in sizes if chunks.scores(name) is None]
    done = len(slices) - sum(sizes[name] for name in missing)
    if done:
        say(f"predict: {len(sizes) - len(missing)} of {len(sizes)} chunks are kept from an earlier run")
    failed: dict[str, list[str]] = {}
    with progress("predict: ensemble", len(slices)) as work:
        work.begin(done)

        results: Iterable[engines.Result] = ()
        if run_steps is not None:
            steps = [engines.Step(name, cores=plan.recipe.compute.threads, on_gpu=True) for name in missing]
            results = run_steps(steps, chunks.make, plan.recipe, plan.root) if steps else ()
        for name in missing if run_steps is None else ():  # here, an error ends the command
            chunks.make(name, partial(_advance, work, done, sizes[name]))
            done += sizes[name]
        for result in results:
            if result.error:
                failed.setdefault(result.error, []).append(result.name)
            else:
                done += sizes[result.name]
                work.at(done)
    found = {name: chunks.scores(name) for name in sizes}
    if missing := [name for name, scores in found.items() if scores is None]:
        reasons = [
            f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {why}" for why, names in failed.items()
        ]
        last = f"{len(missing)} of {len(sizes)} chunks are missing. Rerun the same command to make only these"
        raise UserError("\n".join([*reasons, last]))
    scored, unread = zip(*(scores for scores in found.values() if scores), strict=True)
    return pd.concat(scored, ignore_index=True), [item for items in unread for item in items]


def _advance(work: Work, first: int, count: int, share: float) -> None:
    """Show the progress of a chunk of `count` slices after `first` finished ones."""
    work.at(first + round(share * count))


# ---- the tables


def _scored(plan: Plan, slices: pd.DataFrame, logits: NDArray) -> pd.DataFrame:
    """Return ids without the patient's, prob_<class> and positive_<class>, equal to those of `ich submit`."""
    classes, path = _classes(plan), plan.workspace.thresholds
    probability, positive = sigmoid(logits), None
    if plan.state(plan.thresholds).done:
        plan.pull(((plan.thresholds, (path.name,)),))
        with parsing(path):
            weights = plan.record_of(plan.prepared)["class_weights"]
            probability, cuts = final_probabilities(read_json(path), logits, classes, weights)
            positive = thresholds.apply(probability, cuts)
    else:
        say("predict: no thresholds, so no columns positive_<class>. Run `ich thresholds` to tune them")
    scored = slices[["image_id", "study_id", "series_id", "index"]].copy()
    scored[[f"prob_{name}" for name in classes]] = probability
    if positive is not None:
        scored[[f"positive_{name}" for name in classes]] = positive.astype(int)
    return scored


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


def _study_table(scored: pd.DataFrame) -> pd.DataFrame:
    """Return one row per study: series, slices, and the maximum of each prob_<class> and positive_<class>."""
    studies = scored.groupby("study_id", sort=False)
    counts = pd.DataFrame({"series": studies["series_id"].nunique(), "slices": studies.size()})
    largest = studies[[name for name in map(str, scored) if name.startswith(("prob_", "positive_"))]].max()
    return counts.join(largest).reset_index()


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

"""`ich predict`: score DICOM files with the trained ensemble.

Per fold, all models that the blend needs predict by `Fitted.predict`, as in training. The mean over folds gets the
thresholds and the prevalence of the submission. Three tables are written: slices, files and studies.
"""

import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ich.console import progress, say, table, warn
from ich.data import cache
from ich.data.competitions import Raw
from ich.data.competitions.cq500 import scan_of
from ich.data.competitions.layout import refused
from ich.data.dicom import Geometry, Reason, Unreadable
from ich.data.files import INSIDE, below, checked, escaped, image_ids, with_members
from ich.data.slice_table import Quarantined, read_geometries, slice_table
from ich.ensemble import thresholds
from ich.ensemble.calibration import Calibrator
from ich.ensemble.final import final_probabilities
from ich.ensemble.predictions import sigmoid
from ich.errors import UserError, parsing
from ich.models.slices import Predictions, Slices
from ich.models.table import read_parquet, series_codes
from ich.pipeline.graph import STUDIES, Task
from ich.pipeline.runner import load_fitted
from ich.pipeline.state import Made, Plan
from ich.store.atomic import atomic, read_json, require_writable, write_text
from ich.store.records import Record

LISTED = 20  # quarantined files that are listed


def run(plan: Plan, source: Path, out: Path, *, fold: int | None = None) -> None:
    """Score the DICOM files of `source` and write the table `out`, with those of files and studies next to it.

    source: a DICOM file, a .zip archive, or a folder of both at any depth. out: .csv, .parquet, or .zip of CSV files.
    fold: use the models of this fold only, which were not trained on it.
    """
    require_writable(out)
    plan.require(_task(plan, out, fold))
    for name in needed(plan):
        if not plan.settings_of(name).scores_new_scans:
            raise UserError(f"{name} cannot score new scans. Remove it from blend.inputs")
    root, names, unusable = _files(source)
    with TemporaryDirectory(prefix="ich-predict-") as folder:
        slices, quarantined, headers = _read(plan, source, root, names, Path(folder))
        quarantined += unusable
        files = _file_table(headers, slices, quarantined)
        if slices.empty:
            path, first = out.with_suffix(".files.csv"), quarantined[0]
            write_text(path, files.to_csv(index=False))
            why = f"{first.path}: {_why(first)}"
            raise UserError(f"{source}: no readable slice in {len(files)} files; {why}. {path} lists all files")
        _warn_of_single_slices(slices, plan.record_of(plan.prepared)["values"])
        logits, pooled = ensemble_logits(plan, slices, cache.HuCache.open(Path(folder), slices), fold)
    scored = _scored(plan, slices, logits)
    studies = _study_table(scored)
    if pooled is not None:
        studies = studies.join(pooled.add_prefix("pooled_"), on="study_id")
    uids = {path: header.instance_uid for path, header in headers.items() if isinstance(header, Geometry)}
    scored = scored.assign(sop_instance_uid=slices["path"].map(uids), path=slices["path"])
    written = _write(out, {"files": files, "studies": studies, "": scored})
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
        slices = read_parquet(folder / "slices.parquet")
        slices["series"] = series_codes(slices)
        logits, _ = ensemble_logits(trained, slices, cache.HuCache.open(folder, slices))
        scored = _scored(trained, slices, logits)
        scored.insert(0, "scan", slices["path"].map(scan_of))
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


def _files(source: Path) -> tuple[Path, list[str], list[Quarantined]]:
    """Return a folder, the relative paths of its files and members of archives, sorted, and the refused ones."""
    shown = escaped(str(source))
    if not source.exists():
        raise UserError(f"{shown}: no such file or folder")
    try:
        root, found = (source, below(source)) if source.is_dir() else (source.parent, checked([source.name]))
    except OSError as error:
        raise UserError(f"{shown}: cannot read the folder ({error.strerror})") from None
    found = with_members(root, found)
    if not found.names:
        why = "".join(f" ({name}: {why})" for name, why in [*found.refused.items()][:1])
        raise UserError(f"{shown}: no files in this {'folder' if source.is_dir() else 'archive'}{why}")
    return root, found.names, refused(found, "test")


def _read(
    plan: Plan, source: Path, root: Path, names: Sequence[str], folder: Path
) -> tuple[pd.DataFrame, list[Quarantined], dict[str, Geometry | Unreadable]]:
    """Write a HU cache to `folder`, as `ich prepare` does; return its slice table, the quarantined files, and headers.

    The slice table is empty if no file is readable.
    """
    image, classes, values = plan.recipe.image, _classes(plan), plan.record_of(plan.prepared)["values"]
    ids = image_ids([name.replace(INSIDE, "/") for name in names])
    files = pd.DataFrame({"image_id": ids, "split": "test", "path": list(names)})
    labels = pd.DataFrame({"image_id": pd.Series(dtype="str")} | {name: pd.Series(dtype="float") for name in classes})
    with progress("predict: headers", len(names), "files") as advance:
        geometries = read_geometries(root, names, plan.cores, advance, values)
    try:
        slices, quarantined = slice_table(Raw(files, labels, [], dict.fromkeys(classes, 1.0), "", ()), geometries)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    if not slices.empty:
        with progress("predict: pixels", len(slices)) as advance:
            pixels = cache.ImageFormat(image.size, image.crop, values)
            slices, unread, _ = cache.write_shards(folder, slices, root, pixels, plan.cores, advance)
        quarantined += unread
    return slices.assign(series=series_codes(slices)), quarantined, dict(zip(names, geometries, strict=True))


def _why(item: Quarantined) -> str:
    return f"{Reason[item.reason.upper()]}{f' ({item.detail})' if item.detail else ''}"


# ---- the ensemble


def ensemble_logits(
    plan: Plan, table: pd.DataFrame, images: cache.HuCache, fold: int | None = None
) -> tuple[NDArray[np.float64], pd.DataFrame | None]:
    """Return the mean logits [n, c] of the blend over folds, or those of one fold, one row per slice.

    The second value holds probabilities of studies [m, c], by study id: the mean over the models with attention
    pooling, calibrated as in `ich score`. It is None without such a model, and for one fold.
    """
    torch.set_num_threads(plan.recipe.compute.threads)
    values = plan.record_of(plan.prepared)["values"]
    slices = Slices(table, np.arange(len(table)), _classes(plan), images, values)
    models, numbers, folds, done = needed(plan), plan.fold_numbers if fold is None else [fold], [], 0
    pooled: dict[str, list[pd.DataFrame]] = {}
    with progress("predict: ensemble", len(slices)) as work:
        for k in numbers:
            found: dict[str, Predictions] = {}
            for name in models:  # each after its inputs
                settings = plan.settings_of(name)
                fitted = load_fitted(plan, name, k)
                inputs = {other: found[other] for other in plan.recipe.inputs_of(name)}
                found[name] = fitted.predict(replace(slices, workers=getattr(settings, "workers", 0)), inputs)
                if (studies := found[name].studies) is not None and fold is None:
                    pooled.setdefault(name, []).append(studies)
                done += 1
                work.at(len(slices) * done // (len(models) * len(numbers)))
            folds.append(found["blend"].logits)
    likely = [_calibrated(plan, name, _mean(parts)) for name, parts in pooled.items()]
    return np.asarray(np.mean(folds, axis=0, dtype=np.float64)), _mean(likely) if likely else None


def _mean(tables: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables).astype("float64").groupby(level=0, sort=False).mean()


def _calibrated(plan: Plan, model: str, logits: pd.DataFrame) -> pd.DataFrame:
    """Return probabilities of the study logits [m, c] of a model."""
    task = plan.assembled(model)
    if damage := task.record.damage(plan.record_of(task), STUDIES):
        raise UserError(f"{task.folder / STUDIES} {damage}. Run `ich {task.stage}`, then rerun this command")
    with parsing(task.folder / STUDIES):
        found = read_json(task.folder / STUDIES)
        return logits.apply(lambda column: sigmoid(Calibrator.from_dict(found[column.name]).apply(column)))


def needed(plan: Plan) -> list[str]:
    """Return the blend and all models that it depends on. Each model follows its inputs."""
    wanted = {"blend"}
    for name in reversed(plan.models):
        wanted |= set(plan.recipe.inputs_of(name)) if name in wanted else set()
    return [name for name in plan.models if name in wanted]


# ---- the tables


def _scored(plan: Plan, slices: pd.DataFrame, logits: NDArray) -> pd.DataFrame:
    """Return ids without the patient's, prob_<class> and positive_<class>, equal to those of `ich submit`."""
    classes, path = _classes(plan), plan.workspace.thresholds
    probability, positive = sigmoid(logits), None
    if plan.state(plan.thresholds).done:
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

"""`ich predict`: score DICOM files with the trained ensemble.

Per fold, all models that the blend needs predict by `Fitted.predict`, as in training. The mean over folds gets the
thresholds and the prevalence of the submission.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ich.console import progress, say, table
from ich.data import cache
from ich.data.competitions import Raw
from ich.data.competitions.cq500 import scan_of
from ich.data.dicom import Reason
from ich.data.files import below, image_ids
from ich.data.slice_table import Quarantined, read_geometries, slice_table
from ich.ensemble import thresholds
from ich.ensemble.final import final_probabilities
from ich.ensemble.predictions import sigmoid
from ich.errors import UserError, parsing
from ich.models.slices import Predictions, Slices
from ich.models.table import read_parquet, series_codes
from ich.pipeline.graph import Task
from ich.pipeline.runner import load_fitted
from ich.pipeline.state import Made, Plan
from ich.store.atomic import read_json, require_writable, write_text
from ich.store.records import Record

LISTED = 20  # quarantined files that are listed


def run(plan: Plan, source: Path, out: Path) -> None:
    """Score `source`, a DICOM file or a folder of such files at any depth, and write the table `out`."""
    require_writable(out)
    plan.require(_task(plan, out))
    for name in needed(plan):
        if not plan.settings_of(name).scores_new_scans:
            raise UserError(f"{name} cannot score new scans. Remove it from blend.inputs")
    root, names = _files(source)
    with TemporaryDirectory(prefix="ich-predict-") as folder:
        table, quarantined = _read(plan, source, root, names, Path(folder))
        logits = ensemble_logits(plan, table, cache.HuCache.open(Path(folder), table))
    scored = _scored(plan, table, logits)
    write_text(out, scored.to_csv(index=False))
    _show(scored, quarantined, _classes(plan))
    say(f"\npredict: wrote {out}, {len(scored)} slices, {len(quarantined)} files quarantined")


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
        scored = _scored(trained, slices, ensemble_logits(trained, slices, cache.HuCache.open(folder, slices)))
        scored.insert(0, "scan", slices["path"].map(scan_of))
        write_text(path, scored.to_csv(index=False))
        return {path.name: path}, {"slices": len(scored)}

    made = plan.make(plan.outside, score, force=force)
    say(f"predict: {'wrote' if made else 'up to date,'} {path}")


def _task(plan: Plan, out: Path) -> Task:
    """Task with the inputs of a prediction: all folds of the blend, and the thresholds if there are any."""
    upstream = tuple((plan.fold("blend", k), ()) for k in plan.fold_numbers)
    if plan.record_of(plan.thresholds):
        upstream += ((plan.thresholds, ()),)
    return Task("predict", "predict", Record(out), {}, upstream)


def _classes(plan: Plan) -> list[str]:
    return plan.record_of(plan.prepared)["classes"]


# ---- the slices


def _files(source: Path) -> tuple[Path, list[str]]:
    """Return a folder and the sorted relative paths of its files. Links are followed, and each folder is read once."""
    if source.is_file():
        return source.parent, [source.name]
    if not source.is_dir():
        raise UserError(f"{source}: no such file or folder")
    try:
        found = below(source)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot read the folder ({error.strerror})") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    if not found:
        raise UserError(f"{source}: no files in this folder")
    return source, found


def _read(
    plan: Plan, source: Path, root: Path, names: Sequence[str], folder: Path
) -> tuple[pd.DataFrame, list[Quarantined]]:
    """Write a HU cache to `folder`, as `ich prepare` does; return its slice table and the quarantined files."""
    image, classes, values = plan.recipe.image, _classes(plan), plan.record_of(plan.prepared)["values"]
    files = pd.DataFrame({"image_id": image_ids(names), "split": "test", "path": list(names)})
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
    if slices.empty:
        first = quarantined[0]
        raise UserError(f"{source}: no readable slice in {len(names)} files; {first.path}: {_why(first)}")
    return slices.assign(series=series_codes(slices)), quarantined


def _why(item: Quarantined) -> str:
    return f"{Reason[item.reason.upper()]}{f' ({item.detail})' if item.detail else ''}"


# ---- the ensemble


def ensemble_logits(plan: Plan, table: pd.DataFrame, images: cache.HuCache) -> NDArray[np.float64]:
    """Return the mean logits [n, c] of the blend over folds, one row per slice."""
    torch.set_num_threads(plan.recipe.compute.threads)
    values = plan.record_of(plan.prepared)["values"]
    slices = Slices(table, np.arange(len(table)), _classes(plan), images, values)
    models, folds = needed(plan), []
    with progress("predict: ensemble", len(slices) * len(models) * len(plan.fold_numbers)) as advance:
        for fold in plan.fold_numbers:
            found: dict[str, Predictions] = {}
            for name in models:  # each after its inputs
                settings = plan.settings_of(name)
                fitted = load_fitted(plan, name, fold)
                inputs = {other: found[other] for other in plan.recipe.inputs_of(name)}
                found[name] = fitted.predict(replace(slices, workers=getattr(settings, "workers", 0)), inputs)
                advance(len(slices))
            folds.append(found["blend"].logits)
    return np.asarray(np.mean(folds, axis=0, dtype=np.float64))


def needed(plan: Plan) -> list[str]:
    """Return the blend and all models that it depends on. Each model follows its inputs."""
    wanted = {"blend"}
    for name in reversed(plan.models):
        wanted |= set(plan.recipe.inputs_of(name)) if name in wanted else set()
    return [name for name in plan.models if name in wanted]


# ---- the table


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


def _show(scored: pd.DataFrame, quarantined: Sequence[Quarantined], classes: Sequence[str]) -> None:
    for item in quarantined[:LISTED]:
        say(f"quarantined: {item.path}: {_why(item)}", always=True)
    if len(quarantined) > LISTED:
        rest = Counter(item.reason for item in quarantined[LISTED:])
        say(f"quarantined: also {', '.join(f'{n} x {reason}' for reason, n in sorted(rest.items()))}", always=True)
    studies = scored.groupby("study_id", sort=False)
    largest = studies[[f"prob_{name}" for name in classes]].max()
    rows = [
        [str(study), str(count), *(f"{p:.3f}" for p in values)]
        for study, count, values in zip(largest.index, studies.size(), largest.to_numpy(), strict=True)
    ]
    table(["study", "slices", *classes], rows, "Maximum probability per study")

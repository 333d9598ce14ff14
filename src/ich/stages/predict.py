"""`ich predict`: score a folder of DICOM files with the trained ensemble.

Fold by fold every model that the blend needs, in graph order, each by the same `Fitted.predict` as in training; then
the mean over folds, with the thresholds and the prevalence of the submission.
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
from ich.errors import UserError, as_written
from ich.models.slices import Predictions, Slices
from ich.models.table import read_parquet, series_codes
from ich.pipeline.graph import Task
from ich.pipeline.runner import load_fitted
from ich.pipeline.state import Made, Plan
from ich.store.atomic import atomic, read_json
from ich.store.records import Record

LISTED = 20  # quarantined files that are named one by one


def run(plan: Plan, source: Path, out: Path) -> None:
    """Score `source`, a folder of DICOM files at any depth or one file, and write the table `out`."""
    plan.require(_task(plan, out))
    for name in needed(plan):
        if not plan.settings_of(name).scores_new_scans:
            raise UserError(
                f"{name} holds predictions of known slices only; remove it from blend.inputs to score others"
            )
    if out.is_dir():
        raise UserError(f"{out}: this is a folder; give the name of the table to write, as {out / 'out.csv'}")
    root, names = _files(source)
    with TemporaryDirectory(prefix="ich-predict-") as folder:
        table, quarantined = _read(plan, source, root, names, Path(folder))
        logits = ensemble_logits(plan, table, cache.HuCache.open(Path(folder), table))
    scored = _scored(plan, table, logits)
    with atomic(out) as temporary:
        scored.to_csv(temporary, index=False)
    _show(scored, quarantined, _classes(plan))
    say(f"\npredict: wrote {out}, {len(scored)} slices, {len(quarantined)} files quarantined")


def run_outside(plan: Plan, *, force: bool = False) -> None:
    """Score the prepared scans of an outside validation with the ensemble of the recipe that it names."""
    trained, path = plan.trained, plan.workspace.submissions / "slices.csv"
    if trained.recipe.image != plan.recipe.image:
        raise UserError(f"image differs from that of {plan.recipe.competition.trained_by}; give both recipes the same")
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
        with atomic(path) as temporary:
            scored.to_csv(temporary, index=False)
        return {path.name: path}, {"slices": len(scored)}

    made = plan.make(plan.outside, score, force=force)
    say(f"predict: {'wrote' if made else 'done'}, {path}")


def _task(plan: Plan, out: Path) -> Task:
    """All that predicting reads: every fold of the blend, so of every model, and thresholds once there are any."""
    upstream = tuple((plan.fold("blend", k), ()) for k in plan.fold_numbers)
    if plan.record_of(plan.thresholds):
        upstream += ((plan.thresholds, ()),)
    return Task("predict", "predict", Record(out), {}, upstream)


def _classes(plan: Plan) -> list[str]:
    return plan.record_of(plan.prepared)["classes"]


# ---- the slices


def _files(source: Path) -> tuple[Path, list[str]]:
    """A folder, and the files below it as relative paths in order; links are followed, each folder is read once."""
    if source.is_file():
        return source.parent, [source.name]
    if not source.is_dir():
        raise UserError(f"{source}: no such file or folder")
    try:
        found = below(source)
    except OSError as error:
        raise UserError(f"{error.filename}: this folder cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    if not found:
        raise UserError(f"{source}: there is no file in this folder")
    return source, found


def _read(
    plan: Plan, source: Path, root: Path, names: Sequence[str], folder: Path
) -> tuple[pd.DataFrame, list[Quarantined]]:
    """Write the HU cache in `folder` as `ich prepare` does for a test set; its slice table, and what was refused."""
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
        raise UserError(f"{source}: not one readable slice in {len(names)} files; {first.path}: {_why(first)}")
    return slices.assign(series=series_codes(slices)), quarantined


def _why(item: Quarantined) -> str:
    return f"{Reason[item.reason.upper()]}{f' ({item.detail})' if item.detail else ''}"


# ---- the ensemble


def ensemble_logits(plan: Plan, table: pd.DataFrame, images: cache.HuCache) -> NDArray[np.float64]:
    """The blend's logits [n, c] for every slice of the table, mean over folds."""
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
    """The blend and all models below it, each after its inputs."""
    wanted = {"blend"}
    for name in reversed(plan.models):
        wanted |= set(plan.recipe.inputs_of(name)) if name in wanted else set()
    return [name for name in plan.models if name in wanted]


# ---- the table


def _scored(plan: Plan, slices: pd.DataFrame, logits: NDArray) -> pd.DataFrame:
    """out.csv: identifiers (not the patient's), prob_<class>, positive_<class>; as `ich submit` writes them."""
    classes, path = _classes(plan), plan.workspace.thresholds
    probability, positive = sigmoid(logits), None
    if plan.state(plan.thresholds).done:
        with as_written(path):
            weights = plan.record_of(plan.prepared)["class_weights"]
            probability, cuts = final_probabilities(read_json(path), logits, classes, weights)
            positive = thresholds.apply(probability, cuts)
    else:
        say("predict: no columns positive_<class>, since there are no thresholds; `ich thresholds` tunes them")
    scored = slices[["image_id", "study_id", "series_id", "index"]].copy()
    scored[[f"prob_{name}" for name in classes]] = probability
    if positive is not None:
        scored[[f"positive_{name}" for name in classes]] = positive.astype(int)
    return scored


def _show(scored: pd.DataFrame, quarantined: Sequence[Quarantined], classes: Sequence[str]) -> None:
    for item in quarantined[:LISTED]:
        say(f"quarantined: {item.path}: {_why(item)}", asked=True)
    if len(quarantined) > LISTED:
        rest = Counter(item.reason for item in quarantined[LISTED:])
        say(
            "quarantined: and further " + ", ".join(f"{count} x {reason}" for reason, count in sorted(rest.items())),
            asked=True,
        )
    studies = scored.groupby("study_id", sort=False)
    largest = studies[[f"prob_{name}" for name in classes]].max()
    rows = [
        [str(study), str(count), *(f"{p:.3f}" for p in values)]
        for study, count, values in zip(largest.index, studies.size(), largest.to_numpy(), strict=True)
    ]
    table(["study", "slices", *classes], rows, "The largest probability of a study's slices")

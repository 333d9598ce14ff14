"""Fit the models of a stage: folds in parallel, their predictions, and the assembled tables of each model."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ich.console import detail, say, time_left, whole
from ich.ensemble.calibration import fit
from ich.ensemble.predictions import aligned, assemble_oof, mean_test
from ich.errors import UserError
from ich.models.artifacts import require_finite, write_predictions
from ich.models.base import Fitted
from ich.models.bundle import read
from ich.models.data import FoldData, Start
from ich.models.registry import build, load
from ich.models.table import SliceTable, read_parquet
from ich.pipeline.state import Busy, Made, Plan
from ich.pipeline.tasks import STUDIES, WEIGHTS, Task
from ich.pipeline.untrainable import untrainable
from ich.processes import run_parallel
from ich.recipe import Recipe, Training
from ich.store.atomic import atomic, write_json
from ich.store.hashes import seed_of
from ich.training.run import Run, Trackers

SMALL = 100_000  # slices; with fewer, models without a network are fitted faster than a process starts


def run_stage(
    plan: Plan, stage: str, *, model: str | None = None, fold: int | None = None, force: bool = False
) -> None:
    """Make the folds of a stage that are out of date, then the tables of each model whose folds are complete.

    Raises Busy at the end if folds were left to other processes.
    """
    tasks = plan.tasks_of(stage, model, fold)
    folds: dict[tuple[str, int | None], list[Task]] = {(task.model, task.fold): [] for task in tasks}
    for task in tasks:
        if force or not plan.finished(task):
            folds[task.model, task.fold].append(task)
    todo = [unfinished for unfinished in folds.values() if unfinished]
    for first, *_ in todo:
        plan.require(first)
    done, busy = len(folds) - len(todo), list[Busy]()
    for name, left in _make_parallel(plan, todo, force):
        if left is not None:
            busy.append(left)
            continue
        done += 1
        say(f"{stage}: {name} finished ({done} of {len(folds)}){time_left()}")
    plan.forget()
    for name in dict.fromkeys(task.model for task in tasks if task.fold is not None):
        assemble(plan, name)
    if busy:
        raise Busy("\n".join(map(str, busy)))


def _in_sample(task: Task) -> bool:
    return task.folder.name == "train"


def label(task: Task) -> str:
    """Name of a task in messages and progress."""
    fold = "" if task.fold is None else f" fold {task.fold}"
    return f"{task.model}{fold}{', in-sample' if _in_sample(task) else ''}"


def _make_parallel(plan: Plan, todo: list[list[Task]], force: bool) -> Iterator[tuple[str, Busy | None]]:
    """Make the tasks of each fold in parallel; yield its label when it is finished, with Busy if it was left."""
    if not todo:
        return
    first = todo[0][0]
    processes, threads = min(plan.processes, len(todo)), plan.recipe.compute.threads
    settings, record = plan.settings_of(first.model), plan.record_of(plan.prepared)
    if first.fold is None:  # one network for all folds may use every core
        processes, threads = 1, plan.cores
    elif not isinstance(settings, Training) and record["slices"] < SMALL:
        processes = 1
    advice = "with fewer processes (--set compute.processes=1) or a smaller batch_size"
    if settings.reads_images and not all(_in_sample(task) for part in todo for task in part):
        arguments = (plan, len(record["classes"]), record["values"])
        (found,) = run_parallel(untrainable, [arguments], processes, threads=threads, advice=advice)
        if found:
            raise UserError("\n".join(f"{where}: {why}" for where, why in found.items()))
    detail(f"{first.stage}: {len(todo)} folds, {processes} in parallel, {threads} CPU threads each")
    jobs = ((plan.recipe, plan.root, [task.name for task in part], label(part[0]), force) for part in todo)
    with whole(first.stage, {label(part[0]): 1 for part in todo}) as finished:
        for name, busy in run_parallel(
            _make, jobs, processes, ordered=False, threads=threads, gpus=plan.gpus, advice=advice
        ):
            finished(name)
            yield name, busy


def _make(recipe: Recipe, root: Path, tasks: list[str], name: str, force: bool) -> tuple[str, Busy | None]:
    plan = Plan(recipe, root)
    try:
        for task in tasks:
            make_task(plan, task, force=force)
    except Busy as busy:
        return name, busy
    return name, None


def make_task(plan: Plan, name: str, *, force: bool = False) -> None:
    """Make the fold, the in-sample predictions or the tables of a model, by the name of the task."""
    task = plan.model_task(name)
    if task.fold is None and task.model not in plan.recipe.pretrain:
        assemble(plan, task.model)
        return
    make = predict_in_sample if _in_sample(task) else make_fold
    plan.make(task, lambda fingerprint: make(plan, task, fingerprint), force=force)


def make_fold(plan: Plan, task: Task, fingerprint: str) -> Made:
    """Fit one fold of a model of any kind and write its predictions."""
    settings, folder, run = plan.settings_of(task.model), task.record.work, _run(plan, task, fingerprint)
    data = FoldData.read(plan.recipe, plan.workspace, plan.prepared.folder, task.model, task.fold)
    if start := plan.start_of(task.model, task.fold):
        data = replace(data, start=_start(plan, task, start))
    fitted = build(settings).fit(data, run)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in fitted.save(folder)}
    metrics: dict[str, Any] = {}
    if task.fold is not None:
        splits = ("valid", "test", "train") if settings.scores_in_sample else ("valid", "test")
        for split in splits:
            slices = data.slices(split)
            predictions = fitted.predict(slices, data.inputs(split))
            require_finite(run.name, slices.ids, predictions)
            if split == "train":
                metrics["in_sample"] = data.table.metrics(data.rows[split], predictions.logits)
                continue
            files |= write_predictions(folder, split, slices.ids, slices.classes, predictions, task.fold)
            if split == "valid":
                metrics["metrics"] = data.table.metrics(data.rows[split], predictions.logits)
    return files, {"classes": data.table.classes, "warnings": [], **fitted.notes, **metrics}


def _start(plan: Plan, task: Task, start: Task | list[Path]) -> Start:
    """The initial weights of a network and their classes. Raises UserError if a file is missing or damaged."""
    if isinstance(start, Task):
        return Start(start.folder / WEIGHTS, tuple(plan.record_of(start).get("classes", ())))
    given: Any = plan.settings_of(task.model)
    if given.start.bundle is not None:
        return Start(start[0], read(plan.root / given.start.bundle).spec.classes)
    if not start[0].is_file():
        raise UserError(f"{task.stage}.{task.model}.start.file: {start[0]}: no such file")
    return Start(start[0], given.start.classes)


def predict_in_sample(plan: Plan, task: Task, _fingerprint: str) -> Made:
    """Write the predictions of a fold's network for all labelled rows of the other folds and those of a label table.

    They include rows that it was not trained on: inner patients of early stopping, and patients beyond `labels`.
    """
    fold = task.fold or 0
    data = FoldData.read(plan.recipe, plan.workspace, plan.prepared.folder, task.model, fold)
    data = replace(data, rows={"train": data.in_sample_rows})
    fitted = load_fitted(plan, task.model, fold)
    slices = data.slices("train")
    predictions = fitted.predict(slices, {})
    require_finite(label(task), slices.ids, predictions)
    files = write_predictions(task.folder, "train", slices.ids, slices.classes, predictions)
    known = data.table.labelled[slices.rows]
    return files, {"metrics": data.table.metrics(slices.rows[known], predictions.logits[known])}


def load_fitted(plan: Plan, model: str, fold: int) -> Fitted:
    """Load a fitted fold. The hash of each file is checked before it is parsed."""
    task, settings = plan.fold(model, fold), plan.settings_of(model)
    plan.pull(((task, (*settings.files, "*.txt")),))
    record = plan.record_of(task)
    for name in record["files"]:
        if name in settings.files or name.endswith(".txt"):
            damage = task.record.damage(record, name)
            if damage:
                raise UserError(f"{task.name}/{name} {damage}. Run `ich {task.stage}`, then rerun this command")
    return load(task.stage, task.folder, label(task))


def _run(plan: Plan, task: Task, fingerprint: str) -> Run:
    settings, compute = plan.settings_of(task.model), plan.recipe.compute
    names = (task.model,) if task.fold is None else (task.model, task.fold)
    seed = seed_of(getattr(settings, "seed", 0), *names)
    threads = plan.cores if task.fold is None else compute.threads
    trackers = None
    if compute.trackers and hasattr(settings, "epochs"):
        run = task.model if task.fold is None else f"{task.model}/fold{task.fold}"
        values = {"model": task.model, "run": run, **settings.model_dump(mode="json")}
        trackers = Trackers(compute.trackers, plan.workspace.trackers.absolute(), plan.recipe.name, run, values)
    return Run(label(task), seed, threads, task.record.work, fingerprint, trackers)


# ---- the tables of a model


def assemble(plan: Plan, model: str) -> bool:
    """Write oof.parquet (all labelled slices) and test.parquet (mean over folds) once all folds are done."""
    task = plan.assembled(model)
    waiting = [k for k in plan.fold_numbers if not plan.state(plan.fold(model, k)).done]
    if waiting:
        say(f"{task.name}: not assembled, missing folds: {', '.join(map(str, waiting))}")
        return False
    return plan.make(task, lambda _: _assembled(plan, task))


def _assembled(plan: Plan, task: Task) -> Made:
    table = SliceTable.read(plan.workspace, plan.prepared.folder)
    files: dict[str, Path] = {}
    oof = _assembled_tables(plan, task, table, "image_id", files)
    if plan.settings_of(task.model).writes_studies:
        write_json(task.folder / STUDIES, _calibrators(table, _assembled_tables(plan, task, table, "study_id", files)))
        files[STUDIES] = task.folder / STUDIES
    rows = table.labelled.nonzero()[0]
    return files, {"metrics": table.metrics(rows, aligned(oof, table.ids(rows), table.classes))}


def _assembled_tables(plan: Plan, task: Task, table: SliceTable, key: str, files: dict[str, Path]) -> pd.DataFrame:
    """Write the out-of-fold and the test table of slices or studies, and add them to `files`. Return the first."""
    end = "_studies.parquet" if key == "study_id" else ".parquet"
    folders = [plan.workspace.fold(task.model, k) for k in plan.fold_numbers]
    valid = {k: read_parquet(folder / f"valid{end}") for k, folder in enumerate(folders)}
    labelled = {k: table.table[key].iloc[table.valid_rows(k)].unique().tolist() for k in valid}
    try:
        oof = assemble_oof(valid, labelled, table.classes, key)
        test = mean_test([read_parquet(folder / f"test{end}") for folder in folders], table.classes, key)
    except (ValueError, TypeError) as error:
        raise UserError(f"{task.name}: {error}. Run `ich {task.stage} --model {task.model} --force`") from None
    for name, content in ((f"oof{end}", oof), (f"test{end}", test)):
        with atomic(task.folder / name) as temporary:
            content.to_parquet(temporary, index=False)
        files[name] = task.folder / name
    return oof


def _calibrators(table: SliceTable, oof: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The calibrator of the study logits of each class, fitted on all folds, for `ich predict`."""
    known = table.table[table.labelled].groupby("study_id")[table.classes].max().loc[oof["study_id"]]
    return {name: fit("platt", oof[f"logit_{name}"], known[name]).as_dict() for name in table.classes}

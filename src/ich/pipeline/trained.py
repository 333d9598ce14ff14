"""The trained ensemble of a workspace, as a bundle."""

from collections.abc import Sequence
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ich.errors import UserError, parsing
from ich.models.bundle import Bundle, BundledModel, Spec
from ich.pipeline.state import Plan
from ich.pipeline.tasks import STUDIES, Task
from ich.recipe import Model
from ich.store.atomic import read_json
from ich.store.records import Record


def of_workspace(plan: Plan, folds: Sequence[int] | None = None) -> Bundle:
    """Return the trained ensemble of a recipe, or some folds of it, as it is in the workspace.

    Raises UserError if a part of it is missing, out of date or damaged, or cannot score new scans.
    """
    numbers = list(plan.fold_numbers if folds is None else folds)
    for k in numbers:
        if k not in plan.fold_numbers:
            raise UserError(f"--fold {k}: no such fold. Choose from 0 to {plan.fold_numbers[-1]}")
    models = {name: plan.settings_of(name) for name in needed(plan)}
    parts = [(plan.fold(name, k), (*_files(one), "*.txt")) for name, one in models.items() for k in numbers]
    pooling = [name for name, one in models.items() if one.writes_studies]
    if len(numbers) == len(plan.fold_numbers):  # their calibration needs all folds
        parts += [(plan.assembled(name), (STUDIES,)) for name in pooling]
    if tuned := plan.record_of(plan.thresholds):
        parts += [(plan.thresholds, (plan.workspace.thresholds.name,))]
    plan.require(Task("predict", "predict", Record(plan.workspace.oof), {}, tuple(parts)))
    for name, one in models.items():
        if not one.scores_new_scans:
            raise UserError(f"{name} cannot score new scans. Remove it from blend.inputs")
    plan.pull(tuple(parts))
    data = plan.record_of(plan.prepared)
    spec = Spec(
        name=plan.recipe.name,
        version=version("ich"),
        classes=data["classes"],
        class_weights=data["class_weights"],
        values=data["values"],
        image=plan.recipe.image,
        threads=plan.recipe.compute.threads,
        folds=tuple(numbers),
        models={
            name: BundledModel(
                stage=one.stage, inputs=one.input_models(plan.recipe), workers=getattr(one, "workers", 0)
            )
            for name, one in models.items()
        },
        competition=plan.recipe.competition.format,
        thresholds=content_of(plan.workspace.thresholds) if tuned else None,
        studies={task.model: content_of(task.folder / STUDIES) for task, files in parts if files == (STUDIES,)},
    )
    hashes = {
        f"{task.model}/fold{task.fold}/{name}": sha256
        for task, patterns in parts
        if task.fold is not None
        for name, sha256 in plan.files_of(task).items()
        if any(fnmatch(name, pattern) for pattern in patterns)
    }
    return Bundle(plan.workspace.oof.absolute(), spec, hashes)


def needed(plan: Plan) -> list[str]:
    """Return the blend and all models that it depends on. Each model follows its inputs."""
    wanted = {"blend"}
    for name in reversed(plan.models):
        wanted |= set(plan.recipe.inputs_of(name)) if name in wanted else set()
    return [name for name in plan.models if name in wanted]


def _files(settings: Model) -> list[str]:
    """Files of a fold that predicting needs, beside those of LightGBM."""
    return [name for name in settings.files if name != "history.csv"]


def content_of(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    with parsing(path):
        if not isinstance(content := read_json(path), dict):
            raise ValueError("an object is required")
        return content

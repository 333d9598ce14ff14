"""`ich export`: write the trained ensemble as one folder that predicts anywhere."""

import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

from ich.console import progress, say
from ich.errors import UserError, parsing
from ich.models.bundle import SPEC, SUMS, Bundle, BundledModel, Spec, sums_text
from ich.models.network import halved
from ich.pipeline.graph import STUDIES, WEIGHTS, Task
from ich.pipeline.state import Plan
from ich.recipe import Model
from ich.stages import kaggle as for_kaggle
from ich.stages.card import model_card
from ich.store.atomic import atomic_folder, read_json, write_json, write_text
from ich.store.hashes import sha256_file
from ich.store.records import Record


def run(plan: Plan, out: Path, *, folds: Sequence[int] | None = None, half: bool = False, kaggle: bool = False) -> None:
    """Write the bundle of a recipe to the folder `out`, which must not exist.

    folds: those to include; all without. half: weights of networks as float16, half the size. kaggle: write it to
    out/bundle, next to a notebook for Kaggle.
    """
    if out.exists():
        raise UserError(f"{out} exists. Remove it, or give another folder")
    bundle = of_workspace(plan, folds)
    with atomic_folder(out) as folder:
        if kaggle:
            for_kaggle.write(plan, bundle.spec, folder)
        names = _write(plan, bundle, folder / "bundle" if kaggle else folder, half=half)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    numbers = ", ".join(map(str, bundle.spec.folds))
    say(f"export: wrote {out}: folds {numbers}, {len(names) + 1} files, {size / 1e6:.1f} MB")
    if kaggle:
        say("Upload it as docs/how-to/kaggle.md says")
    else:
        say(f"Score scans: ich predict --bundle {out} PATH -o out.csv")


def _write(plan: Plan, bundle: Bundle, folder: Path, *, half: bool) -> list[str]:
    """Write a bundle; return the names of its files, without the last one, SHA256SUMS."""
    with progress("export", len(bundle.files), "files") as advance:
        for name in bundle.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if half and name.endswith(WEIGHTS):
                (folder / name).write_bytes(halved(bundle.root / name))
            else:
                shutil.copyfile(bundle.root / name, folder / name)
            advance(1)
    write_json(folder / SPEC, bundle.spec.model_dump(mode="json"))
    write_text(folder / "README.md", model_card(plan, bundle.spec.folds, half=half))
    write_text(folder / "LICENSE", distribution("ich").read_text("licenses/LICENSE") or "MIT\n")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_text(folder / SUMS, sums_text({name: sha256_file(folder / name) for name in names}))
    return names


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
        thresholds=_content(plan.workspace.thresholds) if tuned else None,
        studies={task.model: _content(task.folder / STUDIES) for task, files in parts if files == (STUDIES,)},
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


def _content(path: Path) -> Any:
    with parsing(path):
        return read_json(path)

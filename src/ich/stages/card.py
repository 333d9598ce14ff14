"""The model card of a recipe, from the records of its run: the README of a bundle and a section of the page."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from ich.data.folds import unknown_patients
from ich.errors import parsing
from ich.models.network import parameters
from ich.models.table import SliceTable
from ich.pipeline.state import Plan
from ich.pipeline.tasks import VERSIONS, Task
from ich.pipeline.trained import content_of
from ich.recipe import Labels, Start, in_yaml
from ich.report.card import parts
from ich.report.card.facts import Count, Facts, ModelFacts, Spread
from ich.report.evidence import Artifact
from ich.report.sections.provenance import without_folders

# settings that are shown even where they have their defaults
MAIN = ("backbone", "head", "cell", "epochs", "batch_size", "optimizer", "learning_rate", "schedule", "weight_decay")
MAIN += ("precision", "num_iterations", "num_leaves", "neighbours", "method", "calibration", "seed")

ASSEMBLED = ("oof.parquet", "test.parquet")


def model_card(plan: Plan, folds: Sequence[int] | None = None, *, half: bool = False) -> str:
    """Return the model card of a trained recipe as Markdown. Results that were not made are listed as such.

    folds, half: what the bundle holds, as in `ich export`.
    """
    facts = read_facts(plan)
    held = []
    if folds is not None and len(folds) < plan.recipe.folds.n:
        held.append(f"only folds {', '.join(map(str, folds))} of {plan.recipe.folds.n}")
    if half:
        held.append("weights as float16")
    exported = f"This bundle has {' and '.join(held)}. The scores below are those of the whole ensemble." * bool(held)
    return parts.text(replace(facts, exported=exported, checked=_checked(plan)))


def read_facts(plan: Plan) -> Facts:
    """Read all that the page may show: results that are up to date, and no findings of `ich check`."""
    slices = SliceTable.read(plan.workspace, plan.prepared.folder)
    table, recipe, submissions = slices.table, plan.recipe, plan.workspace.submissions
    prepared = plan.record_of(plan.prepared)
    train = (table["split"] == "train").to_numpy()
    sets = {"labelled": slices.labelled, "unlabelled": train & ~slices.labelled, "test": ~train}
    labelled = table[slices.labelled]
    scored, tuned, explained = (plan.state(task).done for task in (plan.score, plan.thresholds, plan.explain))
    return Facts(
        name=recipe.name,
        version=version("ich"),
        synthetic=recipe.demo is not None,
        values=slices.values,
        image=f"{recipe.image.size} x {recipe.image.size} pixels, crop {recipe.image.crop}",
        classes=slices.classes,
        counts={name: _count(table[rows]) for name, rows in sets.items()},
        positives={name: _count(labelled[labelled[name] > 0]) for name in slices.classes},
        acquisition=_acquisition(table, sets, slices.values),
        folds=plan.record_of(plan.folds),
        in_several_folds=int((labelled.groupby("patient_id")["fold"].nunique() > 1).sum()),
        in_train_and_test=len(set(table["patient_id"][train]) & set(table["patient_id"][~train])),
        unknown_patients=len(unknown_patients(labelled)),
        quarantined=_counts(plan.prepared.folder / "quarantine.csv", "split", "reason"),
        labels="" if recipe.labels is None else _labels(recipe.labels),
        pseudonyms=slices.pseudonyms.file is not None,
        burned_in=prepared["burned_in"],
        models={name: _model(plan, name) for name in plan.models},
        blends=[content_of(plan.workspace.fold("blend", k) / "blend.json") for k in plan.fold_numbers],
        artifacts=list(artifacts(plan)),
        scores=content_of(submissions / "scores.json") if scored else None,
        decisions=_decisions(submissions / "confusion.csv", recipe.thresholds.metric) if scored else None,
        tuned=content_of(plan.workspace.thresholds) if tuned else None,
        explained=explained,
    )


def _labels(labels: Labels) -> str:
    how = "instead of" if labels.mode == "replace" else "in addition to"
    return (
        f"The networks are trained on the labels of a table {how} those of the competition, weight {labels.weight:g}."
    )


def _table(path: Path) -> pd.DataFrame:
    with parsing(path):
        return pd.read_csv(path, dtype=str, keep_default_na=False)


def _counts(path: Path, *columns: str) -> Counter[tuple[str, str]]:
    """Count the rows of a CSV file by two columns."""
    table = _table(path)
    return Counter(zip(*(table[name] for name in columns), strict=True))


def _checked(plan: Plan) -> Counter[tuple[str, str]] | None:
    path = plan.workspace.submissions / "check.csv"
    return _counts(path, "severity", "rule") if path.is_file() else None


def _count(rows: pd.DataFrame) -> Count:
    return Count(rows["patient_id"].nunique(), rows["study_id"].nunique(), rows["series"].nunique(), len(rows))


def _acquisition(table: pd.DataFrame, sets: dict[str, NDArray], values: str) -> dict[str, dict[str, Spread]]:
    """Percentiles over series of what is known of the acquisition, by quantity and set of slices."""
    series = table.groupby("series")
    quantities = {"matrix, rows": series["raw_rows"].first(), "matrix, columns": series["raw_columns"].first()}
    if values == "hu":
        quantities |= {
            "slices per series": series["n_slices"].first(),
            "pixel size, mm": series["row_spacing"].first(),
            "distance of slices, mm": series["position"].diff().abs().groupby(table["series"]).median(),
            "gantry tilt, degrees": series["tilt"].first(),
        }
    members = {name: table.loc[rows, "series"].unique() for name, rows in sets.items() if rows.any()}

    def spread(numbers: pd.Series) -> Spread:
        return Spread(*(float(one) for one in numbers.quantile([0.05, 0.5, 0.95])))

    return {
        title: {name: spread(of_series.loc[some]) for name, some in members.items()}
        for title, of_series in quantities.items()
    }


def _decisions(path: Path, metric: str) -> dict[tuple[str, str], dict[str, int]]:
    table = _table(path)
    table = table[(table["model"] == "blend") & (table["thresholds"] == metric)]
    return {
        (row["rows"], row["class"]): {key: int(row[key]) for key in ("tp", "fp", "fn", "tn")}
        for row in table.to_dict("records")
    }


def _model(plan: Plan, name: str) -> ModelFacts:
    settings: Any = plan.settings_of(name)
    shown = settings.model_dump(mode="json")
    kept = {key: shown[key] for key in MAIN if key in shown} | settings.model_dump(mode="json", exclude_defaults=True)
    kept = {key: value for key, value in kept.items() if key not in ("inputs", "start", "weights")}
    weights = ""
    if name in plan.recipe.networks:
        if "loss" not in kept:
            kept["loss"] = {"name": settings.loss.name}
        weights = _initial(plan, settings)
    return ModelFacts(
        stage=settings.stage,
        inputs=plan.recipe.inputs_of(name),
        settings=in_yaml(without_folders(kept)).removeprefix("{").removesuffix("}"),
        weights=weights,
        parameters=sum(map(parameters, plan.workspace.fold(name, 0).glob("*.safetensors"))),
        balanced=bool(weights) and settings.loss.weight != "none",
    )


def _initial(plan: Plan, settings: Any) -> str:
    """Say where the initial weights of a network are from."""
    if settings.start in plan.recipe.pretrain:
        return "SimCLR on all slices, those of the test set too, without labels"
    if isinstance(start := settings.start, Start):
        source = without_folders(next(filter(None, (start.recipe, start.bundle, start.file))))
        return f"those of {source}" if start.model is None else f"those of {start.model} in {source}"
    if start is not None:
        return f"those of {start}"
    given = getattr(settings, "weights", None)
    if given is not None:
        return str(without_folders(given if isinstance(given, str) else given.package))
    return "pretrained, of timm" if getattr(settings, "pretrained", False) else "random"


def artifacts(plan: Plan) -> Iterator[Artifact]:
    """The artifacts upstream of the page, in the order of the stages."""
    below: dict[str, Task] = {}
    todo = [plan.report]
    while todo:
        for upstream, _ in todo.pop().upstream:
            if upstream.name not in below:
                below[upstream.name] = upstream
                todo.append(upstream)
    tasks = [plan.demo] if plan.recipe.demo is not None else []
    tasks += sorted(below.values(), key=lambda task: (list(VERSIONS).index(task.stage), task.name))
    assembled = {plan.assembled(model).name for model in plan.models}
    for task in tasks:
        record = plan.record_of(task)
        files = record.get("files", {})
        if task.name in assembled:
            files = {name: files[name] for name in ASSEMBLED}
        elif "/" in task.name or task.stage in ("demo", "score", "explain"):  # folds of a model, and tables for readers
            files = {}
        yield Artifact(
            stage=task.stage,
            name=f"cache {task.folder.name}" if task.stage == "prepare" else task.name,
            seconds=record.get("seconds", 0.0),
            peak_memory_mib=record.get("peak_memory_mib", 0.0),
            versions=record.get("versions", {}),
            files=files,
            machine=record.get("machine", ""),
        )

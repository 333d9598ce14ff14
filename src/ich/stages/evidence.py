"""Read the results of a finished recipe for its report page."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ich.ensemble import thresholds
from ich.ensemble.predictions import sigmoid
from ich.errors import UserError, parsing
from ich.models.artifacts import read_logits
from ich.models.table import SliceTable
from ich.pipeline.state import Plan
from ich.report.evidence import Evidence, Training
from ich.stages.card import artifacts
from ich.stages.maps import cam_model
from ich.store.atomic import read_json

CORRELATED = 200_000  # maximum number of labelled slices for the correlation of models


def read_evidence(plan: Plan) -> Evidence:
    slices = SliceTable.read(plan.workspace, plan.prepared.folder)
    recipe, submissions = plan.recipe, plan.workspace.submissions
    shown = recipe.model_dump(mode="json")
    shown["report"]["studies"] = list(named_studies(recipe.report.studies, slices))
    if slices.pseudonyms.file is not None:
        del shown["competition"]["root"]
    rows, classes = slices.labelled.nonzero()[0], slices.classes
    scores, settings = read_json(submissions / "scores.json"), recipe.thresholds

    def logits(model: str, where: str, some: np.ndarray) -> np.ndarray:
        return read_logits(plan.workspace.model(model) / f"{where}.parquet", slices.ids(some), classes)

    probability = sigmoid(logits("blend", "oof", rows))
    # exact optima for the macro average, as `ich score` decides
    goal = thresholds.Goal(settings.beta, "macro", shrink=settings.shrink)
    fold = slices.table["fold"].to_numpy()[rows].astype("int64")
    tuned = thresholds.tune(slices.labels[rows].astype("float64"), probability, classes, goal, fold=fold)
    assert tuned.cross_fitted is not None, "folds are given"
    suspicious = _explained(plan, "suspicious_labels.csv")
    assert suspicious is not None, "`ich explain` always writes it"
    return Evidence(
        settings=shown,
        synthetic=recipe.demo is not None,
        folds_by_slice=recipe.folds.by == "slice",
        table=slices.pseudonyms.hidden(slices.table),
        classes=classes,
        class_weights=slices.class_weights,
        values=slices.values,
        probability=probability,
        test_probability=sigmoid(logits("blend", "test", slices.test_rows)),
        scores=scores,
        tuned=read_json(plan.workspace.thresholds),
        cross_fitted=tuned.cross_fitted,
        beta=settings.beta,
        reliability=_table(submissions / "reliability.csv"),
        blends=[read_json(plan.workspace.fold("blend", k) / "blend.json") for k in plan.fold_numbers],
        logits=np.stack([logits(model, "oof", rows[:: -(-len(rows) // CORRELATED)]) for model in plan.models]),
        trainings={model: _training(plan, model) for model in recipe.networks},
        mapped_by=next(iter(recipe.cnn), None),
        embedding_map=_explained(plan, "embedding_map.csv"),
        cam_by=cam_model(plan),
        suspicious=suspicious,
        audit=_explained(plan, "label_audit.csv"),
        quarantined=_table(plan.prepared.folder / "quarantine.csv")["reason"].tolist(),
        warnings=list(_warnings(plan)),
        artifacts=list(artifacts(plan)),
        privacy=list(_privacy(plan, slices)),
    )


def named_studies(studies: Sequence[str], slices: SliceTable) -> Iterator[str]:
    """Yield the ids on the page of studies that are named by id or by pseudonym."""
    shown = {study: slices.pseudonyms.of_id("study_id", study) for study in slices.table["study_id"].unique()}
    shown |= {pseudonym: pseudonym for pseudonym in shown.values()}
    for study in studies:
        if study not in shown:
            near = difflib.get_close_matches(study, shown, n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"report.studies: study {study} has no readable slice.{hint}")
        yield shown[study]


def _table(path: Path) -> pd.DataFrame:
    texts = dict.fromkeys(("image_id", "study_id", "class", "fold", "group", "rows", "reason"), str)
    with parsing(path):
        return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])


def _explained(plan: Plan, name: str) -> pd.DataFrame | None:
    """A table of `ich explain`; None if it was not written."""
    files = plan.files_of(plan.explain)
    return _table(plan.explain.folder / name) if name in files else None


def _training(plan: Plan, model: str) -> Training:
    settings: Any = plan.settings_of(model)
    histories, seeds, stop = {}, getattr(settings, "seeds", 1), settings.early_stopping
    for k in plan.fold_numbers:
        table = _table(plan.workspace.fold(model, k) / "history.csv")
        first = table[table["seed"] == 0].drop(columns="seed") if seeds > 1 else table
        histories[k] = first.to_dict("records")
    if stop is None:
        return Training(histories, seeds=seeds)
    kept = f"{'inner' if stop.split == 'inner' else 'valid'}_{stop.metric}"
    return Training(histories, kept, stop.split == "fold", seeds)


def _warnings(plan: Plan) -> Iterator[str]:
    for warning in plan.record_of(plan.folds).get("warnings", []):
        yield f"folds: {warning}"
    filled = plan.record_of(plan.submit).get("filled_with_prior", 0)
    if filled:
        yield f"{filled} test images could not be read; they were submitted with the training prevalence"


def _privacy(plan: Plan, slices: SliceTable) -> Iterator[str]:
    if slices.pseudonyms.file is not None:
        yield (
            f"Ids of patients, studies, series and images are pseudonyms. input/private/{plan.recipe.name}.csv, which"
            " must not be shared, lists them."
        )
    yield from filter(None, [plan.record_of(plan.prepared).get("burned_in")])

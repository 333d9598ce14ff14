"""The contract of every kind of model: reproducible, saved as plain files, independent of the labels of its fold."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from conftest import CLASSES, LOGITS, fold_data, plan_of
from ich.errors import UserError
from ich.models import registry
from ich.models.artifacts import read_predictions
from ich.pipeline import runner
from ich.pipeline.state import Plan
from ich.pipeline.tasks import CHECKPOINT

MODELS = {
    "pretrain": "simclr",
    "cnn": "small",
    "end_to_end": "joint",
    "sequence": "inside",
    "smooth": "gauss",
    "stack": "lgbm",
    "blend": "blend",
}
PREDICT = [kind for kind in MODELS if kind != "pretrain"]


def refit(plan: Plan, model: str, fold: int = 0) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Fit one fold again without its checkpoint: its files, and its record without the metrics."""
    task = plan.fold(model, None if model in plan.recipe.pretrain else fold)
    files, record = runner.make_fold(plan, task, "fingerprint")
    (task.record.work / CHECKPOINT).unlink(missing_ok=True)
    kept = {key: value for key, value in record.items() if key != "metrics"}
    return {name: path.read_bytes() for name, path in files.items()}, kept


def test_every_kind_is_tested(trained):
    assert {*MODELS, "external"} == set(registry.KINDS)  # its contract: test_external.py
    plan = plan_of(trained)
    assert {kind: plan.settings_of(model).stage for kind, model in MODELS.items()} == {kind: kind for kind in MODELS}


@pytest.mark.parametrize("kind", MODELS)
def test_a_second_fit_writes_the_same_plain_files(copy, kind):
    plan, model = plan_of(copy), MODELS[kind]
    task = plan.fold(model, None if kind == "pretrain" else 0)
    written = {name: (task.folder / name).read_bytes() for name in plan.files_of(task)}
    for name in written:
        (task.folder / name).unlink()
    files, record = refit(plan, model)
    assert files == written
    assert set(task.files) <= set(files)
    assert json.dumps(record)
    for name, content in files.items():
        assert name.endswith((".json", ".csv", ".txt", ".safetensors", ".parquet", ".npy")), name
        assert str(copy).encode() not in content, f"{name} names a folder of this machine"
        if name.endswith((".json", ".csv", ".txt")):
            assert content.decode().isprintable() or "\n" in content.decode()


@pytest.mark.parametrize("kind", PREDICT)
def test_a_loaded_model_predicts_what_was_recorded(trained, kind):
    plan, model = plan_of(trained), MODELS[kind]
    data, fitted = fold_data(plan, model), runner.load_fitted(plan, model, 0)
    embeddings = plan.settings_of(model).writes_embeddings
    for split in ("valid", "test"):
        slices = data.slices(split)
        found = fitted.predict(slices, data.inputs(split))
        folder = plan.workspace.fold(model, 0)
        recorded = read_predictions(folder, split, slices.ids, CLASSES, embeddings=embeddings)
        np.testing.assert_array_equal(found.logits, recorded.logits)
        if found.studies is not None:
            table = pd.read_parquet(folder / f"{split}_studies.parquet").set_index("study_id")
            pd.testing.assert_frame_equal(
                table[LOGITS].loc[found.studies.index].set_axis(CLASSES, axis=1), found.studies, check_names=False
            )
        assert (found.embeddings is None) == (recorded.embeddings is None)
        if found.embeddings is not None:
            np.testing.assert_array_equal(found.embeddings, recorded.embeddings)


@pytest.mark.parametrize("kind", PREDICT)
def test_a_series_is_predicted_the_same_alone_and_no_slices_give_no_rows(trained, kind):
    plan, model = plan_of(trained), MODELS[kind]
    data, fitted = fold_data(plan, model), runner.load_fitted(plan, model, 0)
    slices, inputs = data.slices("test"), data.inputs("test")
    together = fitted.predict(slices, inputs).logits
    for at in (np.flatnonzero(slices.frame["series"] == slices.frame["series"].max()), np.arange(0)):
        part = {
            name: replace(
                found, logits=found.logits[at], embeddings=None if found.embeddings is None else found.embeddings[at]
            )
            for name, found in inputs.items()
        }
        alone = fitted.predict(replace(slices, rows=slices.rows[at]), part).logits
        assert alone.shape == (len(at), len(CLASSES))
        np.testing.assert_allclose(alone, together[at], atol=1e-4)


@pytest.mark.parametrize("kind", ["smooth", "stack", "blend"])
def test_a_missing_input_is_named(trained, kind):
    plan, model = plan_of(trained), MODELS[kind]
    data, fitted = fold_data(plan, model), runner.load_fitted(plan, model, 0)
    inputs = data.inputs("test")
    inputs.pop("resnext")
    with pytest.raises(UserError, match=f"{model} fold 0: predictions of resnext are missing"):
        fitted.predict(data.slices("test"), inputs)


@pytest.mark.parametrize("kind", PREDICT)
def test_a_damaged_file_is_refused(copy, kind):
    """By its hash; by its parser, if the record has the hash of the damaged file."""
    plan, model = plan_of(copy), MODELS[kind]
    task = plan.fold(model, 0)
    names = [name for name in plan.files_of(task) if name.endswith((".json", ".txt", ".safetensors"))]
    assert names
    data = fold_data(plan, model)
    for name in names:
        path = task.folder / name
        whole = path.read_bytes()
        for content in (whole[: len(whole) // 2], b"", b"[]", b"{}"):
            path.write_bytes(content)
            with pytest.raises(UserError, match=rf"{task.name}/{name} was changed\. Run `ich {kind}`"):
                runner.load_fitted(plan, model, 0)
            with pytest.raises(UserError) as error:
                registry.load(kind, task.folder, f"{model} fold 0").predict(data.slices("test"), data.inputs("test"))
            assert "\n" not in str(error.value)
        path.write_bytes(whole)


# ---- no leak

READ_NO_LABELS = ("simclr",)
TUNED = [
    ("simclr", ()),
    ("resnet", ()),  # inner early stopping, focal loss
    ("small", ()),  # a share of the labels, balanced weights
    ("bigru", ()),
    ("lr", ("sequence.lr.features=aligned",)),
    ("gauss", ()),
    ("lgbm", ()),
    ("blend", ()),  # its record has the scores of every method
]


def flip_labels(plan: Plan, fold: int | None) -> None:
    """Invert the labels of a fold, or all labels, in the slice table."""
    path = plan.prepared.folder / "slices.parquet"
    table, folds = pd.read_parquet(path), pd.read_csv(plan.workspace.folds, dtype={"study_id": str})
    of = table["study_id"].map(folds.set_index("study_id")["fold"]).where(table["split"] == "train")
    inside = (of.notna() if fold is None else of == fold).to_numpy()
    assert inside.any()
    table.loc[inside, CLASSES] = 1 - table.loc[inside, CLASSES]
    table.to_parquet(path, index=False)


@pytest.mark.parametrize(("model", "changes"), TUNED, ids=lambda value: value if isinstance(value, str) else "")
def test_predictions_of_a_fold_do_not_depend_on_its_labels(copy, model, changes):
    plan = plan_of(copy, *changes)

    def written() -> tuple[dict[str, bytes], dict[str, Any]]:
        files, record = refit(plan, model)
        files.pop("history.csv", None)  # has the loss on the fold
        return files, record

    before = written()
    flip_labels(plan, 0 if model not in READ_NO_LABELS else None)
    assert written() == before
    if model not in READ_NO_LABELS:
        flip_labels(plan, 1)
        after = written()
        assert after[0]["valid.parquet"] != before[0]["valid.parquet"], "training labels matter"

"""Data of a fold: its splits, and the predictions of its inputs, joined by image id."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conftest import CLASSES, fold_data, plan_of
from ich.ensemble.predictions import aligned
from ich.errors import UserError
from ich.models.artifacts import read_predictions, require_finite
from ich.models.slices import Predictions
from ich.models.table import SliceTable
from ich.pipeline.state import Plan
from ich.store.hashes import sha256_file
from ich.store.records import read_record, write_record

# ---- splits


def patients(table: SliceTable, rows: np.ndarray) -> set[str]:
    return set(table.table["patient_id"].iloc[rows])


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_inner_patients_are_in_no_other_split(trained, fold):
    data = fold_data(plan_of(trained), "resnet", fold)
    table, rows = data.table, data.rows
    groups = [patients(table, rows[split]) for split in ("train", "inner", "valid", "test")]
    assert all(groups)
    assert len(set.union(*groups)) == sum(map(len, groups)), "no patient is in two splits"
    assert sorted([*rows["inner"], *rows["train"]]) == table.train_rows(fold).tolist()
    assert rows["valid"].tolist() == table.valid_rows(fold).tolist()
    assert "inner" not in fold_data(plan_of(trained), "joint", fold).rows


@pytest.mark.parametrize("fold", [0, 1])
def test_half_of_the_labels_are_those_of_half_of_the_patients(trained, fold):
    data = fold_data(plan_of(trained), "small", fold)
    everybody, rows = data.table.train_rows(fold), data.rows["train"]
    drawn = patients(data.table, rows)
    assert abs(len(drawn) - len(patients(data.table, everybody)) / 2) <= 1
    whole = data.table.table["patient_id"].iloc[everybody].isin(drawn).to_numpy()
    assert rows.tolist() == everybody[whole].tolist()
    other = fold_data(plan_of(trained, "cnn.small.seed=8"), "small", fold)
    assert patients(data.table, other.rows["train"]) != drawn


@pytest.mark.parametrize("fold", [0, 1])
def test_models_of_one_seed_draw_the_same_patients(trained, fold):
    """They can then be compared, and a network that starts from another's weights has not seen its inner patients."""
    inner = "early_stopping={metric: f2, split: inner, share: 0.3}"
    plan = plan_of(trained, "cnn.resnext.labels=0.5", f"end_to_end.joint.{inner}")
    rows = {name: fold_data(plan, name, fold).rows for name in ("small", "resnext", "joint", "resnet")}
    assert rows["small"]["train"].tolist() == rows["resnext"]["train"].tolist()
    table = SliceTable.read(plan.workspace, plan.prepared.folder)
    assert not patients(table, rows["joint"]["inner"]) & patients(table, rows["resnet"]["train"])


def test_too_few_patients_to_set_some_aside_is_an_error(trained, monkeypatch):
    plan = plan_of(trained)
    table = SliceTable.read(plan.workspace, plan.prepared.folder)
    one = np.flatnonzero(table.table["patient_id"] == table.table["patient_id"].iloc[table.train_rows(0)[0]])
    monkeypatch.setattr(SliceTable, "train_rows", lambda *_: one)
    with pytest.raises(UserError, match=r"the inner patients of fold 0: .*too few"):
        fold_data(plan, "resnet", 0)


# ---- predictions of the inputs


def recorded(folder: Path, split: str, ids: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    """Logits and embeddings of these slices, read with pandas and numpy."""
    table, array = pd.read_parquet(folder / f"{split}.parquet"), np.load(folder / f"{split}_embeddings.npy")
    return aligned(table, ids, CLASSES), array[pd.Index(table["image_id"]).get_indexer(ids)]


@pytest.mark.parametrize("fold", [0, 1])
@pytest.mark.parametrize("features", ["in_sample", "oof"])
def test_inputs_come_from_the_right_fold_s_network(trained, features, fold):
    plan = plan_of(trained, f"sequence.inside.features={features}")
    data = fold_data(plan, "inside", fold)
    for split in ("train", "valid", "test"):
        ids, found = data.slices(split).ids, data.inputs(split)
        assert list(found) == ["resnet", "small"]
        for name, predictions in found.items():
            if split == "train" and features == "oof":
                for k in set(range(3)) - {fold}:
                    at = data.table.fold_of[data.rows[split]] == k
                    logits, embeddings = recorded(plan.workspace.fold(name, k), "valid", ids[at])
                    np.testing.assert_array_equal(predictions.logits[at], logits.astype(np.float32))
                    np.testing.assert_array_equal(predictions.embeddings[at], embeddings)
                continue
            folder = plan.workspace.fold(name, fold)
            logits, embeddings = recorded(folder / "train" if split == "train" else folder, split, ids)
            np.testing.assert_array_equal(predictions.logits, logits.astype(np.float32))
            np.testing.assert_array_equal(predictions.embeddings, embeddings)


def test_aligned_rotates_embeddings_of_other_folds_and_keeps_logits(trained):
    plain = fold_data(plan_of(trained, "sequence.lr.features=oof"), "lr", 0).inputs("train")["resnet"]
    moved = fold_data(plan_of(trained, "sequence.lr.features=aligned"), "lr", 0).inputs("train")["resnet"]
    np.testing.assert_array_equal(moved.logits, plain.logits)
    assert moved.embeddings.shape == plain.embeddings.shape
    assert not np.allclose(moved.embeddings, plain.embeddings, atol=1e-2)


def shuffle_rows(plan: Plan, model: str, fold: int, split: str) -> None:
    """Shuffle the rows of an artifact and record the new files."""
    folder = plan.workspace.fold(model, fold) / ("train" if split == "train" else "")
    path, embeddings = folder / f"{split}.parquet", folder / f"{split}_embeddings.npy"
    table = pd.read_parquet(path)
    order = np.random.default_rng(0).permutation(len(table))
    table.iloc[order].to_parquet(path, index=False)
    if embeddings.is_file():
        np.save(embeddings, np.load(embeddings)[order])
    record = read_record(folder / "run.json") or {}
    for file in (path, embeddings):
        if file.name in record["files"]:
            record["files"][file.name] = sha256_file(file)
    write_record(folder / "run.json", record)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("inside", ()),
        ("inside", ("sequence.inside.features=oof",)),
        ("inside", ("sequence.inside.features=aligned",)),
        ("gauss", ()),
        ("lgbm", ()),
        ("blend", ()),
    ],
)
def test_inputs_are_joined_by_id_whatever_the_order_of_their_rows(copy, model, changes):
    plan = plan_of(copy, *changes)
    before = {split: fold_data(plan, model).inputs(split) for split in ("train", "valid", "test")}
    for name in plan.recipe.inputs_of(model):
        for k in range(3):
            for split in ("valid", "test"):
                shuffle_rows(plan, name, k, split)
        if (plan.workspace.fold(name, 0) / "train").is_dir():
            shuffle_rows(plan, name, 0, "train")
    data = fold_data(plan, model)
    for split, expected in before.items():
        for name, found in data.inputs(split).items():
            np.testing.assert_array_equal(found.logits, expected[name].logits)
            if expected[name].embeddings is not None:  # the fit of a rotation adds up the rows in another order
                np.testing.assert_allclose(found.embeddings, expected[name].embeddings, atol=4e-3)


def test_changed_predictions_are_refused(copy):
    plan = plan_of(copy)
    folder, ids = plan.workspace.fold("resnet", 1), fold_data(plan, "resnet", 1).slices("valid").ids
    for name in ("valid_embeddings.npy", "valid.parquet"):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UserError, match=f"{name} is not the file that its run.json records"):
            read_predictions(folder, "valid", ids, CLASSES, embeddings=True)
    shuffled = plan.workspace.fold("resnet", 0)
    np.save(shuffled / "valid_embeddings.npy", np.zeros((3, 8), np.float16))
    record = read_record(shuffled / "run.json") or {}
    record["files"]["valid_embeddings.npy"] = sha256_file(shuffled / "valid_embeddings.npy")
    write_record(shuffled / "run.json", record)
    ids = fold_data(plan, "resnet", 0).slices("valid").ids
    with pytest.raises(UserError, match=r"valid_embeddings.npy is malformed .*float16 \[3, 8\] for \d+ slices"):
        read_predictions(shuffled, "valid", ids, CLASSES, embeddings=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_predictions_that_are_not_finite_are_refused(bad):
    logits, embeddings, ids = np.zeros((4, 2)), np.zeros((4, 3), np.float16), pd.Index(["a", "b", "c", "d"])
    require_finite("net fold 0", ids, Predictions(logits, embeddings))
    require_finite("net fold 0", ids[:0], Predictions(logits[:0]))
    embeddings[2, 1] = bad
    with pytest.raises(UserError, match=r"^net fold 0: the embeddings of 1 of 4 slices .* first of c"):
        require_finite("net fold 0", ids, Predictions(logits, embeddings))
    logits[[1, 3], 1] = bad
    with pytest.raises(UserError, match=r"^net fold 0: the logits of 2 of 4 slices .* first of b; lower learning_rate"):
        require_finite("net fold 0", ids, Predictions(logits))

"""Training labels from a table: they change the training of networks and nothing else."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conftest import CLASSES, fold_data, make, plan_of
from ich.errors import UserError
from ich.models.labels import TrainingLabels
from ich.models.pseudonyms import Pseudonyms
from ich.models.table import SliceTable
from ich.pipeline import runner, verify
from ich.recipe import Labels
from ich.stages import explain

TWO = ["subdural", "any"]
IDS = [f"ID_{i}" for i in range(8)]  # 0..2 fold 0; 3, 4 fold 1; 5, 6 unlabelled; 7 test
OWN = [[0, 1]] * 3 + [[1, 1]] * 2
NAN = np.nan


@pytest.fixture
def slices() -> SliceTable:
    table = pd.DataFrame({"image_id": IDS, "patient_id": list("aabccade"), "split": ["train"] * 7 + ["test"]})
    table["fold"] = [0.0] * 3 + [1.0] * 2 + [NAN] * 3
    table[TWO] = NAN
    table.loc[:4, TWO] = OWN
    return SliceTable(table, TWO, [1.0, 1.0], "hu", Pseudonyms())


@pytest.fixture
def read(tmp_path, slices):
    """Read a table: the text of a CSV file, or a DataFrame as Parquet."""
    (tmp_path / "quarantine.csv").write_text("image_id,reason\nID_broken,truncated\n")

    def labels(table: str | pd.DataFrame, slices: SliceTable = slices, **settings) -> TrainingLabels:
        path = tmp_path / ("labels.csv" if isinstance(table, str) else "labels.parquet")
        if isinstance(table, str):
            path.write_text(table)
        else:
            table.to_parquet(path, index=False)
        return TrainingLabels.read(path, Labels(table=path.name, **settings), slices, tmp_path)

    return labels


def test_replace_takes_cells_empty_cells_and_weights_and_leaves_other_classes(read):
    found = read("image_id,subdural\nID_0,0.25\nID_3,\nID_broken,1\n", weight=2)
    expected = np.array([[0.25, 1], *OWN[1:3], [NAN, 1], OWN[4], *[[NAN, NAN]] * 3])
    np.testing.assert_array_equal(found.labels, expected)
    np.testing.assert_array_equal(found.weights, [[2, 1], [1, 1], [1, 1], [0, 1], [1, 1], *[[0, 0]] * 3])
    assert not found.added.any()


def test_add_labels_only_slices_without_labels(read):
    found = read("image_id,any,subdural\n" + "".join(f"{name},0.5,0.5\n" for name in IDS[:6]), mode="add")
    np.testing.assert_array_equal(found.labels, [*OWN, [0.5, 0.5], *[[NAN, NAN]] * 2])
    assert found.added.nonzero()[0].tolist() == [5]


def test_slices_are_not_added_where_their_patient_is_held_out(read, slices):
    found = read("image_id,any\n" + "".join(f"{name},0.5\n" for name in IDS), mode="add")
    assert found.rows_to_add(slices, slices.valid_rows(0)).tolist() == [6, 7]  # 5 is of patient a, in fold 0
    assert found.rows_to_add(slices, slices.valid_rows(1)).tolist() == [5, 6, 7]


def test_the_lists_of_explain_and_predict_are_tables(read, slices, tmp_path):
    audit = pd.DataFrame({"rank": [1, 2], "image_id": ["ID_0", "ID_3"], "class": TWO, "label": ["1", ""], "pattern": 0})
    hidden = Pseudonyms(tmp_path / "pseudonyms.key")
    expected = np.array([[1, 1], *OWN[1:3], [1, NAN], OWN[4], *[[NAN, NAN]] * 3])
    np.testing.assert_array_equal(read(audit.to_csv(index=False)).labels, expected)
    own = SliceTable(slices.table.assign(study_id="s", series_id="s"), TWO, [1.0, 1.0], "hu", hidden)
    np.testing.assert_array_equal(read(hidden.hidden(audit).to_csv(index=False), own).labels, expected)
    scored = pd.DataFrame({"image_id": IDS[5:], "prob_any": np.float32(0.9), "prob_subdural": 0.1, "positive_any": 1})
    for table in (scored, scored.to_csv(index=False), scored.to_csv(index=False, sep=";", decimal=",")):
        np.testing.assert_allclose(read(table, mode="add").labels[5:], [[0.1, 0.9]] * 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("image_id,any\nID_0,1\nID_0,1\n", "row 3: 'ID_0'; expected each image_id once"),
        ("image_id,any\nID_x,1\nID_0,1\nID_y,1\n", "row 2: 'ID_x', row 4: 'ID_y'; expected an image_id of this comp"),
        ("image_id,any,subdural\nID_0,1,1\nID_1,0,1.5\n", "row 3: '1.5'; expected in column 'subdural' 0 to 1, or no"),
        ("image_id,any\nID_0,yes\nID_1,1\n", "row 2: 'yes'; expected in column 'any' 0 to 1, or nothing (unlabelled)"),
        ("image_id,class,label\nID_0,subdurl,1\n", "'subdurl'; expected in column 'class' one of subdural, any (did"),
        ("image_id,class,label\nID_0,any,-1\nID_1,any,1\n", "row 2: '-1'; expected in column 'label' 0 to 1"),
        ("image_id,class,label\nID_0,any,1\nID_0,any,0\n", "row 3: 'ID_0'; expected each image_id and class once"),
        ("image_id,subdurl\nID_0,1\n", "use the columns image_id and subdural, any, or image_id, class and label; it"),
        ("image,any\nID_0,1\n", "use the columns image_id and subdural, any"),
        ("image_id,any,prob_any\nID_0,1,1\n", "two columns have the same name"),
        (pd.DataFrame({"image_id": IDS[:2], "any": [0.5, 2]}), "row 3: '2.0'; expected in column 'any' 0 to 1"),
    ],
)
def test_a_malformed_table_is_one_line_with_row_and_column(read, table, says):
    with pytest.raises(UserError) as error:
        read(table)
    assert says in str(error.value)
    assert "labels." in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
def test_a_missing_or_unreadable_table_is_one_line(slices, tmp_path, name):
    (tmp_path / "bad.parquet").write_text("no table")
    for path in (tmp_path / name, tmp_path / "bad.parquet"):
        with pytest.raises(UserError, match=path.name):
            TrainingLabels.read(path, Labels(table=path.name), slices, tmp_path)


# ---- in a workspace


def write_table(root: Path, ids: pd.Index, values: np.ndarray | float) -> None:
    """labels.csv with values [n, c], or one value."""
    table = pd.DataFrame(np.broadcast_to(values, (len(ids), len(CLASSES))), index=ids, columns=pd.Index(CLASSES))
    table.to_csv(root / "labels.csv")


def write_wrong_table(root: Path) -> SliceTable:
    """labels.csv with the opposite of each label; returns the slice table."""
    plan = plan_of(root)
    table = SliceTable.read(plan.workspace, plan.prepared.folder)
    rows = table.labelled.nonzero()[0]
    write_table(root, table.ids(rows), 1 - table.labels[rows])
    return table


@pytest.mark.parametrize("model", ["resnet", "small", "joint", "bigru", "inside", "gauss", "lgbm", "blend"])
def test_an_all_wrong_table_changes_the_targets_of_networks_only(copy, model):
    write_wrong_table(copy)
    before, after = fold_data(plan_of(copy), model), fold_data(plan_of(copy, "labels.table=labels.csv"), model)
    assert after.rows.keys() == before.rows.keys()
    for split in before.rows:
        np.testing.assert_array_equal(after.rows[split], before.rows[split])
        np.testing.assert_array_equal(after.labels(split), before.labels(split))
    if model in ("gauss", "lgbm", "blend"):
        assert after.training is None
    else:
        np.testing.assert_array_equal(after.targets[:, 0], 1 - before.targets)
        np.testing.assert_allclose(after.prevalence, 1 - before.prevalence, rtol=1e-6)


def test_epochs_and_folds_are_scored_by_the_labels_of_the_competition(copy):
    table, plan = write_wrong_table(copy), plan_of(copy, "labels.table=labels.csv")
    files, record = runner.make_fold(plan, plan.fold("resnext", 0), "fingerprint")
    rows, logits = table.valid_rows(0), pd.read_parquet(files["valid.parquet"]).filter(like="logit_").to_numpy()
    assert record["metrics"] == table.metrics(rows, logits)
    history = pd.read_csv(files["history.csv"])
    assert history["valid_loss"].iloc[-1] == pytest.approx(table.log_loss(rows, logits))
    before = pd.read_csv(plan.workspace.fold("resnext", 0) / "history.csv")
    assert history["loss"].iloc[-1] != pytest.approx(before["loss"].iloc[-1]), "it was trained on other labels"


@pytest.mark.parametrize("model", ["resnet", "small", "joint", "inside", "lr"])
def test_unlabelled_slices_train_the_folds_without_their_patient(copy, model):
    plan = plan_of(copy, "labels={table: labels.csv, mode: add, weight: 0.3}", "sequence.lr.features=oof")
    path = plan.prepared.folder / "slices.parquet"
    before, slices = fold_data(plan_of(copy), model).table, pd.read_parquet(path)
    rows = np.concatenate([before.valid_rows(k)[::2] for k in range(3)])
    slices.loc[rows, CLASSES] = NAN
    slices.to_parquet(path, index=False)
    write_table(copy, before.ids(rows), 0.5)
    data = fold_data(plan, model)
    patients = {split: set(data.table.table["patient_id"].iloc[part]) for split, part in data.rows.items()}
    assert len(set.union(*patients.values())) == sum(map(len, patients.values())), "no patient is in two splits"
    held_out = before.table["patient_id"].isin(patients["valid"] | patients.get("inner", set())).to_numpy()
    train = data.rows["train"]
    added = data.training.added[train]
    assert train[added].tolist() == ([] if model == "lr" else sorted(rows[~held_out[rows]]))
    assert (data.targets[added] == np.array([[0.3 * 0.5], [0.3]], np.float32)).all()
    assert set(train[~added]) <= set(data.table.train_rows(0))


def test_a_chain_is_trained_on_slices_that_the_table_adds(copy):
    plan = plan_of(copy, "labels={table: labels.csv, mode: add}")
    test = pd.read_parquet(plan.prepared.folder / "slices.parquet").query("split == 'test'")["image_id"]
    write_table(copy, pd.Index(test[:-1]), 0.5)
    for stage, model in (("cnn", "resnet"), ("cnn", "small"), ("sequence", "inside")):
        make(plan, stage, model=model, fold=0)
    task = plan.fold("inside", 0)
    in_sample = pd.read_parquet(plan.in_sample("resnet", 0).folder / "train.parquet")["image_id"]
    assert set(test) & set(in_sample) == set(test[:-1])
    assert "use one table per fold" in plan.record_of(task)["warnings"][0]
    assert plan.state(task).done
    assert verify.run(plan) == 0
    files = explain._embedding_map(plan, fold_data(plan, "resnet").table, "resnet")
    assert not pd.read_csv(files["embedding_map.csv"])["image_id"].duplicated().any(), "test slices are mapped once"
    (copy / "labels0.csv").write_bytes((copy / "labels.csv").read_bytes())
    assert plan_of(copy, "labels={table: 'labels{fold}.csv', mode: add}").state(task).done, "the same content"
    write_table(copy, pd.Index(test[:-1]), 0.4)
    plan.forget()
    for changed in (plan, plan_of(copy, "labels={table: 'labels0.csv', mode: add, weight: 2}")):
        state = changed.state(changed.fold("resnet", 0))
        assert (state.kind, "labels.table" in state.why) == ("stale", True)

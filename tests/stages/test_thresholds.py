"""`ich thresholds --table`: tables of the user and their thresholds.json."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import fbeta_score

from ich.errors import UserError
from ich.recipe import Thresholds
from ich.stages.thresholds import _prevalence, run_on_table

CLASSES = ["epidural", "any"]


def brought(n=300, seed=0):
    random = np.random.default_rng(seed)
    y = (random.random((n, 2)) < (0.1, 0.4)).astype(int)
    p = np.clip(random.random((n, 2)) * 0.7 + 0.3 * y, 0, 1)
    columns = {"epidural": y[:, 0], "any": y[:, 1], "prob_epidural": p[:, 0], "prob_any": p[:, 1]}
    return pd.DataFrame(columns).assign(fold=np.arange(n) // 5 % 3, patient_id=[f"p{k // 5}" for k in range(n)])


def written(folder, table, name="table.parquet"):
    path = folder / name
    table.to_parquet(path) if name.endswith("parquet") else table.to_csv(path, index=False)
    return path


def tuned(folder, table, name="table.parquet", **settings):
    out = folder / "thresholds.json"
    run_on_table(written(folder, table, name), Thresholds(**{"trials": 40, **settings}), out)
    return json.loads(out.read_text())


@pytest.mark.parametrize("average", ["macro", "micro", "samples"])
def test_thresholds_of_a_table_have_scores(tmp_path, average, capsys):
    table = brought()
    found = tuned(tmp_path, table, metric="f2", average=average, min_recall={"epidural": 0.9})
    y, p = table[CLASSES].to_numpy(), table[[f"prob_{name}" for name in CLASSES]].to_numpy()
    decided = p >= [found["thresholds"][name] for name in CLASSES]
    assert found["score"] == pytest.approx(fbeta_score(y, decided, beta=2, average=average, zero_division=0))
    assert found["interval"][0] < found["score"] < found["interval"][1]
    assert found["interval_cross_fitted"][0] < found["score_cross_fitted"] < found["interval_cross_fitted"][1]
    assert found["recall"]["epidural"] == pytest.approx(decided[y[:, 0] == 1, 0].mean())
    assert found["recall"]["epidural"] >= 0.9
    assert found["gap"] == pytest.approx(found["score_exact"] - found["score"], abs=1e-12)
    assert (found["min_recall"], found["patients"]) == ({"epidural": 0.9, "any": 0}, 60)
    assert found["positives"] == table[CLASSES].sum().to_dict()
    said = capsys.readouterr().out
    assert "Optuna " in said
    assert f"{found['score_cross_fitted']:.4f}" in said
    assert found["averages"].get(average, found["score_cross_fitted"]) == found["score_cross_fitted"]
    macro, micro = found["averages"]["macro"], found["averages"]["micro"]
    assert macro != micro
    assert f"Cross-fitted: macro F2 {macro:.4f}, micro F2 {micro:.4f}." in said


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz", "table.parquet"])
def test_all_formats_give_the_same_thresholds(tmp_path, name):
    assert tuned(tmp_path, brought(), name) == tuned(tmp_path, brought())


def test_columns_of_any_numeric_type_are_read(tmp_path):
    table = brought()
    plain = tuned(tmp_path, table)
    other = table.astype({"epidural": bool, "any": "Int64", "fold": str})
    assert tuned(tmp_path, other)["thresholds"] == plain["thresholds"]
    assert tuned(tmp_path, table.set_index(["patient_id", "fold"])) == plain, "columns that pandas wrote as the index"
    narrow = tuned(tmp_path, table.astype({"prob_any": "float32", "prob_epidural": "float32"}))
    assert narrow["score"] == pytest.approx(plain["score"])


def test_patient_ids_of_mixed_type_are_read_from_long_tables(tmp_path):
    random = np.random.default_rng(0)
    table = pd.DataFrame({"any": random.integers(0, 2, 300_000), "prob_any": random.random(300_000).round(2)})
    table["patient_id"] = [str(k // 1000) if k < 200_000 else f"p{k // 1000}" for k in range(len(table))]
    assert tuned(tmp_path, table, "table.csv", trials=1)["patients"] == 300


def test_a_table_without_folds_and_patients_has_warnings(tmp_path):
    found = tuned(tmp_path, brought().drop(columns=["fold", "patient_id"]))
    assert found["score_cross_fitted"] is found["interval_cross_fitted"] is found["recall_cross_fitted"] is None
    assert found["patients"] is None
    assert any("no column fold" in warning for warning in found["warnings"])
    assert any("rows as independent" in warning for warning in found["warnings"])
    one_fold = tuned(tmp_path, brought().assign(fold=0))
    assert one_fold["score_cross_fitted"] is None


def test_patients_in_several_folds_are_a_warning(tmp_path):
    table = brought()
    assert not any("more than one fold" in warning for warning in tuned(tmp_path, table)["warnings"])
    torn = table.assign(fold=[0 if k in {3, 8} else fold for k, fold in enumerate(table["fold"])])
    assert (torn["fold"] != table["fold"]).sum() == 1, "row 3 is in fold 0 already, row 8 was in fold 1"
    assert any(w.startswith("1 patients are in more than one fold") for w in tuned(tmp_path, torn)["warnings"])


def test_a_class_without_positives_has_a_threshold_and_no_recall(tmp_path):
    found = tuned(tmp_path, brought().assign(epidural=0), min_recall=0.95)
    assert (found["thresholds"]["epidural"], found["recall"]["epidural"]) == (2.0, None)
    assert any(warning.startswith("epidural: no positive row") for warning in found["warnings"])


def test_without_out_the_json_is_printed(tmp_path, capsys):
    run_on_table(written(tmp_path, brought()), Thresholds(trials=5), None)
    assert set(json.loads(capsys.readouterr().out)["thresholds"]) == set(CLASSES)


def test_a_class_without_probabilities_is_a_warning(tmp_path, capsys):
    table = brought().assign(site="a", age=[40, 50] * 150)
    lost = table.drop(columns="prob_epidural").assign(empty=np.nan)
    found = tuned(tmp_path, lost, "table.csv")
    assert list(found["thresholds"]) == ["any"]
    named = [warning for warning in found["warnings"] if "no column prob_" in warning]
    assert named == [
        "column epidural holds 0 and 1, but there is no column prob_epidural: if it is a class, it is missing from the"
        " score. Add its probabilities."
    ]
    assert f"warning: {named[0]}" in capsys.readouterr().out
    assert tuned(tmp_path, lost.astype({"epidural": bool}))["warnings"] == found["warnings"]
    assert not [warning for warning in tuned(tmp_path, table)["warnings"] if "no column prob_" in warning]
    with pytest.raises(UserError, match="no column any"):
        tuned(tmp_path, table.drop(columns="any"))
    (tmp_path / "table.csv").write_text(table.to_csv())  # with an index, whose column has no name
    run_on_table(tmp_path / "table.csv", Thresholds(trials=5), None)


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("", "is a folder. Give the path of a file in it"),
        ("file/thresholds.json", "a parent of this path is a file, not a folder. Give another path"),
        ("/proc/thresholds.json", "Check the permissions|Rerun|No such file"),
    ],
)
def test_the_output_path_is_tested_before_the_work(tmp_path, monkeypatch, out, says):
    (tmp_path / "file").touch()
    monkeypatch.setattr("ich.stages.thresholds.tuned", lambda *_, **__: pytest.fail("tuned first"))
    with pytest.raises(UserError, match=says):
        run_on_table(written(tmp_path, brought()), Thresholds(trials=5), tmp_path / out)


def spoilt(column, row, value):
    table = brought()
    table[column] = table[column].astype(object)
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (brought().iloc[:0], "no rows"),
        (brought().drop(columns="any"), "no column any"),
        (brought()[["any", "fold"]], "no column prob_<class>"),
        (spoilt("prob_any", 7, 1.5), "probabilities of any must lie in 0..1.* 1 row: 7"),
        (spoilt("prob_any", 7, np.nan), "of any must .* 1 row: 7"),
        (spoilt("epidural", 4, 0.5), "labels of epidural must be 0 or 1.* 1 row: 4"),
        (spoilt("epidural", 4, np.nan), "labels of epidural must be 0 or 1.* 1 row: 4"),
        (spoilt("prob_any", 7, "high"), "column 'prob_any' must hold numbers"),
        (spoilt("fold", 9, np.nan), "column fold is empty in 1 rows, first in row 9"),
        (spoilt("any", 9, 2), r"labels of any must be 0 or 1; see 1 row: 9 \(counted from 0\)"),
        (brought()[["any"]], "no column prob_<class>; .* but it has any"),
        (spoilt("patient_id", 9, None), "column patient_id is empty in 1 rows, first in row 9"),
    ],
)
def test_an_invalid_table_is_an_error_of_one_line(tmp_path, table, message):
    with pytest.raises(UserError, match=message) as refused:
        run_on_table(written(tmp_path, table, "table.csv"), Thresholds(trials=5), None)
    assert "\n" not in str(refused.value)
    assert "table.csv" in str(refused.value)


def test_lists_of_patients_are_refused(tmp_path):
    with pytest.raises(UserError, match="column patient_id must hold numbers or text"):
        tuned(tmp_path, brought().assign(patient_id=[["p"]] * 300))


def test_a_file_of_another_format_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"table\.txt: not a \.csv, \.csv\.gz or \.parquet file"):
        tuned(tmp_path, brought(), "table.txt")
    assert tuned(tmp_path, brought(), "TABLE.CSV") == tuned(tmp_path, brought())


@pytest.mark.parametrize("content", ["", "no table at all", "\0\1\2"])
@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz", "table.parquet", "nothing.parquet"])
def test_an_unreadable_table_is_an_error(tmp_path, name, content):
    if name != "nothing.parquet":
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=name):
        run_on_table(tmp_path / name, Thresholds(trials=5), None)


def test_cut_archives_duplicate_columns_and_unknown_classes_are_refused(tmp_path):
    path = written(tmp_path, pd.concat([brought(seed=seed) for seed in range(20)]), "table.csv.gz")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="not a readable table"):
        run_on_table(path, Thresholds(trials=5), None)
    path = written(tmp_path, brought(), "table.csv")
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([f"{header},any", *(f"{line},0" for line in lines)]))
    with pytest.raises(UserError, match="column 'any' occurs twice"):
        run_on_table(path, Thresholds(trials=5), None)
    with pytest.raises(UserError, match=r"unknown class 'epdural'\. Choose from epidural, any"):
        tuned(tmp_path, brought(), min_recall={"epdural": 0.9})


def test_many_patients_with_one_row_each_fit_into_memory(tmp_path):
    random = np.random.default_rng(0)
    table = pd.DataFrame({"any": random.integers(0, 2, 500_000), "prob_any": random.random(500_000)})
    alone = tuned(tmp_path, table, trials=1)
    each = tuned(tmp_path, table.assign(patient_id=np.arange(len(table))), trials=1)
    assert each["patients"] == 500_000
    assert each["interval"] == alone["interval"]


@pytest.mark.parametrize(("share", "applied"), [(0.5, False), (0.1, True)])
def test_only_a_significant_shift_is_applied(share, applied):
    random = np.random.default_rng(3)
    y = np.append(random.random(2000) < 0.5, random.random(1000) < share).astype(float)
    z = random.normal(2 * y - 1, 1)[:, None] * 2
    table = pd.DataFrame({"patient_id": np.arange(3000) // 2})
    rows = np.arange(3000)
    slices = SimpleNamespace(
        table=table, labels=y[:, None], labelled=rows < 2000, test_rows=rows[2000:], classes=["any"], class_weights=[1]
    )
    found = _prevalence(slices, Thresholds(metric="f1", prevalence="apply"), z[:2000], z[2000:], {"any": 0.4})
    assert found["applied"] == applied
    assert (found["classes"]["any"]["threshold"] == 0.4) != applied

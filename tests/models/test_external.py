"""External predictions: joined by image id, errors with file and row."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from ich.errors import UserError
from ich.models.data import FoldData
from ich.models.external import External, FittedExternal
from ich.models.pseudonyms import Pseudonyms
from ich.models.slices import Slices
from ich.models.table import SliceTable
from ich.recipe.models import External as Settings
from ich.store.paths import Workspace
from ich.training.run import Run

CLASSES = ["epidural", "any"]
IDS = [f"ID_{i:02}" for i in range(12)]  # 0..3 fold 0, 4..7 fold 1, 8 unlabelled, 9..11 test


@pytest.fixture
def slices() -> SliceTable:
    table = pd.DataFrame({"image_id": IDS, "split": ["train"] * 9 + ["test"] * 3})
    table["fold"] = [0.0] * 4 + [1.0] * 4 + [np.nan] * 4
    table[CLASSES] = np.nan
    table.loc[:7, CLASSES] = [0.0, 1.0]
    return SliceTable(table, CLASSES, [1.0, 1.0], "hu", Pseudonyms())


@pytest.fixture
def logits() -> pd.DataFrame:
    values = np.random.default_rng(0).normal(size=(12, 2)).round(3)
    return pd.DataFrame(values, columns=CLASSES, index=pd.Index(IDS, name="image_id"))


@pytest.fixture
def fit(tmp_path, slices, logits):
    """Fit fold 0 from an out-of-fold and a test table; `change` spoils the first."""

    def fitted(change=lambda table: table, *, suffix=".csv", values="logit", test=True, **columns):
        (tmp_path / "quarantine.csv").write_text("image_id,reason\nID_broken,truncated\n")
        for name, ids in (("oof", IDS[:8]), ("test", IDS[9:])):
            table = logits.loc[ids].sample(frac=1, random_state=1).reset_index()
            table = change(table.assign(**columns)) if name == "oof" else table
            write = table.to_csv if suffix == ".csv" else table.to_parquet
            write(tmp_path / f"{name}{suffix}", index=False)
        settings = Settings(oof=f"oof{suffix}", test=f"test{suffix}" if test else None, values=values)
        rows = {"train": slices.train_rows(0), "valid": slices.valid_rows(0), "test": slices.test_rows}
        data = FoldData(None, Workspace(tmp_path, "r"), "mate", 0, settings, slices, None, rows, tmp_path)  # pyright: ignore
        return External(settings).fit(data, Run("mate fold 0"))

    return fitted


def part(slices: SliceTable, *rows: int) -> Slices:
    return Slices(slices.table, np.array(rows), CLASSES)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_are_joined_by_image_id(fit, slices, logits, suffix):
    found = fit(suffix=suffix).predict(part(slices, 9, 2, 0), {}).logits
    np.testing.assert_array_equal(found, logits.loc[["ID_09", "ID_02", "ID_00"]].to_numpy("float32"))


def test_probabilities_become_finite_logits(fit, slices, logits):
    logits.loc["ID_03"] = [-800.0, 800.0]
    logits[CLASSES] = expit(logits[CLASSES])
    found = fit(values="probability").predict(part(slices, 3, 1), {}).logits
    np.testing.assert_allclose(found[0], [-16.118, 16.118], atol=1e-3)  # log(1e-7 / (1 - 1e-7))
    np.testing.assert_allclose(expit(found[1]), logits.loc["ID_01"], rtol=1e-6)


def test_columns_named_logit_are_read(fit, slices, logits):
    fitted = fit(lambda table: table.rename(columns={name: f"logit_{name}" for name in CLASSES}))
    np.testing.assert_array_equal(fitted.predict(part(slices, 1), {}).logits, logits.loc[["ID_01"]].to_numpy("float32"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[t["image_id"] != "ID_05"], r"oof\.csv: no row for image ID_05 \(1 of 8"),
        (lambda t: pd.concat([t, t.iloc[[2]]]), r"oof\.csv: line 10, image ID_\d\d: a second row"),
        (lambda t: t.replace("ID_05", "ID_xx"), r"oof\.csv: line \d+, image ID_xx: not an image of this competition"),
        (lambda t: t.assign(any=[1.0] * 7 + [np.nan]), r"oof\.csv: line 9, image ID_\d\d: a logit is missing"),
        (lambda t: t.assign(any=["?"] + ["1"] * 7), r"oof\.csv: line 2, image ID_\d\d: a logit is missing or not"),
        (lambda t: t.drop(columns="any"), r"oof\.csv: no column any; it has image_id, epidural"),
        (lambda t: t.assign(logit_any=0.5), r"oof\.csv: columns any and logit_any are both any; remove one"),
        (
            lambda t: t.assign(x=0.5).rename(columns={"x": "any"}),
            r"oof\.csv: columns any and any\.1 are both any; remove one",
        ),
        (lambda t: t.rename(columns={"any": "prob_any"}), r"no column any; it has .*, prob_any; values is logit"),
    ],
    ids=["missing", "twice", "unknown", "NaN", "text", "column", "two columns", "same columns", "probabilities"],
)
def test_faults_name_file_and_line(fit, change, message):
    with pytest.raises(UserError, match=message):
        fit(change)


def test_rows_of_other_known_images_are_ignored(fit, slices):
    def more(table):
        return pd.concat([table, table.head(3).assign(image_id=["ID_08", "ID_broken", "ID_09"])])

    assert len(fit(more).predict(part(slices, 9), {}).logits) == 1


def test_a_fold_column_must_agree_and_its_absence_is_a_warning(fit):
    assert "no column fold" in fit().notes["warnings"][0]
    own = lambda t: t.assign(fold=t["image_id"].isin(IDS[4:8]).astype(int))
    assert "warnings" not in fit(own).notes
    with pytest.raises(UserError, match=r"oof\.csv: image ID_0\d is in fold 1 there and in fold 0 of"):
        fit(lambda t: own(t).assign(fold=1 - own(t)["fold"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"values": "probability"}, r"oof\.csv: line \d+.*outside 0\.\.1; for logits write values: logit"),
        ({"test": False}, r"external\.mate\.test: name the file"),
    ],
)
def test_faults_name_the_setting(fit, settings, message):
    with pytest.raises(UserError, match=message):
        fit(**settings)


def test_new_scans_are_refused(fit, slices):
    with pytest.raises(UserError, match="no prediction of image ID_08"):
        fit().predict(part(slices, 8), {})


def test_it_predicts_the_same_after_loading(fit, slices, tmp_path):
    fitted = fit()
    fitted.save(tmp_path)
    rows = part(slices, 0, 1, 2, 3, 9, 10, 11)
    np.testing.assert_array_equal(
        FittedExternal.load(tmp_path).predict(rows, {}).logits, fitted.predict(rows, {}).logits
    )

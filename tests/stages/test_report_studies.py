"""The studies of the report's viewer on the finished tiny recipe: which, with what pictures, maps and figures."""

import json
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from ich.data import cache
from ich.errors import UserError
from ich.pipeline.plan import Plan
from ich.recipe import load
from ich.report import gradcam
from ich.stages.maps import fold_network, images_of
from ich.stages.reporting import pixels, studies
from ich.stages.reporting.evidence import Evidence
from ich.stages.reporting.studies import picked

pytestmark = pytest.mark.usefixtures("one_core")


def evidence_of(house, *overrides: str) -> Evidence:
    return Evidence(Plan(load(house.root / "tests/tiny.yaml", list(overrides)), house.root))


@pytest.fixture(scope="module")
def evidence(finished) -> Evidence:
    return evidence_of(finished)


# ---- which studies


def test_the_worst_the_best_with_a_bleed_and_one_more_of_each_class_are_shown():
    ids = np.repeat(["a", "b", "c", "d", "e", "f"], 2)
    losses = np.repeat([0.1, 0.9, 0.3, 0.8, 0.7, 0.2], 2)  # b, d, e are worst
    labels = np.zeros((12, 3))  # epidural, subdural, any
    labels[[2, 3, 4, 10, 11], 0] = 1  # epidural: b twice, c once, f twice
    labels[[4, 5], 1] = 1  # subdural: c twice
    labels[:, 2] = labels[:, :2].max(axis=1)
    shown = picked(ids, losses, labels, ["epidural", "subdural", "any"])
    assert list(shown) == ["b", "d", "e", "f", "c"]
    assert shown["b"] == {"Most wrong": "worst log loss of 6 studies: 0.900"}
    assert shown["e"] == {"Most wrong": "3rd worst log loss of 6 studies: 0.700"}
    assert shown["f"] == {"Best": "best log loss of 3 studies with a bleed: 0.200"}
    assert shown["c"] == {"One of each class": "epidural on 1 slices, log loss 0.300"}


def test_ties_go_to_the_smaller_id_and_classes_without_positives_have_no_study():
    ids = np.array(["d", "c", "b", "a"])
    shown = picked(ids, np.full(4, 0.5), np.zeros((4, 1)), ["any"])
    assert list(shown) == ["a", "b", "c"]
    assert shown["a"] == {
        "Most wrong": "worst log loss of 4 studies: 0.500",
        "Best": "best log loss of 4 studies: 0.500",
    }


def test_a_study_that_is_named_is_shown_with_all_its_reasons(finished, evidence):
    table = evidence.slices.table
    worst, test = next(iter(studies.chosen(evidence))), table.loc[table["split"] == "test", "study_id"].iloc[0]
    named = evidence_of(finished, f"report.studies=[{test},{worst}]")
    shown = studies.chosen(named)
    assert list(shown[worst].reasons) == ["Most wrong", "Named in the recipe"]
    data = studies._study(named, shown[test], None)
    assert (data["group"], data["split"], data["folds"]) == ("Named in the recipe", "test", [])
    assert {label for row in data["labels"] for label in row} == {None}
    logits = pd.read_parquet(named.plan.workspace.member("blend") / "test.parquet").set_index("image_id")
    expected = 1 / (1 + np.exp(-logits.loc[data["images"]].filter(like="logit_").to_numpy()))
    assert np.abs(np.array(data["probabilities"]) - expected).max() <= 5.1e-5


def test_a_name_that_no_study_has_is_answered_with_those_near(finished, evidence):
    there = next(iter(studies.chosen(evidence)))
    with pytest.raises(UserError, match=rf"no study {there}x among .* did you mean .*{there}"):
        studies.chosen(evidence_of(finished, f"report.studies=[{there}x]"))


def test_of_a_study_of_several_series_the_longest_is_shown(finished):
    several = evidence_of(finished)
    table = several.slices.table
    study = table["study_id"].iloc[several.rows[0]]
    rows = np.flatnonzero(table["study_id"] == study)
    several.slices.__dict__["table"] = table.assign(series=table["series"].where(~table.index.isin(rows[:3]), -1))
    assert several.slices.table["series"].iloc[rows[0]] == -1
    several.plan.recipe = load(finished.root / "tests/tiny.yaml", [f"report.studies=[{study}]"])
    assert studies.chosen(several)[study].rows.tolist() == rows[3:].tolist()


# ---- their pictures


def first_study(evidence: Evidence) -> np.ndarray:
    return next(iter(studies.chosen(evidence).values())).rows


def test_pictures_are_the_raw_pixels_of_the_crop_where_these_are_more_than_the_cache_has(evidence):
    rows = first_study(evidence)
    shown = pixels.shown(evidence, rows)
    table = evidence.slices.table.iloc[rows]
    side = int(table["crop_side"].iloc[0])
    assert shown.values.shape == (len(rows), side, side)
    assert shown.says == f"{side} x {side} pixels, read from the raw files; the networks saw 32 x 32"
    for picture, one in zip(shown.values, table.itertuples(), strict=True):
        (raw,) = cache.read_frames(evidence.plan.raw_root / one.path, [one.frame])
        padded = np.pad(raw, side, constant_values=-1024)
        top, left = one.crop_row + side, one.crop_column + side
        assert np.array_equal(picture, padded[top : top + side, left : left + side])


def test_a_study_of_which_a_file_is_gone_is_shown_out_of_the_cache_and_says_so(house):
    evidence = evidence_of(house)
    one, other = (study.rows for study in list(studies.chosen(evidence).values())[:2])
    (evidence.plan.raw_root / evidence.slices.table["path"].iloc[one[2]]).unlink()
    shown = pixels.shown(evidence, one)
    assert shown.says == "32 x 32 pixels, as the networks saw them"
    assert np.array_equal(shown.values, np.load(evidence.plan.prepared.folder / "hu.npy")[one])
    assert "raw files" in pixels.shown(evidence, other).says


def test_a_long_series_and_a_large_cache_are_brought_down_by_area(evidence, monkeypatch):
    rows = first_study(evidence)
    monkeypatch.setattr(pixels, "MOST", 16)
    shown = pixels.shown(evidence, rows)
    cached = np.load(evidence.plan.prepared.folder / "hu.npy")[rows].astype(float)
    means = cached.reshape(len(rows), 16, 2, 16, 2).mean(axis=(2, 4))
    assert np.abs(shown.values - means).max() <= 0.5
    monkeypatch.setattr(pixels, "PIXELS", 64 * len(rows))
    assert pixels.shown(evidence, rows).values.shape[1:] == (8, 8)


# ---- Grad-CAM


def test_maps_come_from_the_network_that_did_not_see_the_study_on_one_scale_a_class(evidence):
    rows = first_study(evidence)
    (fold,) = set(evidence.slices.table["fold"].iloc[rows].astype(int))
    maps = pixels.cams(evidence, rows)
    assert maps is not None
    assert maps.dtype == np.uint8
    assert maps.shape[:2] == (len(rows), len(evidence.classes))
    images = images_of(evidence.plan, evidence.slices, "resnet", rows)
    for k in evidence.plan.fold_numbers:
        network = fold_network(evidence.plan, "resnet", k)
        cells = gradcam.cells(network, network.feature_layer(32), images, 5)
        assert (np.abs(maps[:, 5] - 255 * cells / cells.max()).max() <= 0.51) == (k == fold)
    assert maps[:, 5].max() == 255


def test_rows_of_several_series_are_scaled_each_for_itself(evidence):
    one, other = (study.rows for study in list(studies.chosen(evidence).values())[:2])
    together = pixels.cams(evidence, np.concatenate([one, other]))
    assert np.array_equal(together, np.concatenate([pixels.cams(evidence, one), pixels.cams(evidence, other)]))


def test_without_a_cnn_there_are_no_maps():
    nothing = Mock()
    nothing.plan.recipe.cnn = {}
    assert pixels.cams(nothing, np.arange(3)) is None


# ---- what the page is given


def test_the_page_is_given_what_the_artefacts_hold(evidence):
    data = studies.section(evidence).blocks[0].data
    table = evidence.slices.table.set_index("image_id")
    logits = pd.read_parquet(evidence.plan.workspace.member("blend") / "oof.parquet").set_index("image_id")
    assert data["classes"] == evidence.classes
    tuned = json.loads(evidence.plan.workspace.thresholds.read_text())["thresholds"]
    assert data["thresholds"] == [pytest.approx(tuned[name], abs=1e-6) for name in data["classes"]]
    assert [preset["id"] for preset in data["presets"]] == ["brain", "subdural", "bone", "stroke"]
    for study in data["studies"]:
        of = table.loc[study["images"]]
        assert of["study_id"].unique().tolist() == [study["id"]]
        assert of["index"].tolist() == list(range(len(of)))
        assert np.array_equal(of[data["classes"]], study["labels"])
        assert np.abs(of["position"] - study["positions"]).max() <= 0.0051
        assert study["folds"] == [int(of["fold"].iloc[0])]
        p = 1 / (1 + np.exp(-logits.loc[study["images"]].filter(like="logit_").to_numpy()))
        assert np.abs(np.array(study["probabilities"]) - p).max() <= 5.1e-5
        assert study["start"] == np.abs(of[data["classes"]].to_numpy() - p).max(axis=1).argmax()
        assert study["millimetres"] == pytest.approx(of["crop_side"].iloc[0] * of["row_spacing"].iloc[0], abs=0.01)
        assert study["pixels"]["shape"][0] == study["cam"]["shape"][0] == len(of)
    assert json.dumps(data, allow_nan=False) == json.dumps(studies.section(evidence).blocks[0].data, allow_nan=False)


def test_a_slice_without_a_label_has_neither_label_nor_probability(finished):
    some = evidence_of(finished)
    row = first_study(evidence_of(finished))[1]
    study = some.slices.table["study_id"].iloc[row]
    some.slices.table.loc[row, some.classes] = np.nan
    some.plan.recipe = load(finished.root / "tests/tiny.yaml", [f"report.studies=[{study}]"])
    data = studies._study(some, studies.chosen(some)[study], None)
    assert data["labels"][1] == data["probabilities"][1] == [None] * len(some.classes)
    assert None not in data["labels"][0] + data["probabilities"][0]


def test_grey_pictures_are_shown_in_grey_levels(evidence, monkeypatch):
    monkeypatch.setattr(type(evidence.slices), "values", "grey")
    monkeypatch.setattr(pixels, "_raw", lambda *_: None)
    monkeypatch.setattr(pixels, "pictures_of", lambda _: np.full((len(evidence.slices.table), 32, 32), 7, np.int16))
    data = studies._data(evidence)
    assert (data["low"], data["high"], data["unit"]) == (0, 255, "grey levels")
    assert data["presets"] == [{"id": "full", "name": "Full", "level": 127.5, "width": 255}]
    assert data["studies"][0]["pixels"]["bytes"] == 1

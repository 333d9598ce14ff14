"""`ich report` on the finished tiny recipe: the evidence, images and maps, and when the page is up to date."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from conftest import RECIPE, plan_of
from ich.data import cache
from ich.data.cache import HuCache
from ich.errors import UserError
from ich.models.table import SliceTable
from ich.pipeline.state import Plan
from ich.report import gradcam
from ich.report.evidence import Evidence
from ich.report.scores import bracketed
from ich.report.sections import viewer
from ich.stages import evidence as evidence_stage
from ich.stages import report
from ich.stages.card import model_card
from ich.stages.evidence import read_evidence
from ich.stages.maps import cams, fold_network, images_of
from ich.store.atomic import read_json

pytestmark = pytest.mark.usefixtures("one_core")

PAGE = "submissions/tiny/report.html"


@pytest.fixture(scope="module")
def plan(finished) -> Plan:
    return plan_of(finished.root, recipe=RECIPE)


@pytest.fixture(scope="module")
def slices(plan) -> SliceTable:
    return SliceTable.read(plan.workspace, plan.prepared.folder)


@pytest.fixture(scope="module")
def evidence(plan) -> Evidence:
    return read_evidence(plan)


@pytest.fixture(scope="module")
def studies(evidence) -> list[np.ndarray]:
    """The rows of each study in the viewer."""
    return [study.rows for study in viewer.select_studies(evidence).values()]


@pytest.fixture(scope="module")
def cached(plan, slices) -> HuCache:
    return HuCache.open(plan.prepared.folder, slices.table)


def test_predictions_records_and_hashes_are_read_by_image_id(finished, plan, evidence):
    found = {"oof": evidence.probability, "test": evidence.test_probability}
    for where, rows in {"oof": evidence.rows, "test": evidence.test_rows}.items():
        logits = pd.read_parquet(plan.workspace.model("blend") / f"{where}.parquet").set_index("image_id")
        expected = logits.loc[evidence.table["image_id"].iloc[rows]].filter(like="logit_").to_numpy()
        np.testing.assert_allclose(found[where], 1 / (1 + np.exp(-expected)), rtol=1e-6)
    confusion = pd.read_csv(plan.workspace.submissions / "confusion.csv", dtype={"thresholds": str})
    counts = confusion.query("model == 'blend' and rows == 'oof' and thresholds == 'f2'").set_index("class")
    true_positives = (evidence.decided & (evidence.labels == 1)).sum(axis=0)
    assert counts.loc[evidence.classes, "tp"].tolist() == true_positives.tolist(), "as `ich score` decides"
    hashes = {(one.name, file): digest for one in evidence.artifacts for file, digest in one.files.items()}
    for name, path in (("submit", "submissions/tiny/submission.csv"), ("blend/blend", "oof/tiny/blend/oof.parquet")):
        assert hashes[name, path.rsplit("/", 1)[1]] == hashlib.sha256((finished.root / path).read_bytes()).hexdigest()
    of_sequence = [one for one in evidence.artifacts if one.stage == "sequence"]
    records = [json.loads(path.read_text()) for path in (finished.root / "oof/tiny/bigru").rglob("run.json")]
    assert len(of_sequence) == len(records) == 3, "two folds and the model"
    assert sum(one.seconds for one in of_sequence) == pytest.approx(sum(record["seconds"] for record in records))
    assert set(evidence.trainings) == {"resnet", "resnext", "bigru"}
    assert len(evidence.trainings["resnet"].histories[1]) == 2
    assert evidence.cam_by == evidence.mapped_by == "resnet"
    assert str(finished.root) not in (finished.root / PAGE).read_text(), "no folder of the machine"


def test_learning_curves_of_several_seeds_are_those_of_the_first(finished, monkeypatch):
    plan = plan_of(finished.root, "sequence.bigru.seeds=2", recipe=RECIPE)
    table = pd.DataFrame({"seed": [0, 0, 1], "epoch": [0, 1, 0], "loss": [0.5, 0.4, 0.6]})
    monkeypatch.setattr(evidence_stage, "_table", lambda _: table)
    found = evidence_stage._training(plan, "bigru")
    assert found.seeds == 2
    assert found.histories[0] == [{"epoch": 0, "loss": 0.5}, {"epoch": 1, "loss": 0.4}]


def test_warnings_of_the_folds_and_of_unreadable_test_images_are_read(finished, monkeypatch):
    plan = plan_of(finished.root, recipe=RECIPE)
    monkeypatch.setattr(plan, "record_of", lambda _: {"warnings": ["few patients"], "filled_with_prior": 3})
    folds, test = evidence_stage._warnings(plan)
    assert folds == "folds: few patients"
    assert test.startswith("3 test images could not be read")


def test_images_are_the_raw_pixels_of_the_crop_where_they_have_more_than_the_cache(plan, slices, studies):
    rows = studies[0]
    shown = report.images_of_series(plan, slices, rows)
    side = int(slices.table["crop_side"].iloc[rows[0]])
    assert shown.values.shape == (len(rows), side, side)
    assert shown.source == f"{side} x {side} pixels, read from the raw files; the networks use 32 x 32"
    for image, one in zip(shown.values, slices.table.iloc[rows].itertuples(), strict=True):
        (raw,) = cache.read_frames(plan.raw_root / one.path, [one.frame])
        padded = np.pad(raw, side, constant_values=-1024)
        top, left = one.crop_row + side, one.crop_column + side
        assert np.array_equal(image, padded[top : top + side, left : left + side])


def test_a_study_without_one_of_its_raw_files_is_shown_from_the_cache(clone_copy, slices, studies, cached):
    plan, (one, other) = plan_of(clone_copy.root, recipe=RECIPE), studies[:2]
    (plan.raw_root / slices.table["path"].iloc[one[2]]).unlink()
    shown = report.images_of_series(plan, slices, one)
    assert shown.source == "32 x 32 pixels, as in the cache"
    assert np.array_equal(shown.values, cached[one])
    assert "raw files" in report.images_of_series(plan, slices, other).source


def test_a_long_series_and_a_large_cache_are_downsampled_by_area(plan, slices, studies, cached, monkeypatch):
    rows = studies[0]
    monkeypatch.setattr(report, "SIDE", 16)
    shown = report.images_of_series(plan, slices, rows)
    means = cached[rows].astype(float).reshape(len(rows), 16, 2, 16, 2).mean(axis=(2, 4))
    assert np.abs(shown.values - means).max() <= 0.5
    monkeypatch.setattr(report, "PIXELS", 64 * len(rows))
    assert report.images_of_series(plan, slices, rows).values.shape[1:] == (8, 8)


def test_maps_use_the_network_that_did_not_see_the_slice(plan, slices, studies):
    rows = np.unique(np.concatenate(studies))
    maps, folds = cams(plan, slices, "resnet", rows), slices.table["fold"].to_numpy()[rows]
    assert set(folds) == {0, 1}
    images = images_of(plan, slices, "resnet", rows)
    for k in plan.fold_numbers:
        network = fold_network(plan, "resnet", k)
        cells = gradcam.cells(network, network.feature_layer(32), images, 5)
        alike = np.isclose(maps[:, 5], cells, rtol=1e-3, atol=1e-7).all(axis=(1, 2))
        assert alike[folds == k].all()
        assert not alike[folds != k].all()
    scaled = report._scaled(maps)
    assert scaled.dtype == np.uint8
    assert scaled.max(axis=(0, 2, 3)).tolist() == [255] * 6, "one scale per class"


def test_an_unknown_study_id_is_rejected_with_similar_ones(finished, evidence):
    there = evidence.table["study_id"].iloc[0]
    plan = plan_of(finished.root, f"report.studies=[{there}x]", recipe=RECIPE)
    with pytest.raises(UserError, match=rf"report.studies: study {there}x .*Did you mean .*{there}"):
        report._report(plan)


def test_the_page_has_the_model_card(finished):
    page = (finished.root / PAGE).read_text()
    assert page.index(">Errors and suspicious labels<") < page.index(">Model card<") < page.index(">Provenance<")
    assert ">CLAIM 2024<" in page


def test_a_lost_page_is_written_again_with_the_same_bytes_and_needs_scores(clone_copy):
    plan, path = plan_of(clone_copy.root, recipe=RECIPE), clone_copy.root / PAGE
    before = clone_copy.files()
    report.run(plan)
    assert clone_copy.files() == before
    content = path.read_bytes()
    path.unlink()
    plan = plan_of(clone_copy.root, recipe=RECIPE)
    assert plan.state(plan.report).why == "report.html is missing"
    report.run(plan)
    assert path.read_bytes() == content
    (clone_copy.root / "submissions/tiny/scores.run.json").unlink()
    with pytest.raises(UserError, match=r"report needs score, which is missing\. Run `ich score` first"):
        report.run(plan_of(clone_copy.root, recipe=RECIPE))


# ---- the model card


def test_the_card_has_the_numbers_of_the_run_and_says_what_was_not_made(clone_copy):
    plan = plan_of(clone_copy.root, recipe=RECIPE)
    slices = pd.read_parquet(plan.prepared.folder / "slices.parquet")
    train = slices[slices["split"] == "train"]
    scores = read_json(plan.workspace.submissions / "scores.json")
    text = model_card(plan)
    counts = [train[name].nunique() for name in ("patient_id", "study_id", "series_id")]
    assert f"| labelled, for cross-validation | {counts[0]} | {counts[1]} | {counts[2]} | {len(train)} |" in text
    assert f"| any | {bracketed(scores['models']['blend']['oof']['classes']['any']['auc'])} |" in text
    assert plan.machine in text
    held = "This bundle has only folds 1 of 2 and weights as float16."
    assert held in model_card(plan, [1], half=True)
    assert held not in text
    (plan.workspace.submissions / "scores.run.json").unlink()
    plan.forget()
    text = model_card(plan)
    assert "## Performance\n\n- not made: run `ich score`\n" in text
    assert "confidence" not in text.partition("## TRIPOD")[0]

"""The sections of the page on a synthetic run: their numbers match the evidence, computed in another way."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
import yaml
from scipy.stats import pearsonr

from ich.report import scores
from ich.report.evidence import Evidence
from ich.report.page.blocks import Block, Cases, Chart, Code, Details, Notes, Page, Panels, Section, Table, Tiles
from ich.report.page.document import render
from ich.report.scores import bracketed, number, span
from ich.report.sections import embeddings, errors, examples, models, per_class, provenance, summary, viewer
from report.made import CLASSES, CUT, MODELS, WEIGHTS, made_evidence

EVIDENCE = made_evidence(never=["epidural"])


def unlabelled(rows: list[int]) -> Evidence:
    """The evidence without the last label of some training rows, which must come first in the table."""
    table = EVIDENCE.table.copy()
    table.loc[rows, "any"] = np.nan
    return replace(EVIDENCE, table=table, probability=np.delete(EVIDENCE.probability, rows, axis=0))


def maps_of(rows: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (rows, len(CLASSES), 2, 3), dtype=np.uint8)


def viewer_section(evidence, studies, *, maps: bool = True) -> tuple[Section, list[viewer.Images]]:
    random, low = np.random.default_rng(0), -1024 if evidence.values == "hu" else 0
    values = [random.integers(low, 256, (len(s.rows), 8, 8), dtype=np.int16) for s in studies]
    images = [viewer.Images(one, "8 x 8") for one in values]
    return viewer.section(evidence, studies, images, [maps_of(len(s.rows)) for s in studies] if maps else None), images


def errors_section(evidence) -> Section:
    found = errors.select_slices(evidence)
    cards = [one for kind in found.values() for one in kind]
    greys = [np.zeros((len(one.beside), 8, 8), np.uint8) for one in cards]
    return errors.section(evidence, found, greys, [maps_of(1)[0]] * len(cards), viewer.select_studies(evidence))


def example_blocks(evidence) -> list[Block]:
    found, wrong = examples.select_examples(evidence), errors.select_slices(evidence)["False negatives"]
    greys = [np.zeros((1, 8, 8), np.uint8)] * len(found)
    return examples.blocks(evidence, found, greys, viewer.select_studies(evidence), wrong)


@pytest.fixture(scope="module")
def sections() -> dict[str, Section]:
    plain = (per_class, models, embeddings, provenance)
    shown, _ = viewer_section(EVIDENCE, list(viewer.select_studies(EVIDENCE).values()))
    opening = summary.section(EVIDENCE, example_blocks(EVIDENCE))
    made = [shown, errors_section(EVIDENCE), opening, *(one.section(EVIDENCE) for one in plain)]
    return {section.id: section for section in made}


def every(blocks: Section | Sequence[Block]) -> list[Block]:
    found: list[Block] = []
    for block in blocks.blocks if isinstance(blocks, Section) else blocks:
        found.append(block)
        if isinstance(block, Panels):
            found += [inner for group in block.panels.values() for inner in every(group)]
        if isinstance(block, Details):
            found += every(block.blocks)
    return found


def charts_of(section: Section) -> dict[str, Chart]:
    return {block.id: block for block in every(section) if isinstance(block, Chart)}


def table_of(section: Section, title: str) -> dict[str, list[str]]:
    (table,) = (block for block in every(section) if isinstance(block, Table) and title in block.title)
    return {row[0]: list(row[1:]) for row in table.rows}


def lines_of(section: Section, kind: str) -> list[str]:
    return [line for block in every(section) if isinstance(block, Notes) and block.kind == kind for line in block.lines]


def test_the_page_renders_with_unique_ids_and_plotly_draws_every_chart(sections):
    html = render(Page("a", "b", list(sections.values())))
    titles = ["Study viewer", "Errors and suspicious labels", "Summary", "Per class", "Models", "Embeddings"]
    assert [section.title for section in sections.values()] == [*titles, "Provenance"]
    found = {name: chart for section in sections.values() for name, chart in charts_of(section).items()}
    assert len(found) == 1 + 2 * 5 + 1 + 4 + 2 + 3  # scores; classes; weights; correlations; networks; maps
    for chart in found.values():
        go.Figure(chart.figure)  # raises for unknown properties and invalid values
    ids = re.findall(r'<[^<>]* id="([^"]*)"', html[: html.index("<script")])
    assert len(ids) == len(set(ids)) > len(found)
    assert {f"chart-{name}" for name in found} <= set(ids)


def test_paragraphs_have_at_most_two_sentences(sections):
    for section in sections.values():
        paragraphs = [section.lead, *lines_of(section, "text"), *lines_of(section, "warning")]
        paragraphs += [chart.caption for chart in charts_of(section).values()]
        paragraphs += [
            line for block in every(section) if isinstance(block, Cases) for case in block.cases for line in case.lines
        ]
        assert [one for one in paragraphs if len(re.findall(r"[.?!](?:\s|$)", one)) > 2] == []


def test_the_summary_opens_with_a_plot_of_the_score_of_each_model(sections):
    chart, found = sections["summary"].blocks[0], EVIDENCE.scores["models"]
    assert chart.figure["layout"]["yaxis"]["ticktext"] == list(MODELS)
    names = list(MODELS)
    expected = [[span(found[m][w]["f2"]) for m in some] for w in ("oof", "test") for some in (names[:-1], names[-1:])]
    assert [trace["text"] for trace in chart.figure["data"] if "text" in trace] == expected


def test_tables_and_sentences_are_those_of_ich_score(sections):
    shown = [block for block in sections["summary"].blocks if isinstance(block, Table)]
    assert shown == list(scores.tables(EVIDENCE.scores, 10**6))
    assert set(scores.sentences(EVIDENCE.scores)) <= set(lines_of(sections["summary"], "text"))


def test_tiles_show_the_scores_of_the_blend_with_their_intervals(sections):
    tiles = [tile for block in sections["summary"].blocks if isinstance(block, Tiles) for tile in block.tiles]
    for where, three in (("oof", tiles[:3]), ("test", tiles[6:9])):
        for name, tile in zip(("log_loss", "auc", "f2"), three, strict=True):
            cell = EVIDENCE.scores["models"]["blend"][where][name]
            assert tile.value == f"{cell['value']:.4f}"
            assert f"{cell['low']:.4f}-{cell['high']:.4f}" in tile.note
            assert f"baseline {EVIDENCE.scores['baseline'][where][name]['value']:.4f}" in tile.note
    assert [tile.value for tile in tiles[9:11]] == ["0.6000", "0.3000"]
    for where, three in (("oof", tiles[3:6]), ("test", tiles[11:])):
        cells = EVIDENCE.scores["studies"][where]["models"]["blend"]["classes"]["any"]
        for (name, title), tile in zip(scores.STUDY_SCORES.items(), three, strict=True):
            assert tile.label == f"{title} per study, any, {scores.PLACES[where]}"
            assert tile.value == f"{cells[name]['value']:.4f}"
    assert "synthetic" in sections["summary"].lead


def test_the_summary_lists_every_warning_with_shared_patients_first():
    alarming = unlabelled([0, 1])
    table = alarming.table.replace({"patient_id": {"p2": "p0", "p5": "p3"}})
    shift = {"train": 0.2, "test": 0.4, "estimated": 0.4, "low": 0.3, "high": 0.5, "threshold": 0.1, "warning": "moved"}
    tuned = {**EVIDENCE.tuned, "warnings": ["no positive row"]}
    tuned["prevalence"] = {"applied": False, "classes": {"any": shift}}
    alarming = replace(alarming, table=table, tuned=tuned, warnings=["folds: few"])
    said = lines_of(summary.section(alarming, []), "warning")
    assert said[0].startswith("2 patients are in both the training and the test set (p0, p3)")
    assert said[1].startswith("epidural: no labelled slice is positive")
    assert {"resnet: its epochs were chosen on the fold", "folds: few", "thresholds: no positive row"} <= set(said)
    assert "thresholds: any: moved" in said
    assert any(line.startswith("2 of 200 training slices lack a label") for line in said)
    calm = made_evidence()
    calm = replace(calm, scores={**calm.scores, "warnings": []})
    assert "No stage of this run has a warning." in lines_of(summary.section(calm, []), "text")


def decided_at(threshold: float, classes: Sequence[str] = CLASSES) -> Evidence:
    """Labels 1 of s0 have probability 0.2, of s1 0.3, of s6 0.9, of others 0.5, growing along the study; 0 has 0.1."""
    level = {"s0": 0.2, "s1": 0.3, "s6": 0.9}
    rows = EVIDENCE.table.iloc[EVIDENCE.rows]
    p = rows["study_id"].map(level).fillna(0.5) + 0.001 * rows["index"]
    p = np.where(rows[list(classes)] == 1, p.to_numpy()[:, None], 0.1)
    return replace(EVIDENCE, classes=list(classes), probability=p, cross_fitted=np.full(p.shape, threshold))


@pytest.mark.parametrize(("classes", "missed"), [(CLASSES, "s1"), (CLASSES[:2], "s0")])
def test_the_largest_of_the_missed_bleeds_and_the_most_probable_found_one_are_shown(classes, missed):
    evidence = decided_at(0.4, classes)
    found = examples.select_examples(evidence)
    name = classes[-1]
    for (kind, one), study in zip(found.items(), ("s6", missed), strict=True):
        rows = EVIDENCE.table.query(f"study_id == {study!r} and {name} == 1")
        assert (one.row, evidence.classes[one.class_number]) == (rows.index[-1], name), kind
        hits = len(rows) if kind == "Found" else 0
        assert one.reason.endswith(f"{hits} of {len(rows)} slices labelled {name} are found in this study.")
    cards, notes = examples.blocks(evidence, found, [np.zeros((1, 8, 8), np.uint8)] * 2, {}, [found["Missed"]])
    subtype = "any" if missed == "s1" else "intraparenchymal"  # s1 has no subtype
    assert [case.title for case in cards.cases] == ["Found: intraparenchymal", f"Missed: {subtype}"]
    assert [case.section for case in cards.cases] == ["", "errors"]
    assert f"{name}: probability 0.9" in cards.cases[0].lines[1]
    assert "threshold of the other folds 0.4000" in cards.cases[1].lines[1]
    assert cards.cases[1].images[0].alt == f"Slice labelled {subtype}, missed by the blend"
    assert notes.lines == []


@pytest.mark.parametrize(("threshold", "kind", "missing"), [(0.0, "Found", "missed"), (2.0, "Missed", "found")])
def test_the_page_says_that_no_bleed_is_found_or_missed(threshold, kind, missing):
    evidence = replace(decided_at(threshold), values="grey")
    cards, notes = example_blocks(evidence)
    (case,) = cards.cases
    assert case.title.startswith(kind)
    assert case.images[0].caption == ""
    assert notes.lines == [f"No labelled bleed is {missing} out of fold."]


def test_folds_and_quarantined_files_are_counted():
    section = summary.section(replace(EVIDENCE, quarantined=["not_dicom", "label_without_file", "not_dicom"]), [])
    assert table_of(section, "3 files") == {"label without file": ["1"], "not dicom": ["2"]}
    for fold, cells in table_of(section, "Slices per fold").items():
        rows = EVIDENCE.table[EVIDENCE.table["fold"] == int(fold)]
        positive = [rows[rows[name] == 1] for name in CLASSES]
        counts = [f"{len(one)} ({one['patient_id'].nunique()})" for one in positive]
        assert cells == [str(rows["patient_id"].nunique()), str(len(rows)), *counts]


def test_scores_decisions_and_the_tuned_threshold_are_those_of_ich_score(sections):
    section = sections["per-class"]
    found = charts_of(section)
    for c, name in list(enumerate(CLASSES))[1:]:
        shown = table_of(section, f"{name}: scores of the blend")
        for title, key in {"AUC": "auc", "average precision": "ap", "F2": "f2", "log loss": "log_loss"}.items():
            cells = [EVIDENCE.scores["models"]["blend"][where]["classes"][name][key] for where in ("oof", "test")]
            assert shown[title] == [span(cell) for cell in cells]
        cells = EVIDENCE.scores["models"]["blend"]["oof"]["classes"][name]
        for kind, key in {"roc": "auc", "precision-recall": "ap", "threshold": "f2"}.items():
            assert bracketed(cells[key]) in found[f"{kind}-{c}"].title
        assert number(EVIDENCE.scores["calibration_error"]["oof"][name]) in found[f"reliability-{c}"].title
        names = [trace["name"] for trace in found[f"roc-{c}"].figure["data"]]
        assert names == ["chance", *["each fold"] * 3, "all folds"]
        y, decided = EVIDENCE.labels[:, c] == 1, EVIDENCE.decided[:, c]
        tp, fn, fp, tn = ((y & decided).sum(), (y & ~decided).sum(), (~y & decided).sum(), (~y & ~decided).sum())
        text = found[f"confusion-{c}"].figure["data"][0]["text"]
        assert [int(cell.split("<br>")[1]) for line in text for cell in line] == [tp, fn, fp, tn]
        shares = table_of(section, f"{name}: at the cross-fitted threshold").values()
        expected = tp / (tp + fn), tn / (tn + fp), tp / (tp + fp), tn / (tn + fn)
        assert [row[0] for row in shares] == [number(share) for share in expected]
        assert all(min(folds) <= pooled <= max(folds) for pooled, *folds in shares)
    chart = found["threshold-2"]
    marks = {trace["name"]: trace for trace in chart.figure["data"]}
    y, p = EVIDENCE.labels[:, 2], EVIDENCE.probability[:, 2]
    in_sample = 5 * y[p >= CUT].sum() / (4 * y.sum() + (p >= CUT).sum())
    assert marks["in-sample"]["x"] == [pytest.approx(CUT**0.5, abs=1e-6)]
    assert marks["in-sample"]["y"] == [pytest.approx(in_sample, abs=1e-6)]
    assert f"threshold is 0.4000, with an optimistic in-sample F2 of {number(in_sample)}" in chart.caption


def test_a_class_without_positives_has_a_warning_and_a_fold_without_positives_no_curve(sections):
    (panels,) = (block for block in sections["per-class"].blocks if isinstance(block, Panels))
    (only,) = panels.panels["epidural"]
    assert isinstance(only, Notes)
    assert only.kind == "warning"
    table = EVIDENCE.table.copy()
    table.loc[table["fold"] == 1, "any"] = 0
    chart = charts_of(per_class.section(replace(EVIDENCE, table=table)))["roc-2"]
    assert [trace["name"] for trace in chart.figure["data"]].count("each fold") == 2
    assert re.search(r"AUC per fold: 0\.\d{4}, -, [01]\.\d{4}\.", chart.caption)


def test_stages_are_compared_by_their_best_models(sections):
    found = EVIDENCE.scores["models"]
    best = min(("resnet", "densenet"), key=lambda name: found[name]["oof"]["log_loss"]["value"])
    shown = table_of(sections["models"], "minus the blend, out of fold")
    assert list(shown) == [f"cnn: {best}", "stack: lgbm"]
    assert shown["stack: lgbm"] == [span(found["lgbm"]["oof"][key]["minus_blend"]) for key in ("log_loss", "auc", "f2")]


def test_weights_methods_and_correlations_are_those_of_the_blend(sections):
    (cells,) = charts_of(sections["models"])["blend-weights"].figure["data"]
    assert cells["z"] == [[weight] * 3 for weight in WEIGHTS]
    how = table_of(sections["models"], "Combination and calibration")
    assert how["any"] == ["fitted weights of logits, calibrated (platt)"] * 3
    (cells,) = charts_of(sections["models"])["correlation-3"].figure["data"]
    expected = pearsonr(EVIDENCE.logits[0, :, 2], EVIDENCE.logits[-1, :, 2]).statistic
    assert cells["z"][0][-1] == pytest.approx(expected, abs=1e-4)
    assert np.isnan(models.correlations(np.zeros((2, 4, 1)))).all()


def test_learning_curves_show_the_histories_and_the_epoch_that_was_kept(sections):
    stopped, whole = (charts_of(sections["models"])[f"learning-{k}"] for k in (0, 1))
    assert [trace["name"] for trace in whole.figure["data"]] == ["fold 0", "fold 1", "fold 2"] * 3
    assert whole.figure["data"][0]["y"] == pytest.approx([0.5, 0.4, 0.3])
    (ring,) = [trace for trace in stopped.figure["data"] if trace["name"] == "epoch kept"]
    assert (ring["x"], ring["yaxis"]) == ([2, 2, 2], "y3")
    assert stopped.figure["layout"]["yaxis3"]["title"]["text"] == "fold, F1"
    assert "optimistic" in stopped.caption
    assert "The last epoch was kept" in whole.caption
    assert "seed" not in whole.caption
    training = replace(next(iter(EVIDENCE.trainings.values())), seeds=3)
    assert "those of the first of 3 seeds" in models._learning("model", 0, training).caption


def test_the_map_reports_the_mixing_of_splits_or_why_it_is_missing(sections):
    said = charts_of(sections["embeddings"])["embedding-fold"].caption
    assert "80 validation (fold 0), 120 trained on, 100 test set." in said
    assert "Of the ten nearest slices of other studies" in said
    for change, why in ({"mapped_by": None}, "no CNN"), ({"embedding_map": None}, "too few slices"):
        assert why in lines_of(embeddings.section(replace(EVIDENCE, **change)), "text")[0]


@pytest.mark.parametrize(("kind", "label"), errors.KINDS.items())
def test_the_worst_errors_cost_most_and_are_spread_over_studies_and_classes(kind, label):
    found, y, p = errors.select_slices(EVIDENCE)[kind], EVIDENCE.labels, EVIDENCE.probability
    cost = -(y * np.log(p) + (1 - y) * np.log(1 - p)) * np.array([1, 1, 2]) / 4
    cost[y != label] = 0
    total = [cost[one.place].sum() for one in found]
    assert all(y[one.place, one.class_number] == label for one in found)
    assert total == sorted(total, reverse=True)
    assert total[0] == pytest.approx(cost.sum(axis=1).max())
    assert len(set(EVIDENCE.table["study_id"].iloc[[one.row for one in found]])) == len(found)
    assert max(Counter(one.class_number for one in found).values()) <= errors.PER_CLASS
    assert [one.class_number for one in found] == [int(cost[one.place].argmax()) for one in found]


def test_a_card_has_its_neighbours_images_strip_and_place_in_the_viewer(sections):
    found, studies = errors.select_slices(EVIDENCE), viewer.select_studies(EVIDENCE)
    cards = [case for block in every(sections["errors"]) if isinstance(block, Cases) for case in block.cases]
    assert len(found["Suspicious labels"]) == 3, "at most one per study"
    for one, case in zip([one for kind in found.values() for one in kind], cards, strict=True):
        here = EVIDENCE.table.loc[one.row]
        indices = [k for k in range(here["index"] - 1, here["index"] + 2) if 0 <= k < 10]
        assert EVIDENCE.table["index"].iloc[one.beside].tolist() == indices
        assert len(case.images) == len(one.beside) + 1
        c = one.class_number
        for row in one.beside:
            if row != one.row:
                told = f"{EVIDENCE.all_labels[row, c]:.0f} {'before' if row < one.row else 'after'}"
                assert told in case.lines[2]
        assert case.strip.at == here["index"]
        assert case.strip.probabilities[case.strip.at] == EVIDENCE.probability[one.place, c]
        shown = (here["study_id"], here["index"]) if here["study_id"] in studies else ("", 0)
        assert (case.study, case.index) == shown
    assert "25% of the first 20 labels of the list are wrong" in " ".join(lines_of(sections["errors"], "text"))


@pytest.mark.parametrize(
    ("labelled", "predicted", "beside", "word"),
    [
        (True, False, {0}, "only positive label"),
        (True, False, {0, 1}, "end of a labelled run"),
        (True, False, {1}, "Inside a labelled run"),
        (False, True, {0}, "look-alike"),
        (False, True, {0, 1}, "beyond a labelled run"),
        (False, True, {1}, "between labels 1"),
        (True, True, {0}, "low probability"),
        (False, False, {1}, "no bleed either"),
    ],
)
def test_label_prediction_and_neighbours_are_interpreted_together(labelled, predicted, beside, word):
    assert word in errors.interpretation(labelled, predicted, 1 in beside, 0 in beside)


def test_studies_are_selected_by_loss_and_one_more_per_class():
    ids = np.repeat(["a", "b", "c", "d", "e", "f"], 2)
    losses = np.repeat([0.1, 0.9, 0.3, 0.8, 0.7, 0.2], 2)  # b, d, e are worst
    labels = np.zeros((12, 3))
    labels[[2, 3, 4, 10, 11], 0] = 1  # epidural: b twice, c once, f twice
    labels[[4, 5], 1] = 1  # subdural: c twice
    labels[:, 2] = labels[:, :2].max(axis=1)
    shown = viewer.rank_studies(ids, losses, labels, ["epidural", "subdural", "any"])
    assert list(shown) == ["b", "d", "e", "f", "c"]
    assert shown["b"] == {"Most wrong": "worst log loss of 6 studies: 0.900"}
    assert shown["e"] == {"Most wrong": "3rd worst log loss of 6 studies: 0.700"}
    assert shown["f"] == {"Best": "best log loss of 3 studies with a bleed: 0.200"}
    assert shown["c"] == {"One of each class": "epidural on 1 slices, log loss 0.300"}
    ties = viewer.rank_studies(np.array(["d", "c", "b", "a"]), np.full(4, 0.5), np.zeros((4, 1)), ["any"])
    assert list(ties) == ["a", "b", "c"], "the smaller id, and no study of a class without positives"
    assert list(ties["a"]) == ["Most wrong", "Best"]


def test_named_studies_are_added_with_their_longest_series():
    worst = next(iter(viewer.select_studies(EVIDENCE)))
    table = EVIDENCE.table.copy()
    table.loc[20:22, "series"] = -1  # of test study s2
    shown = viewer.select_studies(replace(EVIDENCE, table=table), [worst, "s2"])
    assert list(shown[worst].reasons) == ["Most wrong", "Named in the recipe"]
    assert list(shown["s2"].reasons) == ["Named in the recipe"]
    assert shown["s2"].rows.tolist() == list(range(23, 30))


def test_the_viewer_data_match_the_evidence():
    evidence = unlabelled([1])
    studies = list(viewer.select_studies(evidence, ["s0", "s2"]).values())
    section, images = viewer_section(evidence, studies)
    data = section.blocks[0].data
    json.dumps(data, allow_nan=False)
    assert [preset["id"] for preset in data["presets"]] == ["brain", "subdural", "bone", "stroke"]
    assert (data["classes"], data["thresholds"]) == (CLASSES, [CUT] * 3)
    p = np.full((300, 3), np.nan)
    p[evidence.rows], p[evidence.test_rows] = evidence.probability, evidence.test_probability
    for study, one, shown in zip(studies, data["studies"], images, strict=True):
        of = evidence.table.iloc[study.rows]
        assert one["images"] == of["image_id"].tolist()
        assert one["positions"] == of["position"].tolist()
        assert one["millimetres"] == 20.0
        assert one["folds"] == sorted({int(k) for k in of["fold"].dropna()})
        for key, expected, digits in (("labels", of[CLASSES].to_numpy(), 0), ("probabilities", p[study.rows], 4)):
            found = np.array(one[key], dtype=float)
            np.testing.assert_allclose(found, expected.round(digits), atol=1e-9)
        wrong = np.nan_to_num(np.abs(of[CLASSES].fillna(0).to_numpy() - p[study.rows]).max(axis=1), nan=-1)
        assert one["start"] == wrong.argmax()
        assert one["sum"] == (shown.values.astype(int) + 1024).sum()
        assert len(one["pixels"]) == len(one["cam"]["cells"]) == len(of)
    first = next(one for one in data["studies"] if one["id"] == "s0")
    assert first["probabilities"][1] == [None] * 3, "a slice without a label has no out-of-fold prediction"


def test_grey_images_are_shown_in_grey_levels():
    grey = replace(EVIDENCE, values="grey", cam_by=None)
    section, _ = viewer_section(grey, list(viewer.select_studies(grey).values()), maps=False)
    (block, notes) = section.blocks
    assert (block.data["low"], block.data["high"], block.data["unit"]) == (0, 255, "grey levels")
    assert block.data["presets"] == [{"id": "full", "name": "Full", "level": 127.5, "width": 255}]
    assert block.data["studies"][0]["cam"] is None
    assert "No network" in notes.lines[0]


def test_provenance_shows_recipe_seeds_hashes_versions_times_and_no_folders(sections):
    section = sections["provenance"]
    (code,) = [block for block in every(section) if isinstance(block, Code)]
    assert yaml.safe_load(code.text) == EVIDENCE.settings
    tables = [block for block in every(section) if isinstance(block, Table)]
    assert table_of(section, "SHA-256") == {"cnn/resnet": ["oof.parquet", "ab12"], "submit": ["submission.csv", "cd34"]}
    assert ["torch", "1, 2"] in tables[-1].rows
    effort = table_of(section, "Time")
    assert effort["cnn"] == ["2", "1 min 02 s", "200"]
    assert effort["submit"] == ["1", "1.0 s", "50"]
    rows = [row for table in tables for row in table.rows]
    assert ["folds.seed", "7"] in rows
    assert ["cnn.resnet.seed", "3"] in rows
    secret = {"competition": {"root": "/home/eve/rsna"}, "weights": ["C:\\Users\\eve\\net.safetensors"], "n": 2}
    shown = {"competition": {"root": ".../rsna"}, "weights": [".../net.safetensors"], "n": 2}
    assert provenance.without_folders(secret) == shown

"""The report's figures of classes and members, whose predictions are made up: they are those of `ich score`."""

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from scipy.stats import pearsonr

from ich.phantom.competition import CLASSES
from ich.pipeline.plan import Plan
from ich.report.page import Block, Chart, Details, Notes, Page, Panels, Section, Table, render
from ich.report.scores import number, span
from ich.stages import score
from ich.stages.reporting import members, per_class
from ich.stages.reporting.evidence import Evidence
from ich.store.atomic import write_json, write_text
from stages.test_score import NETWORK, made

FOUR = {
    "sensitivity (recall)": lambda row: row["tp"] / (row["tp"] + row["fn"]),
    "specificity": lambda row: row["tn"] / (row["tn"] + row["fp"]),
    "positive predictive value (precision)": lambda row: row["tp"] / (row["tp"] + row["fp"]),
    "negative predictive value": lambda row: row["tn"] / (row["tn"] + row["fn"]),
}
WEIGHTS = [0.5, 0.3, 0.2]
STOPPED = {**NETWORK, "early_stopping": {"metric": "f1", "on": "fold"}}


def judged(plan: Plan) -> Evidence:
    """The plan with scores, and with what its networks and its blend would have left."""
    for name in plan.recipe.networks:
        for k in plan.fold_numbers:
            rows = [f"{e},0.001,{0.5 - 0.1 * e},{0.4 + 0.01 * k},{0.1 * (e == 1)}\n" for e in range(3)]
            path = plan.workspace.fold(name, k) / "history.csv"
            write_text(path, f"epoch,learning_rate,loss,valid_loss,valid_f1\n{''.join(rows)}")
    blend = {"combination": {"method": "weights", "weights": WEIGHTS}, "calibration": {"method": "platt"}}
    found = {"members": plan.recipe.blend_members, "classes": dict.fromkeys(CLASSES, blend)}
    for k in plan.fold_numbers:
        write_json(plan.workspace.fold("blend", k) / "blend.json", found)
    score.run(plan)
    return Evidence(plan)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory) -> Evidence:
    return judged(
        made(tmp_path_factory.mktemp("figures"), never=["epidural"], cnn={"resnet": STOPPED, "densenet": NETWORK})
    )


@pytest.fixture(scope="module")
def classes(evidence) -> Section:
    return per_class.section(evidence)


@pytest.fixture(scope="module")
def of_members(evidence) -> Section:
    return members.section(evidence)


def panel(section: Section, name: str) -> list[Block]:
    (panels,) = (block for block in section.blocks if isinstance(block, Panels))
    return list(panels.panels[name])


def every(section: Section) -> list[Block]:
    def walk(blocks: list[Block]) -> list[Block]:
        found: list[Block] = []
        for block in blocks:
            found.append(block)
            if isinstance(block, Panels):
                found += walk([inner for group in block.panels.values() for inner in group])
            if isinstance(block, Details):
                found += walk(list(block.blocks))
        return found

    return walk(list(section.blocks))


def charts_of(section: Section) -> dict[str, Chart]:
    return {block.id: block for block in every(section) if isinstance(block, Chart)}


def table_of(blocks: list[Block], title: str) -> dict[str, list[str]]:
    (table,) = (block for block in blocks if isinstance(block, Table) and title in block.title)
    return {row[0]: list(row[1:]) for row in table.rows}


def test_figures_are_those_of_ich_score_to_the_last_printed_digit(evidence, classes):
    scores = evidence.scores
    for name in CLASSES[1:]:
        shown = table_of(panel(classes, name), "figures of the blend")
        for title, key in {"AUC": "auc", "average precision": "ap", "F2": "f2", "log loss": "log_loss"}.items():
            cells = [scores["members"]["blend"][where]["classes"][name][key] for where in ("oof", "test")]
            assert shown[title] == [span(cell) for cell in cells]
    c = CLASSES.index("any")
    found, cells = charts_of(classes), scores["members"]["blend"]["oof"]["classes"]["any"]
    assert found[f"roc-{c}"].figure["layout"]["annotations"][0]["text"] == f"AUC {span(cells['auc'])}"
    assert span(cells["ap"]) in found[f"precision-recall-{c}"].figure["layout"]["annotations"][0]["text"]
    assert span(cells["f2"]) in found[f"threshold-{c}"].says
    assert number(scores["calibration_error"]["oof"]["any"]) in found[f"reliability-{c}"].says


def test_decisions_and_their_four_figures_are_the_cross_fitted_ones_of_ich_score(evidence, classes):
    path = evidence.plan.workspace.submissions / "confusion.csv"
    table = pd.read_csv(path, dtype={"thresholds": str}).set_index(["member", "rows", "thresholds", "class"])
    for c, name in enumerate(CLASSES[1:], start=1):
        row = table.loc[("blend", "oof", "f2", name)]
        text = charts_of(classes)[f"confusion-{c}"].figure["data"][0]["text"]
        counts = [int(cell.split("<br>")[1].replace(",", "")) for line in text for cell in line]
        assert counts == [row[key] for key in ("tp", "fn", "fp", "tn")]
        shown = table_of(panel(classes, name), "the four figures")
        for title, figure in FOUR.items():
            pooled, low, high = shown[title]
            assert pooled == number(figure(row))
            assert float(low) <= float(pooled) <= float(high)


def test_the_chosen_threshold_is_that_of_ich_thresholds(evidence, classes):
    chart = charts_of(classes)["threshold-5"]
    marks = {trace["name"]: trace for trace in chart.figure["data"]}
    y, p = evidence.labels[:, 5], evidence.probability("blend")[:, 5]
    own = 5 * y[p >= 0.4].sum() / (4 * y.sum() + (p >= 0.4).sum())
    assert marks["own rows"]["x"] == [pytest.approx(0.4**0.5, abs=1e-6)]
    assert marks["own rows"]["y"] == [pytest.approx(own, abs=1e-6)]
    assert f"chose 0.4000: F2 {number(own)}" in chart.says


def test_a_class_without_positives_has_a_sentence_and_no_figure(classes):
    (only,) = panel(classes, "epidural")
    assert isinstance(only, Notes)
    assert only.kind == "warning"
    assert "No labelled slice is positive for epidural" in only.lines[0]
    assert not any(id_.endswith("-0") for id_ in charts_of(classes))


def test_each_chart_is_one_that_plotly_draws_and_says_what_it_means(classes, of_members):
    found = charts_of(classes) | charts_of(of_members)
    assert len(found) == 5 * 6 + 2 + 7 + 2  # classes; gains and weights; correlations; networks
    for chart in found.values():
        go.Figure(chart.figure)
        json.dumps(chart.figure, allow_nan=False)
        assert len(chart.says) > 80
    render(Page("a", "b", [classes, of_members]))


def test_every_fold_has_its_line(classes):
    names = [trace["name"] for trace in charts_of(classes)["roc-5"].figure["data"]]
    assert names == ["chance", "each fold", "each fold", "each fold", "all folds"]


def test_stages_are_compared_by_their_best_members_as_ich_score_has_them(evidence, of_members):
    found = evidence.scores["members"]
    best = min(("resnet", "densenet"), key=lambda name: found[name]["oof"]["log_loss"]["value"])
    figure = charts_of(of_members)["gains"].figure
    assert figure["layout"]["yaxis"]["ticktext"] == [f"CNN: {best}", "stack: lgbm", "blend"]
    order = (best, "lgbm", "blend")
    wanted = [
        [span(found[m][where][key]) for m in order] for key in ("log_loss", "auc", "f2") for where in ("oof", "test")
    ]
    assert [trace["text"] for trace in figure["data"]] == wanted
    shown = table_of(every(of_members), "minus the blend, out of fold")
    assert shown["stack: lgbm"][0] == span(found["lgbm"]["oof"]["log_loss"]["minus_blend"])


def test_weights_are_those_of_the_blend_and_its_methods_stand_beside_them(of_members):
    (cells,) = charts_of(of_members)["blend-weights"].figure["data"]
    assert cells["z"] == [[weight] * 6 for weight in WEIGHTS]
    how = table_of(every(of_members), "Combination and calibration")
    assert how["any"] == ["fitted weights of logits, calibrated (platt)"] * 3


def test_correlations_are_pearsons(evidence, of_members):
    tables = [pd.read_parquet(evidence.plan.workspace.member(m) / "oof.parquet") for m in ("resnet", "blend")]
    a, b = (table.set_index("image_id").sort_index()["logit_any"] for table in tables)
    (cells,) = charts_of(of_members)["correlation-5"].figure["data"]
    assert cells["z"][0][-1] == pytest.approx(pearsonr(a, b).statistic, abs=1e-4)
    constant = members.correlations(np.zeros((2, 4, 1)))
    assert np.isnan(constant).all()


def test_of_many_slices_every_second_one_is_correlated(evidence, monkeypatch):
    monkeypatch.setattr(members, "MOST", 150)
    said = charts_of(members.section(evidence))["correlation-mean"].says
    assert f"{len(evidence.rows[::2])} labelled slices, every second" in said


def test_learning_curves_hold_what_the_folds_left(of_members):
    data = charts_of(of_members)["learning-1"].figure["data"]
    assert [trace["name"] for trace in data] == ["fold 0", "fold 1", "fold 2"] * 3
    assert data[0]["y"] == pytest.approx([0.5, 0.4, 0.3])
    assert data[4]["y"] == pytest.approx([0.41] * 3)


def test_the_epoch_that_was_kept_is_ringed_and_why_it_may_flatter_is_said(of_members):
    stopped, whole = (charts_of(of_members)[f"learning-{k}"] for k in (0, 1))
    (ring,) = [trace for trace in stopped.figure["data"] if trace["name"] == "epoch kept"]
    assert (ring["x"], ring["yaxis"]) == ([2, 2, 2], "y3")
    assert stopped.figure["layout"]["yaxis3"]["title"]["text"] == "fold's F1"
    assert "flatters" in stopped.says
    assert "The last epoch was kept" in whole.says


def test_a_fold_without_positives_has_no_line_and_is_named(tmp_path):
    plan = made(tmp_path, solution="none")
    evidence = judged(plan)
    evidence.labels[evidence.folds == 1, 2] = 0
    chart = charts_of(per_class.section(evidence))["roc-2"]
    assert [trace["name"] for trace in chart.figure["data"]].count("each fold") == 2
    assert "Fold 1 has slices of one kind only" in chart.says

"""Tables, sentences and CSV lines of scores.json."""

import pytest

from ich.report import scores

SPAN = {"": 0.8, "_low": 0.7, "_high": 0.9}


def cell(value, low=None, high=None, **more):
    return {"value": value, "low": low, "high": high, "fold_mean": value, "fold_std": 0.02, **more}


def figures(log_loss, auc, f1):
    f1 = {**f1, "micro": 0.8765}
    found = {"log_loss": log_loss, "auc": auc, "f1": f1, "f1_half": f1}
    return {**found, "classes": {"bleed": {**found, "thresholds": {"f1": 0.25}}}}


def found(test: bool = True, auc=None) -> dict:
    """A CNN, a smoother named like its stage, and the blend, significantly better than the CNN only."""
    auc = {**(auc or cell(0.9, 0.85, 0.95)), "fold_mean": 0.91, "fold_std": 0.02}
    resnet = cell(0.3, 0.25, 0.35, minus_blend=cell(0.1, 0.05, 0.15))
    smooth = cell(0.21, 0.15, 0.25, minus_blend=cell(0.01, -0.005, 0.02), in_sample=0.19)
    blend = cell(0.2, 0.15, 0.25, in_sample=0.18)
    oof = {
        "resnet": ("cnn", figures(resnet, auc, cell(0.6, 0.5, 0.7, in_sample=0.65))),
        "smooth": ("smooth", figures(smooth, auc, cell(0.7, 0.6, 0.8, in_sample=0.7))),
        "blend": ("blend", figures(blend, auc, cell(0.71234, 0.6, 0.8, in_sample=0.75))),
    }
    counts = {"slices": 2032, "patients": 75, "classes": {"bleed": {"positives": 9, "patients": 3, "prevalence": 0.1}}}
    sets = ["oof", "test"] if test else ["oof"]
    constant = figures(cell(0.33, 0.3, 0.36), cell(0.5, 0.5, 0.5, fold_mean=0.5, fold_std=None), cell(0.18, 0.15, 0.2))
    study, guess = (dict.fromkeys(scores.STUDY_SCORES, one) for one in (cell(0.8, 0.7, 0.9), cell(0.5)))
    per_study = {"blend": {**study, "classes": {"bleed": study}}, "baseline": {**guess, "classes": {"bleed": guess}}}
    studies = {"studies": 80, "positives": {"bleed": 4}, "models": per_study}
    return {
        "metric": "f1",
        "level": 0.95,
        "class_weights": {"bleed": 1.0},
        "rows": dict.fromkeys(sets, counts),
        "models": {name: {"stage": stage, **dict.fromkeys(sets, one)} for name, (stage, one) in oof.items()},
        "baseline": dict.fromkeys(sets, constant),
        "studies": dict.fromkeys(sets, studies),
        "one_fold": {"f1": 0.6789} if test else {},
        "submission": {"average": "micro", "f": cell(0.8, 0.7, 0.9), "log_loss": 0.25} if test else {},
        "calibration_error": {where: {"bleed": 0.0123} for where in sets},
    }


def test_models_are_listed_below_their_stages_and_in_sample_scores_out_of_fold_only():
    table, per_study, test, _ = scores.tables(found(), 200)
    assert table.title == "Out of fold: 2,032 slices of 75 patients"
    assert [row[0] for row in table.rows] == ["cnn", "  resnet", "smooth", "blend", "baseline", "  prevalence"]
    assert table.columns == [
        "",
        "log loss",
        "macro AUC",
        "mean of folds",
        "macro F1",
        "micro F1",
        "F1 in-sample",
        "log loss minus the blend's",
    ]
    spans = ["0.3000 0.2500-0.3500", "0.9000 0.8500-0.9500", "0.9100 ± 0.0200", "0.6000 0.5000-0.7000"]
    assert table.rows[1][1:] == [*spans, "0.8765", "0.6500", "0.1000 0.0500-0.1500"]
    assert table.rows[2][-1] == "0.0100 -0.0050 to 0.0200"
    assert table.rows[3][-1] == ""
    constant = ["0.3300 0.3000-0.3600", "0.5000 0.5000-0.5000", "0.5000 ± -", "0.1800 0.1500-0.2000"]
    assert table.rows[5][1:5] == constant
    assert per_study.title == "Blend per study, out of fold: 80 studies of 75 patients"
    assert per_study.columns == ["", "positive studies", "AUC", "sensitivity", "specificity"]
    shown = "0.8000 0.7000-0.9000"
    assert per_study.rows == [
        ["bleed", "4", shown, shown, shown],
        ["macro mean", "", shown, shown, shown],
        ["baseline", "", "0.5000", "0.5000", "0.5000"],
    ]
    assert len(list(scores.tables({**found(), "studies": {}}, 200))) == 2, "no studies among single images"
    assert test.title.startswith("Hidden test solution")
    assert test.columns == ["", "log loss", "macro AUC", "macro F1", "micro F1", "log loss minus the blend's"]
    assert len(list(scores.tables(found(test=False), 200))) == 2
    weighted = {**found(), "class_weights": {"bleed": 1.0, "any": 2.0}}
    assert next(scores.tables(weighted, 200)).columns[1] == "weighted log loss"


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_terminal_gets_the_same_columns_in_parts(width):
    whole, parts = list(scores.tables(found(), 200)), list(scores.tables(found(), width))
    assert len(parts) > 2
    for table in parts:
        widths = [max(map(len, column)) + 2 for column in zip(table.columns, *table.rows, strict=True)]
        assert sum(widths) <= width + 2
    for table in whole:
        title = table.title.split(":")[0]
        columns = [name for part in parts if part.title.startswith(title) for name in part.columns[1:]]
        assert columns == table.columns[1:]


def test_an_undefined_score_is_a_dash_in_tables_and_nan_in_the_csv():
    undefined = found(auc=cell(None))
    assert next(scores.tables(undefined, 200)).rows[1][2] == "-"
    assert str(next(scores.lines(undefined))["auc_low"]) == "nan"


def test_sentences_compare_the_blend_with_the_best_other_model():
    said = " ".join(scores.sentences(found()))
    assert "is smooth. Its log loss minus the blend's is 0.0100 (-0.0050 to 0.0200), which may be chance." in said
    assert "macro F1 of 0.7500 (cross-fitted 0.7123) and a log loss of 0.1800 (cross-fitted 0.2000)" in said
    assert "0.0123 out of fold" in said
    assert "blend of a single fold has a macro F1 of 0.6789" in said
    assert "micro F1 of 0.8000 (0.7000-0.9000) and a log loss of 0.2500" in said
    assert not any("test solution" in line for line in scores.sentences(found(test=False)))
    fewer = found()
    del fewer["models"]["smooth"]
    assert "0.1000 (0.0500-0.1500), which is more than chance" in " ".join(scores.sentences(fewer))
    del fewer["models"]["resnet"]
    assert "best other model" not in " ".join(scores.sentences(fewer))


def test_csv_lines_hold_scores_intervals_and_in_sample_scores():
    lines = list(scores.lines(found()))
    rows = [(line["model"], line["rows"]) for line in lines]
    assert rows[:3] == [("resnet", "oof"), ("resnet", "test"), ("smooth", "oof")]
    assert len({tuple(line) for line in lines}) == 1, "the same columns everywhere"
    baseline = {"log_loss_baseline": 0.33, "auc_baseline": 0.5, "f1_baseline": 0.18, "f1_half_baseline": 0.18}
    assert dict(list(lines[0].items())[-4:]) == baseline, "after the other columns"
    assert [lines[2][name] for name in ("log_loss", "log_loss_low", "log_loss_in_sample")] == [0.21, 0.15, 0.19]
    assert (lines[0]["f1_in_sample"], lines[0]["log_loss_in_sample"]) == (0.65, "")
    assert (lines[0]["f1_micro"], lines[0]["f1_half_micro"]) == (0.8765, 0.8765)
    assert [(line["auc_fold_mean"], line["auc_fold_std"]) for line in lines[:2]] == [(0.91, 0.02), ("", "")]
    assert [line["f1_half_fold_mean"] for line in lines[:2]] == [0.6, ""]
    expected = {"model": "resnet", "rows": "oof", "class": "bleed", "positives": 9, "patients": 3}
    expected |= {"log_loss": 0.3, "log_loss_low": 0.25, "log_loss_high": 0.35}
    expected |= {"auc": 0.9, "auc_low": 0.85, "auc_high": 0.95}
    expected |= {"f1": 0.6, "f1_low": 0.5, "f1_high": 0.7, "f1_threshold": 0.25}
    expected |= {"log_loss_baseline": 0.33, "auc_baseline": 0.5, "f1_baseline": 0.18}
    assert next(scores.lines_by_class(found())) == expected

    expected = {"model": "blend", "rows": "oof", "class": "bleed", "studies": 80, "positives": 4}
    expected |= {f"{score}{end}": value for score in scores.STUDY_SCORES for end, value in SPAN.items()}
    lines = list(scores.lines_by_study(found()))
    assert lines[0] == expected
    assert lines[1] == {**expected, "class": "macro", "positives": ""}
    assert [(line["model"], line["rows"]) for line in lines[1::2]] == [
        (model, where) for where in ("oof", "test") for model in ("blend", "baseline")
    ]

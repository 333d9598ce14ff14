import re

import pytest

from ich.report import scores


def cell(value, low=None, high=None, **more):
    return {"value": value, "low": low, "high": high, **more}


def figures(log_loss, auc, f1, **more):
    label = {"log_loss": log_loss, "auc": auc, "f1": f1, "f1_half": f1, "thresholds": {"f1": 0.25}}
    return {"log_loss": log_loss, "auc": auc, "f1": f1, "f1_half": f1, "classes": {"bleed": label}, **more}


def found(test: bool = True, auc=None) -> dict:
    """A CNN, a smoother named as its stage, and the blend, which is better than them, surely only than the CNN."""
    auc = auc or cell(0.9, 0.85, 0.95)
    said = {
        "resnet": {
            "stage": "cnn",
            "oof": figures(
                cell(0.3, 0.25, 0.35, minus_blend=cell(0.1, 0.05, 0.15)), auc, cell(0.6, 0.5, 0.7, own=0.65)
            ),
        },
        "smooth": {
            "stage": "smooth",
            "oof": figures(
                cell(0.21, 0.15, 0.25, minus_blend=cell(0.01, -0.005, 0.02), own=0.19),
                auc,
                cell(0.7, 0.6, 0.8, own=0.7),
            ),
        },
        "blend": {
            "stage": "blend",
            "oof": figures(cell(0.2, 0.15, 0.25, own=0.18), auc, cell(0.71234, 0.6, 0.8, own=0.75)),
        },
    }
    counts = {"slices": 2032, "patients": 75, "classes": {"bleed": {"positives": 9, "patients": 3, "prevalence": 0.1}}}
    sets = ["oof", "test"] if test else ["oof"]
    for member in said.values() if test else ():
        member["test"] = member["oof"]
    return {
        "metric": "f1",
        "level": 0.95,
        "class_weights": {"bleed": 1.0},
        "rows": dict.fromkeys(sets, counts),
        "members": said,
        "one_fold": {"f1": 0.6789} if test else {},
        "submission": {"average": "micro", "f": cell(0.8, 0.7, 0.9), "log_loss": 0.25} if test else {},
        "calibration_error": {where: {"bleed": 0.0123} for where in sets},
    }


def test_members_stand_below_their_stages_and_a_stage_of_one_of_its_name_is_not_said_twice():
    table, *_ = scores.tables(found(), 200)
    assert table.title == "Out of fold: 2,032 slices of 75 patients"
    assert [row[0] for row in table.rows] == ["cnn", "  resnet", "smooth", "blend"]
    assert table.columns == ["", "log loss", "macro AUC", "macro F1", "F1 on own rows", "log loss minus the blend's"]
    assert table.rows[1][1:] == [
        "0.3000 0.2500-0.3500",
        "0.9000 0.8500-0.9500",
        "0.6000 0.5000-0.7000",
        "0.6500",
        "0.1000 0.0500-0.1500",
    ]
    assert table.rows[2][-1] == "0.0100 -0.0050 to 0.0200"
    assert table.rows[3][-1] == ""


def test_nothing_is_tuned_on_the_test_set_so_it_has_no_column_of_own_rows():
    _, test = scores.tables(found(), 200)
    assert test.title.startswith("Hidden test solution")
    assert "F1 on own rows" not in test.columns
    assert len(list(scores.tables(found(test=False), 200))) == 1


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_terminal_gets_the_same_columns_in_parts(width):
    whole, parts = list(scores.tables(found(), 200)), list(scores.tables(found(), width))
    assert len(parts) > 2
    for table in parts:
        assert (
            sum(max(len(row[i]) for row in [table.columns, *table.rows]) + 2 for i in range(len(table.columns)))
            <= width + 2
        )
    for title in ("Out of fold", "Hidden test solution"):
        of_set = [table.columns[1:] for table in parts if table.title.startswith(title)]
        assert [name for part in of_set for name in part] == next(
            t for t in whole if t.title.startswith(title)
        ).columns[1:]


def test_a_figure_that_does_not_exist_is_a_dash_and_nan_in_the_csv():
    none = found(auc=cell(None))
    assert next(scores.tables(none, 200)).rows[1][2] == "-"
    assert str(next(scores.lines(none))["auc_low"]) == "nan"


def test_weights_that_differ_are_said():
    weighted = {**found(), "class_weights": {"bleed": 1.0, "any": 2.0}}
    assert next(scores.tables(weighted, 200)).columns[1] == "weighted log loss"


def test_the_sentences_say_who_is_best_beside_the_blend_and_whether_that_may_be_chance():
    said = scores.sentences(found())
    assert (
        "The best of the others out of fold is smooth: its log loss minus the blend's is 0.0100 (-0.0050 to 0.0200),"
        " which may be chance." in said
    )
    assert "a macro F1 of 0.7500, not 0.7123 and a log loss of 0.1800, not 0.2000" in " ".join(said)
    assert "out of fold 0.0123" in said[-1]
    assert any("One fold's blend alone has a macro F1 of 0.6789 on the test solution" in line for line in said)
    assert any("a micro F1 of 0.8000 0.7000-0.9000 and a log loss of 0.2500" in line for line in said)
    assert not any("test solution" in line for line in scores.sentences(found(test=False))[1:])
    alone = found()
    alone["members"] = {"blend": alone["members"]["blend"]}
    assert not any("best of the others" in line for line in scores.sentences(alone))


def test_a_difference_whose_interval_leaves_out_0_is_more_than_chance():
    sure = found()
    del sure["members"]["smooth"]
    assert any(re.search("resnet: .* is more than chance", line) for line in scores.sentences(sure))


def test_csv_lines_have_the_figures_the_ends_and_where_something_is_tuned_what_it_has_on_its_own_rows():
    lines = list(scores.lines(found()))
    assert [(line["member"], line["rows"]) for line in lines][:3] == [
        ("resnet", "oof"),
        ("resnet", "test"),
        ("smooth", "oof"),
    ]
    assert len({tuple(line) for line in lines}) == 1, "the same columns everywhere"
    assert (lines[2]["log_loss"], lines[2]["log_loss_low"], lines[2]["log_loss_own"]) == (0.21, 0.15, 0.19)
    assert (lines[0]["f1_own"], lines[0]["log_loss_own"]) == (0.65, "")
    by_class = list(scores.lines_by_class(found()))
    assert by_class[0] == {
        "member": "resnet",
        "rows": "oof",
        "class": "bleed",
        "positives": 9,
        "patients": 3,
        "log_loss": 0.3,
        "log_loss_low": 0.25,
        "log_loss_high": 0.35,
        "auc": 0.9,
        "auc_low": 0.85,
        "auc_high": 0.95,
        "f1": 0.6,
        "f1_low": 0.5,
        "f1_high": 0.7,
        "f1_threshold": 0.25,
    }

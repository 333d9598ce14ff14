"""`ich report` in words: verdict, warnings, mistakes, where it comes from; by the tiny run and by made-up members."""

import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import yaml

from ich.errors import UserError
from ich.phantom.competition import CLASSES
from ich.pipeline.plan import Plan
from ich.recipe import load
from ich.report.page import Block, Code, Details, Notes, Panels, Section, Table, Tiles
from ich.stages import report, score
from ich.stages import thresholds as tuning
from ich.stages.inputs import Slices
from ich.stages.reporting import mistakes, provenance, verdict
from ich.stages.reporting.evidence import Evidence
from ich.store.atomic import write_json
from ich.store.records import write_record
from stages.test_score import made

pytestmark = pytest.mark.usefixtures("one_core")

PAGE = "submissions/tiny/report.html"


class Texts(HTMLParser):
    """The text of each section of a page by its id, words apart by single spaces."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str | None] = []
        self.found: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "section":
            self.open.append(dict(attrs).get("id"))

    def handle_endtag(self, tag):
        if tag == "section":
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[0] is not None:
            self.found[self.open[0]] = " ".join([*self.found.get(self.open[0], "").split(), *data.split()])


def plan_of(root) -> Plan:
    return Plan(load(root / "tests/tiny.yaml"), root)


@pytest.fixture(scope="module")
def page(finished) -> str:
    return (finished.root / PAGE).read_text()


@pytest.fixture(scope="module")
def texts(page) -> dict[str, str]:
    return Texts(page).found


# ---- the verdict


def test_the_verdict_says_what_score_prints_to_the_last_digit(finished, texts, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "10000")
    score.run(plan_of(finished.root))
    printed = [line for line in capsys.readouterr().out.splitlines() if set(line) - set("- ")]
    assert printed.pop().startswith("score: ")
    assert len(printed) > 20
    for line in printed:
        assert " ".join(line.removeprefix("warning: ").split()) in texts["verdict"]


def test_the_blend_s_figures_stand_first_with_their_intervals(finished):
    evidence = Evidence(plan_of(finished.root))
    tiles = [tile for block in verdict.section(evidence).blocks if isinstance(block, Tiles) for tile in block.tiles]
    for where, three in (("oof", tiles[:3]), ("test", tiles[3:6])):
        for name, tile in zip(("log_loss", "auc", "f2"), three, strict=True):
            cell = evidence.scores["members"]["blend"][where][name]
            assert tile.value == f"{cell['value']:.4f}"
            assert f"{cell['low']:.4f}-{cell['high']:.4f}" in tile.note
    handed_in = evidence.scores["submission"]
    assert [tile.value for tile in tiles[6:]] == [f"{handed_in['f']['value']:.4f}", f"{handed_in['log_loss']:.4f}"]


def flat(blocks) -> list[Block]:
    found: list[Block] = []
    for block in blocks:
        inner = block.blocks if isinstance(block, Details) else []
        inner = [one for blocks in block.panels.values() for one in blocks] if isinstance(block, Panels) else inner
        found += [block, *flat(inner)]
    return found


def warnings_of(section: Section) -> list[str]:
    return [
        line for block in section.blocks if isinstance(block, Notes) and block.kind == "warning" for line in block.lines
    ]


def tables_of(section: Section) -> dict[str, list[list[str]]]:
    return {
        block.title: [list(row) for row in block.rows] for block in flat(section.blocks) if isinstance(block, Table)
    }


@pytest.fixture(scope="module")
def alarming(tmp_path_factory) -> Evidence:
    """Nobody has one class, two patients are in training and test, some slices lack a label, files were put aside."""
    plan = made(tmp_path_factory.mktemp("alarming"), never=["epidural"])
    path = plan.prepared.folder / "slices.parquet"
    table = pd.read_parquet(path).replace({"patient_id": {"p2": "p0", "p5": "p3"}})
    table.loc[table["image_id"].isin(["ID_0000", "ID_0001"]), "subdural"] = np.nan
    table.assign(n_slices=10, index=table.groupby("study_id").cumcount(), position=np.nan).to_parquet(path)
    rows = ["a,train,a.dcm,not_dicom,", "b,test,b.dcm,not_dicom,", "c,train,,label_without_file,"]
    (plan.prepared.folder / "quarantine.csv").write_text("\n".join(["image_id,split,path,reason,detail", *rows]) + "\n")
    score._scores(plan)
    slices = Slices(plan)
    random, y = np.random.default_rng(0), slices.labels[slices.labelled]
    folds = slices.table["fold"].to_numpy()[slices.labelled]
    found = tuning.tuned(
        y, random.random(y.shape), slices.classes, plan.recipe.thresholds, folds=folds, patients=np.arange(len(y))
    )
    shift = {"train": 0.2, "test": 0.4, "estimated": 0.4, "low": 0.3, "high": 0.5, "threshold": 0.1}
    shifts = {name: {**shift, "warning": "it moved" if name == "any" else ""} for name in slices.classes}
    write_json(plan.workspace.thresholds, {**found, "prevalence": {"applied": False, "classes": shifts}})
    said = {**(plan.folds.record.read() or {}), "warnings": ["fold 1 has no study with epidural"]}
    write_record(plan.folds.record.path, said)
    return Evidence(Plan(plan.recipe, plan.root))


def test_each_warning_of_the_stages_is_in_the_verdict(alarming):
    said = warnings_of(verdict.section(alarming))
    assert set(alarming.scores["warnings"]) <= set(said)
    assert any("its epochs were judged by the fold" in line for line in said)
    assert "folds: fold 1 has no study with epidural" in said
    assert alarming.tuned["warnings"], "a class without positives has no threshold"
    assert {f"thresholds: {line}" for line in alarming.tuned["warnings"]} <= set(said)
    assert "thresholds: any: it moved" in said
    assert any(line.startswith("epidural: no labelled slice has it") for line in said)
    assert any(line.startswith("2 of 200 training slices have no label") for line in said)


def test_patients_of_both_sets_are_named_first(alarming):
    first = warnings_of(verdict.section(alarming))[0]
    assert first.startswith("patients in training and test: 2 (p0, p3).")


def test_what_was_left_out_is_counted_by_its_reason(alarming):
    tables = tables_of(verdict.section(alarming))
    assert tables["3 files were put aside, or are named without being there"] == [
        ["label without file", "1"],
        ["not dicom", "2"],
    ]


def test_folds_and_classes_are_counted(alarming):
    tables, slices = tables_of(verdict.section(alarming)), alarming.slices
    rows = slices.table[slices.labelled]
    for row in tables["Slices a fold, and how many of them have each class"]:
        fold = rows[rows["fold"] == int(row[0])]
        assert row[1:3] == [str(fold["patient_id"].nunique()), str(len(fold))]
        for name, cell in zip(CLASSES, row[3:], strict=True):
            positive = fold[fold[name] == 1]
            assert cell == f"{len(positive)} ({positive['patient_id'].nunique()})"
    title = next(title for title in tables if title.startswith("Out of fold") and "weight in" not in title)
    assert f"{len(rows)} slices of {rows['patient_id'].nunique()} patients" in title


def test_without_anything_to_warn_of_it_says_so(finished):
    section = verdict.section(Evidence(plan_of(finished.root)))
    notes = [line for block in section.blocks if isinstance(block, Notes) for line in block.lines]
    assert warnings_of(section) or "No stage of this run has warned of anything." in notes
    assert "synthetic" in section.lead


# ---- mistakes


@pytest.mark.parametrize("label", mistakes.KINDS.values(), ids=list(mistakes.KINDS))
def test_the_worst_mistakes_cost_most_and_are_spread_over_studies_and_classes(alarming, label):
    found = list(mistakes._worst(alarming, label))
    y, p = alarming.labels, alarming.probability("blend")
    weights = np.array(alarming.slices.class_weights)
    cost = -(y * np.log(p) + (1 - y) * np.log(1 - p)) * weights / weights.sum()
    cost[y != label] = 0
    total = [cost[one.place].sum() for one in found]
    assert all(y[one.place, one.class_number] == label for one in found)
    assert total == sorted(total, reverse=True)
    assert total[0] == pytest.approx(cost.sum(axis=1).max(), rel=1e-6)
    studies = alarming.slices.table["study_id"].to_numpy()[alarming.rows][[one.place for one in found]]
    assert len(set(studies)) == len(found)
    assert max(Counter(one.class_number for one in found).values()) <= mistakes.A_CLASS
    assert [one.class_number for one in found] == [int(cost[one.place].argmax()) for one in found]


def test_every_mistake_has_its_pictures_and_its_strip(page, texts):
    cards = re.findall(r'<article class="case">.*?</article>', page, re.DOTALL)
    suspects = texts["mistakes"].count("of the suspicious labels: log odds")
    assert 5 <= suspects <= mistakes.SUSPECTS
    assert len(cards) - suspects == texts["mistakes"].count("the mean over all slices is")
    for card in cards:
        assert 3 <= card.count("data:image/png;base64,") <= 4
        assert "Grad-CAM for" in card
        assert "this slice" in card


def test_a_card_says_where_the_labels_beside_it_stand(finished):
    evidence = Evidence(plan_of(finished.root))
    table, labels = evidence.slices.table, evidence.slices.labels
    for place in (0, 3, len(evidence.rows) - 1):
        rows = mistakes._beside(evidence, int(evidence.rows[place]))
        here = table.iloc[evidence.rows[place]]
        assert [int(table["index"].iloc[row] - here["index"]) for row in rows if row != evidence.rows[place]] == (
            [k for k in (-1, 1) if 0 <= here["index"] + k < here["n_slices"]]
        )
        told = next(mistakes._neighbourhood(evidence, mistakes.Found(place, 5, ""), rows))
        for row in rows:
            if row != evidence.rows[place]:
                assert f"{labels[row, 5]:.0f} {'before' if row < evidence.rows[place] else 'after'}" in told


@pytest.mark.parametrize(
    ("labelled", "sees", "beside", "word"),
    [
        (True, False, {0}, "alone"),
        (True, False, {0, 1}, "end of a labelled run"),
        (True, False, {1}, "Inside a labelled run"),
        (False, True, {0}, "look-alike"),
        (False, True, {0, 1}, "beyond a labelled run"),
        (False, True, {1}, "beside labels 1"),
        (True, True, {0}, "less surely"),
        (False, False, {1}, "sees no bleed either"),
    ],
)
def test_label_network_and_neighbours_mean_something_together(labelled, sees, beside, word):
    assert word in mistakes._meaning(labelled, sees, 1 in beside, 0 in beside)


def test_how_many_of_the_suspects_are_wrong_is_said_where_it_is_known(finished, texts):
    judged = pd.read_csv(finished.root / "submissions/tiny/explain/label_audit.csv").set_index("rule")
    assert f"of the list {judged.loc['suspicion', 'precision']:.0%} are among them" in texts["mistakes"]


# ---- the map


def test_the_map_says_how_mixed_seen_and_unseen_slices_are(texts):
    assert "Of the ten nearest slices of other studies" in texts["embeddings"]
    assert "unseen (fold 0)" in texts["embeddings"]


# ---- where it comes from


def test_the_recipe_seeds_and_hashes_are_those_of_the_run(finished):
    plan = plan_of(finished.root)
    section = provenance.section(Evidence(plan))
    (code,) = [block for block in flat(section.blocks) if isinstance(block, Code)]
    assert yaml.safe_load(code.text) == plan.recipe.model_dump(mode="json")
    tables = tables_of(section)
    hashes = {(row[0], row[1]): row[2] for row in tables["SHA-256 of the files of this run"]}
    for of, path in (("submit", "submissions/tiny/submission.csv"), ("blend/blend", "oof/tiny/blend/oof.parquet")):
        assert hashes[of, path.rsplit("/", 1)[1]] == hashlib.sha256((finished.root / path).read_bytes()).hexdigest()
    seeds = {row[0]: row[1] for block in flat(section.blocks) if isinstance(block, Table) for row in block.rows}
    assert seeds["folds.seed"] == "7"
    assert seeds["cnn.resnet.seed"] == str(plan.recipe.cnn["resnet"].seed)


def test_times_are_the_sums_of_the_records(finished):
    plan = plan_of(finished.root)
    effort = next(rows for title, rows in tables_of(provenance.section(Evidence(plan))).items() if "times" in title)
    counts = {row[0]: row[1] for row in effort}
    assert counts["sequence"] == "3", "two folds and the member"
    records = [json.loads(path.read_text()) for path in (finished.root / "oof/tiny/bigru").rglob("run.json")]
    assert {row[0]: row[2] for row in effort}["sequence"] == provenance._duration(
        sum(record["seconds"] for record in records)
    )


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.25, "0.2 s"), (59.4, "59.4 s"), (61, "1 min 01 s"), (7322, "2 h 02 min")]
)
def test_durations_are_readable(seconds, said):
    assert provenance._duration(seconds) == said


def test_no_folder_of_the_machine_is_on_the_page(finished, page):
    assert str(finished.root) not in page
    secret = {"competition": {"root": "/home/eve/rsna"}, "weights": ["C:\\Users\\eve\\net.safetensors"], "n": 2}
    assert provenance._here(secret) == {
        "competition": {"root": ".../rsna"},
        "weights": [".../net.safetensors"],
        "n": 2,
    }


# ---- the stage


def test_a_second_report_does_nothing_and_a_lost_one_is_the_same_again(house):
    plan, path = plan_of(house.root), house.root / PAGE
    before = house.files()
    report.run(plan)
    assert house.files() == before
    content = path.read_bytes()
    path.unlink()
    plan = plan_of(house.root)
    assert plan.state(plan.report).why == "report.html is missing"
    report.run(plan)
    assert path.read_bytes() == content


def test_before_the_scores_it_says_what_to_run(house):
    (house.root / "submissions/tiny/scores.run.json").unlink()
    with pytest.raises(UserError, match="report needs score, which is missing; run `ich score` first") as error:
        report.run(plan_of(house.root))
    assert "\n" not in str(error.value)

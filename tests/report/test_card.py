"""The model card: checklists, what was not made, and text from data in Markdown."""

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from ich.report.card import checklists, parts
from ich.report.card.facts import Count, Facts, ModelFacts, Spread
from ich.report.page import markdown
from ich.report.page.blocks import Notes, Section, Table
from ich.report.scores import bracketed
from report.made import CLASSES, MODELS, made_evidence

EVIDENCE = made_evidence(never=["epidural"])
COUNT = Count(20, 20, 20, 200)
FACTS = Facts(
    name="made",
    version="0.1.0",
    synthetic=True,
    values="hu",
    image="40 x 40 pixels, crop head",
    classes=CLASSES,
    counts={"labelled": COUNT, "unlabelled": Count(0, 0, 0, 0), "test": Count(10, 10, 10, 100)},
    positives=dict.fromkeys(CLASSES, Count(5, 5, 5, 30)),
    acquisition={"pixel size, mm": {"labelled": Spread(0.4, 0.5, 0.6)}},
    folds={
        "settings": {"by": "patient", "n": 2, "seed": 7},
        "studies": [10, 10],
        "slices": [100, 100],
        "positives": {name: [15, 15] for name in CLASSES},
    },
    in_several_folds=0,
    in_train_and_test=3,
    unknown_patients=0,
    quarantined={("train", "truncated"): 2},
    labels="",
    pseudonyms=False,
    burned_in="",
    models={name: ModelFacts(stage, [], "epochs: 2", "", 0, False) for name, stage in MODELS.items()},
    blends=EVIDENCE.blends,
    artifacts=EVIDENCE.artifacts,
    scores={**EVIDENCE.scores, "resamples": 1000},
    decisions={(where, name): {"tp": 3, "fp": 1, "fn": 1, "tn": 5} for where in ("oof", "test") for name in CLASSES},
    tuned=EVIDENCE.tuned,
    explained=True,
    checked={("warning", "duplicate_pixels"): 4},
)
NOTHING = replace(FACTS, scores=None, decisions=None, tuned=None, explained=False, checked=None)


def part(facts: Facts, title: str) -> Section:
    (found,) = (section for section in parts.sections(facts) if section.title == title)
    return found


def rows_of(section: Section, title: str = "") -> dict[str, Sequence[str]]:
    found = (block for block in section.blocks if isinstance(block, Table) and block.title.startswith(title))
    return {row[0]: row[1:] for row in next(found).rows}


@pytest.mark.parametrize(("title", "items", "size"), [("TRIPOD+AI", "TRIPOD", 52), ("CLAIM 2024", "CLAIM", 44)])
def test_each_item_of_a_checklist_is_answered_or_open(title, items, size):
    known = getattr(checklists, items)
    assert len(known) == size
    table, notes = part(FACTS, title).blocks
    assert isinstance(table, Table)
    assert isinstance(notes, Notes)
    answered = [row[0] for row in table.rows]
    left = re.findall(r"(\w+) \(", notes.lines[0])
    assert sorted(answered + left) == sorted(known)
    assert len(answered) > 18
    assert all(cell for row in table.rows for cell in row)


def test_results_that_were_not_made_are_listed_with_their_command():
    text = parts.text(NOTHING)
    for command in ("score", "thresholds", "explain", "check"):
        assert f"not made: run `ich {command}`" in text
        assert f"not made: run `ich {command}`" not in parts.text(FACTS)
    assert "95%" not in text


def test_scores_have_their_intervals():
    blend = EVIDENCE.scores["models"]["blend"]["oof"]
    rows = rows_of(part(FACTS, "Performance"), "Out of fold")
    assert rows["any"][0] == bracketed(blend["classes"]["any"]["auc"])
    assert rows["epidural"][0] == "-"  # no positive slice
    decided = rows_of(part(FACTS, "Performance"), "Slices, out of fold")
    assert decided["any"] == ["3", "1", "1", "5", "0.7500", "0.8333", "0.7500", "0.8333"]


def test_leaks_and_warnings_are_shown():
    results = [row[0] for row in rows_of(part(FACTS, "Leak checks")).values()]
    assert results[:4] == ["0", "3", "0", "4"]
    assert "resnet: its epochs were chosen on the fold" in part(FACTS, "Limits").blocks[0].lines
    assert rows_of(part(FACTS, "Exclusions")) == {"truncated": ["train", "2"]}


def test_text_from_data_is_shown_as_it_is():
    evil = "<img src=x> **b** [a](http://x.org) | `c` www.x.org a_b _d_\n# e $1$ me@x.org &lt;"
    shown = markdown.escaped(evil)
    assert shown == (
        r"\<img src=x\> \*\*b\*\* \[a\](http\://x.org) \| \`c\` www\.x.org a_b \_d\_ # e \$1\$ me\@x.org \&lt;"
    )
    text = parts.text(replace(FACTS, name=evil, burned_in=evil, quarantined={(evil, "truncated"): 1}))
    assert text.count(shown) == 4
    assert "<img" not in text.replace("\\<img", "")
    rows = [line for line in text.splitlines() if shown in line and line.startswith("|")]
    assert [len(re.split(r"(?<!\\)\|", row)) for row in rows] == [5]

import math
from html import unescape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from scipy import stats

from ich.ensemble.ablation import Claim, Order, Row, markdown, order, summary

figures = st.lists(st.floats(-10, 10).map(lambda value: round(value, 3)), min_size=2, max_size=8)


def test_an_interval_worked_out_by_hand():
    # three figures 0.1 apart: standard deviation 0.1, and 4.30265 is the 97.5 % point of t with 2 degrees
    assert summary([0.6, 0.7, 0.8]) == pytest.approx((0.7, 4.30265 * 0.1 / math.sqrt(3)), rel=1e-5)


@given(figures)
def test_an_interval_is_scipys(values):
    mean, half_width = summary(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-12)
    if np.std(values) > 0:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert (mean - half_width, mean + half_width) == pytest.approx((low, high), abs=1e-9)
    else:
        assert half_width == pytest.approx(0, abs=1e-12)


def test_one_seed_has_no_interval():
    mean, half_width = summary([0.7])
    assert mean == 0.7
    assert math.isnan(half_width)


@pytest.mark.parametrize("values", [[], [0.1, math.nan], [math.inf]])
def test_no_figure_and_figures_that_are_no_numbers_are_refused(values):
    with pytest.raises(ValueError, match="finite figure of each seed"):
        summary(values)


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [
        ([0.71, 0.82, 0.93], [0.61, 0.71, 0.81], "reproduced"),  # 0.11 +- 0.025, though the systems overlap
        ([0.61, 0.71, 0.81], [0.71, 0.82, 0.93], "reversed"),
        ([0.7, 0.7, 0.7], [0.6, 0.7, 0.6], "undecided, as claimed"),  # 0.067 +- 0.143
        ([0.6, 0.7, 0.6], [0.7, 0.7, 0.7], "undecided, opposite"),
        ([0.9], [0.1], "undecided, as claimed"),  # one seed decides nothing
        ([0.1], [0.9], "undecided, opposite"),
        ([0.5, 0.75], [0.5, 0.75], "undecided"),
    ],
)
def test_verdicts_worked_out_by_hand(better, worse, verdict):
    assert order(better, worse).verdict == verdict
    assert order(worse, better, larger_is_better=False).verdict == verdict


def test_the_difference_is_paired_by_seed():
    found = order([0.71, 0.82, 0.93], [0.61, 0.71, 0.81])
    assert (found.difference, found.half_width) == pytest.approx((0.11, 4.30265 * 0.01 / math.sqrt(3)), rel=1e-5)
    with pytest.raises(ValueError, match="paired by seed, but there are 2 and 3"):
        order([1, 2], [1, 2, 3])


@given(figures, st.data())
def test_an_order_is_the_sign_of_its_interval(better, data):
    worse = data.draw(st.lists(st.floats(-10, 10), min_size=len(better), max_size=len(better)))
    found, turned = order(better, worse), order(worse, better)
    low, high = found.difference - found.half_width, found.difference + found.half_width
    assert (low > 0) == (found.verdict == "reproduced") == (turned.verdict == "reversed")
    assert (high < 0) == (found.verdict == "reversed") == (turned.verdict == "reproduced")
    assert turned.difference == -found.difference
    if found.verdict == "undecided, as claimed":
        assert found.difference > 0
        assert turned.verdict == "undecided, opposite"


@given(figures, st.data(), st.randoms(use_true_random=False))
def test_the_order_of_the_seeds_decides_nothing(better, data, random):
    worse = data.draw(st.lists(st.floats(-10, 10), min_size=len(better), max_size=len(better)))
    pairs = list(zip(better, worse, strict=True))
    random.shuffle(pairs)
    found, shuffled = order(better, worse), order(*zip(*pairs, strict=True))
    assert shuffled.difference == pytest.approx(found.difference, abs=1e-9)
    assert shuffled.half_width == pytest.approx(found.half_width, abs=1e-9)


ROWS = [
    Row("plain", 0.721, [0.60, 0.62], [0.50, 0.52]),
    Row("asymmetric", 0.745, [0.61, 0.63], [0.49, 0.53]),
    Row("ours", None, [0.7], []),
]


def test_a_section_worked_out_by_hand():
    # two figures d apart have the half width 12.7062 * d / 2
    claims = [Claim("asymmetric", "plain"), Claim("ours", "plain")]
    rows = [*ROWS[:2], Row("ours", None, [0.7, 0.72], [])]
    assert markdown("Losses", rows, claims).splitlines() == [
        "## Losses",
        "",
        "| system | document | out of fold | hidden test | seeds |",
        "|---|--:|--:|--:|--:|",
        "| plain | 0.721 | 0.610 ± 0.127 | 0.510 ± 0.127 | 2 |",
        "| asymmetric | 0.745 | 0.620 ± 0.127 | 0.510 ± 0.254 | 2 |",
        "| ours | - | 0.710 ± 0.127 | - | 2 |",
        "",
        "Means over seeds ± half of their 95 % interval; larger is better.",
        "Orders are judged by the differences at equal seeds.",
        "",
        "- asymmetric over plain: document +0.024; here +0.010 ± 0.000 out of fold: reproduced; "
        "+0.000 ± 0.127 on the hidden test: undecided",
        "- ours over plain: document -; here +0.100 ± 0.000 out of fold: reproduced; - on the hidden test",
    ]


def test_a_system_of_one_seed_is_shown_without_an_interval():
    found = markdown("Loss", [ROWS[2], Row("not run", 0.05224, [], [])], [Claim("ours", "not run")], digits=4)
    assert "| ours | - | 0.7000 | - | 1 |" in found
    assert "| not run | 0.0522 | - | - | 0 |" in found
    assert "- ours over not run: document -; here - out of fold; - on the hidden test" in found


def test_a_smaller_log_loss_reproduces_a_claim():
    rows = [Row("one", 0.06, [0.30, 0.32, 0.31], []), Row("other", 0.05, [0.20, 0.21, 0.22], [])]
    found = markdown("Log loss", rows, [Claim("other", "one")], larger_is_better=False)
    assert "smaller is better" in found
    assert "- other over one: document -0.010; here -0.100 ± 0.025 out of fold: reproduced" in found


@pytest.mark.parametrize(
    ("rows", "claims", "message"),
    [
        (ROWS, [Claim("asymetric", "plain")], "names 'asymetric'; the systems are plain, asymmetric, ours"),
        ([ROWS[0], ROWS[0]], [], "two systems of one name"),
        (ROWS, [Claim("ours", "plain")], "there are 1 and 2"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(rows, claims, message):
    with pytest.raises(ValueError, match=message):
        markdown("Losses", rows, claims)


words = st.lists(st.sampled_from([*"ab 1|\\`*<>[]()_\n&", "&lt;", "&#9;"]), min_size=1).map(
    lambda parts: f"x{''.join(parts)}x"
)


@given(st.lists(words, min_size=2, max_size=4, unique_by=lambda name: " ".join(name.split())))
def test_no_name_breaks_the_table_or_its_cells(names):
    rows = [Row(name, 0.5, [0.5, 0.6], [0.4, 0.3]) for name in names]
    html = MarkdownIt("commonmark").enable("table").render(markdown(names[0], rows, [Claim(*names[:2])]))
    body = html.split("<tbody>")[1].split("</tbody>")[0]
    assert [row.count("</td>") for row in body.split("</tr>")[:-1]] == [5] * len(names)
    shown = [unescape(row.split("<td>")[1].split("</td>")[0]) for row in body.split("</tr>")[:-1]]
    assert shown == [" ".join(name.split()) for name in names]
    assert html.count("<li>") == 1


def test_an_order_compares_by_value():
    assert order([2, 2], [1, 1]) == Order(1.0, 0.0, "reproduced")

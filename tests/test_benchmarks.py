"""The benchmarks measure what they say: run small, their figures other than times are looked at."""

import json
import math
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import cost, folds, house, memory, race, thresholds
from benchmarks.__main__ import TOPICS, main

ROOT = Path(__file__).parents[1]


# ---- the frame


class Clock:
    """Time that goes on only where a way is called."""

    def __init__(self) -> None:
        self.now, self.called = 0.0, []

    def __call__(self) -> float:
        return self.now

    def way(self, name, *seconds):
        left = list(seconds)

        def run():
            self.called.append(name)
            self.now += left.pop(0)

        return run


def test_a_race_alternates_and_leaves_the_warm_up_out():
    clock = Clock()
    ways = {"ours": clock.way("ours", 9, 1, 2, 4), "other": clock.way("other", 9, 3, 3, 4)}
    found = race.race("name", ways, unit="slices", count=12, rounds=3, clock=clock)
    assert clock.called == ["other", "ours", "ours", "other", "other", "ours", "ours", "other"]
    assert found.seconds == {"ours": [1, 2, 4], "other": [3, 3, 4]}


def test_ratios_are_round_by_round_and_rates_of_the_median():
    one = race.Race("name", "slices", 12, {"ours": [1, 2, 4], "other": [3, 3, 4]}, {"other": 1.4})
    assert one.ratios("other") == [3, 1.5, 1]
    found = one.as_dict()
    assert found["rate"] == {"ours": 6, "other": 4}
    assert found["ours_against"] == {"other": {"median": 1.5, "least": 1, "most": 3, "wanted": 1.4}}


def test_the_table_has_rates_ratio_range_what_was_wanted_and_notes():
    one = race.Race("name", "slices", 1200, {"ours": [1, 2, 4], "other": [3, 3, 4]}, {"other": 1.4}, {"gap": 0}, 0.5)
    head, line, limit, note = race.table([one]).splitlines()
    assert head.split() == ["ours", "other", "ratio", "(range)"]
    assert " ".join(line.split()) == "name / other 600 400 1.5 (1 to 3) wanted 1.4 slices/s"
    assert limit.strip() == "2 s, wanted below 0.5"
    assert note.strip() == "gap: 0"


def test_peak_memory_grows_by_so_many_bytes_a_slice():
    one = race.Peak(
        "stage", "slices", {1_000: 100.0, 3_000: 104.0}, {1_000: 150.0, 3_000: 160.0}, {1_000: 1, 3_000: 2}, 8
    )
    assert one.growth == 4 * 2**20 / 2_000
    assert "1,000: 100 (150)  3,000: 104 (160)   2,097 bytes a slice" in race.table([one])
    assert one.as_dict()["memory"]["3000"] == {"own_mib": 104.0, "largest_mib": 160.0, "seconds": 2}


def test_the_json_has_versions_and_rounds_and_nothing_that_names_the_machine(tmp_path):
    one = race.Race("name", "slices", 12, {"ours": [1, 2], "other": [2, 4]})
    text = race.save(tmp_path / "results", "topic", [one]).read_text()
    found = json.loads(text)
    assert found["races"][0]["seconds"] == {"ours": [1, 2], "other": [2, 4]}
    assert set(found["machine"]) == {"cpu", "cores", "gpu", "python", "versions"}
    assert found["machine"]["versions"]["torch"]
    for word in (str(ROOT), str(tmp_path), Path("/etc/hostname").read_text().strip() or "\0", str(Path.home())):
        assert word not in text.replace("/s", "")


# ---- the topics


@cache
def quick(topic: str) -> list[race.Result]:
    return list(import_module(f"benchmarks.{topic}").races(quick=True))


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_gives_finite_figures_and_names(topic):
    found = quick(topic)
    assert found
    assert len({one.name for one in found}) == len(found)
    for one in found:
        assert one.name
        assert one.unit
        values = json.loads(json.dumps(one.as_dict(), allow_nan=False))  # refuses what is not finite
        if isinstance(one, race.Peak):
            assert all(row["own_mib"] > 0 for row in values["memory"].values())
            continue
        assert one.count > 0
        assert race.OURS in one.seconds
        assert one.others
        assert set(one.wanted) <= set(one.others)
        assert len({len(times) for times in one.seconds.values()}) == 1
        rates = [*values["rate"].values(), *(ratio["median"] for ratio in values["ours_against"].values())]
        assert all(math.isfinite(value) and value > 0 for value in rates)
    assert race.table(found).count("\n") >= len(found) - 1


def test_a_quick_run_prints_a_table_and_saves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "start", "--quick", "--out", str(tmp_path / "results")])
    main()
    assert "ich --help / python -c pass" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("words", "absent"),
    [(["--help"], ["pydantic", "yaml", "numpy"]), (["status", "configs/demo.yaml"], ["numpy", "rich"])],
)
def test_starting_imports_nothing_that_it_does_not_need(words, absent, tmp_path):
    """What the topic start would see as seconds."""
    code = (
        f"import sys; sys.argv[1:] = {words!r}\n"
        "from ich import cli\n"
        "try:\n    cli.main()\nfinally:\n    print(*sys.modules)"
    )
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "typer" in done.stdout
    assert not set(absent) & set(done.stdout.splitlines()[-1].split())


def test_an_unknown_topic_is_named_with_those_there_are(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "fold"])
    with pytest.raises(SystemExit):
        main()
    assert "no such topic: fold; there are prepare," in capsys.readouterr().err


def test_optuna_ends_near_the_exact_optimum_on_the_table_that_is_timed():
    (found,) = quick("thresholds")
    assert set(found.seconds) == {"ours", thresholds.CROSS_FITTED, thresholds.OPTUNA}
    assert 0 <= found.notes["Optuna below the optimum"] <= 5e-4


def test_every_way_to_make_folds_is_judged_by_the_worst_class():
    (found,) = quick("folds")
    assert len(found.notes) == len(found.seconds) == 3
    for worst in found.notes.values():
        assert set(worst) == {*folds.POSITIVES, "any"}
        assert min(worst.values()) >= 0


# ---- memory


def test_what_a_process_holds_is_counted_with_its_children(tmp_path):
    hold = "import time; x = bytearray(%d << 20); time.sleep(0.3)"
    child = hold % 60
    both = f"import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', {child!r}]); {hold % 40}; c.wait()"
    alone, together = (memory.peak([sys.executable, "-c", code], tmp_path) for code in (child, both))
    assert 60 < alone.own < 90
    assert 100 < together.own < 150
    assert alone.own <= alone.largest < 100


def test_a_command_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"ended with 1: .*no such stage"):
        memory.peak([sys.executable, "-c", "raise SystemExit('no such stage')"], tmp_path)


@pytest.mark.slow
def test_every_stage_runs_on_made_up_artefacts(tmp_path, monkeypatch):
    plan = house.prepared(tmp_path, 600)
    house.raw_files(plan)
    house.complete(plan)
    unfinished = [
        task.name for task in plan.all() if not plan.state(task).done and task.stage not in ("prepare", "demo")
    ]
    assert unfinished == ["thresholds", "submit", "score", "explain", "report"]
    monkeypatch.chdir(tmp_path)
    for run in memory.STEPS.values():
        run(600)


# ---- what is worked out


def test_arithmetic_and_kept_maps_of_a_backbone_are_those_of_its_paper():
    from ich.recipe import load

    settings = "cnn.fitted={backbone: resnet34, batch_size: 10, epochs: 3}"
    recipe = load(cost.RECIPE, ["cnn={}", settings, *cost.ALONE])
    (found,) = cost.networks(recipe, 224)
    assert found.flops / 2 == pytest.approx(3.66e9, rel=0.01)  # timm's results: resnet34, 3.7 GMACs, 21.8 M parameters
    assert found.weights == pytest.approx(21.3e6, rel=0.01)  # without the last layer's 1,000 classes
    assert found.device_memory == 20 * found.weights + 10 * found.activations


def test_what_a_run_costs_is_worked_out_of_the_results(tmp_path, monkeypatch):
    from ich.recipe import load

    monkeypatch.setattr(cost, "RESULTS", tmp_path)
    recipe = load(cost.RECIPE, ["folds.n=2"])
    machine = cost.Machine("one", 6e12, 2, 1e9, "said")
    network = cost.Network("net", flops=1e9, activations=2.0**20, weights=2**20, width=10, epochs=1, batch=4)
    said = list(cost.lines(machine, recipe, [network]))
    assert [line.split()[0] for line in said[1:4]] == ["prepare", "stage", "tables"]
    assert all("is not there yet: python -m benchmarks" in line for line in said[1:4])

    prepared = race.Race("prepare, warm", "slices", 100, {"ours": [1.0], "other": [2.0]})
    race.save(tmp_path, "prepare", [prepared])
    said = list(cost.lines(machine, recipe, [network]))
    computed, read = 874_035 / (100 * 2) / 3600, 460 / 3600
    assert f"{max(computed, read):8.2f} h" in said[1]
    # each fold: three passes for each slice that it trains on, one for those that judge, and one for all in the end
    passes = 3 * 0.8 * 752_803 + 0.2 * 752_803 + 874_035
    assert f"{2 * passes * 1e9 / 6e12 / 3600:8.2f} h" in said[4]
    assert "the loader gives 2,000 slices/s" in said[4]
    assert f"{max(computed, read) + 2 * passes * 1e9 / 6e12 / 3600:8.2f} h" in said[5]
    assert network.device_memory == 24 * 2**20


# ---- what the documents say


def test_the_tables_of_the_documents_are_those_of_the_results():
    text = (ROOT / "docs" / "performance.md").read_text()
    said = re.search(r"<!-- results -->\n(.*)<!-- end -->", text, re.DOTALL)
    assert said is not None
    from benchmarks import report

    assert said[1] == report.markdown(), "run `python -m benchmarks.report`"

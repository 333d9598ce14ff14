"""The simulator of the task graph, on graphs whose schedule is worked out by hand, and its bounds on random ones."""

import random
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.scaling import Disks, Slot, critical_path, remaining, simulate
from ich.pipeline.engines import Step
from ich.pipeline.state import Plan
from ich.pipeline.tasks import SHARDS
from ich.recipe import load

ROOT = Path(__file__).parents[1]


def spans(steps, seconds, machines):
    """Start and end of each step."""
    return {slot.name: (slot.start, slot.end) for slot in simulate(steps, lambda name, _: seconds[name], machines)}


def test_a_free_machine_takes_the_first_step_in_line():
    steps, seconds = [Step("a"), Step("b", ("a",)), Step("c"), Step("d")], {"a": 2, "b": 3, "c": 4, "d": 1}
    assert spans(steps, seconds, 1) == {"a": (0, 2), "c": (2, 6), "d": (6, 7), "b": (7, 10)}
    assert spans(steps, seconds, 2) == {"a": (0, 2), "c": (0, 4), "d": (2, 3), "b": (3, 6)}
    assert spans(steps, seconds, 3) == {"a": (0, 2), "c": (0, 4), "d": (0, 1), "b": (2, 5)}
    assert spans(steps[::-1], seconds, 1) == {"d": (0, 1), "c": (1, 5), "a": (5, 7), "b": (7, 10)}


def test_there_are_no_barriers_between_stages():
    folds = [Step("cnn/fold0"), Step("cnn/fold1"), Step("cnn/fold2")]
    steps = [*folds, *(Step(f"sequence/fold{k}", (f"cnn/fold{k}",)) for k in range(3)), Step("cnn", ("cnn/fold2",))]
    seconds = {"cnn/fold0": 3, "cnn/fold1": 5, "cnn/fold2": 4, "sequence/fold0": 1, "sequence/fold1": 1}
    seconds |= {"sequence/fold2": 2, "cnn": 1}
    found = spans(steps, seconds, 2)
    assert found["cnn/fold2"] == (3, 7)
    assert found["sequence/fold0"] == (5, 6)
    assert found["sequence/fold1"] == (6, 7)
    assert (found["sequence/fold2"], found["cnn"]) == ((7, 9), (7, 8))


def test_steps_that_finish_together_free_their_machines_together():
    steps = [Step("a"), Step("b"), Step("c", ("b",)), Step("d", ("a",))]
    found = simulate(steps, lambda name, _: 1, 2)
    assert found[2:] == [Slot("c", 0, 1, 2), Slot("d", 1, 1, 2)]


def test_the_critical_path_is_the_longest_chain():
    steps = [Step("a"), Step("b", ("a",)), Step("c", ("a",)), Step("d", ("b", "c")), Step("e")]
    seconds = {"a": 1, "b": 2, "c": 5, "d": 1, "e": 6.5}
    assert remaining(steps, seconds) == {"a": 7, "b": 3, "c": 6, "d": 1, "e": 6.5}
    assert critical_path(steps, seconds) == ["a", "c", "d"]


def test_the_longest_step_at_the_end_costs_time():
    steps, seconds = [Step("a"), Step("b"), Step("long")], {"a": 2, "b": 2, "long": 4}
    rows = list(scaling.table(steps, seconds, [2], 3.0, lambda: Disks({step.name: {} for step in steps}, seconds, 1)))
    cost = [3 * 2 * hours / 3600 for hours in (6, 4)]
    assert [row.split(" | ")[1] for row in rows[2:]] == ["as in the recipe", "slowest networks first"]
    assert [row.split(" | ")[3] for row in rows[2:]] == ["33%", "0%"]
    assert [row.split(" | ")[5] for row in rows[2:]] == [f"{dollars:,.0f} |" for dollars in cost]


def test_a_machine_pulls_a_file_once_and_pushes_what_others_read():
    steps = [Step("prepare"), *(Step(f"fold{k}", ("prepare",)) for k in range(4))]
    cache = {("prepare", "hu-*.npy"): 100.0}
    disks = Disks(
        {"prepare": {}, **{f"fold{k}": cache for k in range(4)}}, {"prepare": 5} | {f"fold{k}": 7 for k in range(4)}, 10
    )
    assert simulate(steps, disks, 2) == [
        Slot("prepare", 0, 0, 15),
        Slot("fold0", 0, 15, 22),
        Slot("fold1", 1, 15, 32),
        Slot("fold2", 0, 22, 29),
        Slot("fold3", 0, 29, 36),
    ]
    assert disks.moved == {0: 100, 1: 100}


@pytest.mark.parametrize("seed", range(20))
def test_schedules_are_valid_and_within_grahams_bound(seed):
    draw = random.Random(seed)
    names = [f"step{k}" for k in range(draw.randint(1, 40))]
    steps = [Step(name, tuple(draw.sample(names[:k], min(k, draw.randint(0, 3))))) for k, name in enumerate(names)]
    seconds, machines = {name: draw.uniform(0, 10) for name in names}, draw.randint(1, 6)
    slots = simulate(steps, lambda name, _: seconds[name], machines)
    found = {slot.name: slot for slot in slots}
    assert set(found) == set(names)
    assert len(slots) == len(names)
    for step in steps:
        assert all(found[need].end <= found[step.name].start for need in step.needs)
    for one in slots:
        others = [slot for slot in slots if slot.machine == one.machine and slot.start > one.start]
        assert all(one.end <= slot.start for slot in others)
    makespan, work = max(slot.end for slot in slots), sum(seconds.values())
    path = sum(seconds[name] for name in critical_path(steps, seconds))
    assert max(path, work / machines) <= makespan + 1e-9
    assert makespan <= work / machines + (1 - 1 / machines) * path + 1e-9


def test_the_estimate_for_rsna_agrees_with_its_recipe(tmp_path):
    text, plan = (
        (ROOT / "configs" / "rsna2019.yaml").read_text(),
        Plan(load(ROOT / "configs" / "rsna2019.yaml"), tmp_path),
    )
    tasks = {task.name: task for task in plan.all()}
    steps = [Step(name, tuple(dict.fromkeys(up.name for up, _ in task.upstream))) for name, task in tasks.items()]
    seconds, reads = scaling.rsna(plan, steps)
    hours = sum(seconds[name] for name, task in tasks.items() if task.stage == "cnn" and task.fold is not None) / 3600
    assert f"one 80 GB card (A100) {hours:.0f} h" in text
    files = {file: size / 1e9 for read in reads.values() for file, size in read.items()}
    cache, embeddings = (
        files["prepare", SHARDS],
        sum(files[file] for file in files if file[1].endswith(".npy")) - files["prepare", SHARDS],
    )
    assert f"Disk: {cache:.0f} GB of cache, {embeddings:.0f} GB of embeddings" in text


def test_a_workspace_without_records_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"run.json: no record of a finished run. Run `ich run RECIPE`"):
        scaling.recorded(load(ROOT / "configs" / "demo.yaml"), [])

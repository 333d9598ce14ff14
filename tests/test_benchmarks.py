"""The benchmarks run, their arithmetic is right, and docs/background/performance.md shows their saved results."""

import json
import re
import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import gap, gpu, harness, phantom, prepare, runtimes, sequence, stacker, thresholds, workspace
from conftest import plan_of
from ich.cli import app
from ich.console import set_level
from ich.data import dicom
from ich.data.series import series_batch
from tests.plain_slice import HEADER

ROOT = Path(__file__).parents[1]

COMPARISON = {
    "name": "name",
    "unit": "slices",
    "count": 1200,
    "seconds": {"ours": [1.0, 2.0, 4.0], "other": [3.0, 3.0, 4.0]},
}


# ---- the harness


def test_rounds_alternate_and_the_warm_up_is_not_recorded():
    now, called = [0.0], list[str]()

    def way(name, *seconds):
        left = iter(seconds)

        def run():
            called.append(name)
            now[0] += next(left)

        return run

    ways = {"ours": way("ours", 9, 1, 2, 4), "other": way("other", 9, 3, 3, 4)}
    before = way("before", *[100] * 8)
    found = harness.compare("", ways, unit="", count=1, rounds=3, before=before, clock=lambda: now[0])
    assert [name for name in called if name != "before"] == ["other", "ours", "ours", "other"] * 2
    assert found["seconds"] == {"ours": [1, 2, 4], "other": [3, 3, 4]}


def test_tables_show_rates_of_the_median_and_ratios_of_each_round():
    assert harness.table([COMPARISON]).splitlines()[2] == "| name / other | 600 slices/s | 400 slices/s | 1.5, 1 to 3 |"
    once = {**COMPARISON, "count": 1}
    assert harness.table([once]).splitlines()[2] == "| name / other | 2 s | 3 s | 1.5, 1 to 3 |"


def test_memory_at_several_sizes_is_extrapolated_along_the_last_two():
    found = harness.usage("folds", {1_000: (90, 1), 2_000: (100.0, 1), 102_803: (200, 1)})
    head, _, row = harness.table([found]).splitlines()
    assert head == "| peak MiB at slices | 1,000 | 2,000 | 102,803 | 752,803 (extrapolated) |"
    assert row == f"| folds | 90 | 100 | 200 | {200 + 650_000 * 100 / 100_803:,.0f} |"
    assert harness.table([harness.usage("folds", {1_000: (90, 2)})]).splitlines()[2] == "| folds | 2.0 | 90 |"


def test_saved_results_hold_versions_and_nothing_that_identifies_the_machine(tmp_path):
    harness.save(tmp_path / "results" / "training.json", [COMPARISON])
    text = (tmp_path / "results" / "training.json").read_text()
    found = json.loads(text)
    assert found["results"] == [COMPARISON]
    assert set(found["machine"]) == {"cpu", "cores", "gpu", "python", "versions"}
    assert found["machine"]["versions"]["torch"]
    for word in (str(ROOT), str(tmp_path), Path("/etc/hostname").read_text().strip() or "\0", str(Path.home())):
        assert word not in text.replace("/s", "")
    (tmp_path / "page.md").write_text("before <!-- results -->\nold<!-- end --> after")
    harness.update(tmp_path / "page.md", harness.document(tmp_path / "results", command.TOPICS))
    page = (tmp_path / "page.md").read_text()
    assert page.startswith(f"before <!-- results -->\n**training**: {command.TOPICS['training']}\n\n| |")
    assert "old" not in page
    assert page.endswith("(training).\n\n<!-- end --> after")


def test_peak_memory_includes_child_processes(tmp_path):
    hold = "import time; x = bytearray(%d << 20); time.sleep(0.3)"
    child = hold % 60
    both = f"import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', {child!r}]); {hold % 40}; c.wait()"
    alone, together = (harness.measure([sys.executable, "-c", code], tmp_path)[0] for code in (child, both))
    assert 60 < alone < 90
    assert 100 < together < 150


def test_a_failing_command_is_an_error_with_its_output(tmp_path):
    with pytest.raises(RuntimeError, match=r"exit code 1: .*no such stage"):
        harness.measure([sys.executable, "-c", "raise SystemExit('no such stage')"], tmp_path)


# ---- the topics


@pytest.fixture
def small(one_core, monkeypatch):
    """Few small images and trials; commands run in this process, with made-up usage."""

    def run(words, folder):
        with chdir(folder):
            app(list(words[3:]), standalone_mode=False)
        return 1.0, 1.0

    monkeypatch.setattr(workspace, "measure", run)
    monkeypatch.setattr(prepare, "RECIPE", prepare.RECIPE.replace("slices: 32, size: 512", "slices: 4, size: 64"))
    monkeypatch.setattr(thresholds, "TRIALS", 40)
    yield
    set_level("normal")


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("topic", command.TOPICS)
def test_every_topic_runs_and_its_results_are_finite(topic):
    found = list(import_module(f"benchmarks.{topic}").run(quick=True))
    assert len({one["name"] for one in found}) == len(found) > 0
    json.dumps(found, allow_nan=False)
    for one in found:
        numbers = [s for way in one.get("seconds", {}).values() for s in way]
        numbers += [value for row in one.get("slices", {}).values() for value in row.values()]
        assert numbers
        assert min(numbers) > 0
    assert len(harness.table(found).splitlines()) >= len(found) + 2
    if topic == "thresholds":
        assert 0 <= found[0]["notes"]["Optuna below the optimum"] <= 5e-3


def test_runtimes_are_compared_for_each_network(trained, monkeypatch):
    monkeypatch.setattr(runtimes, "THREADS", (1,))
    results = [runtimes.measured(plan_of(trained), name, 1) for name in ("small", "inside")]
    assert [len(one["seconds"]) for one in results] == [4, 2]
    lines = runtimes.table(results)
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| small", "| inside"]
    assert all(line.count("|") == lines[0].count("|") for line in lines[:4])
    assert all(one["notes"]["largest difference"] < 1e-4 for one in results)


def test_both_stackers_have_the_same_features_and_one_model_per_class():
    data = stacker.table(700)
    assert data.groupby("study").size()[:-1].between(20, 57).all()
    logits = data.filter(like="model").to_numpy().reshape(700, stacker.MODELS, stacker.CLASSES)
    x, y = stacker.our_features(data, logits), data.filter(like="label").to_numpy()
    assert x.shape == (700, 112)
    np.testing.assert_allclose(stacker.pandas_features(data), x, rtol=1e-5, atol=1e-6)
    ours, others = stacker.our_models(x, y, logits.mean(axis=1)), stacker.plain_models(x, y)
    assert len(ours) == len(others) == stacker.CLASSES
    for text, other in zip(ours, others, strict=True):
        assert text.count("Tree=") == other.booster_.num_trees() == stacker.ROUNDS


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_plain_network_has_the_same_outputs(cell):
    studies = sequence.random_studies(3, 16)
    *inputs, targets, mask = (torch.stack(parts) for parts in zip(*sequence.PaddedStudies(studies), strict=True))
    batch, ours, plain = series_batch(studies, np.arange(3)), sequence.head(cell, 16), sequence.PlainNetwork(cell, 16)
    torch.nn.init.normal_(ours.residual.weight)
    plain.load_state_dict({key.replace("residual", "linear"): value for key, value in ours.state_dict().items()})
    alone = [plain(*(part[[k], :length] for part in inputs))[0] for k, length in enumerate(batch.lengths)]
    torch.testing.assert_close(torch.cat(alone), batch.real(ours.eval()(*batch.inputs)), rtol=1e-4, atol=1e-5)
    assert torch.equal(targets[mask > 0], batch.targets)


# ---- the script for a GPU


@pytest.mark.usefixtures("one_core")
def test_the_script_for_a_gpu_runs_on_a_cpu(tmp_path, monkeypatch, capsys):
    (tmp_path / "test_one.py").write_text("def test_one(): pass")
    monkeypatch.setattr(gpu, "TESTS", str(tmp_path / "test_one.py"))
    monkeypatch.setattr(gpu, "SKIPPED", 1)
    monkeypatch.setattr(gpu, "PROBED", 1)
    monkeypatch.setattr(gpu, "write_tables", lambda: pytest.fail("the documentation has been changed"))
    monkeypatch.setattr(sys, "argv", ["gpu", "--quick", "--out", str(tmp_path / "gpu.json")])
    assert gpu.main() == 0
    set_level("normal")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [one["name"].partition(",")[0] for one in found["results"]] == ["fit", "fit", "loader", "prediction"]
    assert all(s > 0 for one in found["results"] for way in one["seconds"].values() for s in way)
    assert len(found["results"][0]["seconds"]["ours"]) == gpu.QUICK_ROUNDS
    assert found["tests"]["exit_code"] == 0
    assert found["tests"]["summary"].startswith("1 passed")
    assert found["left_out"] == {}
    assert "/ bare forward |" in capsys.readouterr().out


def test_the_clock_starts_after_the_first_steps(monkeypatch):
    done = list[int]()
    monkeypatch.setattr(gpu, "now", lambda: len(done))
    assert gpu.steps(lambda: done.append(1), 4) == 4
    assert len(done) == gpu.SKIPPED + 4


def test_rounds_end_with_the_time_and_a_failed_topic_is_left_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])

    def topic(seconds):
        return SimpleNamespace(seconds=seconds, measure=lambda: now.__setitem__(0, now[0] + seconds))

    def fails():
        raise torch.OutOfMemoryError("out of memory\nThe allocator's table")

    builders = {"slow": lambda: topic(40), "fails": fails, "quick": lambda: topic(10)}
    found, left_out = gpu.conduct(builders, 5, ends=155)
    assert (now[0], found.keys()) == (150, {"slow", "quick"})
    shorter = "2 of 5 rounds, because the time is up"
    assert left_out == {"fails": "out of memory", "slow": shorter, "quick": shorter}


def test_results_are_ratios_to_the_last_way():
    ways = dict.fromkeys(("fit", "loader", "bare step"), lambda: 0.0)
    found = [{"fit": (2.0, 300.0), "loader": (1.25, 0.0), "bare step": (1.0, 200.0)}]
    assert harness.table(gpu.Topic("net", "slices", 10, ways, found).results()).splitlines()[2:] == [
        "| fit, net / bare step | 5 slices/s | 10 slices/s | 0.5, 0.5 to 0.5 |",
        "| peak memory of fit, net / bare step | 300 MiB | 200 MiB | 0.667, 0.667 to 0.667 |",
        "| loader, net / bare step | 8 slices/s | 10 slices/s | 0.8, 0.8 to 0.8 |",
    ]


# ---- the command


def test_a_quick_run_prints_a_table_and_saves_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "stacker", "--quick"])
    monkeypatch.setattr(command, "import_module", lambda _: SimpleNamespace(run=lambda quick: [COMPARISON] * quick))
    monkeypatch.setattr(harness, "save", lambda *_: pytest.fail("saved"))
    command.main()
    set_level("normal")
    assert "| name / other |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "absent"),
    [(["--help"], ["pydantic", "yaml", "numpy"]), (["status", "configs/demo.yaml"], ["numpy", "pandas", "torch"])],
)
def test_ich_starts_without_importing_what_it_does_not_need(words, absent, tmp_path):
    code = f"import sys\nfrom ich import cli\nsys.argv[1:] = {words!r}\n"
    code += "try:\n    cli.main()\nfinally:\n    print(*sys.modules)"
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "typer" in done.stdout
    assert not set(absent) & set(done.stdout.splitlines()[-1].split())


def test_the_docs_have_the_tables_of_the_saved_results():
    page = (ROOT / "docs" / "background" / "performance.md").read_text()
    shown = re.search(r"<!-- results -->\n(.*)<!-- end -->", page, re.DOTALL)
    assert shown is not None
    assert shown[1] == harness.document(command.RESULTS, command.SHOWN)


# ---- statistics of the phantom


def test_statistics_of_a_slice_are_those_of_a_known_head():
    """A head of 80 mm radius with 8 mm of bone, 30 HU and noise inside, and a head-rest around it."""
    y, x = np.mgrid[-127.75:128:0.5, -127.75:128:0.5]
    radius, rng = np.hypot(x, y), np.random.default_rng(0)
    hu = np.where(radius < 80, np.where(radius < 72, 30.0, 1000.0), -1000.0).astype(np.float32)
    hu[np.abs(radius - 100) < 1] = 200
    white = rng.standard_normal(hu.shape).astype(np.float32)
    noise = white + np.roll(white, 1, axis=1)  # neighbours share a half
    found = phantom.slice_statistics(hu + noise, 0.5)
    assert found["head area, cm2"] == pytest.approx(np.pi * 8**2, rel=0.02)
    assert found["skull thickness, mm"] == pytest.approx(8, abs=0.3)
    assert found["HU inside: median"] == pytest.approx(30, abs=0.1)
    assert found["bone: median HU"] == pytest.approx(1000, abs=1)
    assert found["share above 80 HU"] == 0
    assert found["noise correlation"] == pytest.approx(0.5, abs=0.1)
    assert found["aspect of the inside"] == pytest.approx(1, abs=0.02)
    assert set(found) == set(list(phantom.REAL)[3:])


def test_a_phantom_like_the_real_slices_agrees_and_another_does_not():
    like = {name: [low, low, middle, high, high] for name, (low, middle, high) in phantom.REAL.items()}
    other = {name: [value + 1000 for value in values] for name, values in like.items()}
    assert all("| yes | 100% |" in row for row in list(phantom.table(like))[2:])
    assert all("| no | 0% |" in row for row in list(phantom.table(other))[2:])


# ---- a classifier of real and phantom series


@pytest.mark.parametrize("count", [12, 13, 40])
def test_blocks_of_slices_are_tested_once_and_apart_from_those_trained_on(count):
    parts = list(gap.splits(count))
    assert (np.sum([test for _, test in parts], axis=0) == 1).all()
    for train, test in parts:
        distance = np.abs(np.subtract.outer(np.flatnonzero(train), np.flatnonzero(test)))
        assert distance.min() == 2
        assert np.flatnonzero(test).size == np.ptp(np.flatnonzero(test)) + 1


def test_series_are_read_in_order_and_one_with_shifted_hu_is_found(tmp_path):
    """Heads that become smaller towards the vertex; one is 5 HU denser. A shorter series of its patient is ignored."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[-55.5:56, -55.5:56]
    for patient, brain in enumerate((35, 30, 30, 30, 30)):
        for k in range(12 + (patient == 0)):
            radius = np.hypot(x, y) * (1 + k / 300)
            hu = np.where(radius < 50, np.where(radius < 44, brain, 1000), -1000) + rng.normal(0, 3, x.shape)
            of = {"patient_id": f"{patient}", "series_id": f"{patient}.{k == 12}", "position": (0.0, 0.0, float(k))}
            header = replace(HEADER, image_id=f"1.{patient}.{k}", **of)
            (tmp_path / f"{patient}").mkdir(exist_ok=True)
            dicom.write(tmp_path / f"{patient}" / f"{7 * k % 13}.dcm", hu.astype(np.int16), header)
    shifted, *others = [series for k in range(5) if (series := gap.read(tmp_path / f"{k}"))]
    assert [len(others), len(shifted.grey), len(shifted.statistics)] == [4, 12, 12]
    assert (np.diff(shifted.statistics[:, 0]) < 0).all()
    for k in range(2):
        auc, distance = gap.separation(shifted[k], [one[k] for one in others])
        assert auc == 1
        assert distance > 5
        assert gap.separation(others[0][k], [one[k] for one in others[1:]])[1] < 2


def test_a_folder_without_a_series_is_none(tmp_path):
    assert gap.read(tmp_path) is None


def test_phantoms_have_the_noise_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(gap, "SIZE", 128)
    few, noisy = (next(gap.rendered(7, True, {"noise": noise})) for noise in (1.0, 9.0))
    column = gap.STATISTICS.index("local noise, HU")
    assert noisy.statistics[:, column].mean() > 1.5 * few.statistics[:, column].mean()


def test_each_phantom_is_measured_against_the_other_phantoms():
    cells = gap.compared(lambda one, others: (one - np.mean(others),), 2.5, [1.0, 2.0, 3.0])
    assert list(cells) == ["0.50", "-1.35 0.00 1.35", "1"]


def test_the_table_names_the_statistic_that_tells_and_finds_no_difference_without_it():
    rng = np.random.default_rng(1)
    real, *phantoms = (
        gap.Series(rng.normal(size=(24, len(gap.STATISTICS))), *rng.normal(size=(2, 24, 4))) for _ in "123456"
    )
    real.statistics[:, gap.STATISTICS.index("local noise, HU")] -= 6
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in gap.tables(real, phantoms) if "|" in line]
    found = {row[0]: row[1:] for row in rows}
    assert found["statistics"][::2][:2] == found["local noise, HU"][::2] == ["1.00", "0"]
    for name in ("without local noise, HU", "grey levels", "fine detail"):
        assert 0.35 < float(found[name][0]) < 0.65
        assert 0.4 < float(found[name][1].split()[1]) < 0.6
    assert rows[7][0] == "local noise, HU"

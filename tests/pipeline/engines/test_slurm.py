"""The SLURM engine: its jobs as processes of this machine, and what it submits to a sbatch that only takes notes."""

import os
import re
import signal
import threading
from pathlib import Path

import pytest
import submitit

from ich.errors import UserError
from ich.pipeline.engines import Step
from ich.pipeline.engines import slurm as engine
from tests.pipeline.engines.fake import STEPS, Fake, recipe

ROOT = Path(__file__).parents[3]
COMMANDS = {
    "sbatch": 'cd "$NOTES"; n=$((100 + $(ls *.sh 2>/dev/null | wc -l))); cp "$1" $n.sh; echo Submitted batch job $n',
    "sacct": 'cat "$NOTES/states"',
    "sinfo": "echo '(null)'; echo gpu:a100:4",
    "srun": "",
}


@pytest.fixture
def notes(tmp_path, monkeypatch) -> Path:
    """Folder in which a cluster of SLURM keeps its jobs, which it never runs, and their states."""
    folder = tmp_path / "notes"
    folder.mkdir()
    monkeypatch.setenv("NOTES", str(folder))
    monkeypatch.setattr(submitit.SlurmJob, "watcher", type(submitit.SlurmJob.watcher)(delay_s=0))
    monkeypatch.setattr(submitit.SlurmJob, "_results_timeout_s", 0)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, text in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return folder


def states(notes: Path, **known: str) -> None:
    """Write what sacct prints: PENDING, unless another state is given by the name of a step."""
    lines = []
    for path in sorted(notes.glob("*.sh")):
        (name,) = re.findall(r"--job-name=mine:(\S+)", path.read_text())
        lines.append(f"{path.stem}|{known.get(name, 'PENDING')}|")
    (notes / "states").write_text("\n".join(["JobID|State|NodeList", *lines]))


def leave(_: float) -> None:
    raise KeyboardInterrupt


def submit(root: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[Step, ...] = STEPS, **sections: object) -> None:
    """Submit jobs, then end as by Ctrl-C."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine.time, "sleep", leave)
        list(engine.run(steps, Fake(root), recipe(**sections), root))


def options(notes: Path) -> dict[str, dict[str, str]]:
    """Options of sbatch of each submitted job, by the name of its step."""
    found = {}
    for path in sorted(notes.glob("*.sh")):
        given = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", path.read_text(), re.MULTILINE))
        found[given["job-name"].removeprefix("mine:")] = {"id": path.stem, **given}
    return found


def test_all_steps_are_submitted_at_once_after_the_jobs_that_they_need(notes, tmp_path, monkeypatch):
    slurm = {"partition": "long", "memory": 32, "time": 90, "cores": 12, "parameters": {"qos": "high"}}
    submit(tmp_path, monkeypatch, slurm=slurm, compute={"gpus_per_fold": 0.5})
    jobs = options(notes)
    assert next(iter(jobs)) == "prepare"
    assert jobs.keys() == {step.name for step in STEPS}
    for step in STEPS:
        after = ":".join(["afterok", *(jobs[name]["id"] for name in step.needs)])
        assert jobs[step.name].get("dependency") == (after if step.needs else None)
    fold, prepare = jobs["cnn/a/fold0"], jobs["prepare"]
    assert {"partition": "long", "mem": "32GB", "time": "90", "qos": "high"}.items() <= fold.items()
    assert {"requeue": "", "kill-on-invalid-dep": "yes", "signal": "USR2@90"}.items() <= fold.items()
    assert (fold["gpus-per-node"], fold["cpus-per-task"]) == ("1", "1")
    assert "gpus-per-node" not in prepare
    assert prepare["cpus-per-task"] == "12"


def test_a_second_call_uses_the_jobs_of_the_first(notes, tmp_path, monkeypatch):
    submit(tmp_path, monkeypatch)
    jobs = options(notes)
    assert jobs["cnn/a/fold0"]["gpus-per-node"] == "1", "the partition has GPUs"
    submit(tmp_path, monkeypatch, (Step("chunk"),))  # by `ich predict` at the same time
    states(notes, prepare="RUNNING")
    submit(tmp_path, monkeypatch)
    assert options(notes).keys() - jobs.keys() == {"chunk"}
    assert options(notes).items() >= jobs.items()
    states(notes, **{"cnn/a/fold1": "CANCELLED by 1000"})
    submit(tmp_path, monkeypatch)
    new = {name for name, job in options(notes).items() if job != jobs.get(name)}
    assert new == {"chunk", "cnn/a/fold1", "cnn/a", "submit"}
    submit(tmp_path, monkeypatch, slurm={"memory": 64})
    assert len(list(notes.glob("*.sh"))) == 2 * len(STEPS) + 4, "other settings: other jobs"


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("OUT_OF_MEMORY", "memory ran out; raise slurm.memory"),
        ("CANCELLED by 1000", "cancelled"),
        ("BOOT_FAIL", "no result, state BOOT_FAIL"),
    ],
)
def test_a_job_without_result_fails_with_its_state_and_log(notes, tmp_path, monkeypatch, state, why):
    submit(tmp_path, monkeypatch)
    states(notes)
    results = engine.run(STEPS, Fake(tmp_path), recipe(), tmp_path)
    monkeypatch.setattr(engine.time, "sleep", lambda _: states(notes, prepare=state, **{"cnn/bad": "CANCELLED"}))
    (result,) = results
    log = tmp_path / "oof/mine/logs/slurm/100_0_log.err"
    assert (result.name, result.machine, result.error) == ("prepare", "job 100", f"{why} (log: {log})")


def test_a_refusal_of_sbatch_is_an_error_of_one_line(notes, tmp_path, monkeypatch):
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    with pytest.raises(
        UserError, match=r"^prepare: SLURM does not accept the job \(sbatch: error: invalid partition\)"
    ):
        list(engine.run(STEPS, Fake(tmp_path), recipe(), tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="no sbatch on this machine"):
        list(engine.run(STEPS, Fake(tmp_path), recipe(), tmp_path))


def test_an_interrupted_job_runs_again_and_a_failed_one_stops_only_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")
    monkeypatch.setattr(submitit.LocalJob, "_results_timeout_s", 0)
    monkeypatch.setattr(engine, "POLL", 0.1)
    make = Fake(tmp_path)
    interrupting = threading.Thread(target=lambda: os.kill(make.lost()[0], signal.SIGUSR2))
    interrupting.start()
    needing = {"bad": "prepare", "bug": "prepare", "killed": "prepare", "lost": "prepare", "end": "lost", "no": "bad"}
    steps = [Step("prepare"), *(Step(name, (needed,)) for name, needed in needing.items())]
    brief = recipe(slurm={"cluster": "local", "time": 5})  # submitit counts an interruption as the end of the time
    results = {result.name: result for result in engine.run(steps, make, brief, tmp_path)}
    interrupting.join()
    assert {name: result.error.partition(" (log: ")[0] for name, result in results.items()} == {
        "prepare": "",
        "bad": "bad is not readable",
        "bug": "KeyError: 'x'",
        "killed": "no result, state FINISHED",
        "lost": "",
        "end": "",
    }
    assert make.made == ["prepare", "lost", "end"]
    log = results["bug"].error.partition(" (log: ")[2].removesuffix(")")
    assert "KeyError: 'x'" in Path(log).read_text()
    assert (tmp_path / "oof/mine/logs/slurm").stat().st_mode & 0o077 == 0

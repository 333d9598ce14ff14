"""Submit each step as a SLURM job. SLURM gets the dependencies, so no process must keep running here.

submitit pickles `make` with its recipe, and the `Result`, in oof/<recipe>/logs/slurm, which only its owner can write.
"""

import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import submitit

from ich.errors import UserError
from ich.pipeline.engines import Make, Result, Step, attempt, ready
from ich.recipe import Recipe
from ich.store.hashes import digest
from ich.store.paths import Workspace
from ich.store.records import read_record, write_record

RESUMED = 10  # times that a job is queued again at the end of slurm.time
POLL = 2.0  # seconds between two checks of the jobs
WAITING = ("PENDING", "RUNNING", "REQUEUED", "CONFIGURING", "COMPLETING", "PREEMPTED", "SUSPENDED")
REASONS = {
    "TIMEOUT": "not finished within slurm.time",
    "OUT_OF_MEMORY": "memory ran out; raise slurm.memory",
    "NODE_FAIL": "its node failed",
    "CANCELLED": "cancelled",
}
Job = submitit.Job[Result]


class Task(submitit.helpers.Checkpointable):
    """A step as a job. After a preemption, and at the end of slurm.time, it is queued again.

    Training then resumes after its last finished epoch. A failed step fails its job, and SLURM cancels those after it.
    """

    def __call__(self, make: Make, name: str) -> Result:
        result = attempt(make, name)
        if result.error:
            raise UserError(result.error)
        return result


def run(steps: Sequence[Step], make: Make, recipe: Recipe, root: Path) -> Iterator[Result]:
    """Submit all steps, then yield their results. Jobs of an earlier call that wait or run are used again."""
    local = recipe.slurm.cluster == "local"  # submitit's local executor has no dependencies
    if not local and not shutil.which("sbatch"):
        raise UserError("--engine slurm: no sbatch on this machine. Run the command on a login node of the cluster")
    folder = Workspace(root, recipe.name).oof.absolute() / "logs" / "slurm"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings, gpus = recipe.model_dump(mode="json"), _gpus(recipe)
    noted = {step.name: folder / f"{digest([settings, step.name])[:16]}.json" for step in steps}
    jobs: dict[str, Job] = {} if local else _waiting(steps, noted)
    most = (recipe.compute.processes or os.cpu_count() or 1) if local else len(steps)
    finished, failed = set[str](), set[str]()
    while True:
        left = most - len(jobs.keys() - finished - failed)
        if begin := ready(steps, finished if local else set(jobs), set(jobs))[:left]:
            for step in begin:
                jobs[step.name] = _submit(step, make, recipe, folder, gpus, [jobs[name].job_id for name in step.needs])
                write_record(noted[step.name], {"job": jobs[step.name].job_id})
            continue
        watched = [step for step in steps if step.name in jobs and step.name not in finished | failed]
        if not watched:
            return
        for step in watched:
            if failed.intersection(step.needs):
                failed.add(step.name)
            elif finished.issuperset(step.needs) and jobs[step.name].done():
                result = _result(step.name, jobs[step.name])
                (failed if result.error else finished).add(step.name)
                yield result
        time.sleep(POLL)


def _gpus(recipe: Recipe) -> int:
    """Return the GPUs of a fold, which SLURM allocates whole: by default 1 if the partition has any."""
    if recipe.compute.gpus_per_fold is not None:
        return math.ceil(recipe.compute.gpus_per_fold)
    if recipe.slurm.cluster == "local":
        return 0
    partition = [f"--partition={recipe.slurm.partition}"] if recipe.slurm.partition else []
    command = ["sinfo", "--noheader", "--format=%G", *partition]
    return int("gpu" in subprocess.run(command, check=False, capture_output=True, text=True).stdout)


def _waiting(steps: Sequence[Step], noted: Mapping[str, Path]) -> dict[str, Job]:
    """Return the jobs of an earlier call that wait or run, if those of all steps that they need do so too."""
    known = {name: (path.parent, record["job"]) for name, path in noted.items() if (record := read_record(path))}
    jobs = {name: submitit.SlurmJob(*job) for name, job in known.items()}
    waiting = {name: job for name, job in jobs.items() if job.state.split(" ")[0] in WAITING}
    used: dict[str, Job] = {}
    while more := [step.name for step in ready(steps, set(used), set(used)) if step.name in waiting]:
        used |= {name: waiting[name] for name in more}
    return used


def _submit(step: Step, make: Make, recipe: Recipe, folder: Path, gpus: int, after: list[str]) -> Job:
    settings = recipe.slurm
    order = {"dependency": ":".join(["afterok", *after])} if after else {}
    try:
        executor = submitit.AutoExecutor(folder, settings.cluster, slurm_max_num_timeout=RESUMED)
        executor.update_parameters(
            name=f"{recipe.name}:{step.name}",
            timeout_min=settings.time,
            mem_gb=settings.memory,
            cpus_per_task=step.cores or settings.cores,
            gpus_per_node=(step.on_gpu and gpus) or None,
            slurm_partition=settings.partition,
            slurm_account=settings.account,
            slurm_additional_parameters={"kill-on-invalid-dep": "yes", "requeue": True, **order, **settings.parameters},
        )
        return executor.submit(Task(), make, step.name)
    except (RuntimeError, ValueError) as error:  # sbatch or submitit refuses it
        why = " ".join(str(error).split())
        raise UserError(f"{step.name}: SLURM does not accept the job ({why}). See `slurm` in the recipe") from None


def _result(name: str, job: Job) -> Result:
    """Return the result of a job that has ended, with the reason and the log of a failure."""
    error = job.exception()
    if error is None:
        return job.result()
    trace = re.search(r"-{22}\n(.*)\n-{22}\nYou can check", str(error), re.DOTALL)
    if trace:
        _, known, why = trace[1].strip().rpartition("ich.errors.UserError: ")
        why = why if known else why.rpartition("\n")[2]
    else:
        why = REASONS.get(job.state.split(" ")[0], f"no result, state {job.state}")
    return Result(name, f"job {job.job_id}", 0, why if "(log: " in why else f"{why} (log: {job.paths.stderr})")

"""`ich run`: make everything that is not up to date, in dependency order, on this machine or on a cluster.

Unlike `run_all.sh`, it has no barriers between stages: a fold of a sequence model starts as soon as the folds that it
reads are finished.
"""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path

from ich.console import duration, say, time_left, warn, whole
from ich.data.cache import PARTS
from ich.errors import UserError
from ich.pipeline import engines, exchange
from ich.pipeline.engines import Step
from ich.pipeline.runner import label, make_task
from ich.pipeline.state import IN_STORE, Plan
from ich.pipeline.untrainable import untrainable
from ich.recipe import Recipe, Training
from ich.stages import demo, prepare, status, transfer

HEADERS_STEP = "prepare/headers"  # step of a cluster: the slice table
PART_STEP = "prepare/part"  # of a cluster: a part of the pixels
NETWORKS_STEP = "networks"  # step that builds every network once, before the first is trained
WHOLE = ("prepare", "pretrain", "predict")  # stages that use all cores of a machine
QUICK = 0.1  # expected time of a step that is not slow; in the demo 0.13 for a fold of a sequence model, less for most


def run(plan: Plan, engine: str, recipe: str) -> None:
    """Run all steps that are out of date. Raises UserError at the end if some have failed.

    recipe: the file, for `ich changes`.
    """
    begun = time.monotonic()
    run_steps = engines.engine(engine)
    if plan.recipe.demo:
        demo.run(plan)
    plan = _exchanged(plan)
    status.changes(plan, recipe)
    steps, labels = steps_of(plan, in_parts=engine != "local")
    if not steps:
        say("run: everything is up to date")
    make = partial(make_step, plan.recipe, plan.root.absolute(), engine != "local")
    done, failed = set[str](), list[str]()
    with whole("run", {label: time_of(plan, name) for name, label in labels.items()}, "steps") as finished:
        for result in run_steps(steps, make, plan.recipe, plan.root) if steps else ():
            if result.error:
                failed.append(result.name)
                warn(f"{result.name} failed on {result.machine}: {result.error}")
                continue
            done.add(result.name)
            finished(labels[result.name])
            took = f"in {duration(result.seconds)} on {result.machine}"
            say(f"run: {result.name} finished {took} ({len(done)} of {len(steps)}){time_left()}")
    if failed:
        waiting = len(steps) - len(done) - len(failed)
        raise UserError(
            f"failed: {', '.join(failed)}; {waiting} steps that need these were not run. Correct the errors above and"
            " rerun the same command; finished work is kept"
        )
    if plan.recipe.competition.trained_by is not None:
        return
    plan = _exchanged(plan)
    for task in (plan.thresholds, plan.submit, plan.score, plan.explain, plan.report):
        if plan.state(task).why == IN_STORE:
            plan.pull(((task, ("*",)),))
    status.results(plan, round(time.monotonic() - begun))


def _exchanged(plan: Plan) -> Plan:
    """Exchange small files with the store, if there is one, and use the cache of the raw files that are here."""
    if plan.remote is not None:
        exchange.pull_shared(plan, plan.remote)
    plan = Plan(plan.recipe, plan.root)
    if plan.raw_is_here and plan.finished(prepared := plan.prepare()):
        plan.point_to(prepared)
    if plan.remote is not None:
        exchange.push_shared(plan, plan.remote)
    return Plan(plan.recipe, plan.root)


def time_of(plan: Plan, step: str) -> float:
    """Expected time of a step; 1 for slow ones: folds of networks that read images, and stages that read all images."""
    stage, *rest = step.split("/")
    fitted = len(rest) == 2 or (len(rest) == 1 and rest[0] in plan.recipe.pretrain)
    slow = plan.settings_of(rest[0]).reads_images if fitted else stage in ("prepare", "predict")
    return 1.0 if slow else QUICK


# ---- the steps


def steps_of(plan: Plan, *, in_parts: bool = False) -> tuple[list[Step], dict[str, str]]:
    """Return the steps that are out of date, each after those that it needs, and their names in progress messages.

    A step that needs such a step is included: its inputs may change. It ends at once if they do not.
    in_parts: divide `prepare` into steps for several machines.
    """
    steps: dict[str, Step] = {}
    labels: dict[str, str] = {}
    for task in plan.all():
        needs = [upstream.name for upstream, _ in task.upstream if upstream.name in steps]
        if task.stage == "demo" or (not needs and (plan.finished(task) or plan.state(task).why == IN_STORE)):
            continue
        if task.stage == "prepare" and in_parts:
            parts = [f"{PART_STEP}{number:02}" for number in range(PARTS)]
            steps[HEADERS_STEP] = Step(HEADERS_STEP, cores=None)
            steps |= {part: Step(part, (HEADERS_STEP,)) for part in parts}
            labels |= {name: name for name in (HEADERS_STEP, *parts)}
            needs = parts
        fitted = task.fold is not None or task.model in plan.recipe.pretrain
        network = fitted and isinstance(plan.settings_of(task.model), Training)
        if network:
            if NETWORKS_STEP not in steps:
                steps[NETWORKS_STEP] = Step(
                    NETWORKS_STEP, tuple(name for name in ("prepare", "folds") if name in steps)
                )
                labels[NETWORKS_STEP] = NETWORKS_STEP
            needs.append(NETWORKS_STEP)
        cores = None if task.stage in WHOLE else plan.recipe.compute.threads
        steps[task.name] = Step(
            task.name, tuple(dict.fromkeys(needs)), cores, on_gpu=network or task.stage == "explain"
        )
        labels[task.name] = label(task) if task.fold is not None else task.name
    return list(steps.values()), labels


def make_step(recipe: Recipe, root: Path, cluster: bool, name: str) -> None:
    """Make the task of this name on this machine, if it is out of date.

    cluster: print to oof/<recipe>/logs/<name>.log.
    """
    plan = Plan(recipe, engines.workspace(root) if cluster else root)
    with _log(plan.workspace.oof / "logs" / f"{name}.log") if cluster else nullcontext():
        if plan.remote is not None:
            exchange.pull_shared(plan, plan.remote, strict=cluster)
        _make(Plan(recipe, plan.root), name, cluster)


def _make(plan: Plan, name: str, cluster: bool) -> None:
    outside = plan.recipe.competition.trained_by is not None
    if name == NETWORKS_STEP:
        record = plan.record_of(plan.prepared)
        if found := untrainable(plan, len(record["classes"]), record["values"]):
            raise UserError("\n".join(f"{where}: {why}" for where, why in found.items()))
    elif name == "prepare":
        transfer.fetch_raw(plan, () if cluster else None)
        prepare.run(plan, parts=cluster)
    elif name == HEADERS_STEP:
        prepare.make_headers(plan)
    elif name.startswith(PART_STEP):
        prepare.make_part(plan, int(name.removeprefix(PART_STEP)))
    elif "/" in name:
        make_task(plan, name)
    elif name == "predict":
        import_module("ich.stages.predict").run_outside(plan)
    else:
        transfer.fetch_raw(plan, ())
        import_module(f"ich.stages.{'score_outside' if outside and name == 'score' else name}").run(plan)
    if name in ("prepare", "folds") and plan.remote is not None:  # the pointer to the cache, the key of pseudonyms
        exchange.push_shared(Plan(plan.recipe, plan.root), plan.remote)


@contextmanager
def _log(path: Path) -> Iterator[None]:
    """Write what the block prints to a file. Any other error than a UserError becomes one that names the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            raise UserError(f"{why} (log: {path})") from None

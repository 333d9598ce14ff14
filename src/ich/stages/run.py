"""`ich run`: make everything that is not up to date, in dependency order, on this machine or on a cluster.

Unlike `run_all.sh`, it has no barriers between stages: a fold of a sequence model starts as soon as the folds that it
reads are finished.
"""

import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path

from ich.console import duration, say, time_left, warn, whole
from ich.errors import UserError
from ich.pipeline.engines import NAMES, Make, Result, Step
from ich.pipeline.runner import label, make_task
from ich.pipeline.state import Plan
from ich.pipeline.untrainable import untrainable
from ich.recipe import Recipe, Training
from ich.stages import status

CHECK = "networks"  # step that builds every network once, before the first is trained
WHOLE = ("demo", "prepare", "pretrain", "predict")  # stages that use all cores of a machine
ROOT = "ICH_ROOT"  # environment variable: the folder with input, folds, oof and submissions on a machine of a cluster


def run(plan: Plan, engine: str, recipe: str) -> None:
    """Run all steps that are out of date. Raises UserError at the end if some have failed.

    recipe: the file, for `ich changes`.
    """
    begun = time.monotonic()
    run_steps = _engine(engine)
    status.changes(plan, recipe)
    steps, labels = steps_of(plan)
    if not steps:
        say("run: everything is up to date")
    make = partial(make_step, plan.recipe, plan.root.absolute(), engine != "local")
    done, failed = set[str](), dict[str, Result]()
    with whole("run", list(labels.values())) as finished:
        for result in run_steps(steps, make, plan.recipe, plan.root):
            if result.error:
                failed[result.name] = result
                warn(f"{result.name} failed on {result.machine}: {result.error}")
                continue
            done.add(result.name)
            finished(labels[result.name])
            took = f"in {duration(result.seconds)} on {result.machine}"
            say(f"run: {result.name} finished {took} ({len(done)} of {len(steps)}){time_left()}")
    plan.forget()
    if failed:
        waiting = len(steps) - len(done) - len(failed)
        raise UserError(
            f"failed: {', '.join(failed)}; {waiting} steps that need these were not run. Correct the errors above and"
            " rerun the same command; finished work is kept"
        )
    status.results(plan, round(time.monotonic() - begun))


def _engine(name: str) -> Callable[[Sequence[Step], Make, Recipe, Path], Iterator[Result]]:
    if name not in NAMES:
        raise UserError(f"--engine {name}: unknown engine. Choose from {', '.join(NAMES)}")
    try:
        return import_module(f"ich.pipeline.engines.{name}").run
    except ModuleNotFoundError as error:
        raise UserError(f"--engine {name} requires {error.name}. Install it: pip install 'ich[cluster]'") from None


# ---- the steps


def steps_of(plan: Plan) -> tuple[list[Step], dict[str, str]]:
    """Return the steps that are out of date, each after those that it needs, and their names in progress messages.

    A step that needs such a step is included: its inputs may change. It ends at once if they do not.
    """
    steps: dict[str, Step] = {}
    labels: dict[str, str] = {}
    for task in plan.all():
        needs = [upstream.name for upstream, _ in task.upstream if upstream.name in steps]
        needs += ["demo"] if task.stage == "prepare" and "demo" in steps else []
        if not needs and plan.finished(task):
            continue
        network = bool(task.model) and isinstance(plan.settings_of(task.model), Training)
        if network and task.files != plan.assembled(task.model).files:
            if CHECK not in steps:
                steps[CHECK] = Step(CHECK, tuple(name for name in ("prepare", "folds") if name in steps))
                labels[CHECK] = CHECK
            needs.append(CHECK)
        cores = None if task.stage in WHOLE else plan.recipe.compute.threads
        steps[task.name] = Step(
            task.name, tuple(dict.fromkeys(needs)), cores, on_gpu=network or task.stage == "explain"
        )
        labels[task.name] = label(task) if task.fold is not None else task.name
    return list(steps.values()), labels


def make_step(recipe: Recipe, root: Path, logged: bool, name: str) -> None:
    """Make the task of this name on this machine, if it is out of date.

    logged: print to oof/<recipe>/logs/<name>.log.
    """
    plan = Plan(recipe, Path(os.environ.get(ROOT, root)))
    if not logged:
        _make(plan, name)
        return
    with _log(plan.workspace.oof / "logs" / f"{name}.log"):
        _make(plan, name)


def _make(plan: Plan, name: str) -> None:
    outside = plan.recipe.competition.trained_by is not None
    if name == CHECK:
        record = plan.record_of(plan.prepared)
        if found := untrainable(plan, len(record["classes"]), record["values"]):
            raise UserError("\n".join(f"{where}: {why}" for where, why in found.items()))
    elif "/" in name:
        make_task(plan, name)
    elif name == "predict":
        import_module("ich.stages.predict").run_outside(plan)
    else:
        import_module(f"ich.stages.{'score_outside' if outside and name == 'score' else name}").run(plan)


@contextmanager
def _log(path: Path) -> Iterator[None]:
    """Write what the block prints to a file. Any other error than a UserError becomes one that names the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            yield
        except UserError:
            traceback.print_exc()
            raise
        except Exception as error:
            traceback.print_exc()
            raise UserError(f"{type(error).__name__}: {error}. See {path}") from None

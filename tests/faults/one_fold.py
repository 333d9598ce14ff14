"""One fold retrained: independent artifacts keep their bytes, dependent ones are stale until they are remade.

Dependencies are computed here from the inputs of the tasks, not from their states.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from ich.pipeline.state import Plan
from tests.faults.trials import Outcome
from tests.faults.workspaces import (
    Reference,
    Stamp,
    as_expected,
    contents,
    copied,
    ich,
    left_behind,
    plan_of,
    records,
    rewritten,
    run_all,
)

CASES = 8  # the same settings or another learning rate, two backbones, two folds


def trial(number: int, *, folder: Path, finished: Path, reference: Reference) -> Outcome:
    """Retrain a fold of a finished workspace, then run all stages with both learning rates."""
    other, model, fold = number % 2 == 1, ("resnet", "resnext")[number // 2 % 2], number // 4 % 2
    rate = ("--set", f"cnn.{model}.learning_rate=0.001") if other else ()
    this, both = f"cnn/{model}/fold{fold}", {f"cnn/{model}/fold{k}" for k in (0, 1)}
    root = copied(finished, folder / f"one_fold{number}")
    before, stood = contents(root), records(root)

    done = ich(root, "cnn", "--model", model, "--fold", str(fold), "--force", *rate)
    faults = [] if done.returncode == 0 else [f"ich cnn: exit code {done.returncode}: {done.stderr[-300:]}"]
    changed = {name for name, content in contents(root).items() if before.get(name) != content}
    own = f"oof/tiny/{model}/fold{fold}/"
    faults += [f"{name} was changed" for name in changed if not name.startswith(own)]
    if other:
        if f"{own}model.safetensors" not in changed:
            faults.append("another learning rate gave the same network")
        faults += _states(plan_of(root), {this}, ())
        faults += _states(plan_of(root, *rate[1:]), both, {this, f"{this}/train"})
    else:
        faults += [f"{name} has other bytes" for name in changed if not name.endswith("run.json")]
    if other:
        faults += _run_again(root, stood, {this}, ())
    faults += as_expected(root, reference)
    if other:
        faults += _run_again(root, records(root), both, rate)
        faults += _states(plan_of(root, *rate[1:]), (), ())
    faults += left_behind(root)
    if not faults:
        shutil.rmtree(root)
    return Outcome(number, "another rate" if other else "the same settings", this, tuple(faults[:10]))


def dependants(plan: Plan, names: Iterable[str]) -> set[str]:
    """Return these tasks and all that read them, directly or not."""
    found = set(names)
    for task in plan.all():  # in dependency order
        if any(upstream.name in found for upstream, _ in task.upstream):
            found.add(task.name)
    return found


def _states(plan: Plan, changed: Iterable[str], made: Iterable[str]) -> list[str]:
    """Check that tasks that depend on changed ones, except those made since, are stale and all others done."""
    expected = dependants(plan, changed) - set(made)
    wrong = [task.name for task in plan.all() if plan.state(task).done == (task.name in expected)]
    return [f"{name} should{'' if name in expected else ' not'} be stale" for name in wrong]


def _run_again(root: Path, stood: Mapping[str, Stamp], changed: Iterable[str], words: tuple[str, ...]) -> list[str]:
    """Run all stages. Records of tasks that do not depend on the changed ones must not be rewritten."""
    plan = plan_of(root, *words[1:])
    away = dependants(plan, changed)
    kept = {task.record.path.relative_to(root).as_posix() for task in plan.all() if task.name not in away}
    faults = [*run_all(root, words, f"again{len(words)}").ended(3600)]
    return faults + rewritten({name: stamp for name, stamp in stood.items() if name in kept}, root)

"""Run steps on this machine: single folds in worker processes, steps that use all cores in this process."""

import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import nullcontext
from pathlib import Path

from ich import console
from ich.pipeline.engines import Make, Result, Step, attempt, ready
from ich.pipeline.state import Plan
from ich.processes import can_share_locks, workers
from ich.recipe import Recipe


def run(steps: Sequence[Step], make: Make, recipe: Recipe, root: Path) -> Iterator[Result]:
    """Run the steps and yield their results. See `ich.pipeline.engines`."""
    plan = Plan(recipe, root)
    alone = plan.processes == 1 or not can_share_locks()
    pool = nullcontext() if alone else workers(plan.processes, threads=recipe.compute.threads, gpus=plan.gpus)
    begun, finished, running = set[str](), set[str](), dict[Future[Result], str]()
    with pool as submit:
        while True:
            here: list[Step] = []
            for step in ready(steps, finished, begun):
                if submit is None or step.cores is None:
                    here.append(step)
                else:
                    running[submit(attempt, make, step.name)] = step.name
                    begun.add(step.name)
            if here:
                begun.add(here[0].name)
                results = [attempt(make, here[0].name)]
            elif running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                results = [_result(running.pop(future), future) for future in done]
                console.catch_up()
            else:
                return
            for result in results:
                finished |= set() if result.error else {result.name}
                yield result


def _result(name: str, done: Future[Result]) -> Result:
    try:
        return done.result()
    except BrokenExecutor:  # all running steps fail then
        why = "a worker process was killed, perhaps because memory ran out. Use fewer processes: compute.processes"
        return Result(name, platform.node(), 0, why)

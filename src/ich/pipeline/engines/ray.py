"""Run steps on the Ray cluster of RAY_ADDRESS or of this machine; if there is none, on processes that Ray starts here.

Ray pickles what it sends between its own processes: the name of a step, `make` with its recipe, and a `Result`.
"""

import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from ich.console import warn
from ich.errors import UserError
from ich.pipeline.engines import Make, Result, Step, attempt, ready
from ich.recipe import Recipe

RETRIES = 5  # of a step whose worker or node was lost; an error of the step itself is not retried


def run(steps: Sequence[Step], make: Make, recipe: Recipe, root: Path) -> Iterator[Result]:
    """Make each step in a Ray task as soon as the steps that it needs have finished."""
    finished, begun, running = set[str](), set[str](), dict[ray.ObjectRef, Step]()
    with _connection():
        task = ray.remote(max_retries=RETRIES)(attempt)
        while True:
            for step in ready(steps, finished, begun):
                begun.add(step.name)
                running[task.options(name=step.name, **_resources(step, recipe)).remote(make, step.name)] = step
            if not running:
                return
            (done, *_), _ = ray.wait(list(running))
            result = _result(running.pop(done).name, done)
            if not result.error:
                finished.add(result.name)
            yield result


@contextmanager
def _connection() -> Iterator[None]:
    """Connect to Ray, and restore our handler of SIGTERM, which Ray replaces."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    address, handler = os.environ.get("RAY_ADDRESS", ""), signal.getsignal(signal.SIGTERM)
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "://" not in host:  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]
        if not address:
            raise UserError(f"Ray cannot start on this machine: {why}") from None
        raise UserError(f"RAY_ADDRESS={address}: {why}. Use host:port of a running cluster, or unset it") from None
    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _resources(step: Step, recipe: Recipe) -> dict[str, float]:
    """Return what a step reserves. `all of a machine` is the smallest node, so that a lost node needs no equal one."""
    nodes: list[dict[str, Any]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = min([node["CPU"] for node in nodes if node.get("CPU")], default=1)
    gpus = max([0, *(node.get("GPU", 0) for node in nodes)])
    wanted = recipe.compute.gpus_per_fold
    if wanted is None:
        wanted = min(1, gpus)
    if step.on_gpu and wanted > gpus:
        warn("no node has a GPU (compute.gpus_per_fold): GPU steps wait until one joins", once=True)
    return {"num_cpus": min(step.cores or cores, cores), "num_gpus": wanted if step.on_gpu else 0}


def _result(name: str, done: ray.ObjectRef) -> Result:
    try:
        return ray.get(done)
    except OutOfMemoryError:
        why = "memory ran out on its node; lower batch_size or use larger nodes"
    except RayTaskError as error:  # before the step began: an import, for instance
        why = str(error).strip().rpartition("\n")[2]
    except RayError as error:
        why = f"its worker or node was lost {RETRIES + 1} times ({type(error).__name__})"
    return Result(name, "unknown machine", 0, why)

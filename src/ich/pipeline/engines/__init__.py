"""Engines run the steps of `ich run` on one machine, on a Ray cluster or on a SLURM cluster.

Each engine is a module with the function `run(steps, make, recipe, root)`. It yields a result as soon as a step has
finished or failed. It calls `make(name)` for a step once all steps in its `needs` have finished. A step that needs a
failed one is not run and yields nothing. Steps are idempotent: an engine may run one twice, on any machine.
"""

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ich.errors import UserError
from ich.recipe import Recipe

NAMES = ("local", "ray", "slurm")
Make = Callable[[str], None]
"""Makes a step by its name. Can be pickled. Raises UserError for an error that the user can fix."""


@dataclass(frozen=True)
class Step:
    """One task: its name, the steps that it needs, and what it uses of a machine."""

    name: str
    needs: tuple[str, ...] = ()
    cores: int | None = 1  # CPU threads; None: all cores of the machine
    on_gpu: bool = False  # uses `compute.gpus_per_fold` of a GPU if there is one


@dataclass(frozen=True)
class Result:
    """A finished or failed step."""

    name: str
    machine: str
    seconds: float
    error: str = ""  # empty if the step has finished


Engine = Callable[[Sequence[Step], Make, Recipe, Path], Iterator[Result]]


def engine(name: str) -> Engine:
    """Return the function `run` of an engine. Raises UserError if it is unknown or its library is not installed."""
    if name not in NAMES:
        raise UserError(f"--engine {name}: unknown engine. Choose from {', '.join(NAMES)}")
    try:
        return import_module(f"ich.pipeline.engines.{name}").run
    except ModuleNotFoundError as error:
        raise UserError(f"--engine {name} requires {error.name}. Install it: pip install 'ich[cluster]'") from None


def workspace(root: Path) -> Path:
    """Return the folder with input, folds, oof and submissions on this machine: ICH_ROOT, or that of the driver."""
    return Path(os.environ.get("ICH_ROOT", root))


def attempt(make: Make, name: str) -> Result:
    """Make a step on this machine. An error that the user can fix becomes part of the result."""
    started, error = time.perf_counter(), ""
    try:
        make(name)
    except UserError as failure:
        error = str(failure)
    except (OSError, MemoryError) as failure:
        error = " ".join(f"{type(failure).__name__}: {failure}".split())
    return Result(name, platform.node(), time.perf_counter() - started, error)


def ready(steps: Iterable[Step], finished: set[str], begun: set[str]) -> list[Step]:
    """Return the steps that can begin: not begun yet, and all that they need has finished."""
    return [step for step in steps if step.name not in begun and finished.issuperset(step.needs)]

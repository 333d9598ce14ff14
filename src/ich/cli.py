"""The `ich` commands. Nothing heavy is imported here: each command imports its stage when it is called."""

import inspect
import json
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` knows better: no traceback out of the imports

import typer  # noqa: E402

from ich import console  # noqa: E402

if TYPE_CHECKING:
    from ich.pipeline.plan import Plan

app = typer.Typer(
    name="ich",
    help="Head-CT hemorrhage competitions, from DICOM slices to a submission.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="a YAML file below configs/")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a key, as cnn.resnet.epochs=8"),
]
Force = Annotated[bool, typer.Option("--force", help="redo what is named, even if it is done")]
Model = Annotated[str | None, typer.Option("--model", help="only this member")]
Fold = Annotated[int | None, typer.Option("--fold", help="only this fold, counted from 0")]
LEVELS = {
    "quiet": Annotated[bool, typer.Option("--quiet", help="say only warnings, errors and what was asked for")],
    "verbose": Annotated[bool, typer.Option("--verbose", help="say also what is decided, and why")],
}


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command of its function's name and options, and of --quiet and --verbose, which all of them have."""
    signature = inspect.signature(function)

    @wraps(function)
    def called(quiet: bool, verbose: bool, **given: Any) -> None:
        if quiet and verbose:
            from ich.errors import UserError

            raise UserError("--quiet and --verbose: give one of the two")
        console.set_level("quiet" if quiet else "verbose" if verbose else "normal")
        function(**given)

    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in LEVELS.items()
    ]
    called.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # pyright: ignore
    app.command(function.__name__)(called)
    return function


def _plan(recipe: Path, overrides: list[str] | None) -> "Plan":
    from ich.pipeline.plan import Plan
    from ich.recipe import load

    return Plan(load(recipe, overrides or []), Path.cwd())


@command
def status(recipe: RecipePath, overrides: Set = None) -> None:
    """Every artefact: done | stale (and why) | missing | running | killed."""
    from ich.stages import status as stage

    stage.run(_plan(recipe, overrides))


@command
def verify(recipe: RecipePath, overrides: Set = None) -> None:
    """Read every artefact in full: its hashes, and what it promises. Exit code 0 sound, 2 not."""
    from ich.stages import verify as stage

    raise typer.Exit(stage.run(_plan(recipe, overrides)))


@command
def demo(recipe: RecipePath, overrides: Set = None, force: Force = False) -> None:
    """Write the synthetic competition."""
    from ich.stages import demo as stage

    stage.run(_plan(recipe, overrides), force=force)


@command
def check(recipe: RecipePath, overrides: Set = None) -> None:
    """Read every file and table, change nothing, say what is wrong. Exit code 0 clean, 1 warnings, 2 errors."""
    from ich.stages import check as stage

    raise typer.Exit(stage.run(_plan(recipe, overrides)))


@command
def prepare(recipe: RecipePath, overrides: Set = None, force: Force = False) -> None:
    """Raw files -> Hounsfield cache, slice table and quarantine list."""
    from ich.stages import prepare as stage

    stage.run(_plan(recipe, overrides), force=force)


@command
def folds(recipe: RecipePath, overrides: Set = None, force: Force = False) -> None:
    """Folds by patient, balanced over the classes."""
    from ich.stages import folds as stage

    stage.run(_plan(recipe, overrides), force=force)


@command
def pretrain(recipe: RecipePath, model: Model = None, overrides: Set = None, force: Force = False) -> None:
    """SimCLR on all slices, without labels: weights that a backbone may start from."""
    from ich.stages import pretrain as stage

    stage.run(_plan(recipe, overrides), model=model, force=force)


@command
def cnn(
    recipe: RecipePath, model: Model = None, fold: Fold = None, overrides: Set = None, force: Force = False
) -> None:
    """Stage 1: train backbones, save out-of-fold and test embeddings and logits."""
    from ich.stages import cnn as stage

    stage.run(_plan(recipe, overrides), model=model, fold=fold, force=force)


@command
def end_to_end(
    recipe: RecipePath, model: Model = None, fold: Fold = None, overrides: Set = None, force: Force = False
) -> None:
    """Train backbones and recurrent heads as one network, whole studies at a time."""
    from ich.stages import end_to_end as stage

    stage.run(_plan(recipe, overrides), model=model, fold=fold, force=force)


@command
def sequence(
    recipe: RecipePath, model: Model = None, fold: Fold = None, overrides: Set = None, force: Force = False
) -> None:
    """Stage 2: train LSTM and GRU models over each study."""
    from ich.stages import sequence as stage

    stage.run(_plan(recipe, overrides), model=model, fold=fold, force=force)


@command
def smooth(recipe: RecipePath, overrides: Set = None, force: Force = False) -> None:
    """The members' mean logit, smoothed along the study."""
    from ich.stages import smooth as stage

    stage.run(_plan(recipe, overrides), force=force)


@command
def stack(recipe: RecipePath, overrides: Set = None, force: Force = False) -> None:
    """LightGBM over the members' out-of-fold logits."""
    from ich.stages import stack as stage

    stage.run(_plan(recipe, overrides), force=force)


@command
def blend(recipe: RecipePath, overrides: Set = None, force: Force = False) -> None:
    """One prediction of the members, calibrated."""
    from ich.stages import blend as stage

    stage.run(_plan(recipe, overrides), force=force)


@command
def thresholds(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="a YAML file below configs/")] = None,
    metric: Annotated[str | None, typer.Option(help="f1, f2, f0.5, ...: f and beta")] = None,
    trials: Annotated[int | None, typer.Option(help="Optuna trials a class")] = None,
    table: Annotated[Path | None, typer.Option(help="not a recipe: <class>, prob_<class>, fold, patient_id")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="with --table: the JSON to write")] = None,
    overrides: Set = None,
    force: Force = False,
) -> None:
    """Search a threshold a class that maximises an F score."""
    from ich.errors import UserError
    from ich.stages import thresholds as stage

    if recipe is not None and out is not None:
        raise UserError("--out goes with --table; a recipe's thresholds go to oof/<recipe>/thresholds.json")
    options = {"metric": metric, "trials": trials}
    given = [f"thresholds.{key}={value}" for key, value in options.items() if value is not None]
    if (recipe is None) == (table is None):
        raise UserError("give a recipe, or --table FILE (.parquet or .csv); one of the two")
    if recipe is not None:
        stage.run(_plan(recipe, [*(overrides or []), *given]), force=force)
    elif table is not None:
        from ich.recipe import table_thresholds

        stage.run_on_table(table, table_thresholds([*(overrides or []), *given]), out)


@command
def submit(recipe: RecipePath, overrides: Set = None, force: Force = False) -> None:
    """Write the submission, checked against the sample submission."""
    from ich.stages import submit as stage

    stage.run(_plan(recipe, overrides), force=force)


@command
def score(recipe: RecipePath, overrides: Set = None, force: Force = False) -> None:
    """Scores of every member with intervals, out of fold and on the solution where there is one."""
    from ich.stages import score as stage
    from ich.stages import score_outside

    plan = _plan(recipe, overrides)
    outside = plan.recipe.competition.trained_by is not None
    (score_outside if outside else stage).run(plan, force=force)


@command
def explain(recipe: RecipePath, overrides: Set = None, force: Force = False) -> None:
    """Pictures of what the networks look at, and the labels that look wrong."""
    from ich.stages import explain as stage

    stage.run(_plan(recipe, overrides), force=force)


@command
def report(
    recipe: RecipePath,
    study: Annotated[
        list[str] | None, typer.Option("--study", help="a study for the page's viewer; as report.studies=[...]")
    ] = None,
    overrides: Set = None,
    force: Force = False,
) -> None:
    """One page to look at: the scores, their figures, the worst mistakes, a viewer of studies."""
    from ich.stages import report as stage

    given = [f"report.studies={json.dumps(study)}"] if study else []
    stage.run(_plan(recipe, [*(overrides or []), *given]), force=force)


@command
def predict(
    recipe: RecipePath,
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="a folder with DICOM files at any depth, or one file")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="the CSV to write")] = None,
    overrides: Set = None,
    force: Force = False,
) -> None:
    """Score a folder of DICOM files with the trained ensemble; without PATH, the scans of a recipe with trained_by."""
    from ich.errors import UserError
    from ich.stages import predict as stage

    plan = _plan(recipe, overrides)
    if plan.recipe.competition.trained_by is not None and path is None and out is None:
        stage.run_outside(plan, force=force)
    elif path is None or out is None or plan.recipe.competition.trained_by is not None:
        raise UserError("give PATH and -o OUT.csv; neither with a recipe that has competition.trained_by")
    else:
        stage.run(plan, path, out)


@command
def ablate(recipe: RecipePath, overrides: Set = None) -> None:
    """Run the systems that a recipe's ablation lists, with several seeds, and write one table. Goes on where it was."""
    from ich.stages import ablate as stage
    from ich.stages import (
        blend,
        cnn,
        demo,
        end_to_end,
        folds,
        prepare,
        pretrain,
        score,
        sequence,
        smooth,
        stack,
        thresholds,
    )

    for plan in stage.runs(recipe, overrides or [], Path.cwd()):
        console.say(f"\n== {plan.recipe.name}")
        members = (pretrain, cnn, end_to_end, sequence, smooth, stack, blend)
        for step in (demo, prepare, folds, *members, thresholds, score):
            step.run(plan)
    stage.table(recipe, overrides or [], Path.cwd())


def main() -> None:
    """Run a command; what the user can mend is one line a fault, without a traceback."""
    from ich import ranks
    from ich.errors import ADVICE, UserError, refused
    from ich.processes import interruptible

    try:
        with interruptible("interrupted; what was finished is kept: the same command goes on from there", ranks.heard):
            if ranks.launched():
                from ich.pipeline.plan import SHARED

                ranks.run(app, shared=sys.argv[1:2] != [] and sys.argv[1] in {*SHARED, "ablate"})
            else:
                app()
    except UserError as error:
        _end(str(error))
    except ValueError as error:
        from ich.recipe import RecipeError  # not before: `ich --help` needs no recipe, and reads none

        if not isinstance(error, RecipeError):
            raise
        _end(str(error))
    except OSError as error:  # a full disk, a folder that may not be read, no file handles left
        if error.filename is None and error.errno not in ADVICE:
            raise
        _end(str(refused(error.filename or "this machine", error)))
    except MemoryError as error:
        _end(f"out of memory ({error}); what was finished is kept: run the same again with less beside it")


def _end(message: str) -> None:
    from ich import ranks

    for line in message.splitlines():
        print(f"error: {console.visible(line)}", file=sys.stderr)
    ranks.leave(2)


if __name__ == "__main__":
    main()

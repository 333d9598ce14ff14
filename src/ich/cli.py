"""The `ich` commands. Nothing heavy is imported here: each command imports its stage when it is called."""

import inspect
import json
import signal
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` handles it: no traceback out of the imports

import typer  # noqa: E402

from ich import console  # noqa: E402
from ich.errors import ADVICE, UserError, refused  # noqa: E402

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
Model = Annotated[str | None, typer.Option("--model", help="only this model")]
Fold = Annotated[int | None, typer.Option("--fold", help="only this fold, counted from 0")]
LEVELS = {
    "quiet": Annotated[bool, typer.Option("--quiet", help="print warnings, errors and results only")],
    "verbose": Annotated[bool, typer.Option("--verbose", help="print also what is decided, and why")],
}


def command(function: Callable[..., None], name: str = "", help: str = "") -> None:
    """Add a command with the options of the function, --quiet and --verbose."""
    signature = inspect.signature(function)

    @wraps(function)
    def called(quiet: bool, verbose: bool, **given: Any) -> None:
        if quiet and verbose:
            raise UserError("--quiet and --verbose: give one of the two")
        console.set_level("quiet" if quiet else "verbose" if verbose else "normal")
        function(**given)

    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in LEVELS.items()
    ]
    called.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # pyright: ignore
    app.command(name or function.__name__, help=help or None)(called)


def _plan(recipe: Path, overrides: list[str] | None) -> Any:
    from ich.pipeline.state import Plan
    from ich.recipe import load

    return Plan(load(recipe, overrides or []), Path.cwd())


def _stage(name: str, text: str, task: Callable[[Any], Any] | None = None) -> None:
    """A command that runs stages/<name>.py and has no options of its own.

    task: the task of the stage in a plan. Where it is finished, the stage and its libraries are not imported.
    """

    def run(recipe: RecipePath, overrides: Set = None, force: Force = False) -> None:
        plan = _plan(recipe, overrides)
        known = None if task is None or force else task(plan)  # once: for prepare it lists all raw files
        if known is not None and plan.finished(known):
            console.say(f"{name}: done, {known.folder}")
        else:
            import_module(f"ich.stages.{name}").run(plan, force=force)

    command(run, name, text)


def _look(name: str, module: str, text: str) -> None:
    """A command that changes nothing; what it returns is the exit code."""

    def run(recipe: RecipePath, overrides: Set = None) -> None:
        raise typer.Exit(import_module(module).run(_plan(recipe, overrides)) or 0)

    command(run, name, text)


def _models(stage: str, text: str) -> None:
    """A command that fits the models of one section of the recipe."""

    def run(
        recipe: RecipePath, model: Model = None, fold: Fold = None, overrides: Set = None, force: Force = False
    ) -> None:
        plan = _plan(recipe, overrides)
        tasks = plan.tasks_of(stage, model, fold)
        if force or not plan.all_finished(tasks):
            from ich.pipeline.runner import run_stage

            run_stage(plan, stage, model=model, fold=fold, force=force)
        elif tasks:
            console.say(f"{stage}: done, {len(tasks)} {'models' if stage == 'pretrain' else 'folds'}")

    command(run, stage, text)


def _prepared(plan: Any) -> Any:
    """The cache of the raw files as they are now, which the later stages of the recipe then use."""
    task = plan.prepare()
    if plan.finished(task):
        plan.point_to(task)
    return task


_look("status", "ich.stages.status", "Every artifact: done | stale (and why) | missing | running | killed.")
_look("verify", "ich.pipeline.verify", "Check every artifact against its hash and its rules. Exit code 0 sound, 2 not.")
_look(
    "check",
    "ich.stages.check",
    "Check every raw file and table, change nothing. Exit code 0 clean, 1 warnings, 2 errors.",
)
_stage("demo", "Write the synthetic competition.")
_stage("prepare", "Raw files -> Hounsfield cache, slice table and quarantine list.", _prepared)
_stage("folds", "Folds by patient, balanced over the classes.")
_models("pretrain", "SimCLR on all slices, without labels: weights that a backbone may start from.")
_models("cnn", "Stage 1: train backbones, write out-of-fold and test embeddings and logits.")
_models("end_to_end", "Train backbones and recurrent heads as one network, whole studies at a time.")
_models("sequence", "Stage 2: train LSTM and GRU models over the slices of each study.")
_models("external", "Predictions from elsewhere, such as a teammate's model, joined by image id.")
_models("smooth", "Mean logit of the inputs, smoothed along the study.")
_models("stack", "LightGBM over the out-of-fold logits of the inputs.")
_models("blend", "One prediction from all models, calibrated.")


def thresholds(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="a YAML file below configs/")] = None,
    metric: Annotated[str | None, typer.Option(help="f1, f2, f0.5, ...: f and beta")] = None,
    trials: Annotated[int | None, typer.Option(help="Optuna trials per class")] = None,
    table: Annotated[Path | None, typer.Option(help="not a recipe: <class>, prob_<class>, fold, patient_id")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="with --table: the JSON to write")] = None,
    overrides: Set = None,
    force: Force = False,
) -> None:
    """Tune one threshold per class for an F score."""
    from ich.recipe import table_thresholds
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
        stage.run_on_table(table, table_thresholds([*(overrides or []), *given]), out)


command(thresholds)
_stage("submit", "Write the submission, checked against the sample submission.")


def score(recipe: RecipePath, overrides: Set = None, force: Force = False) -> None:
    """Scores of every model with 95 % confidence intervals, out of fold and on the solution where there is one."""
    plan = _plan(recipe, overrides)
    outside = plan.recipe.competition.trained_by is not None
    import_module(f"ich.stages.{'score_outside' if outside else 'score'}").run(plan, force=force)


command(score)
_stage("explain", "Grad-CAM of the networks, the embedding map, and labels that look wrong.", lambda plan: plan.explain)


def report(
    recipe: RecipePath,
    study: Annotated[
        list[str] | None, typer.Option("--study", help="a study for the page's viewer; as report.studies=[...]")
    ] = None,
    overrides: Set = None,
    force: Force = False,
) -> None:
    """One page: scores, plots, errors, and a viewer of studies."""
    given = [f"report.studies={json.dumps(study)}"] if study else []
    plan = _plan(recipe, [*(overrides or []), *given])
    if force or not plan.finished(plan.report):
        import_module("ich.stages.report").run(plan, force=force)
    else:
        console.say(f"report: done, {plan.workspace.submissions / 'report.html'}")


command(report)


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
    from ich.stages import predict as stage

    plan = _plan(recipe, overrides)
    if plan.recipe.competition.trained_by is not None and path is None and out is None:
        stage.run_outside(plan, force=force)
    elif path is None or out is None or plan.recipe.competition.trained_by is not None:
        raise UserError("give PATH and -o OUT.csv; neither with a recipe that has competition.trained_by")
    else:
        stage.run(plan, path, out)


command(predict)


def ablate(recipe: RecipePath, overrides: Set = None) -> None:
    """Train the systems of a recipe's ablation with several seeds, and write one table. Resumes where it was."""
    from ich.stages import ablate as stage

    stage.run(recipe, overrides or [], Path.cwd())


command(ablate)


def main() -> None:
    """Run a command; what the user can fix is one line per error, without a traceback."""
    from ich.processes import interruptible

    try:
        with interruptible("interrupted; finished work is kept: rerun the same command to resume"):
            app()
    except UserError as error:
        _end(str(error))
    except OSError as error:  # a full disk, a folder that may not be read, no file handles left
        if error.filename is None and error.errno not in ADVICE:
            raise
        _end(str(refused(error.filename or "this machine", error)))
    except MemoryError as error:
        _end(f"out of memory ({error}); finished work is kept: rerun with less beside it")


def _end(message: str) -> None:
    for line in message.splitlines():
        print(f"error: {console.visible(line)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

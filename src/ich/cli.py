"""The `ich` commands. Each one imports its stage when it is called, since torch and pandas take seconds to import."""

import inspect
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback from the imports; `main` handles it later

import typer  # noqa: E402
from typer.core import TyperGroup  # noqa: E402

from ich import console  # noqa: E402
from ich.errors import ADVICE, UserError, refused  # noqa: E402

GROUPS = {  # of the commands, in `ich --help`
    "Pipeline": ("run", "status", "changes", "results"),
    "Data": ("demo", "check", "prepare", "folds"),
    "Models": ("pretrain", "cnn", "end_to_end", "sequence", "external", "smooth", "stack", "blend", "ablate"),
    "Results": ("thresholds", "submit", "score", "explain", "report"),
    "New scans": ("predict", "export", "serve"),
    "Workspace": ("verify", "push", "pull", "clean"),
}


class Grouped(TyperGroup):
    """The commands by group."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        for title, names in GROUPS.items():
            with formatter.section(title):
                limit = formatter.width - width - 6
                rows = [(f"{name:{width}}", self.commands[name].get_short_help_str(limit)) for name in names]
                formatter.write_dl(rows)


app = typer.Typer(
    name="ich",
    cls=Grouped,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Intracranial hemorrhage detection on head CT, from DICOM files to a Kaggle submission.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"ich {version('ich')}")
        raise typer.Exit


@app.callback()
def options(
    asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options that need no command."""


RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file, such as configs/demo.yaml")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a setting, such as cnn.resnet.epochs=8")
]
Force = Annotated[bool, typer.Option("--force", help="run again, even if up to date")]
Model = Annotated[str | None, typer.Option("--model", help="only this model")]
Fold = Annotated[int | None, typer.Option("--fold", help="only this fold, counted from 0")]
LEVELS = {
    "quiet": Annotated[bool, typer.Option("--quiet", help="print only warnings, errors and results")],
    "verbose": Annotated[bool, typer.Option("--verbose", help="also print decisions and their reasons")],
}


def command(function: Callable[..., None], name: str = "", help: str = "") -> Callable[..., None]:
    """Register a command with the options of the function plus --quiet and --verbose. Return the function."""
    signature = inspect.signature(function)

    @wraps(function)
    def called(quiet: bool, verbose: bool, **given: Any) -> None:
        if quiet and verbose:
            raise UserError("--quiet and --verbose exclude each other; use one")
        console.set_level("quiet" if quiet else "verbose" if verbose else "normal")
        function(**given)

    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in LEVELS.items()
    ]
    called.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # pyright: ignore
    app.command(name or function.__name__, help=help or None)(called)
    return function


def _plan(recipe: Path, overrides: list[str] | None) -> Any:
    from ich.pipeline.state import Plan
    from ich.recipe import load

    return Plan(load(recipe, overrides or []), _root())


def _root() -> Path:
    """Return the working folder, which holds input, folds, oof and submissions.

    Raises UserError in a subfolder of the repository, unless it is such a folder too.
    """
    from ich.recipe.loading import REPOSITORY

    here = Path.cwd()
    if (REPOSITORY / "run_all.sh").is_file() and REPOSITORY in here.parents and not (here / "input").is_dir():
        raise UserError(f"{here} has no folder input. Run the command in the repository: cd {REPOSITORY}")
    return here


def _say_how_to_keep(recipe: Path, stage: str, overrides: list[str] | None) -> None:
    """Print the lines of the recipe that keep those overrides that change the settings of a stage."""
    from ich.recipe import how_to_write

    sections = ("image", "competition") if stage == "prepare" else (stage,)
    given = (one.partition("=") for one in overrides or [])
    changes = [(key, value) for key, _, value in given if key.partition(".")[0] in sections]
    if changes:
        said = how_to_write(changes)
        console.say(f"{stage}: to keep this change, {said} in {recipe}. Other commands read only the recipe")


def _stage(name: str, text: str, task: Callable[[Any], Any] | None = None) -> None:
    """Register a command that runs stages/<name>.py.

    task: returns the task of the stage. If it is up to date, the stage and its libraries are not imported.
    """

    def run(recipe: RecipePath, overrides: Set = None, force: Force = False) -> None:
        plan = _plan(recipe, overrides)
        known = None if task is None or force else task(plan)  # called once: prepare lists all raw files
        if known is not None and plan.finished(known):
            console.say(f"{name}: up to date, {known.folder}")
        else:
            import_module(f"ich.stages.{name}").run(plan, force=force)
        _say_how_to_keep(recipe, name, overrides)

    command(run, name, text)


def _look(name: str, module: str, text: str) -> None:
    """Register a read-only command; its stage returns the exit code."""

    def run(recipe: RecipePath, overrides: Set = None) -> None:
        raise typer.Exit(import_module(module).run(_plan(recipe, overrides)) or 0)

    command(run, name, text)


def _models(stage: str, text: str) -> None:
    """Register a command that fits the models of one section of the recipe."""

    def run(
        recipe: RecipePath, model: Model = None, fold: Fold = None, overrides: Set = None, force: Force = False
    ) -> None:
        plan = _plan(recipe, overrides)
        tasks = plan.tasks_of(stage, model, fold)
        if force or not plan.all_finished(tasks):
            from ich.pipeline.runner import run_stage

            run_stage(plan, stage, model=model, fold=fold, force=force)
        elif tasks:
            console.say(f"{stage}: up to date, {len(tasks)} {'models' if stage == 'pretrain' else 'folds'}")
        _say_how_to_keep(recipe, stage, overrides)

    command(run, stage, text)


def _prepared(plan: Any) -> Any:
    """Return the cache task of the current raw files. If it is up to date, later stages use that cache."""
    task = plan.prepare()
    if plan.finished(task):
        plan.point_to(task)
    return task


@command
def run(
    recipe: RecipePath,
    engine: Annotated[str, typer.Option(help="local, ray or slurm")] = "local",
    overrides: Set = None,
) -> None:
    """Make everything that is not up to date, here or on a cluster."""
    from ich.stages import run as stage

    stage.run(_plan(recipe, overrides), engine, "" if overrides else str(recipe))


@command
def status(recipe: RecipePath, overrides: Set = None) -> None:
    """List the state of all artifacts and how to update them."""
    from ich.stages import status as stage

    words = [str(recipe), *(word for change in overrides or [] for word in ("--set", change))]
    stage.run(_plan(recipe, overrides), shlex.join(words))


@command
def changes(recipe: RecipePath, overrides: Set = None) -> None:
    """Warn of what will be made again for changed settings."""
    from ich.stages import status as stage

    stage.changes(_plan(recipe, overrides), "" if overrides else str(recipe))


_look(
    "verify",
    "ich.pipeline.verify",
    "Check all artifacts against their hashes and rules. Exit code: 0 sound, 2 damaged.",
)
_look("check", "ich.stages.check", "Check all raw files and tables. Exit code: 0 clean, 1 warnings, 2 errors.")
_stage("demo", "Write the synthetic competition.")
_stage("prepare", "Read the raw files into a cache of Hounsfield units.", _prepared)
_stage("folds", "Split the patients into folds with balanced classes.")
_models("pretrain", "Pretrain backbones by SimCLR on all slices, without labels.")
_models("cnn", "Stage 1: train CNNs on single slices.")
_models("end_to_end", "Train CNNs with a head over the slices, on whole studies.")
_models("sequence", "Stage 2: train networks over the slices of each study.")
_models("external", "Import predictions made elsewhere, joined by image id.")
_models("smooth", "Smooth the mean logit of the inputs along the study.")
_models("stack", "Fit LightGBM on the out-of-fold logits of the inputs.")
_models("blend", "Combine the models into one calibrated prediction.")


@command
def thresholds(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="YAML file")] = None,
    metric: Annotated[str | None, typer.Option(help="F-beta score: f1, f2, f0.5, ...")] = None,
    trials: Annotated[int | None, typer.Option(help="Optuna trials per class")] = None,
    table: Annotated[
        Path | None, typer.Option(help="instead of RECIPE; columns <class>, prob_<class>, fold, patient_id")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="with --table: JSON file to write")] = None,
    overrides: Set = None,
    force: Force = False,
) -> None:
    """Tune one threshold per class for an F-beta score."""
    from ich.recipe import table_thresholds
    from ich.stages import thresholds as stage

    if recipe is not None and out is not None:
        raise UserError("--out requires --table; the thresholds of a recipe are in oof/<recipe>/thresholds.json")
    options = {"metric": metric, "trials": trials}
    given = [f"thresholds.{key}={value}" for key, value in options.items() if value is not None]
    changes = [*(overrides or []), *given]
    if (recipe is None) == (table is None):
        raise UserError("give either RECIPE or --table FILE (.parquet or .csv)")
    if recipe is not None:
        stage.run(_plan(recipe, changes), force=force)
        _say_how_to_keep(recipe, "thresholds", changes)
    elif table is not None:
        stage.run_on_table(table, table_thresholds(changes), out)


_stage("submit", "Write the submission in the format of the competition.")


@command
def score(recipe: RecipePath, overrides: Set = None, force: Force = False) -> None:
    """Score all models, with 95 % confidence intervals.

    Out of fold, and on the test set if there is a solution.
    """
    plan = _plan(recipe, overrides)
    outside = plan.recipe.competition.trained_by is not None
    import_module(f"ich.stages.{'score_outside' if outside else 'score'}").run(plan, force=force)


_stage("explain", "Compute Grad-CAM, embedding map and suspicious labels.", lambda plan: plan.explain)


@command
def report(
    recipe: RecipePath,
    study: Annotated[
        list[str] | None, typer.Option("--study", help="study to include in the viewer; repeatable")
    ] = None,
    overrides: Set = None,
    force: Force = False,
) -> None:
    """Write the report: scores, plots, errors, study viewer."""
    given = [f"report.studies={json.dumps(study)}"] if study else []
    plan = _plan(recipe, [*(overrides or []), *given])
    if force or not plan.finished(plan.report):
        import_module("ich.stages.report").run(plan, force=force)
    else:
        console.say(f"report: up to date, {plan.workspace.submissions / 'report.html'}")


@command
def results(
    recipe: RecipePath,
    seconds: Annotated[int | None, typer.Option(help="print this time too")] = None,
    overrides: Set = None,
) -> None:
    """Print the file to submit and the page to open."""
    from ich.stages import status as stage

    stage.results(_plan(recipe, overrides), seconds)


@command
def predict(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="YAML file; not with --bundle")] = None,
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="DICOM file, .zip archive, or folder of both at any depth")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="file to write: .csv, .parquet or .zip")] = None,
    bundle: Annotated[Path | None, typer.Option(help="folder that `ich export` wrote, instead of RECIPE")] = None,
    fold: Annotated[int | None, typer.Option(help="use the models of one fold only")] = None,
    time_limit: Annotated[
        str | None, typer.Option(help="use only as many folds as this time allows: 8h, 30m or 90s")
    ] = None,
    submission: Annotated[
        Path | None, typer.Option(help="also write this file in the format of the competition")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="score studies in parallel: local, ray or slurm; default: in this process")
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="what runs the networks: torch; or onnx, of a bundle exported with --onnx")
    ] = "torch",
    dicom: Annotated[
        Path | None, typer.Option(help="folder for a structured report and heat maps of each study (extra `dicom`)")
    ] = None,
    overrides: Set = None,
    force: Force = False,
) -> None:
    """Score DICOM files with a trained ensemble. A recipe with trained_by needs neither PATH nor --out."""
    from ich.models.bundle import read
    from ich.pipeline import engines
    from ich.pipeline.trained import of_workspace
    from ich.stages import predict as stage

    seconds = None if time_limit is None else _seconds(time_limit)
    if engine is not None and (seconds is not None or bundle is not None):
        raise UserError("--engine needs RECIPE, and no --time-limit")
    run_steps = None
    if bundle is not None:
        if recipe is None or path is not None or out is None or overrides:
            raise UserError("use `ich predict --bundle DIR PATH -o OUT.csv`, without RECIPE and --set")
        path, trained = recipe, read(bundle, runtime)
        trained = trained if fold is None else trained.only(fold)
    else:
        if runtime != "torch":
            raise UserError("--runtime needs --bundle DIR")
        if recipe is None:
            raise UserError("give RECIPE or --bundle DIR")
        plan = _plan(recipe, overrides)
        outside = plan.recipe.competition.trained_by is not None
        if outside and not any((path, out, engine, dicom)) and fold is None:
            stage.run_outside(plan, force=force)
            return
        if path is None or out is None or outside:
            raise UserError("give PATH and --out OUT.csv, or neither for a recipe with competition.trained_by")
        if engine is not None:
            run_on = engines.engine(engine)
            run_steps = lambda steps, make: run_on(steps, make, plan.recipe, plan.root)
        trained = of_workspace(plan, None if fold is None else [fold])
    then = None if dicom is None else _dicom("dicom_out", "--dicom").writer(dicom, trained)
    stage.run(trained, path, out, run_steps=run_steps, time_limit=seconds, submission=submission, then=then)


def _seconds(text: str) -> float:
    """Return the seconds in a text such as 8h, 30m or 90s."""
    number, unit = text[:-1], {"h": 3600, "m": 60, "s": 1}.get(text[-1:])
    if unit is None or not number.isdecimal() or not int(number):
        raise UserError(f"--time-limit {text}: use a number and h, m or s, such as 8h")
    return int(number) * unit


def _dicom(stage: str, what: str) -> Any:
    """Import a stage that needs the extra `dicom`."""
    try:
        return import_module(f"ich.stages.{stage}")
    except ModuleNotFoundError as error:
        raise UserError(f"{what} requires {error.name}. Install it: pip install 'ich[dicom]'") from None


@command
def serve(
    bundle: Annotated[Path, typer.Option(help="folder that `ich export` wrote")],
    queue: Annotated[Path, typer.Option(help="folder of the queue")],
    send_to: Annotated[str, typer.Option(metavar="AET@HOST:PORT", help="node that gets the results")],
    allow: Annotated[list[str], typer.Option(metavar="AET", help="AE title that may send; repeatable")],
    title: Annotated[str, typer.Option(metavar="AET", help="AE title of this server")] = "ICH",
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on")] = 11112,
    wait: Annotated[
        float, typer.Option(min=0, help="a study is complete when nothing has arrived for this many seconds")
    ] = 30,
    disk_limit: Annotated[float, typer.Option(min=0, help="size of the queue in GB; more is refused")] = 20,
) -> None:
    """Score studies that arrive by DICOM; send the results."""
    stage = _dicom("serve", "`ich serve`")
    node = stage.Node.parse(send_to)
    score = _dicom("dicom_out", "`ich serve`").scorer(bundle)
    limits = {"quiet": wait, "limit": int(disk_limit * 1e9)}
    stage.run(score, queue, node, allow, title=title, host=host, port=port, **limits)


@command
def export(
    recipe: RecipePath,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder to write")] = None,
    kaggle: Annotated[
        Path | None, typer.Option(help="folder to write instead, with a notebook for Kaggle without internet")
    ] = None,
    folds: Annotated[str | None, typer.Option(help="folds to include, such as 0,1; default: all")] = None,
    half: Annotated[bool, typer.Option("--half", help="float16 weights: half the size, slightly other scores")] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="also write the networks as ONNX, for `ich predict --runtime onnx`")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="with --onnx: image networks in int8, faster and less exact")
    ] = False,
    overrides: Set = None,
) -> None:
    """Write the trained ensemble to one folder, to use anywhere."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the ONNX exporter warns of packed sequences
    from ich.stages import export as stage

    if int8 and not onnx:
        raise UserError("--int8 needs --onnx")

    try:
        numbers = None if folds is None else sorted({int(one) for one in folds.split(",")})
    except ValueError:
        raise UserError(f"--folds {folds}: use numbers with commas, such as 0,1") from None
    folder = kaggle or out
    if folder is None or (kaggle and out):
        raise UserError("give either --out DIR or --kaggle DIR")
    options = {"half": half, "onnx": onnx, "int8": int8, "kaggle": kaggle is not None}
    stage.run(_plan(recipe, overrides), folder, folds=numbers, **options)


Raw = Annotated[bool, typer.Option("--raw", help="the raw files instead of artifacts")]


@command
def push(recipe: RecipePath, model: Model = None, raw: Raw = False, overrides: Set = None) -> None:
    """Copy finished artifacts to the object store of the recipe."""
    _transfer("push", recipe, model, raw, overrides)


@command
def pull(recipe: RecipePath, model: Model = None, raw: Raw = False, overrides: Set = None) -> None:
    """Copy artifacts that fit the recipe from its object store."""
    _transfer("pull", recipe, model, raw, overrides)


def _transfer(name: str, recipe: Path, model: str | None, raw: bool, overrides: list[str] | None) -> None:
    if raw and model is not None:
        raise UserError("--raw and --model exclude each other; use one")
    from ich.stages import transfer

    getattr(transfer, name)(_plan(recipe, overrides), model=model, raw=raw)


@command
def clean(yes: Annotated[bool, typer.Option("--yes", help="remove them")] = False) -> None:
    """List the caches in input/cache that no recipe uses. With --yes, remove them."""
    import_module("ich.stages.clean").run(Path.cwd(), yes=yes)


@command
def ablate(recipe: RecipePath, overrides: Set = None) -> None:
    """Compare variants of a recipe over several seeds."""
    from ich.stages import ablate as stage

    stage.run(recipe, overrides or [], _root())


def main() -> None:
    """Run a command. Errors that the user can fix are printed as one line each, without a traceback."""
    from ich.processes import interruptible

    try:
        with interruptible("interrupted; finished work is kept: rerun the same command to resume"):
            app()
    except UserError as error:
        _end(str(error))
    except OSError as error:  # full disk, missing permission, no file handles
        if error.filename is None and error.errno not in ADVICE:
            raise
        _end(str(refused(error.filename or "this machine", error)))
    except MemoryError as error:
        _end(f"out of memory ({error}). Finished work is kept; close other programs and rerun the same command")


def _end(message: str) -> None:
    for line in message.split("\n"):
        print(f"error: {console.visible(line)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

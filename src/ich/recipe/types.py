"""The recipe: settings of the competition, the data, the thresholds and the report, and the sections of models."""

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ich.recipe.models import Blend, External, FScore, Model, Smooth, Stack, beta_of, meant
from ich.recipe.networks import Backbone, Cnn, EndToEnd, Pretrain, Sequence, Start
from ich.recipe.training import Metric, Seed, Strict

Share = Annotated[float, Field(ge=0, le=1)]
REMOTE = r"^(file|s3|gs|memory)://[^\s@]+$"  # without @: credentials come from the environment
NAME = r"^[a-z0-9][a-z0-9_]{0,63}$"  # names become folder names, so they are kept plain


class Competition(Strict):
    format: Literal["rsna2019", "ntu_dlmi", "unibuc", "folder", "cq500"] = Field(
        description="layout of labels, slices and submission"
    )
    root: str = Field(description="folder of the raw files, relative to the repository root")
    exclude_overlap: bool = Field(default=False, description="drop training studies of patients in the test set")
    trained_by: str | None = Field(default=None, description="cq500: recipe of the ensemble to evaluate")

    @model_validator(mode="after")
    def _names_recipe_to_evaluate(self) -> "Competition":
        if (self.format == "cq500") != (self.trained_by is not None):
            raise ValueError("trained_by: required by format cq500, and not allowed with another format")
        return self


class Demo(Strict):
    """The synthetic competition that `ich demo` writes."""

    train_studies: PositiveInt = Field(default=84, description="studies with labels")
    test_studies: PositiveInt = Field(default=40, description="studies of the hidden test set")
    slices: PositiveInt = Field(default=24, description="mean number of slices per study")
    size: PositiveInt = Field(default=256, description="rows and columns of a slice")
    prevalence: Literal["raised", "rsna2019"] = Field(
        default="raised",
        description="raised: every class has patients in each of a few folds; rsna2019: as in RSNA 2019",
    )
    scanners: Literal["usual", "wide", "other"] = Field(
        default="usual",
        description="usual: noise, kernel, contrast and geometry differ between scans as in RSNA 2019; wide: more than"
        " that, for pre-training; other: another hospital, with its own protocol",
    )
    seed: Seed = 7


class Image(Strict):
    """Size and crop of the slices in the Hounsfield cache."""

    size: int = Field(default=256, ge=16, le=1024, description="rows and columns after resizing by area")
    crop: Literal["head", "edges", "none"] = Field(
        default="head",
        description="head: square around the head, per study; edges: square around the non-black area, per slice",
    )


class Folds(Strict):
    n: int = Field(default=5, ge=2, description="number of folds")
    by: Literal["patient", "slice"] = Field(
        default="patient", description="slice: random folds, which leak; for comparison only"
    )
    seed: Seed = 7


class Labels(Strict):
    """Training labels of the networks from a table; validation, stack, blend, thresholds and scores do not use it."""

    table: str = Field(
        description="CSV or Parquet with image_id and one column per class, or with image_id, class and label; values"
        " 0 to 1, empty: unlabelled. {fold} in its name is replaced by the number of the fold"
    )
    mode: Literal["replace", "add"] = Field(
        default="replace",
        description="replace: use its values instead of the competition's labels; add: use them only where the"
        " competition has none",
    )
    weight: PositiveFloat = Field(default=1.0, description="factor of the loss of labels from the table")

    def file(self, fold: int) -> str:
        """Path of the table of a fold, relative to the repository root."""
        return self.table.replace("{fold}", str(fold))


class Thresholds(Strict):
    """Objective and constraints of the decision thresholds."""

    metric: FScore = Field(default="f2", description="score to maximize: f1, f2, f0.5, ...")
    average: Literal["macro", "micro", "samples"] = Field(
        default="macro", description="macro: mean over classes; micro: pooled counts; samples: mean over slices"
    )
    zero_division: Literal[0, 1] = Field(default=0, description="F if there are neither positives nor predictions")
    min_recall: Share | dict[str, Share] | None = Field(
        default=None, description="minimum recall on the tuning rows, for all classes or per class"
    )
    shrink: NonNegativeFloat = Field(
        default=0.0,
        description="shrinkage for rare classes: number of positives at which the labels and the predicted"
        " probabilities have equal weight in choosing the threshold of a class",
    )
    prevalence: Literal["report", "apply"] = Field(
        default="report", description="test prevalence, estimated: report it, or shift the submission to it"
    )
    transfer: Literal["value", "quantile"] = Field(
        default="value",
        description="thresholds of the submission, which is the mean of the folds. value: those of single folds;"
        " quantile: those with as many positives in the test set as single folds have there",
    )
    trials: PositiveInt = Field(default=200, description="Optuna trials per class")
    seed: Seed = 7

    @model_validator(mode="after")
    def _average_fits(self) -> "Thresholds":
        if self.average == "samples" and (self.shrink or self.prevalence == "apply"):
            key, value = ("shrink", "0") if self.shrink else ("prevalence", "report")
            raise ValueError(f"{key}: not defined for average: samples; use {value}")
        return self

    @property
    def beta(self) -> float:
        return beta_of(self.metric)


class System(Strict):
    """One row of an ablation table: a model and its published scores."""

    model: str = Field(description="name of a model of the recipe")
    variant: str = Field(default="", description="a key of `variants`; default: the recipe itself")
    document: float | dict[str, float] = Field(
        default_factory=dict, description="published score, or several by column of the table: {validation: 0.74, ...}"
    )

    @property
    def documents(self) -> dict[str, float]:
        """Published scores by column; a single one has no name."""
        return self.document if isinstance(self.document, dict) else {"": self.document}


class Ablation(Strict):
    """Systems that `ich ablate` compares, and their published order."""

    seeds: tuple[int, ...] = Field(default=(1, 2, 3), min_length=1, description="seeds of the folds and all models")
    metric: Metric = Field(description="metric of the published scores")
    variants: dict[str, tuple[str, ...]] = Field(default_factory=dict, description="overrides, as for --set: key=value")
    systems: dict[str, System] = Field(min_length=1, description="rows of the table, by title")
    orders: tuple[tuple[str, str], ...] = Field(default=(), description="pairs of titles, the better one first")

    @model_validator(mode="after")
    def _titles_exist(self) -> "Ablation":
        for pair in self.orders:
            _known("orders", pair, list(self.systems))
        for title, system in self.systems.items():
            if system.variant:
                _known(f"systems.{title}.variant", [system.variant], list(self.variants))
        return self


# as in accelerate.tracking.LOGGER_TYPE_TO_CLASS, which takes seconds to import
TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")


class Compute(Strict):
    """Processes and threads. They do not change the results, except that `threads` may change rounding."""

    processes: PositiveInt | None = Field(
        default=None, description="parallel folds; default: one per GPU, or one per core without GPUs"
    )
    threads: PositiveInt = Field(default=1, description="CPU threads per process")
    gpus_per_fold: Share | None = Field(
        default=None,
        description="GPUs that one fold uses on a cluster; 0.5: two folds share one; default: 1 if the cluster has any",
    )
    busy: Literal["wait", "leave"] = Field(
        default="wait", description="wait for a fold that another process is making, or leave it and end with an error"
    )
    trackers: tuple[str, ...] = Field(
        default=(), description="accelerate's trackers for training curves; files are in oof/<recipe>/trackers"
    )

    @field_validator("trackers")
    @classmethod
    def _known_to_accelerate(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if names:
            _known("", names, list(TRACKERS))
        return names


class Store(Strict):
    """Where artifacts are kept beside the workspace. They do not change the results."""

    remote: str | None = Field(
        default=None,
        pattern=REMOTE,
        description="object store that machines without a shared folder use: s3://bucket/prefix, gs://... or file:///...",
    )


class Slurm(Strict):
    """Jobs of `ich run --engine slurm`. They do not change the results."""

    cluster: Literal["slurm", "local"] = Field(
        default="slurm", description="local: processes of this machine, to try the engine without SLURM"
    )
    partition: str | None = Field(default=None, description="partition; default: that of the cluster")
    account: str | None = Field(default=None, description="account that is charged")
    time: PositiveInt = Field(
        default=240, description="minutes per job; a longer training resumes in the next job after its last epoch"
    )
    memory: PositiveFloat = Field(default=16.0, description="GB per job")
    cores: PositiveInt = Field(default=8, description="CPU cores of steps that use all cores, such as prepare")
    parameters: dict[str, bool | int | str] = Field(
        default_factory=dict, description="more options of sbatch: {qos: high, constraint: a100}"
    )


class Report(Strict):
    """Content of the report page."""

    studies: tuple[str, ...] = Field(default=(), description="study ids to include in the viewer")


SECTIONS = ("pretrain", "cnn", "end_to_end", "sequence", "external", "smooth", "stack")  # dicts of models
FIRST = ("cnn", "end_to_end", "external")  # sections whose models need no other model
TAKEN = ("blend", "logs", "trackers")  # folders in oof/<recipe> that are not named after a model


class Recipe(Strict):
    name: str = Field(pattern=NAME, description="name of the recipe and of its folders")
    competition: Competition
    demo: Demo | None = None
    image: Image = Image()
    folds: Folds = Folds()
    labels: Labels | None = None
    pretrain: dict[str, Pretrain] = Field(default_factory=dict)
    cnn: dict[str, Cnn] = Field(default_factory=dict)
    end_to_end: dict[str, EndToEnd] = Field(default_factory=dict)
    sequence: dict[str, Sequence] = Field(default_factory=dict)
    external: dict[str, External] = Field(default_factory=dict)
    smooth: dict[str, Smooth] = Field(default_factory=dict)
    stack: dict[str, Stack] = Field(default_factory=dict)
    blend: Blend = Blend()
    thresholds: Thresholds = Thresholds()
    report: Report = Report()
    ablation: Ablation | None = None
    compute: Compute = Compute()
    store: Store = Store()
    slurm: Slurm = Slurm()

    @field_validator(*SECTIONS)
    @classmethod
    def _plain_names(cls, models: dict[str, Any]) -> dict[str, Any]:
        for name in models:
            if not re.fullmatch(NAME, name) or name in TAKEN:
                raise ValueError(f"model name {name!r}: use lower-case letters, digits and _, not {' or '.join(TAKEN)}")
        return models

    @field_validator("cnn")
    @classmethod
    def _masks_without_effect(cls, models: dict[str, Cnn], info: ValidationInfo) -> dict[str, Cnn]:
        """Set masks to 0 without a demo, which has them; with labels, which may add test slices; and if frozen."""
        usable = info.data.get("demo") is not None and info.data.get("labels") is None
        return {
            name: one if usable and not one.frozen else one.model_copy(update={"masks": 0.0})
            for name, one in models.items()
        }

    @model_validator(mode="after")
    def _inputs_exist(self) -> "Recipe":
        names = [name for section in SECTIONS for name in getattr(self, section)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"model name {twice[0]!r} is used twice; choose a unique name")
        if not any(getattr(self, section) for section in FIRST):
            raise ValueError(f"no model on images; add one to {' or '.join(FIRST)}")
        known = {
            "sequence": list(self.cnn),
            "smooth": [*self.networks, *self.external],
            "stack": [*self.networks, *self.external, *self.smooth],
            "blend": [name for name in self.models if name != "blend"],
        }
        for name, settings in self.models.items():
            stage = settings.stage
            if stage in known:
                where = "blend.inputs" if stage == "blend" else f"{stage}.{name}.inputs"
                _known(where, settings.input_models(self), known[stage])
        for name, settings in self.cnn.items():
            _starts_from(f"cnn.{name}", settings, settings.start, self.pretrain)
        for name, settings in self.end_to_end.items():
            _starts_from(f"end_to_end.{name}", settings, settings.start, self.cnn)
        for name, settings in self.sequence.items():
            if isinstance(settings.start, str) and settings.inputs != (settings.start,):
                raise ValueError(f"sequence.{name}.start: must be its only input, not {settings.start!r}")
        for title, system in (self.ablation.systems if self.ablation else {}).items():
            _known(f"ablation.systems.{title}.model", [system.model], list(self.models))
        return self

    @model_validator(mode="after")
    def _series_exist(self) -> "Recipe":
        """Reject models of whole studies where images, crops or folds do not keep studies together."""
        readers = {"pretrain": self.pretrain, "cnn": self.cnn, "end_to_end": self.end_to_end}
        neighbours = [f"{g}.{n}" for g, group in readers.items() for n, m in group.items() if m.input != "windows"]
        if self.competition.format == "unibuc" and (neighbours or self.end_to_end):
            where = f"{neighbours[0]}.input" if neighbours else "end_to_end"
            raise ValueError(f"{where}: unibuc has single images, not series; use input: windows of a cnn model")
        if self.image.crop == "edges" and neighbours:
            raise ValueError(f"{neighbours[0]}.input: neighbours requires image.crop: head or none, not edges")
        if self.folds.by == "slice" and any((self.end_to_end, self.sequence, self.smooth, self.stack)):
            raise ValueError("folds.by: slice allows cnn models only, since it splits studies; use patient")
        return self

    @cached_property
    def models(self) -> dict[str, Model]:
        """Settings of all models that predict, by name. Each model follows its inputs; the blend is last."""
        models: dict[str, Model] = {}
        for section in SECTIONS[1:]:
            models |= getattr(self, section)
        return {**models, "blend": self.blend}

    @property
    def networks(self) -> list[str]:
        return [*self.cnn, *self.end_to_end, *self.sequence]

    def inputs_of(self, model: str) -> tuple[str, ...]:
        """Names of the models whose predictions a model reads."""
        return self.models[model].input_models(self)


SHARED = ("backbone", "kwargs", "input", "windows")  # equal in two networks that share weights


def _starts_from(where: str, settings: Backbone, start: str | Start | None, known: Mapping[str, Backbone]) -> None:
    if not isinstance(start, str):
        return
    _known(f"{where}.start", [start], list(known))
    for key in SHARED:
        if getattr(settings, key) != getattr(known[start], key):
            raise ValueError(f"{where}.{key}: must be the same as in {start}, whose weights it starts from")


def _known(where: str, names: Iterable[str], known: list[str]) -> None:
    names, start = list(names), f"{where}: " if where else ""
    choice = f"Choose from {', '.join(known) or 'none'}"
    if not names:
        raise ValueError(f"{start}must not be empty. {choice}")
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"{start}{name!r} is listed twice")
        if name not in known:
            raise ValueError(f"{start}unknown name {name!r}{meant(name, known)} {choice}")

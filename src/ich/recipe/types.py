"""The recipe: the competition and its data, and how models, thresholds and reports are configured."""

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from ich.recipe.models import (
    Backbone,
    Blend,
    Cnn,
    EndToEnd,
    External,
    FScore,
    Model,
    Pretrain,
    Sequence,
    Smooth,
    Stack,
    Strict,
    beta_of,
    meant,
)

Share = Annotated[float, Field(ge=0, le=1)]
NAME = r"^[a-z0-9][a-z0-9_]{0,63}$"  # names become folder names, so they are kept plain


class Competition(Strict):
    format: Literal["rsna2019", "ntu_dlmi", "unibuc", "folder", "cq500"] = Field(
        description="how labels, slices and submission are laid out"
    )
    root: str = Field(description="the competition's folder, from the repository's root")
    exclude_overlap: bool = Field(
        default=False, description="leave training studies out whose patient is in the test set too"
    )
    trained_by: str | None = Field(
        default=None, description="cq500, outside validation: the recipe whose trained ensemble is judged"
    )

    @model_validator(mode="after")
    def _outside(self) -> "Competition":
        if (self.format == "cq500") != (self.trained_by is not None):
            raise ValueError("trained_by belongs to format cq500: the recipe whose ensemble is judged on those scans")
        return self


class Demo(Strict):
    """The synthetic competition that `ich demo` writes."""

    train_studies: PositiveInt = 84
    test_studies: PositiveInt = 40
    slices: PositiveInt = Field(default=24, description="mean number of slices a study")
    size: PositiveInt = Field(default=256, description="rows and columns of a slice")
    seed: int = 7


class Image(Strict):
    """What the Hounsfield cache holds."""

    size: int = Field(default=256, ge=16, le=1024, description="rows and columns after the resize by area")
    crop: Literal["head", "edges", "none"] = Field(
        default="head",
        description="head: a square around the head, one a study; edges: a square around what is not black, one a"
        " slice; none: the whole picture",
    )


class Folds(Strict):
    n: int = Field(default=5, ge=2, description="number of folds")
    by: Literal["patient", "slice"] = Field(
        default="patient",
        description="patient: nobody is in two folds; slice: at random, which leaks, to show by how much",
    )
    seed: int = 7


class Thresholds(Strict):
    """What the thresholds maximise, and under which constraints."""

    metric: FScore = "f2"
    average: Literal["macro", "micro", "samples"] = Field(
        default="macro", description="macro: mean over classes; micro: counts pooled; samples: mean over slices"
    )
    zero_division: Literal[0, 1] = Field(
        default=0, description="what F counts where there is nothing to find and nothing is predicted"
    )
    min_recall: Share | dict[str, Share] | None = Field(
        default=None, description="smallest recall, of every class or a class; on the rows that tune"
    )
    shrink: NonNegativeFloat = Field(
        default=0.0,
        description="number of positives with which a class's labels and its probabilities weigh alike in choosing its"
        " threshold; with fewer, the threshold leans on what would be best if the probabilities were right",
    )
    prevalence: Literal["report", "apply"] = Field(
        default="report",
        description="what the predictions say of the test set's prevalence: report it, or shift the submission to it",
    )
    trials: PositiveInt = Field(default=200, description="Optuna trials a class")
    seed: int = 7

    @model_validator(mode="after")
    def _slices_know_no_classes(self) -> "Thresholds":
        if self.average == "samples" and (self.shrink or self.prevalence == "apply"):
            key, value = ("shrink", "0") if self.shrink else ("prevalence", "report")
            raise ValueError(f"{key}: it weighs the rows of a class, and average samples mixes classes; write {value}")
        return self

    @property
    def beta(self) -> float:
        return beta_of(self.metric)


class System(Strict):
    """One row of an ablation table: a model, and what a document reports of its kind."""

    model: str
    variant: str = Field(default="", description="one of the ablation's variants; default: the recipe as it is")
    document: float | None = Field(default=None, description="the document's own score")


class Ablation(Strict):
    """Which systems `ich ablate` sets side by side, and which order a document claims for them."""

    seeds: tuple[int, ...] = Field(default=(1, 2, 3), min_length=1, description="of the folds and of all models")
    metric: Literal["f1", "f2", "auc", "log_loss"] = Field(description="what the document reports")
    variants: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="a recipe's changes, as for --set: key=value"
    )
    systems: dict[str, System] = Field(min_length=1, description="the table's rows by their titles")
    orders: tuple[tuple[str, str], ...] = Field(default=(), description="pairs of titles, the better one first")

    @model_validator(mode="after")
    def _titles_exist(self) -> "Ablation":
        for pair in self.orders:
            _known("orders", pair, list(self.systems))
        for title, system in self.systems.items():
            if system.variant:
                _known(f"systems.{title}.variant", [system.variant], list(self.variants))
        return self


# accelerate.tracking.LOGGER_TYPE_TO_CLASS, the import of which takes seconds
TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")


class Compute(Strict):
    """Where and how wide to run. Nothing here changes what is computed, except the rounding of `threads`."""

    processes: PositiveInt | None = Field(default=None, description="folds side by side; default: one a core or a GPU")
    threads: PositiveInt = Field(default=1, description="CPU threads of each process")
    busy: Literal["wait", "leave"] = Field(
        default="wait", description="what to do about a fold that another process is making: wait for it, or leave it"
    )
    trackers: tuple[str, ...] = Field(
        default=(),
        description="where training curves go beside history.csv: tensorboard, wandb, mlflow, ..., as accelerate knows"
        " them; their files to oof/<recipe>/trackers. One that fails is given up with a warning; one whose network"
        " hangs holds the run up",
    )

    @field_validator("trackers")
    @classmethod
    def _known_to_accelerate(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for number, name in enumerate(names):
            if name in names[:number]:
                raise ValueError(f"{name!r} stands twice")
            if name not in TRACKERS:
                raise ValueError(f"no tracker {name!r}{meant(name, list(TRACKERS))}; there are {', '.join(TRACKERS)}")
        return names


class Report(Strict):
    """What the report page shows beside what every page shows."""

    studies: tuple[str, ...] = Field(default=(), description="study ids that its viewer holds in any case")


SECTIONS = ("pretrain", "cnn", "end_to_end", "sequence", "external", "smooth", "stack")  # dicts of models
FIRST = ("cnn", "end_to_end", "external")  # sections whose models need no other model
TAKEN = ("blend", "trackers")  # folders beside those of the models


class Recipe(Strict):
    name: str = Field(pattern=NAME)
    competition: Competition
    demo: Demo | None = None
    image: Image = Image()
    folds: Folds = Folds()
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

    @field_validator(*SECTIONS)
    @classmethod
    def _plain_names(cls, models: dict[str, Any]) -> dict[str, Any]:
        for name in models:
            if not re.match(NAME, name) or name in TAKEN:
                raise ValueError(
                    f"model name {name!r}: use lower-case letters, digits and _ (and not {' or '.join(TAKEN)})"
                )
        return models

    @model_validator(mode="after")
    def _inputs_exist(self) -> "Recipe":
        names = [name for section in SECTIONS for name in getattr(self, section)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"model name {twice[0]!r} is used twice; all models share one name space")
        if not any(getattr(self, section) for section in FIRST):
            raise ValueError(f"there is no model that predicts slices by itself; add one below {' or '.join(FIRST)}")
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
        for title, system in (self.ablation.systems if self.ablation else {}).items():
            _known(f"ablation.systems.{title}.model", [system.model], list(self.models))
        return self

    @model_validator(mode="after")
    def _series_exist(self) -> "Recipe":
        """Single images have no neighbours; folds by slice and crops by slice break series apart."""
        readers = {"pretrain": self.pretrain, "cnn": self.cnn, "end_to_end": self.end_to_end}
        neighbours = [f"{g}.{n}" for g, group in readers.items() for n, m in group.items() if m.input != "windows"]
        if self.competition.format == "unibuc" and (neighbours or self.end_to_end):
            where = f"{neighbours[0]}.input" if neighbours else "end_to_end"
            raise ValueError(f"{where}: unibuc has single images, and this reads the slices of a study")
        if self.image.crop == "edges" and neighbours:
            raise ValueError(f"{neighbours[0]}.input: neighbours do not align where image.crop is edges")
        if self.folds.by == "slice" and any((self.end_to_end, self.sequence, self.smooth, self.stack)):
            raise ValueError("folds.by: slice breaks studies apart, so it allows cnn models only")
        return self

    @cached_property
    def models(self) -> dict[str, Model]:
        """Settings of everything that predicts, by name, each after its inputs; the blend is the last."""
        models: dict[str, Model] = {}
        for section in SECTIONS[1:]:
            models |= getattr(self, section)
        return {**models, "blend": self.blend}

    @property
    def networks(self) -> list[str]:
        return [*self.cnn, *self.end_to_end, *self.sequence]

    def inputs_of(self, model: str) -> tuple[str, ...]:
        """The models whose predictions a model reads."""
        return self.models[model].input_models(self)


SHARED = ("backbone", "kwargs", "input", "windows")  # what two networks must agree in to share weights


def _starts_from(where: str, settings: Backbone, start: str | None, known: Mapping[str, Backbone]) -> None:
    if start is None:
        return
    _known(f"{where}.start", [start], list(known))
    for key in SHARED:
        if getattr(settings, key) != getattr(known[start], key):
            raise ValueError(f"{where}.{key}: differs from that of {start}, whose weights it starts from; use the same")


def _known(where: str, names: Iterable[str], known: list[str]) -> None:
    names = list(names)
    if not names:
        raise ValueError(f"{where}: must not be empty; choose from {', '.join(known) or 'none'}")
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"{where}: {name!r} is listed twice")
        if name not in known:
            raise ValueError(
                f"{where}: no model {name!r}{meant(name, known)}; choose from {', '.join(known) or 'none'}"
            )

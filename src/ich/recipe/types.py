"""The recipe as a whole: the competition, what is made of its files, the members, and what becomes of them."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from ich.recipe.members import Backbone, Cnn, EndToEnd, Pretrain, Sequence, Smooth, Stack, Strict, meant

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


BETAS = {"f1": 1.0, "f2": 2.0}  # the F-beta scores that are always reported


def beta_of(metric: str) -> float:
    """The beta of "f2", "f0.5", ..."""
    return float(metric.removeprefix("f"))


def _beta_counts(metric: str) -> str:
    if metric != "log_loss" and beta_of(metric) == 0:
        raise ValueError("beta 0 is precision alone; write f0.5, f1, f2, ...")
    return metric


FScore = Annotated[str, Field(pattern=r"^f\d+(\.\d+)?$"), AfterValidator(_beta_counts)]  # f and beta


class Blend(Strict):
    """How the members become one prediction; everything here is settled a class at a time, without the fold judged."""

    members: tuple[str, ...] | Literal["all"] = "all"
    method: Literal["auto", "logits", "probabilities", "ranks", "greedy", "weights"] = Field(
        default="auto",
        description="a mean of logits, of probabilities or of ranks; greedy: Caruana's forward selection; weights:"
        " non-negative weights of the logits; auto: of these in this order, a later one where it is surely better on"
        " folds that it did not see",
    )
    metric: Annotated[str, Field(pattern=r"^(log_loss|f\d+(\.\d+)?)$"), AfterValidator(_beta_counts)] = Field(
        default="log_loss", description="what weights are tuned for and methods are chosen by: log_loss, f1, f2, ..."
    )
    calibration: Literal["auto", "none", "temperature", "platt", "beta", "isotonic"] = Field(
        default="auto", description="auto: the simplest that no other surely beats, by log loss on folds it did not see"
    )
    trials: PositiveInt = Field(default=100, description="Optuna trials a class; for weights tuned for an F-beta")
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
    """A row of an ablation table: a member, and what a document says of its like."""

    member: str
    variant: str = Field(default="", description="one of the ablation's variants; default: the recipe as it is")
    document: float | None = Field(default=None, description="the document's own figure")


class Ablation(Strict):
    """Which systems `ich ablate` sets side by side, and which order a document claims for them."""

    seeds: tuple[int, ...] = Field(default=(1, 2, 3), min_length=1, description="of the folds and of all members")
    figure: Literal["f1", "f2", "auc", "log_loss"] = Field(description="what the document reports")
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


TAKEN = ("blend", "trackers")  # folders beside those of the members


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
    smooth: dict[str, Smooth] = Field(default_factory=dict)
    stack: dict[str, Stack] = Field(default_factory=dict)
    blend: Blend = Blend()
    thresholds: Thresholds = Thresholds()
    report: Report = Report()
    ablation: Ablation | None = None
    compute: Compute = Compute()

    @field_validator("pretrain", "cnn", "end_to_end", "sequence", "smooth", "stack")
    @classmethod
    def _plain_names(cls, members: dict[str, Any]) -> dict[str, Any]:
        for name in members:
            if not re.match(NAME, name) or name in TAKEN:
                raise ValueError(
                    f"member name {name!r}: use lower-case letters, digits and _ (and not {' or '.join(TAKEN)})"
                )
        return members

    @model_validator(mode="after")
    def _members_exist(self) -> "Recipe":
        names = [*self.pretrain, *self.members[:-1]]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"member name {twice[0]!r} is used twice; members share one name space")
        if not self.cnn and not self.end_to_end:
            raise ValueError("there is no network that reads pictures; add one below cnn or end_to_end")
        for name, settings in self.cnn.items():
            _starts_from(f"cnn.{name}", settings, settings.start, self.pretrain)
        for name, settings in self.end_to_end.items():
            _starts_from(f"end_to_end.{name}", settings, settings.start, self.cnn)
        for name, settings in self.sequence.items():
            _known(f"sequence.{name}.on", settings.on, list(self.cnn))
        for name, settings in self.smooth.items():
            _known(f"smooth.{name}.on", self.smooth_members(settings), self.networks)
        for name, settings in self.stack.items():
            _known(f"stack.{name}.on", self.stack_members(settings), [*self.networks, *self.smooth])
        _known("blend.members", self.blend_members, self.members[:-1])
        for title, system in (self.ablation.systems if self.ablation else {}).items():
            _known(f"ablation.systems.{title}.member", [system.member], self.members)
        return self

    @model_validator(mode="after")
    def _studies_are_there(self) -> "Recipe":
        """Single pictures have no neighbours; folds by slice and crops by slice tear studies apart."""
        reads_pictures = {"pretrain": self.pretrain, "cnn": self.cnn, "end_to_end": self.end_to_end}
        neighbours = [
            f"{g}.{n}" for g, group in reads_pictures.items() for n, m in group.items() if m.input != "windows"
        ]
        if self.competition.format == "unibuc" and (neighbours or self.end_to_end):
            where = f"{neighbours[0]}.input" if neighbours else "end_to_end"
            raise ValueError(f"{where}: unibuc has single pictures, and this reads the slices of a study")
        if self.image.crop == "edges" and neighbours:
            raise ValueError(f"{neighbours[0]}.input: neighbours do not fit onto each other where image.crop is edges")
        if self.folds.by == "slice" and any((self.end_to_end, self.sequence, self.smooth, self.stack)):
            raise ValueError("folds.by: slice tears studies apart, so it goes with cnn members only")
        return self

    @property
    def networks(self) -> list[str]:
        return [*self.cnn, *self.end_to_end, *self.sequence]

    @property
    def members(self) -> list[str]:
        """Everything that predicts, in the order in which it can be made."""
        return [*self.networks, *self.smooth, *self.stack, "blend"]

    @property
    def blend_members(self) -> list[str]:
        return self.members[:-1] if self.blend.members == "all" else list(self.blend.members)

    def smooth_members(self, smooth: Smooth) -> list[str]:
        return list(self.cnn if smooth.on == "all" else smooth.on)

    def stack_members(self, stack: Stack) -> list[str]:
        return self.networks if stack.on == "all" else list(stack.on)

    def read_by(self, member: str) -> list[str]:
        """The members whose weights or predictions a member reads; "blend" is one too."""
        if member in self.end_to_end:
            start = self.end_to_end[member].start
            return [] if start is None else [start]
        if member in self.sequence:
            return list(self.sequence[member].on)
        if member in self.smooth:
            return self.smooth_members(self.smooth[member])
        if member in self.stack:
            return self.stack_members(self.stack[member])
        return self.blend_members if member == "blend" else []


PICTURES = ("backbone", "kwargs", "input", "windows")  # what two networks must agree in to share weights


def _starts_from(where: str, settings: Backbone, start: str | None, known: Mapping[str, Backbone]) -> None:
    if start is None:
        return
    _known(f"{where}.start", [start], list(known))
    for key in PICTURES:
        if getattr(settings, key) != getattr(known[start], key):
            raise ValueError(
                f"{where}.{key}: its weights start from {start}, which has another one; give both the same"
            )


def _known(where: str, names: list[str] | tuple[str, ...], known: list[str]) -> None:
    if not names:
        raise ValueError(f"{where}: it names nobody; there are {', '.join(known) or 'none'}")
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"{where}: {name!r} stands twice")
        if name not in known:
            there = ", ".join(known) or "none"
            raise ValueError(f"{where}: no member {name!r}{meant(name, known)}; there are {there}")

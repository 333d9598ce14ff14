"""A recipe is one YAML file that holds a whole solution. Its types, strict; each knob is explained at its field.

`load("configs/demo.yaml", ["cnn.resnet.epochs=8"])` gives a frozen `Recipe` or says what to write instead.
"""

import difflib
import re
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

NAME = r"^[a-z0-9][a-z0-9_]{0,63}$"  # names become folder names, so they are kept plain


Model = TypeVar("Model", bound=BaseModel)


class RecipeError(ValueError):
    """The recipe cannot be used; the text says where and what to write."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
    crop: Literal["head", "none"] = Field(
        default="head", description="head: a square around the head, one a study; none: the whole picture"
    )


class Folds(Strict):
    n: int = Field(default=5, ge=2, description="number of folds; patients are never split")
    seed: int = 7


class Loss(Strict):
    """What stage 1 minimises: the mean over slices and classes."""

    name: Literal["bce", "asymmetric"] = "bce"
    pos_weight: Literal["none", "balanced"] = Field(
        default="none", description="balanced: positives weigh negatives/positives of the training rows, at most 20"
    )
    gamma_pos: NonNegativeFloat = Field(default=0.0, description="asymmetric: focusing of positives")
    gamma_neg: NonNegativeFloat = Field(default=2.0, description="asymmetric: focusing of negatives")
    clip: float = Field(default=0.05, ge=0, lt=1, description="asymmetric: probability shift of negatives")


class Augment(Strict):
    """Random changes to a training picture; each depends on (seed, epoch, image id) alone."""

    flip: float = Field(default=0.5, ge=0, le=1, description="probability of a left-right mirror")
    shift: float = Field(default=0.06, ge=0, le=0.5, description="largest move, share of the picture's side")
    scale: float = Field(default=0.1, ge=0, lt=1, description="largest change of size, share")
    rotate: float = Field(default=15.0, ge=0, le=180, description="largest rotation, degrees")
    brightness: float = Field(default=0.1, ge=0, le=1, description="largest change, share of the grey scale")
    contrast: float = Field(default=0.1, ge=0, le=1, description="largest change, share")
    noise: float = Field(default=0.0, ge=0, le=1, description="largest standard deviation, share of the grey scale")
    dropout: float = Field(default=0.0, ge=0, le=1, description="probability of blacking out one to four rectangles")


class Training(Strict):
    """How a network is fitted: AdamW, linear warm-up, then a cosine to zero."""

    epochs: PositiveInt
    batch_size: PositiveInt = Field(description="slices (cnn) or studies (sequence) a step")
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat = 0.01
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps that warm up")
    ema: float | None = Field(default=None, gt=0, lt=1, description="decay of the weights' moving average")
    gradient_clip: PositiveFloat | None = Field(default=1.0, description="largest norm of the gradient")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 where the device computes in it, else fp16 on a GPU, fp32 on a CPU"
    )
    seed: int = 7


class Cnn(Training):
    """A stage-1 backbone: any timm model."""

    backbone: str = Field(description="timm's name of the model")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="passed on to timm.create_model")
    pretrained: bool = Field(
        default=False, description="ImageNet weights; they are downloaded unless `weights` is given"
    )
    weights: str | None = Field(default=None, description="a .safetensors file of timm weights, for machines offline")
    input: Literal["windows", "neighbours"] = Field(
        default="windows", description="windows: a channel a window; neighbours: three slices, each in every window"
    )
    windows: tuple[tuple[float, PositiveFloat], ...] = Field(
        default=((40, 80), (80, 200), (600, 2800)), min_length=1, description="level and width, HU"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="before the last layer")
    loss: Loss = Loss()
    augment: Augment = Augment()
    epochs: PositiveInt = 8
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 3e-3
    workers: int = Field(default=0, ge=0, description="loader processes; 0 is fastest where the CPU also trains")


class Sequence(Training):
    """A stage-2 recurrent network over the slices of a study."""

    cell: Literal["lstm", "gru"]
    on: tuple[str, ...] = Field(min_length=1, description="the cnn members whose embeddings and logits it reads")
    features: Literal["aligned", "oof"] = Field(
        default="aligned",
        description="aligned: the folds' embeddings turned into one space by the test set's rows; oof: as they are",
    )
    hidden: PositiveInt = 64
    layers: PositiveInt = 1
    dropout: float = Field(default=0.2, ge=0, lt=1)
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 8
    learning_rate: PositiveFloat = 2e-3


class Stack(Strict):
    """A LightGBM model a class over the members' logits, of the slice and its neighbours."""

    on: tuple[str, ...] | Literal["all"] = Field(default="all", description="members to read; all: cnn and sequence")
    neighbours: int = Field(default=5, ge=0, description="slices to each side")
    rounds: PositiveInt = 60
    learning_rate: PositiveFloat = 0.05
    leaves: int = Field(default=7, ge=2)
    min_leaf: PositiveInt = Field(default=30, description="fewest slices in a leaf")
    seed: int = 7


class Blend(Strict):
    members: tuple[str, ...] | Literal["all"] = "all"
    weights: Literal["equal", "optuna"] = Field(
        default="optuna",
        description="optuna: searched on log loss, kept only where they win on folds they did not see",
    )
    trials: PositiveInt = 150
    seed: int = 7


BETAS = {"f1": 1.0, "f2": 2.0}  # F-beta: recall counts beta times as much as precision


class Thresholds(Strict):
    metric: Literal["f1", "f2"] = "f2"
    average: Literal["macro", "micro"] = "macro"
    trials: PositiveInt = Field(default=200, description="Optuna trials a class")
    seed: int = 7


class Compute(Strict):
    """Where and how wide to run. Nothing here changes what is computed, except the rounding of `threads`."""

    processes: PositiveInt | None = Field(default=None, description="folds side by side; default: one a core or a GPU")
    threads: PositiveInt = Field(default=1, description="CPU threads of each process")


class Recipe(Strict):
    name: str = Field(pattern=NAME)
    competition: Competition
    demo: Demo | None = None
    image: Image = Image()
    folds: Folds = Folds()
    cnn: dict[str, Cnn] = Field(min_length=1)
    sequence: dict[str, Sequence] = Field(default_factory=dict)
    stack: dict[str, Stack] = Field(default_factory=dict)
    blend: Blend = Blend()
    thresholds: Thresholds = Thresholds()
    compute: Compute = Compute()

    @field_validator("cnn", "sequence", "stack")
    @classmethod
    def _plain_names(cls, members: dict[str, Any]) -> dict[str, Any]:
        for name in members:
            if not re.match(NAME, name) or name == "blend":
                raise ValueError(f"member name {name!r}: use lower-case letters, digits and _ (and not `blend`)")
        return members

    @model_validator(mode="after")
    def _members_exist(self) -> "Recipe":
        groups = [self.cnn, self.sequence, self.stack]
        names = [name for group in groups for name in group]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"member name {twice[0]!r} is used twice; members share one name space")
        for name, settings in self.cnn.items():
            if self.competition.format == "unibuc" and settings.input == "neighbours":
                raise ValueError(
                    f"cnn.{name}.input: neighbours are slices of a study, and unibuc has single pictures; write windows"
                )
        for sequence, settings in self.sequence.items():
            _known(f"sequence.{sequence}.on", settings.on, list(self.cnn))
        for stack, settings in self.stack.items():
            _known(f"stack.{stack}.on", self.stack_members(settings), self.base_members)
        _known("blend.members", self.blend_members, names)
        return self

    @property
    def base_members(self) -> list[str]:
        return [*self.cnn, *self.sequence]

    @property
    def blend_members(self) -> list[str]:
        return [*self.base_members, *self.stack] if self.blend.members == "all" else list(self.blend.members)

    def stack_members(self, stack: Stack) -> list[str]:
        return self.base_members if stack.on == "all" else list(stack.on)


def _known(where: str, names: list[str] | tuple[str, ...], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{where}: no member {name!r}{_meant(name, known)}; there are {', '.join(known)}")


def _meant(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""


class _Loader(yaml.SafeLoader):
    """YAML with 1.2's scalars (`on` is a word, `1e-4` a number) that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float):
                raise RecipeError(f"{key_node.start_mark.name}:{key_node.start_mark.line + 1}: a key must be a word")
            if key in seen:
                raise RecipeError(f"{key_node.start_mark.name}:{key_node.start_mark.line + 1}: {key!r} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), list("tf"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$"), list("-+.0123456789")
)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            value = yaml.load(file, _Loader)
    except FileNotFoundError:
        near = ", ".join(sorted(str(p) for p in path.parent.glob("*.yaml"))) or "none in that folder"
        raise RecipeError(f"{path}: no such recipe (found: {near})") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, this is {type(value).__name__}")
    return value


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, key by key; a null takes a key away."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merge(base[key], value)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def _override(values: dict[str, Any], assignment: str) -> None:
    dotted, equals, text = assignment.partition("=")
    if not equals or not dotted:
        raise RecipeError(f"--set {assignment}: write key=value, for instance cnn.resnet.epochs=8")
    *parents, last = dotted.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise RecipeError(f"--set {assignment}: {parent} holds a value, not keys")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {assignment}: not a YAML value: {' '.join(str(error).split())}") from None
    if value is None:
        values.pop(last, None)  # as in a recipe with a base
    else:
        values[last] = value


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe, its one-level `base:` and the overrides. Raises RecipeError with one line a fault."""
    path = Path(path)
    values = _read(path)
    base = values.pop("base", None)
    if base is not None:
        below = _read(path.parent / str(base))
        if "base" in below:
            raise RecipeError(f"{path.parent / str(base)}: a base has no base of its own")
        values = _merge(below, values)
    for assignment in overrides:
        _override(values, assignment)
    return _checked(Recipe, values, f"{path}: ")


def table_thresholds(overrides: list[str]) -> Thresholds:
    """Threshold settings alone, for a table without a recipe; overrides as in `load`."""
    values: dict[str, Any] = {}
    for assignment in overrides:
        if not assignment.startswith("thresholds."):
            raise RecipeError(f"--set {assignment}: with a table only thresholds.* has a meaning")
        _override(values, assignment)
    return _checked(Thresholds, values.get("thresholds", {}), "thresholds.")


def _checked(model: type[Model], values: dict[str, Any], where: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RecipeError("\n".join(where + _explain(fault) for fault in error.errors())) from None


def _explain(fault: Any) -> str:
    """One pydantic fault as `where: what is wrong[: did you mean ...?]`."""
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        key = str(fault["loc"][-1])
        known = _fields_at(fault["loc"][:-1])
        return f"{where}: no such key{_meant(key, known) or '; known keys: ' + ', '.join(known)}"
    text = fault["msg"].removeprefix("Value error, ")
    got = "" if fault["type"] in ("missing", "value_error") else f" (got {fault['input']!r})"
    return f"{where}: {text}{got}" if where else f"{text}{got}"


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    """The keys that the model at `location` knows; below a dict of members, the key itself names no field."""
    model: Any = Recipe
    for part in location:
        if get_origin(model) is dict:
            model = get_args(model)[1]
        else:
            annotation = model.model_fields[str(part)].annotation
            model = next((a for a in get_args(annotation) if _is_model(a)), annotation)
            if get_origin(annotation) is dict:
                model = annotation
    return list(model.model_fields) if _is_model(model) else []


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)

"""Reading a recipe: YAML with a one-level `base:` and overrides, every fault as one line that says what to write."""

import re
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from ich.errors import UserError
from ich.recipe.models import meant
from ich.recipe.types import Recipe, Thresholds

Model = TypeVar("Model", bound=BaseModel)


class RecipeError(UserError):
    """The recipe cannot be used; the text says where and what to write."""


class _Loader(yaml.SafeLoader):
    """YAML with 1.2's scalars (`on` is a word, `1e-4` a number) that refuses a key given twice."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._checked: set[yaml.Node] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Called with each mapping, and with what it merges (`<<: *anchor`), whose keys its own may replace."""
        if node not in self._checked:  # later on it holds the merged keys beside its own
            self._checked.add(node)
            self._check(node)
        super().flatten_mapping(node)

    def _check(self, node: yaml.MappingNode) -> None:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            merges = key_node.tag == "tag:yaml.org,2002:merge"
            key = key_node.value if merges else self.construct_object(key_node, deep=True)
            where = f"{key_node.start_mark.name}:{key_node.start_mark.line + 1}"
            if not isinstance(key, str | int | float):
                raise RecipeError(f"{where}: a key must be a word")
            if key in seen:
                several = "; several are merged by `<<: [*one, *other]`" if merges else ""
                raise RecipeError(f"{where}: {key!r} stands twice{several}")
            seen.add(key)


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
    settings = _checked(Thresholds, values.get("thresholds", {}), "thresholds.")
    if settings.prevalence == "apply":
        raise RecipeError("thresholds.prevalence: a table has no test set whose prevalence could be estimated")
    return settings


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
        return f"{where}: no such key{meant(key, known) or '; known keys: ' + ', '.join(known)}"
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

"""Read a recipe: YAML with a one-level `base:` and overrides. Each error is one line with a suggestion."""

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ich.errors import UserError
from ich.recipe.models import meant
from ich.recipe.types import Recipe, Thresholds

Model = TypeVar("Model", bound=BaseModel)


class RecipeError(UserError):
    """An invalid recipe: file, key, and what to write instead."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (`on` is a string, `1e-4` a number); duplicate keys are an error."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._checked: set[yaml.Node] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Check the keys of a mapping before those of `<<: *anchor`, which it may replace, are merged into it."""
        if node not in self._checked:  # a second call finds the merged keys too
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
                raise RecipeError(f"{where}: keys must be strings")
            if key in seen:
                hint = "merge with `<<: [*one, *other]`" if merges else "remove one"
                raise RecipeError(f"{where}: duplicate key {key!r}; {hint}")
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
        near = ", ".join(sorted(str(p) for p in path.parent.glob("*.yaml"))) or "no recipe in that folder"
        raise RecipeError(f"{path}: no such file. Choose from {near}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path}: invalid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: must be a mapping of keys, not {type(value).__name__}")
    return value


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base` key by key; null removes a key."""
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
        raise RecipeError(f"--set {assignment}: use key=value, such as cnn.resnet.epochs=8")
    *parents, last = dotted.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise RecipeError(f"--set {assignment}: {parent} is a value, not a section")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {assignment}: invalid YAML: {' '.join(str(error).split())}") from None
    if value is None:
        values.pop(last, None)
    else:
        values[last] = value


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe, its `base:` and overrides. Raises RecipeError with one line per error."""
    path = Path(path)
    values = _read(path)
    base = values.pop("base", None)
    if base is not None:
        below = _read(path.parent / str(base))
        if "base" in below:
            raise RecipeError(f"{path.parent / str(base)}: a base must not have a base itself")
        values = _merge(below, values)
    for assignment in overrides:
        _override(values, assignment)
    return _checked(Recipe, values, f"{path}: ")


def table_thresholds(overrides: list[str]) -> Thresholds:
    """Return threshold settings without a recipe; overrides as in `load`."""
    values: dict[str, Any] = {}
    for assignment in overrides:
        if not assignment.startswith("thresholds."):
            raise RecipeError(f"--set {assignment}: only thresholds.* applies to --table")
        _override(values, assignment)
    settings = _checked(Thresholds, values.get("thresholds", {}), "thresholds.")
    if settings.prevalence == "apply":
        raise RecipeError("thresholds.prevalence: apply requires a test set, which --table does not have; use report")
    return settings


def _checked(model: type[Model], values: dict[str, Any], where: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RecipeError("\n".join(where + _explain(model, fault) for fault in error.errors())) from None


def _explain(model: type[BaseModel], fault: Any) -> str:
    """Format an error of pydantic as `key: what is wrong`."""
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = _settings_at(model, fault["loc"][:-1])
        hint = meant(str(fault["loc"][-1]), known)
        return f"{where} is not a setting{hint if hint != '.' else '. Choose from ' + ', '.join(known)}"
    text = (
        fault["msg"]
        .removeprefix("Value error, ")
        .replace("Input should ", "must ")
        .partition(", unable")[0]
        .partition(" or instance")[0]
    )
    text = text.replace("Field required", "is required").replace("must be a valid ", "must be of type ")
    got = "" if fault["type"] in ("missing", "value_error") else f" (got {fault['input']!r})"
    return f"{where}: {text}{got}" if where else f"{text}{got}"


def _settings_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Settings of the section at `location`."""
    schema = model.model_json_schema()
    section = schema
    for part in location:
        section = section["properties"][part] if "properties" in section else section["additionalProperties"]
        options = [section, *section.get("anyOf", [])]  # an optional section is a reference or null
        reference = next((one["$ref"] for one in options if "$ref" in one), None)
        section = section if reference is None else schema["$defs"][reference.removeprefix("#/$defs/")]
    return list(section["properties"])

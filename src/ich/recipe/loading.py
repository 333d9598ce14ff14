"""Read a recipe: YAML, its bases and overrides. Each error is one line with a suggestion."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ich.errors import UserError
from ich.inputs import regular
from ich.recipe.messages import explain
from ich.recipe.models import closest
from ich.recipe.types import Recipe, Thresholds

Model = TypeVar("Model", bound=BaseModel)
LARGEST, DEEPEST, MOST, LONGEST = 1 << 17, 32, 3000, 1000  # bytes, levels, values, characters of a value
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # no path and no name has them
REPOSITORY = Path(__file__).resolve().parents[3]  # unless the package is installed without it
YAML_ERRORS = (yaml.YAMLError, ValueError, OverflowError)  # ValueError: wrong UTF-8, \U00110000, %YAML with digits
YAML_ADVICE = {  # by the start of a problem of PyYAML
    "found character '\\t'": "indent with spaces, not with tabs",
    "mapping values are not allowed": "write a space after each colon, and quote text that has a colon",
    "could not find expected ':'": "write a space after each colon",
    "expected ',' or": "close the bracket",
    "expected <block end>": "check the indentation",
}


class RecipeError(UserError):
    """An invalid recipe: file, key, and what to write instead."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (`on` is a string, `1e-4` a number); duplicate keys, tags and large values are errors."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._checked: set[yaml.Node] = set()
        self._depth = self._values = 0
        self._sizes: dict[yaml.Node | None, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a value. The limits count each alias as the values that it stands for."""
        event, before = self.peek_event(), self._values
        mark = event.start_mark
        self._depth += 1
        self._require(self._depth <= DEEPEST, mark, f"more than {DEEPEST} levels")
        self._require(getattr(event, "tag", None) is None, mark, "tags are not allowed; quote text that starts with !")
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            self._require(node in self._sizes, mark, f"*{event.anchor} is part of itself")
            self._values += self._sizes[node]
        else:
            self._values += 1
            self._sizes[node] = self._values - before
        self._require(self._values <= MOST, mark, f"more than {MOST:,} values")
        if isinstance(node, yaml.ScalarNode):
            text, number = node.value, node.tag.endswith(":float")
            self._require(len(text) <= LONGEST, mark, f"a text of more than {LONGEST:,} characters")
            self._require(not CONTROL.search(text), mark, "control characters are not allowed")
            self._require(not number or math.isfinite(float(text)), mark, "this number is too large")
        self._depth -= 1
        return node

    def fetch_flow_collection_start(self, TokenClass: type) -> None:
        """Scan an opening bracket. Of thousands, the scanner takes seconds before they are composed."""
        self._require(self.flow_level < DEEPEST, self.get_mark(), f"more than {DEEPEST} levels")
        super().fetch_flow_collection_start(TokenClass)

    def _require(self, valid: bool, mark: yaml.Mark, problem: str) -> None:
        if not valid:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)

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
            key, mark = key_node.value if merges else self.construct_object(key_node, deep=True), key_node.start_mark
            hint = "merge with `<<: [*one, *other]`" if merges else "remove one"
            self._require(isinstance(key, str | int | float), mark, "keys must be strings")
            self._require(key not in seen, mark, f"duplicate key {key!r}; {hint}")
            seen.add(key)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9]\d{,17})$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$"), list("-+.0123456789")
)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError(_not_a_file(path))
    try:
        with open(path, encoding="utf-8", opener=regular(LARGEST)) as file:
            value = yaml.load(file, _Loader)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
    except YAML_ERRORS as error:
        raise RecipeError(f"{path}: invalid YAML{_problem(error)}") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: must be a mapping of keys, not {type(value).__name__}")
    return value


def _problem(error: Exception) -> str:
    """Say where YAML is invalid, why, and what to write."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f": {' '.join(str(error).split())}"
    problem = " ".join(str(error.problem).split())
    advice = next((f"; {text}" for start, text in YAML_ADVICE.items() if problem.startswith(start)), "")
    return f" in line {error.problem_mark.line + 1}: {problem}{advice}"


def _not_a_file(path: Path) -> str:
    """Say what to type instead of the path of a recipe that is not a file."""
    folder = path if path.is_dir() else path.parent
    own = set(folder.glob("*.yaml"))
    shipped = {one for one in Path("configs").rglob("*.yaml") if one.parent.name != "cluster"}
    known = sorted(own if own and path.is_dir() else own | shipped)
    what = f"{path}: {'is a folder, not a recipe' if path.is_dir() else 'no such file'}"
    if not known and (REPOSITORY / "run_all.sh").is_file():
        return f"{what} in {Path.cwd()}. Run the command in the repository: cd {REPOSITORY}"
    near = closest(path.stem, [one.stem for one in known])
    if near is not None:
        return f"{what}. Did you mean {next(one for one in known if one.stem == near)}?"
    return f"{what}. Choose from {', '.join(map(str, known)) or 'none: there is no recipe in that folder'}"


def _with_bases(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a recipe, merged into its base, which may have a base itself. above: the recipes that start from it."""
    values = _read(path)
    base = values.pop("base", None)
    if base is None:
        return values
    below, chain = path.parent / str(base), (*above, path)
    if not below.is_file():
        raise RecipeError(f"{path}: base: {_not_a_file(below)}")
    if below.resolve() in [one.resolve() for one in chain]:
        raise RecipeError(f"{path}: base: {base} starts from this recipe; a recipe cannot be its own base")
    return _merge(_with_bases(below, chain), values)


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
    setting = f"--set {CONTROL.sub('?', assignment)}"
    dotted, equals, text = assignment.partition("=")
    if not equals or not dotted or CONTROL.search(dotted):
        raise RecipeError(f"{setting}: use key=value, such as cnn.resnet.epochs=8")
    *parents, last = dotted.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise RecipeError(f"{setting}: {parent} is a value, not a section")
    try:
        value = yaml.load(text, _Loader)
    except YAML_ERRORS as error:
        raise RecipeError(f"{setting}: invalid YAML{_problem(error)}") from None
    if value is None:
        values.pop(last, None)
    else:
        values[last] = value


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe, its bases and overrides. Raises RecipeError with one line per error."""
    path = Path(path)
    values = _with_bases(path)
    for assignment in overrides:
        _override(values, assignment)
    return _checked(Recipe, values, f"{path}: ")


def in_yaml(value: Any) -> str:
    """Return a value as one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n...\n").strip()


def how_to_write(settings: Iterable[tuple[str, str]]) -> str:
    """Say what to write in a recipe, for dotted keys and values in YAML; null is removed."""
    said: dict[str, list[str]] = {}
    for key, value in settings:
        section, _, last = key.rpartition(".")
        verb, what = ("remove", last) if value in ("", "null") else ("write", f"{last}: {value}")
        said.setdefault(f"{verb} {{}} under `{section}`" if section else f"{verb} {{}}", []).append(f"`{what}`")
    return ", ".join(text.replace("{}", " and ".join(what)) for text, what in said.items())


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
        raise RecipeError("\n".join(where + line for line in explain(model, values, error.errors()))) from None

"""Errors of a recipe in plain words: the setting, what it must be, and what was probably meant."""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

from pydantic import BaseModel

from ich.recipe.models import BLEND_METRIC, F_SCORE, closest
from ich.recipe.types import NAME, REMOTE

Schema = Mapping[str, Any]
Place = tuple[Any, ...]  # keys and list indices that lead to a setting

TYPES = {
    "string": "text",
    "number": "a number",
    "integer": "an integer",
    "boolean": "true or false",
    "null": "null",
    "object": "a mapping",
}
LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
PATTERNS = {
    NAME: "at most 64 lower-case letters, digits and _",
    F_SCORE: "f1, f2, f0.5, ...",
    REMOTE: "s3://bucket/prefix, gs://bucket/prefix or file:///folder, without credentials",
    BLEND_METRIC: "log_loss, f1, f2, f0.5, ...",
}
WORDS = {  # of other tools, and keys of earlier versions, by setting
    "learning_rate": "lr",
    "batch_size": "bs",
    "weight_decay": "wd",
    "backbone": "name model arch architecture encoder",
    "n": "n_folds n_splits k",
    "seed": "random_state",
    "max_grad_norm": "grad_clip gradient_clip",
    "min_lr_ratio": "floor",
    "inputs": "on members",
    "num_iterations": "n_estimators rounds",
    "root": "path folder",
    "metric": "beta",
    "tta": "reverse",
}
SYNONYMS = {word: setting for setting, words in WORDS.items() for word in words.split()}


def explain(model: type[BaseModel], values: Any, faults: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line per faulty setting of `values`, at most 20, from the errors of pydantic."""
    root = model.model_json_schema()
    # a list whose items are wrong is too short as well
    own = [fault for fault in faults if fault["type"] != "too_short" or not fault["input"]]
    # text or a mapping: of a mapping, only its keys can be wrong
    own = [fault for fault in own if fault["loc"][-1:] != ("str",) or not isinstance(fault["input"], dict)]
    return list(dict.fromkeys(_line(root, values, fault) for fault in own[:20]))


def _line(root: Schema, values: Any, fault: Mapping[str, Any]) -> str:
    location, kind = tuple(part for part in fault["loc"] if not _is_class(root, part)), fault["type"]
    in_union = _setting(root, location[:-1])[0] != location[:-1]
    if kind in ("extra_forbidden", "invalid_key") and not in_union:
        return f"{_dotted(location)} is not a setting. {_meant_by(root, location)}"
    if location[-1:] == ("[key]",):
        return f'{_dotted(location[:-2])}: quote the name: "{location[-2]}"'
    place = _setting(root, location)[0]
    where = _dotted(place)
    if kind == "value_error":
        return ": ".join(filter(None, (where, fault["msg"].removeprefix("Value error, "))))
    if kind == "missing" and place == location:
        return f"{where} is required{_misspelt_model(values, place)}"
    return f"{where}: {_must(root, values, place, fault)}"


def _is_class(root: Schema, part: Any) -> bool:
    """Return whether a part of a location of pydantic names an alternative that is a mapping, not a key."""
    return str(part).rpartition(", ")[2].removesuffix("]") in root["$defs"]  # Start, or function-after[..., Start]


def _must(root: Schema, values: Any, place: Place, fault: Mapping[str, Any]) -> str:
    """Say what the value of a setting must be, what it is, and what was probably meant."""
    schema = _setting(root, place)[1]
    if place[-1] in _resolved(root, schema).get("properties", {}):  # cnn.backbone
        return f"the name of the model is missing. Did you mean {_dotted((*place[:-1], 'NAME', place[-1]))}?"
    if fault["type"] == "too_short":
        return "must not be empty"
    value = reduce(lambda part, key: part[key], place, values)
    expected = "a finite number" if fault["type"] == "finite_number" else wanted(root, schema)
    got = "nothing" if value is None else reprlib.repr(value)
    return f"must be {expected} (got {got}){_instead(schema, value)}"


def _dotted(place: Sequence[Any]) -> str:
    return ".".join(map(str, place))


def _setting(root: Schema, location: Place) -> tuple[Place, Schema]:
    """Return the part of a location of pydantic that names a setting, and the schema of the setting.

    The rest of the location names an alternative of a union, or a value of a pair.
    """
    schema = root
    for depth, part in enumerate(location):
        section = _resolved(root, schema)
        if part in section.get("properties", {}):
            schema = section["properties"][part]
        elif isinstance(section.get("additionalProperties"), dict):
            schema = section["additionalProperties"]
        elif "items" in section and isinstance(part, int):
            schema = section["items"]
        else:
            return location[:depth], schema
    return location, schema


def _resolved(root: Schema, schema: Schema) -> Schema:
    """Return the schema that an optional value or a reference stands for."""
    options = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    options = [one for one in options if "$ref" in one] or options
    schema = options[0] if len(options) == 1 else schema
    return root["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def wanted(root: Schema, schema: Schema) -> str:
    """Return what a value of this JSON schema must be, in the notation of YAML."""
    if "anyOf" in schema:
        return " or ".join(wanted(root, one) for one in schema["anyOf"])
    schema = _resolved(root, schema)
    if "properties" in schema:
        key = (schema.get("required") or list(schema["properties"]))[0]
        first = schema["properties"][key]
        example = first.get("default") or first.get("enum", [wanted(root, first)])[0]
        return f"{{{key}: {example}, ...}}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"{{NAME: {wanted(root, schema['additionalProperties'])}}}"
    if "prefixItems" in schema:
        return f"[{', '.join(wanted(root, one) for one in schema['prefixItems'])}]"
    return f"[{wanted(root, schema['items'])}, ...]" if "items" in schema else _wanted_value(schema)


def _wanted_value(schema: Schema) -> str:
    if choices := _choices(schema):
        return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
    if "pattern" in schema:
        return PATTERNS[schema["pattern"]]
    limits = [f"{sign} {schema[key]:g}" for key, sign in LIMITS.items() if key in schema]
    return " ".join(filter(None, (TYPES[schema["type"]], " and ".join(limits))))


def _choices(schema: Schema) -> list[str]:
    return [str(choice) for choice in schema.get("enum", [schema["const"]] if "const" in schema else [])]


def _instead(schema: Schema, value: Any) -> str:
    """Suggest a value: a list instead of its only item, or the closest choice."""
    if not isinstance(value, str):
        return ""
    options = schema.get("anyOf", [schema])
    if any(one.get("type") == "array" for one in options):
        return f". Did you mean [{value}]?"
    if any(one.get("type") == "null" for one in options) and value == "None":
        return ". Did you mean null?"
    close = closest(value, [choice for one in options for choice in _choices(one)])
    return f". Did you mean {close}?" if close else ""


def _misspelt_model(values: Any, place: Place) -> str:
    """Suggest the name of another model: a misspelt one is a new model, whose required settings are missing."""
    if len(place) < 3:
        return ""
    *section, name, _ = place
    others = reduce(lambda part, key: part[key], section, values)
    close = closest(str(name), [str(other) for other in others if other != name])
    return f". Did you mean {_dotted((*section, close))}?" if close else ""


def _meant_by(root: Schema, location: Place) -> str:
    """Suggest a setting instead of one that does not exist: a synonym, the same word elsewhere, or a similar word."""
    *parents, word = location
    section = _setting(root, tuple(parents))[1]
    known = list(_resolved(root, section)["properties"])
    if SYNONYMS.get(str(word).lower()) in known:
        return f"Did you mean {SYNONYMS[str(word).lower()]}?"
    same = list(_places(root, section, word, tuple(parents))) or list(_places(root, root, word))
    if same:
        return f"Did you mean {' or '.join(map(_dotted, same[:3]))}?"
    close = closest(str(word), known)
    return f"Did you mean {close}?" if close else f"Choose from {', '.join(known)}"


def _places(root: Schema, section: Schema, word: str, place: Place = ()) -> Iterator[Place]:
    """Yield the places of all settings below a section that are called `word`."""
    for name, setting in _resolved(root, section).get("properties", {}).items():
        inner, at = _resolved(root, setting), (*place, name)
        if isinstance(inner.get("additionalProperties"), dict):
            inner, at = _resolved(root, inner["additionalProperties"]), (*at, "NAME")
        if word in inner.get("properties", {}):
            yield (*at, word)
        yield from _places(root, inner, word, at)

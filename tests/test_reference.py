"""The JSON schema of the recipe and the generated settings page."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from ich.recipe import reference
from ich.recipe.loading import _read

ROOT = Path(__file__).parents[1]
RECIPES = sorted([*ROOT.glob("configs/*.yaml"), *ROOT.glob("configs/seeds/*.yaml"), *ROOT.glob("tests/*.yaml")])
VALIDATOR = Draft202012Validator(reference.schema())
SOUND = {"name": "mine", "competition": {"format": "folder", "root": "input/mine"}, "cnn": {"a": {"backbone": "x"}}}


def test_the_committed_files_are_current():
    advice = "run `python -m ich.recipe.reference`"
    assert json.loads((ROOT / reference.SCHEMA).read_text()) == reference.schema(), advice
    assert (ROOT / reference.PAGE).read_text() == reference.settings_page(), advice


def test_every_setting_has_a_meaning():
    lines = [line for line in reference.settings_page().splitlines() if line.startswith("| `")]
    assert not [line for line in lines if line.endswith("|  |") and "](#" not in line]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_name_the_schema_and_satisfy_it(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("$schema=")[2]).resolve() == ROOT / reference.SCHEMA
    assert not [error.message for error in VALIDATOR.iter_errors(_read(path))]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"cnn": {"a": {"backbone": "x", "epoch": 3}}}, "cnn.a"),
        ({"cnn": {"a": {}}}, "cnn.a"),
        ({"cnn": {"a": {"backbone": "x", "batch_size": 0}}}, "cnn.a.batch_size"),
        ({"cnn": {"a": {"backbone": "x", "windows": [[40]]}}}, "cnn.a.windows.0"),
        ({"cnn": {"a": {"backbone": "x", "loss": {"name": "dice"}}}}, "cnn.a.loss.name"),
        ({"competition": {"format": "folders", "root": "x"}}, "competition.format"),
        ({"image": {"size": 8}}, "image.size"),
        ({"folds": {"n": "five"}}, "folds.n"),
        ({"blend": {"on": ["a"]}}, "blend"),
        ({"name": "My recipe"}, "name"),
        ({"threshold": {}}, ""),
    ],
)
def test_wrong_recipes_violate_the_schema_at_the_wrong_key(changes, where):
    assert not list(VALIDATOR.iter_errors(SOUND))
    errors = [leaf for error in VALIDATOR.iter_errors(SOUND | changes) for leaf in (error.context or [error])]
    assert ".".join(map(str, errors[0].absolute_path)) == where


def test_a_recipe_with_a_base_may_leave_out_required_keys_and_remove_others():
    recipe = {"base": "demo.yaml", "name": "mine", "cnn": {"resnet": {"epochs": 2, "augment": None}, "densenet": None}}
    assert not list(VALIDATOR.iter_errors(recipe))
    assert list(VALIDATOR.iter_errors({**recipe, "base": None}))

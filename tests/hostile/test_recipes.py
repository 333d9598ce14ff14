"""Hostile recipes: each is refused with one line per error, within a second."""

import time
from pathlib import Path

import pytest

from ich.recipe import RecipeError, load

HEAD = "name: x\ncompetition: {format: rsna2019, root: input/x}\n"
CNN = "cnn: {a: {backbone: resnet10t}}\n"
VALID = HEAD + CNN
DIGITS = "9" * 5000
LAUGHS = ["k0: &k0 [x, x]", *(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 10)}]" for i in range(1, 10))]
MERGES = ["k0: &k0 {x: 1}", *(f"k{i}: &k{i} {{<<: [{', '.join([f'*k{i - 1}'] * 10)}]}}" for i in range(1, 10))]
RECIPES = {
    "digits": (f"{VALID}folds: {{seed: {DIGITS}}}", "line 4: a text of more than 1,000 characters"),
    "900 digits": (f"{VALID}folds: {{seed: {DIGITS[:900]}}}", "this number is too large"),
    "30 digits": (f"{VALID}folds: {{seed: {DIGITS[:30]}}}", "folds.seed: must be an integer"),
    "900 quoted digits": (f'{VALID}folds: {{seed: "{DIGITS[:900]}"}}', "must be an integer of at most 18 digits"),
    "infinite argument": (
        f"{HEAD}cnn: {{a: {{backbone: a, kwargs: {{x: 1e999}}}}}}",
        "line 3: this number is too large",
    ),
    "infinite beta": (f"{VALID}thresholds: {{metric: f{DIGITS[:900]}}}", "beta must be positive and finite"),
    "hexadecimal": (f"{VALID}folds: {{n: 0x_}}", "folds.n: must be an integer >= 2 (got '0x_')"),
    "octal": (f"{VALID}folds: {{n: 00000000000000000009_}}", "folds.n: must be an integer"),
    **{
        tag: (f"{VALID}folds: {{n: {tag} abc}}", "line 4: tags are not allowed; quote text that starts with !")
        for tag in ("!!int", "!!int ''  #", "!", "!x", "!!python/object/apply:os.system [ls]")
    },
    "tag of a mapping": (f"{VALID}folds: !!set {{n}}", "line 4: tags are not allowed"),
    "tag of a key": (f"{VALID}!!int abc: 1", "line 4: tags are not allowed"),
    "open brackets": (f"a: {'[' * 20_000}", "line 1: more than 32 levels"),
    "dashes": ("- " * 20_000, "line 1: more than 32 levels"),
    "circular list": (f"{VALID}folds: &a [*a]", "line 4: *a is part of itself"),
    "circular merge": (f"{VALID}folds: &a {{<<: *a}}", "line 4: *a is part of itself"),
    "laughs": ("\n".join(LAUGHS), "more than 3,000 values"),
    "merged laughs": ("\n".join(MERGES), "more than 3,000 values"),
    "many values": (f"{VALID}report: {{studies: [{'a, ' * 20_000}]}}", "line 4: more than 3,000 values"),
    "number as a key": (f"{VALID}50: 1", "x.yaml: 50 is not a setting"),
    "number as a key of a model": (f"{HEAD}cnn: {{a: {{backbone: resnet10t, 5: 1}}}}", "cnn.a.5 is not a setting"),
    "many keys": (VALID + "".join(f"k{i}: 1\n" for i in range(700)), "k0 is not a setting"),
    "digits of a version": (f"%YAML {DIGITS}.1\n---\n{VALID}", "x.yaml: invalid YAML: Exceeds the limit"),
    "no character": (VALID.replace("name: x", r'name: "\U00110000"'), "x.yaml: invalid YAML: chr()"),
    "no character at all": (VALID.replace("name: x", r'name: "\UFFFFFFFF"'), "x.yaml: invalid YAML: Python int"),
    "large file": (f"{VALID}# {'x' * 200_000}", "larger than 131,072 bytes"),
    **{
        f"base with {name}": (f'base: "x{text}"\n{VALID}', "line 1: control characters are not allowed")
        for name, text in (("NUL", "\\0"), ("newline", "\\n"), ("escape", "\\e[2J"), ("surrogate", "\\ud800"))
    },
    "NUL in root": (f'name: x\ncompetition: {{format: rsna2019, root: "input/\\0x"}}\n{CNN}', "line 2: control char"),
    "newline in a model": (f'{HEAD}cnn: {{"a\\n": {{backbone: resnet10t}}}}', "line 3: control characters"),
    "newline in the name": (VALID.replace("name: x", 'name: "x\\n"'), "line 1: control characters"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_hostile_recipe_is_refused_within_a_second(tmp_path: Path, name: str):
    text, says = RECIPES[name]
    (tmp_path / "x.yaml").write_text(text)
    started = time.process_time()
    with pytest.raises(RecipeError) as error:
        load(tmp_path / "x.yaml")
    assert time.process_time() - started < 1
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == (20 if name == "many keys" else 1)


@pytest.mark.parametrize("override", ["name=!!int x", "folds={[]: 1}", 'name="x\\n"', f"name={'[' * 20_000}"])
def test_a_hostile_override_is_refused(tmp_path: Path, override: str):
    (tmp_path / "x.yaml").write_text(VALID)
    with pytest.raises(RecipeError, match=r"^--set .*: invalid YAML in line 1") as error:
        load(tmp_path / "x.yaml", [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["a\nb", "name.x=\n", "name=\u2028[", "name\x1b=[]"])
def test_an_override_with_control_characters_is_one_printable_line(tmp_path: Path, override: str):
    (tmp_path / "x.yaml").write_text(VALID)
    with pytest.raises(RecipeError) as error:
        load(tmp_path / "x.yaml", [override])
    assert str(error.value).isprintable()


def test_study_ids_keep_their_digits(tmp_path: Path):
    ids = ["1.2.826.0.1.3680043.8.498.12345678901234567890123456789012345", "0012", "123456789012345678901234567890"]
    (tmp_path / "x.yaml").write_text(f'{VALID}report: {{studies: [{ids[0]}, "{ids[1]}", "{ids[2]}"]}}\n')
    assert load(tmp_path / "x.yaml").report.studies == tuple(ids)

from pathlib import Path

import pytest

from ich.recipe import RecipeError, load

ROOT = Path(__file__).parents[1]
RECIPES = sorted([*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "tests").rglob("*.yaml")])


def test_there_are_recipes_to_test():
    assert len(RECIPES) >= 2


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_shipped_recipe_loads(path):
    assert load(path).cnn


@pytest.fixture
def demo():
    return ROOT / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("cnn.resnet.epoch=3", "cnn.resnet.epoch: no such key: did you mean epochs?"),
        ("fold.n=3", "fold: no such key: did you mean folds?"),
        ("cnn.resnet.loss.nam=bce", "cnn.resnet.loss.nam: no such key: did you mean name?"),
        ("sequence.bigru.on=[resnt]", "sequence.bigru.on: no member 'resnt': did you mean resnet?"),
        ("blend.members=[bigru, nobody]", "blend.members: no member 'nobody'"),
        ("cnn.resnet.epochs=0", "cnn.resnet.epochs: Input should be greater than 0 (got 0)"),
        ("cnn.resnet.epochs=many", "cnn.resnet.epochs: Input should be a valid integer"),
        ("name=../x", "name: String should match pattern"),
        ("competition.format=rsna", "competition.format: Input should be 'rsna2019'"),
        ("cnn.a/b.backbone=resnet18", "member name 'a/b'"),
        ("stack.resnet.neighbours=1", "member name 'resnet' is used twice"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(demo, override, says):
    with pytest.raises(RecipeError) as error:
        load(demo, [override])
    assert says in str(error.value)


def test_every_fault_has_its_own_line(demo):
    with pytest.raises(RecipeError) as error:
        load(demo, ["fold.n=3", "cnn.resnet.epochs=0"])
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("assignment", ["cnn.resnet.epochs", "=3", "name.x=3"])
def test_an_assignment_that_is_none_is_refused(demo, assignment):
    with pytest.raises(RecipeError, match="--set"):
        load(demo, [assignment])


def test_numbers_are_written_as_people_write_them(demo):
    recipe = load(demo, ["cnn.resnet.learning_rate=1e-4", "cnn.resnet.weight_decay=5e-2"])
    assert recipe.cnn["resnet"].learning_rate == 0.0001
    assert recipe.cnn["resnet"].weight_decay == 0.05


def test_on_is_a_word_and_not_true(demo):
    assert load(demo).sequence["bigru"].on == ("resnet", "resnext")


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nname: b\n")
    with pytest.raises(RecipeError, match=r"twice.yaml:2: 'name' stands twice"):
        load(path)


def test_a_base_is_overlaid_key_by_key_and_null_takes_away(tmp_path, demo):
    path = tmp_path / "small.yaml"
    path.write_text(
        f"base: {demo}\nname: small\ncnn: {{resnet: {{epochs: 2}}, seresnet: null}}\nsequence: null\nblend: null\n"
    )
    recipe = load(path)
    assert recipe.cnn["resnet"].epochs == 2
    assert recipe.cnn["resnet"].backbone == load(demo).cnn["resnet"].backbone
    assert set(recipe.cnn) == {"resnet", "resnext", "densenet"}
    assert recipe.sequence == {}


def test_a_missing_recipe_names_those_that_exist(demo):
    with pytest.raises(RecipeError, match=r"no such recipe \(found: .*demo\.yaml"):
        load(demo.with_name("dem.yaml"))


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "!!python/object/apply:os.system ['true']\n", "\x00"])
def test_what_is_no_recipe_is_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"bad\.yaml"):
        load(path)

from pathlib import Path
from typing import get_args

import pytest

from ich.ensemble import blend, calibration
from ich.recipe import Blend, RecipeError, load, table_thresholds

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
        ("cnn.resnet.loss.gamma_neg=0.5", "cnn.resnet.loss.gamma_neg: a focusing is 0 or at least 1, not 0.5"),
        ("name=../x", "name: String should match pattern"),
        ("competition.format=rsna", "competition.format: Input should be 'rsna2019'"),
        ("cnn.a/b.backbone=resnet18", "member name 'a/b'"),
        ("stack.resnet.neighbours=1", "member name 'resnet' is used twice"),
        ("pretrain.resnet.backbone=resnet18", "member name 'resnet' is used twice"),
        ("pretrain.blend.backbone=resnet18", "member name 'blend'"),
        ("sequence.bigru.cell=conv", "sequence.bigru: cell conv is a context of head sdl, and head is residual"),
        ("cnn.resnet.start=simclr", "cnn.resnet.start: no member 'simclr'; there are none"),
        ("cnn.resnet.labels=0", "cnn.resnet.labels: Input should be greater than 0"),
        ("cnn.resnet.early_stopping.on=outer", "cnn.resnet.early_stopping.on: Input should be 'fold' or 'inner'"),
        ("cnn.resnet.early_stopping.metrik=f2", "metrik: no such key: did you mean metric?"),
        ("folds.by=study", "folds.by: Input should be 'patient' or 'slice'"),
        ("folds.by=slice", "folds.by: slice tears studies apart"),
        ("image.crop=edges", "cnn.resnext.input: neighbours do not fit onto each other where image.crop is edges"),
        ("blend.metric=auc", "blend.metric: String should match pattern"),
        ("blend.metric=f0.0", "blend.metric: beta 0 is precision alone; write f0.5, f1, f2"),
        ("thresholds.metric=f0", "thresholds.metric: beta 0 is precision alone"),
        ("thresholds={average: samples, prevalence: apply}", "prevalence: it weighs the rows of a class"),
        ("thresholds={average: samples, shrink: 10}", "shrink: it weighs the rows of a class"),
        ("smooth.gauss.on=[bigru, nobody]", "smooth.gauss.on: no member 'nobody'"),
        ("smooth.gauss.on=[]", "smooth.gauss.on: it names nobody; there are resnet"),
        ("blend.members=[bigru, bigru]", "blend.members: 'bigru' stands twice"),
        ("smooth.gauss.widths=[inf]", "smooth.gauss.widths.0: Input should be a finite number"),
        ("competition.trained_by=configs/rsna2019.yaml", "competition: trained_by belongs to format cq500"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(demo, override, says):
    with pytest.raises(RecipeError) as error:
        load(demo, [override])
    assert says in str(error.value)


JOINT = "end_to_end.joint={backbone: resnet10t, kwargs: {channels: [32, 64, 128, 256], stem_width: 16}, start: resnet}"
ABLATION = "ablation={figure: f2, systems: {a: {member: resnet}, b: {member: blend}}}"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["end_to_end.joint.start=resnt"], "end_to_end.joint.start: no member 'resnt': did you mean resnet?"),
        (["end_to_end.joint.start=bigru"], "end_to_end.joint.start: no member 'bigru'"),
        (["end_to_end.joint.backbone=resnet18"], "end_to_end.joint.backbone: its weights start from resnet"),
        (["end_to_end.joint.kwargs={}"], "end_to_end.joint.kwargs: its weights start from resnet"),
        (["end_to_end.joint.windows=[[40, 80]]"], "end_to_end.joint.windows: its weights start from resnet"),
        (["end_to_end.joint.cell=conv"], "end_to_end.joint: cell conv is a context of head sdl, and head is residual"),
        (["end_to_end.joint.cell=conv", "end_to_end.joint.head=lrnn"], "end_to_end.joint: cell conv"),
        (["end_to_end.joint.labels=0.5"], "end_to_end.joint.labels: no such key"),
        (["sequence.bigru.on=[joint]"], "sequence.bigru.on: no member 'joint'"),
        (["competition.format=unibuc", "cnn.resnext.input=windows"], "end_to_end: unibuc has single pictures"),
        (["competition.format=unibuc", "end_to_end=null"], "cnn.resnext.input: unibuc has single pictures"),
        (["ablation.systems.a.member=resnt"], "ablation.systems.a.member: no member 'resnt': did you mean resnet?"),
        (["ablation.systems.a.variant=random"], "ablation: systems.a.variant: no member 'random'; there are none"),
        (["ablation.orders=[[a, c]]"], "ablation: orders: no member 'c'"),
        (["ablation.orders=[[a]]"], "ablation.orders.0.1: Field required"),
        (["ablation.systems={}"], "ablation.systems: Dictionary should have at least 1 item"),
        (["ablation.seeds=[]"], "ablation.seeds: Tuple should have at least 1 item"),
        (["ablation.figure=f3"], "ablation.figure: Input should be 'f1', 'f2', 'auc' or 'log_loss'"),
    ],
)
def test_parts_that_do_not_fit_are_named_with_their_place(demo, overrides, says):
    load(demo, [JOINT, ABLATION])
    with pytest.raises(RecipeError) as error:
        load(demo, [JOINT, ABLATION, *overrides])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_parts_that_fit_are_taken(demo):
    assert load(demo, [JOINT, "end_to_end.joint.head=sdl_lrnn", "end_to_end.joint.cell=conv"]).end_to_end
    assert load(demo, ["thresholds.metric=f0.5"]).thresholds.beta == 0.5
    assert load(demo, ["thresholds.min_recall={any: 0.95}"]).thresholds.min_recall == {"any": 0.95}
    assert load(demo, ["stack.lgbm.on=[resnet, gauss]"]).read_by("lgbm") == ["resnet", "gauss"]
    sliced = load(demo, ["folds.by=slice", "sequence=null", "smooth=null", "stack=null", "blend=null"])
    assert sliced.blend_members == ["resnet", "resnext", "seresnet", "densenet"]


def test_a_table_has_no_prevalence_to_shift_to():
    assert table_thresholds(["thresholds.metric=f1"]).metric == "f1"
    with pytest.raises(RecipeError, match=r"thresholds.prevalence: a table has no test set"):
        table_thresholds(["thresholds.prevalence=apply"])


def test_the_methods_of_a_blend_are_those_that_there_are():
    methods = {name: get_args(Blend.model_fields[name].annotation) for name in ("method", "calibration")}
    assert methods == {"method": ("auto", *blend.METHODS), "calibration": ("auto", *calibration.METHODS)}


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


def test_an_anchor_is_merged_and_its_keys_may_be_replaced(tmp_path):
    path = tmp_path / "anchors.yaml"
    text = """\
name: anchors
competition: {format: rsna2019, root: input/x}
cnn:
  a: &a {backbone: resnet18, epochs: 3, loss: {name: focal}}
  b: {<<: *a, epochs: 5}
  c: {epochs: 6, <<: *a}
"""
    path.write_text(text)
    cnn = load(path).cnn
    assert [cnn[name].epochs for name in "abc"] == [3, 5, 6]
    assert {cnn[name].loss.name for name in "abc"} == {"focal"}
    assert {cnn[name].backbone for name in "abc"} == {"resnet18"}

    for line, twice in (("b: {<<: *a, epochs: 5, epochs: 6}", "epochs"), ("b: {<<: *a, <<: *a}", "<<")):
        path.write_text(text.replace("b: {<<: *a, epochs: 5}", line))
        with pytest.raises(RecipeError, match=rf"anchors\.yaml:5: '{twice}' stands twice"):
            load(path)


def test_an_anchor_that_merges_itself_may_be_merged_above_its_place(tmp_path):
    path = tmp_path / "anchors.yaml"
    path.write_text(
        "name: anchors\ncompetition: {format: rsna2019, root: input/x}\ncnn:\n"
        "  a: {backbone: resnet18, loss: &one {name: focal, gamma: 1}}\n"
        "  b: {backbone: resnet18, loss: &two {<<: *one, gamma: 2}}\n"
        "above: {<<: *two, gamma: 3}\n"
    )
    cnn = load(path, ["above=null"]).cnn
    assert [(cnn[name].loss.name, cnn[name].loss.gamma) for name in "ab"] == [("focal", 1), ("focal", 2)]


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

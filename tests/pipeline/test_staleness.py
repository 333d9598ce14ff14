"""Inputs of each task, and tasks that become out of date when something changes."""

import os
import shutil

import pandas as pd
import pytest

from conftest import PARTS, Clone, make, plan_of
from ich.errors import UserError
from ich.pipeline.state import Plan
from ich.pipeline.tasks import MODEL_STAGES
from ich.recipe import load
from ich.store import raw
from ich.store.records import write_record

FOLDS = range(3)
AFTER = {"thresholds", "submit", "score", "explain", "report"}
NOT_RUN = {"score", "explain", "report"}  # by the fixture
STAGES = {"resnet": "cnn", "resnext": "cnn", "small": "cnn", "joint": "end_to_end", "bigru": "sequence"}
STAGES |= {"lr": "sequence", "inside": "sequence", "gauss": "smooth", "lgbm": "stack", "blend": "blend"}
LAST = ("gauss", "lgbm", "blend")  # they read all cnn models, all networks, and all models


def out_of_date(plan: Plan) -> set[str]:
    return {task.name for task in plan.all() if not plan.state(task).done} | NOT_RUN


def whole(*models: str) -> set[str]:
    """All tasks of these models."""
    names = {f"{STAGES[model]}/{model}" for model in models}
    names |= {f"{name}/fold{k}" for name in names for k in FOLDS}
    read = {"resnet", "resnext", "small"} & set(models)  # by the sequence models bigru and inside
    return names | {f"cnn/{model}/fold{k}/train" for model in read for k in FOLDS}


def reads(plan: Plan, model: str, fold: int = 0) -> dict[str, tuple[str, ...]]:
    return {task.name: files for task, files in plan.fold(model, fold).upstream}


def test_everything_is_up_to_date(trained):
    plan = plan_of(trained)
    assert out_of_date(plan) == NOT_RUN
    tasks = [task.name for task in plan.all()]
    assert set(tasks) == {"demo", "prepare", "folds", "pretrain/simclr"} | whole(*STAGES) | AFTER
    assert len(tasks) == len(set(tasks))
    order = {name: place for place, name in enumerate(tasks)}
    for task in plan.all():
        assert all(order[upstream.name] < order[task.name] for upstream, _ in task.upstream), task.name


# ---- what a fold reads

DATA = {"folds": ("parts.csv",), "prepare": ("slices.parquet",)}


def test_a_network_reads_the_images_and_the_fold_that_it_starts_from(trained):
    plan = plan_of(trained)
    images = {"folds": ("parts.csv",), "prepare": ("hu-*.npy",)}
    assert reads(plan, "resnet", 1) == images
    assert reads(plan, "small", 1) == images | {"pretrain/simclr": ("model.safetensors",)}
    assert reads(plan, "joint", 1) == images | {"cnn/resnet/fold1": ("model.safetensors",)}


def test_a_network_reads_the_same_fold_of_the_recipe_that_it_starts_from(copy):
    start = lambda more="": f"cnn.resnext.start={{recipe: {PARTS}, model: resnext{more}}}"
    make(plan_of(copy, "name=second", start()), "prepare", "folds")
    plan = plan_of(copy, "name=second", start())
    weights = ("model.safetensors", "model.json")
    assert reads(plan, "resnext", 1)["cnn/resnext/fold1 of parts"] == weights
    elsewhere = ("competition.root=input/other", "folds.n=5")
    assert "cnn/resnext/fold1 of parts" in reads(plan_of(copy, "name=second", *elsewhere, start()), "resnext", 4)
    assert "cnn/resnext/fold2 of parts" in reads(
        plan_of(copy, "name=second", *elsewhere, start(", fold: 2")), "resnext"
    )
    assert "pretrain/simclr of parts" in reads(
        plan_of(copy, "name=second", f"cnn.resnext.start={{recipe: {PARTS}, model: simclr}}"), "resnext"
    )
    assert [graph.recipe.name for graph in plan.graphs] == ["parts", "second"]

    plan.require(plan.fold("resnext", 1))
    (copy / "oof/parts/resnext/fold1/model.json").write_text("{}")
    plan.forget()
    with pytest.raises(UserError) as error:
        make(plan, "cnn", model="resnext")
    assert str(error.value) == (
        "cnn/resnext/fold1 needs cnn/resnext/fold1 of parts, which is stale (model.json was changed)."
        f" Run `ich run {PARTS}` first"
    )

    path = plan.workspace.folds
    folds = pd.read_csv(path)
    folds.assign(fold=2 - folds["fold"]).to_csv(path, index=False)
    path.with_suffix(".run.json").unlink()
    make(plan_of(copy, "name=second", start()), "folds")
    with pytest.raises(
        UserError, match=r"its fold 0 was trained on patients of fold 0\. Use the same section and file"
    ):
        plan_of(copy, "name=second", start()).fold("resnext", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["{recipe: tests/part.yaml, model: resnext}"], "part.yaml: no such file. Did you mean .*parts.yaml"),
        (
            ["{recipe: tests/parts.yaml, model: joint}"],
            "no cnn or pretrain model 'joint'. Choose from resnet, resnext, sm",
        ),
        (
            ["{recipe: tests/parts.yaml, model: resnet, fold: 3}", "competition.root=a"],
            "fold: no such fold 3. .* 0, 1, 2",
        ),
        (
            ["{recipe: tests/parts.yaml, model: resnet, fold: 1}"],
            "its fold 1 was trained on patients of fold 0. Use the",
        ),
        (["{recipe: tests/parts.yaml, model: resnet}", "folds.seed=8"], "its fold 0 was trained on patients of fold 0"),
        (["{bundle: input, model: resnet}"], "input has no network 'resnet'. Choose from none"),
        (["{recipe: tests/parts.yaml, model: resnet}", "name=parts"], "cannot start from itself: parts -> parts. Name"),
    ],
)
def test_a_start_that_is_not_there_or_that_leaks_is_an_error(trained, changes, message):
    plan = plan_of(trained, "name=second", f"cnn.resnext.start={changes[0]}", *changes[1:])
    with pytest.raises(UserError, match=message):
        plan.fold("resnext", 0)


def test_recipes_may_start_from_one_another_in_a_chain_but_not_in_a_cycle(trained, tmp_path):
    names = ["one", "two", "three"]
    for name, other in zip(names, [*names[1:], None], strict=True):
        start = "" if other is None else f"start: {{recipe: {tmp_path}/{other}.yaml, model: resnext}}"
        content = (
            f"base: {trained}/{PARTS}\nname: {name}\ncompetition: {{root: {name}}}\ncnn: {{resnext: {{{start}}}}}\n"
        )
        (tmp_path / f"{name}.yaml").write_text(content)
    one = Plan(load(tmp_path / "one.yaml"), trained)
    assert [graph.recipe.name for graph in one.graphs] == names[::-1]
    ((task, _),) = [part for part in one.fold("resnext", 2).upstream if part[0].recipe is not None]
    assert "cnn/resnext/fold2 of three" in [upstream.name for upstream, _ in task.upstream]
    (tmp_path / "three.yaml").write_text((tmp_path / "two.yaml").read_text().replace("two", "three"))
    with pytest.raises(UserError, match="cannot start from itself: one -> two -> three -> three"):
        Plan(load(tmp_path / "one.yaml"), trained).fold("resnext", 0)


def test_a_sequence_model_reads_in_sample_or_out_of_fold_predictions(trained):
    valid, test = ("valid.parquet", "valid_embeddings.npy"), ("test.parquet", "test_embeddings.npy")
    of = lambda features: reads(plan_of(trained, f"sequence.lr.features={features}"), "lr", 1)
    train = {"cnn/resnet/fold1/train": ("train.parquet", "train_embeddings.npy")}
    assert of("in_sample") == DATA | {"cnn/resnet/fold1": valid + test} | train
    assert of("oof") == DATA | {f"cnn/resnet/fold{k}": valid + test if k == 1 else valid for k in FOLDS}
    assert of("aligned") == DATA | {f"cnn/resnet/fold{k}": valid + test for k in FOLDS}
    plan = plan_of(trained, *(f"sequence.{name}.features=oof" for name in ("bigru", "lr", "inside")))
    assert not [task.name for task in plan.all() if task.name.endswith("/train")], "no model reads them"


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("gauss", ["resnet", "resnext", "small"]),
        ("lgbm", ["resnet", "resnext", "small", "joint", "bigru", "lr", "inside"]),
        ("blend", [name for name in STAGES if name != "blend"]),
    ],
)
def test_ensembles_read_out_of_fold_predictions_of_all_folds(trained, model, inputs):
    expected = {
        f"{STAGES[name]}/{name}/fold{k}": ("valid.parquet", "test.parquet") if k == 1 else ("valid.parquet",)
        for name in inputs
        for k in FOLDS
    }
    assert reads(plan_of(trained), model, 1) == DATA | expected


# ---- what a changed setting makes stale


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ("cnn.resnet.workers=2", set()),
        ("compute.threads=2", set()),
        ("pretrain.simclr.seed=8", {"pretrain/simclr"} | whole("small", "inside", *LAST)),
        ("cnn.resnet.seed=8", whole("resnet", "joint", "bigru", "lr", "inside", *LAST)),
        ("cnn.resnext.learning_rate=0.001", whole("resnext", "bigru", *LAST)),
        ("end_to_end.joint.chunk=4", whole("joint", "lgbm", "blend")),
        ("sequence.bigru.features=aligned", whole("bigru", "lgbm", "blend")),
        ("smooth.gauss.widths=[0, 5]", whole("gauss", "blend")),
        ("blend.method=logits", whole("blend")),
        ("thresholds.metric=f1", set()),
        ("labels.table=labels.csv", whole(*STAGES)),
        ("folds.seed=8", {"folds", *whole(*STAGES)}),
        ("image.size=48", {"prepare", "folds", "pretrain/simclr", *whole(*STAGES)}),
    ],
)
def test_a_changed_setting_makes_only_its_dependants_stale(trained, change, stale):
    after = AFTER if stale or "thresholds" in change else NOT_RUN
    if change == "sequence.bigru.features=aligned":  # no model reads these any more
        stale = stale - {f"cnn/resnext/fold{k}/train" for k in FOLDS}
    assert out_of_date(plan_of(trained, change)) == stale | after


def test_a_stale_state_has_a_reason(trained):
    plan = plan_of(trained, "cnn.resnet.seed=8")
    assert plan.state(plan.fold("resnet", 0)).why == "seed was 7, is 8"
    assert plan.state(plan.in_sample("resnet", 0)).why == "cnn/resnet/fold0 is stale"
    assert plan.state(plan.in_sample("resnext", 0)).done
    with pytest.raises(UserError, match=r"needs cnn/resnet/fold0, which is stale \(seed was 7, is 8\). Run `ich cnn`"):
        plan.require(plan.fold("blend", 1))


# ---- what changed files make stale


def test_changed_predictions_make_only_their_dependants_stale(copy):
    path = copy / "oof/parts/resnext/fold1/valid.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    fold = {"cnn/resnext/fold1", "cnn/resnext/fold1/train", "cnn/resnext"}
    sequence = {"sequence/bigru", "sequence/bigru/fold1"}  # its other folds read only their own
    assert out_of_date(plan_of(copy)) == fold | sequence | whole(*LAST) | AFTER
    assert plan_of(copy).state(plan_of(copy).fold("resnext", 1)).why == "valid.parquet was changed"


def test_a_damaged_record_makes_its_dependants_stale(copy):
    path = copy / "oof/parts/bigru/fold0/run.json"
    path.write_bytes(path.read_bytes().replace(b'"seed": 7', b'"seed": 8'))
    assert out_of_date(plan_of(copy)) == {"sequence/bigru", "sequence/bigru/fold0"} | whole("lgbm", "blend") | AFTER


def test_another_fold_file_makes_all_models_stale_except_pretraining(copy):
    path = copy / "folds/parts.csv"
    table = pd.read_csv(path)
    table.assign(fold=(table["fold"] + 1) % 3).to_csv(path, index=False)
    (copy / "folds/parts.run.json").unlink()
    make(plan_of(copy), "folds")
    assert out_of_date(plan_of(copy)) == whole(*STAGES) | AFTER


def test_a_fold_made_again_leaves_its_dependants_up_to_date(copy):
    """It has the same bytes."""
    make(plan_of(copy), "cnn", model="resnext", fold=1, force=True)
    assert out_of_date(plan_of(copy)) == NOT_RUN


def test_files_that_training_does_not_read_may_be_missing(copy):
    for name in ("solution.csv", "mislabelled.csv", "masks.npz"):
        (copy / "input/tiny" / name).unlink()
    assert out_of_date(plan_of(copy)) == NOT_RUN | {"demo"}


def test_a_copy_with_other_times_at_another_place_is_up_to_date(trained, tmp_path, monkeypatch):
    root = tmp_path / "moved"
    shutil.copytree(trained, root, symlinks=True, copy_function=shutil.copyfile)
    (scan, *_) = sorted((root / "input/tiny").rglob("*.dcm"))
    os.utime(scan, ns=(7, 7))  # copyfile may be as fast as the clock
    large = plan_of(root).prepared.record
    record = large.read() or {}
    write_record(large.path, {**record, "stamps": {"hu-00000.npy": [1, 1]}})  # as of a file that is compared by time
    assert out_of_date(plan_of(root)) == NOT_RUN
    before = Clone(root).files()
    make(plan_of(root), "demo", "prepare", "folds", *MODEL_STAGES, "thresholds", "submit")
    after = Clone(root).files()
    known = plan_of(root).workspace.raw_files("input/tiny")
    assert {root / path for path in after if after[path] != before.get(path)} == {known, large.path}
    assert not large.outdated_stamps(large.read() or {})

    with monkeypatch.context() as patch:
        patch.setattr(raw, "_sample", lambda path: pytest.fail(f"{path} was read again"))
        assert out_of_date(plan_of(root)) == NOT_RUN
    content = bytearray(scan.read_bytes())
    content[-1] ^= 1
    scan.write_bytes(content)
    plan = plan_of(root)
    assert plan.state(plan.prepare()).why == f"{scan.relative_to(root / 'input/tiny')} was changed"
    assert plan.state(plan.folds).done, "until `ich prepare`"
    scan.unlink()
    plan = plan_of(root)
    assert plan.state(plan.prepare()).why == f"{scan.relative_to(root / 'input/tiny')} was removed"
    plan = plan_of(root, "image.size=48")
    assert plan.state(plan.prepare()).why == "image.size was 32, is 48"


def test_moved_raw_files_need_no_new_cache(copy):
    (copy / "input/tiny").rename(copy / "input/elsewhere")
    plan = plan_of(copy, "competition.root=input/elsewhere")
    assert plan.state(plan.prepare()).done
    make(plan, "prepare")
    assert out_of_date(plan) == NOT_RUN

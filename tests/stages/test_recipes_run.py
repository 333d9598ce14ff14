"""Each recipe that is shipped fits together: its own networks train two steps on a few slices of its format."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from ich.phantom.competition import write_competition
from ich.pipeline.plan import Plan
from ich.recipe import Recipe, load
from ich.stages import ablate, cnn, end_to_end, folds, prepare, pretrain, sequence
from ich.stages.fitting import splits
from ich.stages.inputs import Slices
from ich.stages.member import Checkpoint
from ich.training import loop
from stages.test_formats import write_ntu, write_own, write_unibuc

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in sorted(CONFIGS.rglob("*.yaml"))}
OUTSIDE = [name for name, path in RECIPES.items() if load(path).competition.trained_by is not None]
TRAINING = [name for name in RECIPES if name not in OUTSIDE]
WITH_ABLATION = [name for name in TRAINING if load(RECIPES[name]).ablation is not None]


def test_there_are_recipes_of_both_kinds():
    assert len(TRAINING) >= 2
    assert OUTSIDE
    assert WITH_ABLATION


# ---- competitions in miniature


def write_rsna2019(root: Path) -> None:
    write_competition(root, train_studies=5, test_studies=1, slices=4, size=64, seed=3)


def write_folder(root: Path) -> None:
    studies = write_own(root)
    rows = [f"{study.study_id},{study.labels[:, 5].max()}" for study in studies]
    (root / "labels.csv").write_text("\n".join(["study_id,any", *rows]) + "\n")


WRITERS = {"rsna2019": write_rsna2019, "ntu_dlmi": write_ntu, "unibuc": write_unibuc, "folder": write_folder}


@pytest.fixture(scope="module")
def competitions(tmp_path_factory) -> Path:
    """A root in which each format has its competition once; the caches are shared too."""
    root = tmp_path_factory.mktemp("competitions")
    for name, write in WRITERS.items():
        write(root / "input" / name)
    return root


# ---- a recipe in miniature: its networks, inputs, losses and augmentations stay as they are

GROUPS = ("pretrain", "cnn", "end_to_end", "sequence")
READ_PICTURES = GROUPS[:3]


def members(recipe: Recipe) -> list[tuple[str, str]]:
    return [(group, name) for group in GROUPS for name in getattr(recipe, group)]


def loaded(path: Path, *more: str) -> Recipe:
    """The recipe on its format's miniature, small pictures, two folds, one epoch."""
    recipe = load(path)
    root = f"input/{recipe.competition.format}"
    changes = [f"competition.root={root}", "demo=null", "image.size=32", "folds.n=2", "compute.processes=1"]
    for group, name in members(recipe):
        changes += [f"{group}.{name}.{change}" for change in ("epochs=1", "precision=fp32")]
        if group in READ_PICTURES:
            changes += [f"{group}.{name}.{change}" for change in ("pretrained=false", "weights=null", "workers=0")]
    # aligning embeddings of 2048 numbers takes longer than all the rest, and depends on nothing that a recipe says
    changes += [f"sequence.{name}.features=oof" for name in recipe.sequence]
    return load(path, [*changes, *more])


def two_steps(plan: Plan) -> list[str]:
    """Batch sizes with which an epoch of fold 0 has two steps."""
    slices, changes = Slices(plan), []
    for group, name in members(plan.recipe):
        settings = getattr(plan.recipe, group)[name]
        if group == "pretrain":
            count = len(slices.table)
        else:
            rows = splits(slices, settings, 0, getattr(settings, "labels", 1.0))["train"]
            count = len(rows) if group == "cnn" else slices.table["series"].iloc[rows].nunique()
        assert count > 1, f"{group}.{name}"
        changes.append(f"{group}.{name}.batch_size={count // 2 if group in ('pretrain', 'cnn') else -(-count // 2)}")
    return changes


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """How many steps each network trained since, on one core; the states between epochs are not written."""
    counted: list[int] = []
    real = loop.fit

    def fit(*arguments, **settings):
        taken: list[float] = []
        history = real(*arguments, on_step=lambda _epoch, _step, loss: taken.append(loss), **settings)
        counted.append(len(taken))
        return history

    monkeypatch.setattr(loop, "fit", fit)
    monkeypatch.setattr(Checkpoint, "save", lambda *_: None)
    monkeypatch.setattr(Plan, "cores", 1)
    return counted


@pytest.mark.parametrize("name", TRAINING)
def test_every_network_of_a_recipe_trains_two_steps(competitions, steps, name):
    path = RECIPES[name]
    plan = Plan(loaded(path), competitions)
    prepare.run(plan)
    folds.run(plan)
    recipe = loaded(path, *two_steps(Plan(plan.recipe, competitions)))
    plan = Plan(recipe, competitions)
    read = {member for settings in recipe.sequence.values() for member in settings.on}
    expected = len(members(recipe)) + len(read)

    pretrain.run(plan)
    for member in recipe.cnn:
        cnn.run(plan, model=member, fold=None if member in read else 0)
    for stage in (end_to_end, sequence):
        stage.run(plan, fold=0)

    assert len(steps) == expected
    assert min(steps) >= 2
    for group, member in members(recipe):
        task = plan.pretrained(member) if group == "pretrain" else plan.fold(member, 0)
        assert plan.state(task).done
        assert pd.read_csv(task.folder / "history.csv")["loss"].notna().all()
    shutil.rmtree(plan.workspace.oof)


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_outside_validation_names_a_recipe_that_trains_at_its_picture_size(name):
    recipe = load(RECIPES[name])
    trained_by = CONFIGS.parent / str(recipe.competition.trained_by)
    assert trained_by in [RECIPES[other] for other in TRAINING]
    assert load(trained_by).image == recipe.image


@pytest.mark.parametrize("name", WITH_ABLATION)
def test_every_run_of_an_ablation_is_a_recipe_that_has_its_systems(name):
    ablation = load(RECIPES[name]).ablation
    assert ablation is not None
    plans = {plan.recipe.name: plan for plan in ablate.runs(RECIPES[name], [], CONFIGS.parent)}
    variants = {system.variant for system in ablation.systems.values()}
    assert len(plans) == len(ablation.seeds) * len(variants)
    for system in ablation.systems.values():
        for seed in ablation.seeds:
            run = "_".join(filter(None, (load(RECIPES[name]).name, system.variant, f"s{seed}")))
            assert system.member in plans[run].members
            assert plans[run].recipe.folds.seed == seed

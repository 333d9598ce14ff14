"""Every shipped recipe trains on a few slices of its format."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from conftest import fold_data, make
from ich.networks.cnn import Cnn, CnnSpec
from ich.phantom.competition import write_competition
from ich.pipeline.state import Plan
from ich.recipe import Head, Recipe, Start, load
from ich.recipe.types import SHARED
from ich.stages import ablate
from ich.training import fit as training
from ich.training.checkpoint import TrainingState
from stages.test_formats import write_ntu, write_own, write_unibuc

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("seeds/*.yaml")])
RECIPES = {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in FILES}
OUTSIDE = [name for name, path in RECIPES.items() if load(path).competition.trained_by is not None]
TRAINING = [name for name in RECIPES if name not in OUTSIDE]
WITH_ABLATION = [name for name in TRAINING if load(RECIPES[name]).ablation is not None]


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
    """A workspace with one small competition per format."""
    root = tmp_path_factory.mktemp("competitions")
    for name, write in WRITERS.items():
        write(root / "input" / name)
    return root


# ---- networks

GROUPS = ("pretrain", "cnn", "end_to_end", "sequence")
READ_IMAGES = GROUPS[:3]
REGULAR = {"drop_path_rate"}  # kwargs that do not make a backbone small
STAND_IN = ("backbone=resnet10t", "kwargs={channels: [4, 8, 8, 8], stem_width: 4}")


def networks(recipe: Recipe) -> list[tuple[str, str]]:
    return [(group, name) for group in GROUPS for name in getattr(recipe, group)]


def loaded(path: Path, backbones: str, *more: str) -> Recipe:
    """The recipe on the small competition of its format, with small images, two folds and one epoch.

    backbones: "small" replaces those of full size, and the widths of heads.
    """
    recipe = load(path)
    root = f"input/{recipe.competition.format}"
    changes = [f"competition.root={root}", "demo=null", "image.size=32", "folds.n=2", "compute.processes=1"]
    for group, name in networks(recipe):
        changes += [f"{group}.{name}.{change}" for change in ("epochs=1", "precision=fp32", "accumulate=1")]
        if group in READ_IMAGES:
            changes += [f"{group}.{name}.{change}" for change in ("pretrained=false", "weights=null", "workers=0")]
            if backbones == "small" and getattr(recipe, group)[name].kwargs.keys() <= REGULAR:
                changes += [f"{group}.{name}.{change}" for change in STAND_IN]
        if group not in ("pretrain", "cnn") and backbones == "small":
            changes.append(f"{group}.{name}.hidden=8")
        if isinstance(getattr(getattr(recipe, group)[name], "start", None), Start):
            changes.append(f"{group}.{name}.start=null")
    # needs networks of one fold only
    changes += [f"sequence.{name}.features=in_sample" for name in recipe.sequence]
    return load(path, [*changes, *more])


def two_steps(plan: Plan) -> list[str]:
    """Batch sizes with which an epoch of fold 0 has two steps."""
    changes = []
    for group, name in networks(plan.recipe):
        data = fold_data(plan, name, None if group == "pretrain" else 0)
        rows = data.rows["all" if group == "pretrain" else "train"]
        of_slices = group in ("pretrain", "cnn")
        count = len(rows) if of_slices else data.table.table["series"].iloc[rows].nunique()
        assert count > 1, f"{group}.{name}"
        changes.append(f"{group}.{name}.batch_size={count // 2 if of_slices else -(-count // 2)}")
    return changes


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """Numbers of steps per trained network. No checkpoints are written."""
    counted: list[int] = []
    real = training.train_epoch

    def train_epoch(state, loader, *rest):
        counted.append(loader.batches)
        return real(state, loader, *rest)

    monkeypatch.setattr(training, "train_epoch", train_epoch)
    monkeypatch.setattr(TrainingState, "save", lambda *_: None)
    return counted


@pytest.mark.parametrize("name", TRAINING)
def test_backbones_of_a_recipe_can_be_built(name):
    recipe = load(RECIPES[name])
    models = [settings for group in READ_IMAGES for settings in getattr(recipe, group).values()]
    for settings in {(one.backbone, one.input, len(one.windows)): one for one in models}.values():
        channels = len(settings.windows) * (3 if settings.input == "neighbours" else 1)
        with torch.device("meta"):  # shapes without values
            network = Cnn(CnnSpec(settings.backbone, channels, 6, settings.kwargs))
            images = torch.zeros((2, channels, recipe.image.size, recipe.image.size), dtype=torch.uint8)
            assert network._embeddings(images).shape == (2, network.embedding_size)


# recipes whose networks differ from those of others in numbers only
OTHERS = ("seeds/hohoho_grid", "phantom", "small_data")
ALIKE = [name for name in TRAINING if name.endswith("_demo") or name in OTHERS]
CASES = [(name, "small") for name in TRAINING if name not in ALIKE]
CASES += [pytest.param(name, "full size", marks=pytest.mark.slow) for name in TRAINING]


@pytest.mark.parametrize(("name", "backbones"), CASES)
def test_every_network_of_a_recipe_trains_two_steps(competitions, steps, name, backbones):
    path = RECIPES[name]
    plan = Plan(loaded(path, backbones), competitions)
    make(plan, "prepare", "folds")
    recipe = loaded(path, backbones, *two_steps(plan))
    plan = Plan(recipe, competitions)
    make(plan, "pretrain")
    make(plan, "cnn", "end_to_end", "sequence", fold=0)
    assert len(steps) == sum(getattr(recipe.models.get(model), "seeds", 1) for _, model in networks(recipe))
    assert min(steps) >= 2
    for group, model in networks(recipe):
        task = plan.fold(model, None if group == "pretrain" else 0)
        assert plan.state(task).done
        assert pd.read_csv(task.folder / "history.csv")["loss"].notna().all()
    shutil.rmtree(plan.workspace.oof)


STARTS = [
    pytest.param(settings, id=f"{name}/{model}")
    for name in TRAINING
    for model, settings in load(RECIPES[name]).models.items()
    if isinstance(getattr(settings, "start", None), Start)
]


@pytest.mark.parametrize("settings", STARTS)
def test_a_network_has_the_architecture_of_the_one_that_it_starts_from(settings):
    other = load(CONFIGS.parent / settings.start.recipe).models[settings.start.model]
    same = set(SHARED if settings.stage == "cnn" else [*Head.model_fields, "inputs", "study_loss"])
    assert settings.model_dump(include=same) == other.model_dump(include=same)


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_outside_validation_has_the_images_of_its_recipe(name):
    recipe = load(RECIPES[name])
    trained_by = CONFIGS.parent / str(recipe.competition.trained_by)
    assert trained_by in [RECIPES[other] for other in TRAINING]
    assert load(trained_by).image == recipe.image


@pytest.mark.parametrize("name", WITH_ABLATION)
def test_the_runs_of_an_ablation_have_the_models_of_its_systems(name):
    ablation = load(RECIPES[name]).ablation
    assert ablation is not None
    plans = {plan.recipe.name: plan for plan in ablate.runs(RECIPES[name], [], CONFIGS.parent)}
    variants = {system.variant for system in ablation.systems.values()}
    assert len(plans) == len(ablation.seeds) * len(variants)
    for system in ablation.systems.values():
        for seed in ablation.seeds:
            run = "_".join(filter(None, (load(RECIPES[name]).name, system.variant, f"s{seed}")))
            assert system.model in plans[run].models
            assert plans[run].recipe.folds.seed == seed

"""Recipes: a YAML file that configures a whole solution.

`load("configs/demo.yaml", ["cnn.resnet.epochs=8"])` returns a frozen `Recipe` or raises `RecipeError`.
"""

from ich.recipe.loading import RecipeError, load, table_thresholds
from ich.recipe.models import (
    BETAS,
    Augment,
    Backbone,
    Blend,
    Cnn,
    EarlyStopping,
    EndToEnd,
    Head,
    Loss,
    Model,
    Pretrain,
    Sequence,
    Smooth,
    Stack,
    Supervised,
    Training,
    beta_of,
)
from ich.recipe.types import SECTIONS, Ablation, Recipe, Thresholds

__all__ = [
    "BETAS",
    "SECTIONS",
    "Ablation",
    "Augment",
    "Backbone",
    "Blend",
    "Cnn",
    "EarlyStopping",
    "EndToEnd",
    "Head",
    "Loss",
    "Model",
    "Pretrain",
    "Recipe",
    "RecipeError",
    "Sequence",
    "Smooth",
    "Stack",
    "Supervised",
    "Thresholds",
    "Training",
    "beta_of",
    "load",
    "table_thresholds",
]

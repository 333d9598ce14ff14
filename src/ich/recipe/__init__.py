"""Recipes: a YAML file that configures a whole solution.

`load("configs/demo.yaml", ["cnn.resnet.epochs=8"])` returns a frozen `Recipe` or raises `RecipeError`.
"""

from ich.recipe.loading import RecipeError, how_to_write, in_yaml, load, table_thresholds
from ich.recipe.models import BETAS, Blend, Model, Smooth, Stack, beta_of
from ich.recipe.networks import Backbone, Cnn, Head, Start, Supervised, WeightsPackage
from ich.recipe.training import Training
from ich.recipe.types import SECTIONS, Ablation, Labels, Recipe, Store, Thresholds

__all__ = [
    "BETAS",
    "SECTIONS",
    "Ablation",
    "Backbone",
    "Blend",
    "Cnn",
    "Head",
    "Labels",
    "Model",
    "Recipe",
    "RecipeError",
    "Smooth",
    "Stack",
    "Start",
    "Store",
    "Supervised",
    "Thresholds",
    "Training",
    "WeightsPackage",
    "beta_of",
    "how_to_write",
    "in_yaml",
    "load",
    "table_thresholds",
]

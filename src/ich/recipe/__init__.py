"""A recipe is one YAML file that holds a whole solution. Its types, strict; each knob is explained at its field.

`load("configs/demo.yaml", ["cnn.resnet.epochs=8"])` gives a frozen `Recipe` or says what to write instead.
"""

from ich.recipe.loading import RecipeError, load, table_thresholds
from ich.recipe.members import (
    Augment,
    Backbone,
    Cnn,
    EarlyStopping,
    EndToEnd,
    Head,
    Loss,
    Pretrain,
    Sequence,
    Smooth,
    Stack,
    Supervised,
    Training,
)
from ich.recipe.types import BETAS, Ablation, Blend, Recipe, Thresholds, beta_of

__all__ = [
    "BETAS",
    "Ablation",
    "Augment",
    "Backbone",
    "Blend",
    "Cnn",
    "EarlyStopping",
    "EndToEnd",
    "Head",
    "Loss",
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

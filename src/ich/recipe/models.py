"""Settings of models that are no networks, and the artifacts that each kind of model reads and writes."""

import difflib
import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, StringConstraints

from ich.recipe.training import Seed, Seeds, Strict


class Model(Strict):
    """A model that is fitted on folds and predicts."""

    stage: ClassVar[str]  # its section of the recipe and its command
    reads_images: ClassVar[bool] = False
    reads_embeddings: ClassVar[bool] = False  # of its inputs, in addition to their logits
    writes_embeddings: ClassVar[bool] = False
    files: ClassVar[tuple[str, ...]] = ()  # written by every fold, in addition to the predictions
    scores_new_scans: ClassVar[bool] = True
    scores_in_sample: ClassVar[bool] = False  # also record the scores of the training rows; cheap models only
    fingerprint_ignores: ClassVar[frozenset[str]] = frozenset()  # settings that do not change the artifacts

    @property
    def writes_studies(self) -> bool:
        """True if it predicts studies, in addition to slices."""
        return False

    def input_models(self, recipe: Any) -> tuple[str, ...]:
        """Names of the models whose predictions it reads."""
        return ()

    def sources(self) -> dict[str, str]:
        """User files that it reads: name to path, relative to the repository root."""
        return {}


class External(Model):
    """Predictions made elsewhere, such as a teammate's, joined by image id."""

    stage: ClassVar[str] = "external"
    files: ClassVar[tuple[str, ...]] = ("external.json", "external.parquet")
    scores_new_scans: ClassVar[bool] = False

    oof: str = Field(
        description="CSV or Parquet with image_id and one column per class; out-of-fold, all labelled slices"
    )
    test: str | None = Field(default=None, description="same for all test slices")
    values: Literal["probability", "logit"] = Field(default="probability", description="type of the values")

    def sources(self) -> dict[str, str]:
        return {"oof": self.oof} | ({} if self.test is None else {"test": self.test})


class Smooth(Model):
    """Mean logit of the inputs, smoothed along the study by a Gaussian, one width per class."""

    stage: ClassVar[str] = "smooth"
    files: ClassVar[tuple[str, ...]] = ("smooth.json",)
    scores_in_sample: ClassVar[bool] = True

    inputs: tuple[str, ...] | Literal["all"] = Field(
        default="all", description="models that it reads; all: every cnn model"
    )
    widths: tuple[NonNegativeFloat, ...] = Field(
        default=(0, 2.5, 5, 7.5, 10, 15, 20),
        min_length=1,
        description="candidate standard deviations, mm; the one with the lowest log loss is used per class",
    )

    def input_models(self, recipe: Any) -> tuple[str, ...]:
        return tuple(recipe.cnn) if self.inputs == "all" else self.inputs


class Stack(Model):
    """LightGBM on the logits of the inputs for a slice and its neighbours; one model per class."""

    stage: ClassVar[str] = "stack"
    files: ClassVar[tuple[str, ...]] = ("stack.json",)
    scores_in_sample: ClassVar[bool] = True

    inputs: tuple[str, ...] | Literal["all"] = Field(
        default="all", description="models that it reads; all: every network and every external model"
    )
    neighbours: int = Field(default=5, ge=0, description="slices on each side")
    num_iterations: PositiveInt = Field(default=60, description="trees per class")
    learning_rate: PositiveFloat = Field(default=0.05, description="shrinkage of each tree")
    num_leaves: int = Field(default=7, ge=2, description="maximum leaves per tree")
    min_data_in_leaf: PositiveInt = Field(default=30, description="minimum number of slices in a leaf")
    seed: Seed = 7
    seeds: Seeds = 1

    def input_models(self, recipe: Any) -> tuple[str, ...]:
        return (*recipe.networks, *recipe.external) if self.inputs == "all" else self.inputs


BETAS = {"f1": 1.0, "f2": 2.0}  # F-beta scores that are always reported


def beta_of(metric: str) -> float:
    """Beta of "f2", "f0.5", ..."""
    return float(metric.removeprefix("f"))


def _has_beta(metric: str) -> str:
    if metric != "log_loss" and not 0 < beta_of(metric) < math.inf:
        raise ValueError("beta must be positive and finite; use f0.5, f1, f2, ...")
    return metric


F_SCORE = r"^[fF]\d+(\.\d+)?$"  # f and beta
BLEND_METRIC = r"^(log_loss|[fF]\d+(\.\d+)?)$"
FScore = Annotated[str, StringConstraints(pattern=F_SCORE, to_lower=True), AfterValidator(_has_beta)]


class Blend(Model):
    """Calibrated combination of all models, fitted per class on the other folds."""

    stage: ClassVar[str] = "blend"
    files: ClassVar[tuple[str, ...]] = ("blend.json",)
    scores_in_sample: ClassVar[bool] = True

    inputs: tuple[str, ...] | Literal["all"] = Field(default="all", description="models to combine; all: every model")
    method: Literal["auto", "logits", "probabilities", "ranks", "greedy", "weights"] = Field(
        default="auto",
        description="mean of logits, probabilities or ranks; greedy: forward selection (Caruana); weights: non-negative"
        " weights of the logits; auto: the first of these that no later one significantly beats in cross-fitting",
    )
    metric: Annotated[str, StringConstraints(pattern=BLEND_METRIC, to_lower=True), AfterValidator(_has_beta)] = Field(
        default="log_loss", description="metric of weights and of the choice of method: log_loss, f1, f2, ..."
    )
    calibration: Literal["auto", "none", "temperature", "platt", "beta", "isotonic"] = Field(
        default="auto", description="auto: the simplest that no other significantly beats in cross-fitted log loss"
    )
    trials: PositiveInt = Field(default=100, description="Optuna trials per class, for weights with an F-beta metric")
    seed: Seed = 7

    def input_models(self, recipe: Any) -> tuple[str, ...]:
        return tuple(name for name in recipe.models if name != "blend") if self.inputs == "all" else self.inputs


def closest(word: str, known: list[str]) -> str | None:
    """Return the known word that is most similar to `word`, or None."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.5)), None)


def meant(word: str, known: list[str]) -> str:
    """Return `. Did you mean <the closest known word>?`, or a full stop."""
    close = closest(word, known)
    return f". Did you mean {close}?" if close else "."

"""Settings of the models: networks on images, networks on embeddings, smoothing, stacking, outside predictions.

Each class says what its kind reads and writes; `pipeline.graph` asks it. The code of a kind is in `ich.models`.
"""

import difflib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(Strict):
    """Something that is fitted on folds and predicts."""

    stage: ClassVar[str]
    """Its section of the recipe and its command."""
    reads_images: ClassVar[bool] = False
    reads_embeddings: ClassVar[bool] = False
    """Of its input models, beside their logits."""
    writes_embeddings: ClassVar[bool] = False
    files: ClassVar[tuple[str, ...]] = ()
    """Written by every fold beside the predictions."""
    scores_new_scans: ClassVar[bool] = True
    scores_in_sample: ClassVar[bool] = False
    """Whether the rows that it was fitted on are scored too; cheap models only."""
    fingerprint_ignores: ClassVar[frozenset[str]] = frozenset()
    """Settings that change nothing in what a fold writes."""

    def input_models(self, recipe: Any) -> tuple[str, ...]:
        """The models whose predictions it reads."""
        return ()

    def sources(self) -> dict[str, str]:
        """Files of the user that it reads: name to path from the repository's root."""
        return {}


class Loss(Strict):
    """What a network minimises: the mean over slices and classes."""

    name: Literal["bce", "focal", "asymmetric"] = "bce"
    weight: Literal["none", "pos_weight", "balanced", "competition"] = Field(
        default="none",
        description="pos_weight: positives weigh negatives/positives of the training rows; balanced: each"
        " label weighs n / (2 n_label), as class_weight in scikit-learn and Keras; competition: each class weighs as in"
        " the competition's log loss (RSNA 2019: any counts twice)",
    )
    max_pos_weight: PositiveFloat = Field(default=20, description="pos_weight: largest weight of a positive")
    gamma: NonNegativeFloat = Field(default=2.0, description="focal: focusing of the easy slices")
    gamma_pos: NonNegativeFloat = Field(default=0.0, description="asymmetric: focusing of positives")
    gamma_neg: NonNegativeFloat = Field(default=2.0, description="asymmetric: focusing of negatives")
    clip: float = Field(default=0.05, ge=0, lt=1, description="asymmetric: probability shift of negatives")

    @field_validator("gamma", "gamma_pos", "gamma_neg")
    @classmethod
    def _slope_has_a_bound(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError(
                f"a focusing is 0 or at least 1, not {value:g}: between them the slope of the loss has no bound"
            )
        return value


class Augment(Strict):
    """Random changes to a training image; each depends on (seed, epoch, image id) alone."""

    crop: float = Field(
        default=0.0, ge=0, le=1, description="smallest share of the area that a random crop keeps; 0 off"
    )
    flip: float = Field(default=0.5, ge=0, le=1, description="probability of a left-right mirror")
    vertical_flip: float = Field(default=0.0, ge=0, le=1, description="probability of an upside-down mirror")
    transpose: float = Field(default=0.0, ge=0, le=1, description="probability of swapping rows and columns")
    shift: float = Field(default=0.06, ge=0, le=0.5, description="largest move, share of the image's side")
    scale: float = Field(default=0.1, ge=0, lt=1, description="largest change of size, share")
    rotate: float = Field(default=15.0, ge=0, le=180, description="largest rotation, degrees")
    optical: float = Field(default=0.0, ge=0, le=1, description="largest optical distortion")
    grid: float = Field(default=0.0, ge=0, le=1, description="largest grid distortion")
    brightness: float = Field(default=0.1, ge=0, le=1, description="largest change, share of the grey scale")
    contrast: float = Field(default=0.1, ge=0, le=1, description="largest change, share")
    jitter: float = Field(default=1.0, ge=0, le=1, description="probability of changing brightness and contrast")
    noise: float = Field(default=0.0, ge=0, le=1, description="largest standard deviation, share of the grey scale")
    dropout: float = Field(default=0.0, ge=0, le=1, description="probability of blacking out one to four rectangles")


class Training(Strict):
    """How a network is fitted: AdamW (Adam, where weight_decay is 0), a linear warm-up, then a cosine or steps."""

    epochs: PositiveInt
    batch_size: PositiveInt = Field(description="slices (cnn, pretrain) or studies (sequence, end_to_end) per batch")
    accumulate: PositiveInt = Field(default=1, description="batches per optimizer step; saves memory")
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat = 0.01
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1, description="share of the steps that warm up")
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1, description="where the cosine ends, share of learning_rate")
    decay_epochs: PositiveInt | None = Field(default=None, description="instead of the cosine: epochs between steps")
    decay_rate: float = Field(default=0.1, gt=0, le=1, description="factor of each of these steps")
    ema_decay: float | None = Field(default=None, gt=0, lt=1, description="decay of the weights' moving average")
    max_grad_norm: PositiveFloat | None = Field(default=1.0, description="largest norm of the gradient; null: no limit")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 where the device computes in it, else fp16 on a GPU, fp32 on a CPU"
    )
    seed: int = 7


class EarlyStopping(Strict):
    """Keep the best epoch. Judged by the fold that is reported on, its score is optimistic, and the record says so."""

    metric: Literal["f1", "f2", "auc", "log_loss"] = Field(
        default="log_loss", description="f1 and f2: the macro mean at each class's best threshold"
    )
    patience: PositiveInt | None = Field(
        default=None, description="epochs without a better figure after which training stops; default: train them all"
    )
    split: Literal["inner", "fold"] = Field(
        default="inner", description="inner: training patients set aside for this; fold: the validation fold"
    )
    share: float = Field(default=0.1, gt=0, lt=1, description="inner: share of the training patients set aside")


class Supervised(Training, Model):
    """A network trained on labels, one fold at a time."""

    files: ClassVar[tuple[str, ...]] = ("model.safetensors", "model.json", "history.csv")

    loss: Loss = Loss()
    output_bias: bool = Field(
        default=True, description="the last layer starts from the classes' frequencies instead of at random"
    )
    early_stopping: EarlyStopping | None = None


class Backbone(Training):
    """A network that reads images: any timm model."""

    reads_images: ClassVar[bool] = True
    fingerprint_ignores: ClassVar[frozenset[str]] = frozenset({"workers"})

    backbone: str = Field(description="timm's name of the model")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="passed on to timm.create_model")
    pretrained: bool = Field(
        default=False, description="ImageNet weights; they are downloaded unless `weights` is given"
    )
    weights: str | None = Field(default=None, description="a .safetensors file of timm weights, for machines offline")
    input: Literal["windows", "neighbours"] = Field(
        default="windows", description="windows: one channel per window; neighbours: three slices, each in every window"
    )
    windows: tuple[tuple[float, PositiveFloat], ...] = Field(
        default=((40, 80), (80, 200), (600, 2800)), min_length=1, description="level and width, HU"
    )
    minmax: bool = Field(default=False, description="stretch each channel of each image to its own full range")
    clahe: NonNegativeFloat = Field(
        default=0.0, description="clip limit of a contrast limited adaptive histogram equalisation; 0 off"
    )
    augment: Augment = Augment()
    workers: NonNegativeInt | Literal["auto"] = Field(
        default="auto",
        description="loader processes; auto: none where the CPU trains, which is fastest; up to 8 per GPU",
    )

    @field_validator("workers", mode="before")
    @classmethod
    def _a_number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise ValueError(f"a number of loader processes, or auto, not {value!r}")
        return value

    def sources(self) -> dict[str, str]:
        return {} if self.weights is None else {"weights": self.weights}


class Pretrain(Backbone, Model):
    """SimCLR on all slices, labelled or not; no label is read (Chen et al., arXiv:2002.05709)."""

    stage: ClassVar[str] = "pretrain"
    files: ClassVar[tuple[str, ...]] = ("model.safetensors", "model.json", "history.csv")

    temperature: PositiveFloat = 0.5
    augment: Augment = Augment(crop=0.5, rotate=40, brightness=0.4, contrast=0.4, jitter=0.8)
    epochs: PositiveInt = 10
    batch_size: PositiveInt = Field(default=64, ge=2)
    learning_rate: PositiveFloat = 1e-3


class Cnn(Backbone, Supervised):
    """Stage 1: train backbones, write out-of-fold and test embeddings and logits."""

    stage: ClassVar[str] = "cnn"
    writes_embeddings: ClassVar[bool] = True

    start: str | None = Field(default=None, description="the pretrain model whose weights the backbone starts from")
    labels: float = Field(default=1.0, gt=0, le=1, description="share of the training patients whose labels are used")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="before the last layer")
    cutmix: NonNegativeFloat = Field(default=0.0, description="alpha of CutMix; 0 off")
    epochs: PositiveInt = 8
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 3e-3


class Head(Strict):
    """What reads the slices of a study in their order."""

    head: Literal["residual", "plain", "shortcut", "sdl", "lrnn", "sdl_lrnn", "lrnn_sdl"] = Field(
        default="residual",
        description="residual: a correction of the slice network's logits; plain: a stacked RNN; shortcut: every layer"
        " of it is added up; sdl: the features plus their context; lrnn: a decoder over the labels of one slice;"
        " sdl_lrnn, lrnn_sdl: both, in this order",
    )
    cell: Literal["lstm", "gru", "conv"] = Field(default="gru", description="conv: sdl only, a 1-D convolution")
    hidden: PositiveInt = 64
    layers: PositiveInt = 1
    dropout: float = Field(default=0.2, ge=0, lt=1)

    @model_validator(mode="after")
    def _cell_fits(self) -> "Head":
        if self.cell == "conv" and "sdl" not in self.head:
            raise ValueError(f"cell conv is a context of head sdl, and head is {self.head}; write lstm or gru")
        return self


class EndToEnd(Head, Backbone, Supervised):
    """Train backbones and recurrent heads as one network, whole studies at a time."""

    stage: ClassVar[str] = "end_to_end"

    start: str | None = Field(
        default=None, description="the cnn model whose fold the network starts from; its norm statistics stay fixed"
    )
    chunk: PositiveInt = Field(default=8, description="slices whose activations are in memory at a time")
    cutmix: NonNegativeFloat = Field(default=0.0, description="alpha of CutMix, a box a study; 0 off")
    epochs: PositiveInt = 8
    batch_size: PositiveInt = 1
    learning_rate: PositiveFloat = 1e-3


class Sequence(Head, Supervised):
    """Stage 2: train LSTM and GRU models over the slices of each study."""

    stage: ClassVar[str] = "sequence"
    reads_embeddings: ClassVar[bool] = True

    inputs: tuple[str, ...] = Field(min_length=1, description="the cnn models whose embeddings and logits it reads")
    features: Literal["in_sample", "aligned", "oof"] = Field(
        default="in_sample",
        description="what it is trained on. in_sample: what the fold's own model says of the rows that it was trained"
        " on; oof: the out-of-fold embeddings and logits, each fold in its own model's space; aligned: the same, turned"
        " into one space by the test set's rows. docs/background/ensembling.md compares them",
    )
    reverse: bool = Field(
        default=False, description="predict the mean of each study read forwards and backwards (test-time augmentation)"
    )
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 8
    learning_rate: PositiveFloat = 2e-3

    def input_models(self, recipe: Any) -> tuple[str, ...]:
        return self.inputs


class External(Model):
    """Predictions from elsewhere, such as a teammate's model, joined by image id."""

    stage: ClassVar[str] = "external"
    files: ClassVar[tuple[str, ...]] = ("external.json", "external.parquet")
    scores_new_scans: ClassVar[bool] = False

    oof: str = Field(description="CSV or Parquet: image_id, one column per class; out-of-fold, every labelled slice")
    test: str | None = Field(default=None, description="the same for every test slice")
    values: Literal["probability", "logit"] = Field(default="probability", description="what the columns hold")

    def sources(self) -> dict[str, str]:
        return {"oof": self.oof} | ({} if self.test is None else {"test": self.test})


class Smooth(Model):
    """Mean logit of its inputs, smoothed along the study by a Gaussian, one width per class."""

    stage: ClassVar[str] = "smooth"
    files: ClassVar[tuple[str, ...]] = ("smooth.json",)
    scores_in_sample: ClassVar[bool] = True

    inputs: tuple[str, ...] | Literal["all"] = Field(default="all", description="models to read; all: every cnn model")
    widths: tuple[NonNegativeFloat, ...] = Field(
        default=(0, 2.5, 5, 7.5, 10, 15, 20),
        min_length=1,
        description="standard deviations to choose from, mm along the study; each class takes the one with the lowest"
        " log loss on the other folds",
    )

    def input_models(self, recipe: Any) -> tuple[str, ...]:
        return tuple(recipe.cnn) if self.inputs == "all" else self.inputs


class Stack(Model):
    """LightGBM over the logits of its inputs, of the slice and its neighbours; one model per class."""

    stage: ClassVar[str] = "stack"
    files: ClassVar[tuple[str, ...]] = ("stack.json",)
    scores_in_sample: ClassVar[bool] = True

    inputs: tuple[str, ...] | Literal["all"] = Field(
        default="all", description="models to read; all: every network and every external model"
    )
    neighbours: int = Field(default=5, ge=0, description="slices to each side")
    num_iterations: PositiveInt = 60
    learning_rate: PositiveFloat = 0.05
    num_leaves: int = Field(default=7, ge=2)
    min_data_in_leaf: PositiveInt = Field(default=30, description="fewest slices in a leaf")
    seed: int = 7

    def input_models(self, recipe: Any) -> tuple[str, ...]:
        return (*recipe.networks, *recipe.external) if self.inputs == "all" else self.inputs


BETAS = {"f1": 1.0, "f2": 2.0}  # the F-beta scores that are always reported


def beta_of(metric: str) -> float:
    """The beta of "f2", "f0.5", ..."""
    return float(metric.removeprefix("f"))


def _beta_counts(metric: str) -> str:
    if metric != "log_loss" and beta_of(metric) == 0:
        raise ValueError("beta 0 is precision alone; write f0.5, f1, f2, ...")
    return metric


FScore = Annotated[str, Field(pattern=r"^f\d+(\.\d+)?$"), AfterValidator(_beta_counts)]  # f and beta


class Blend(Model):
    """One prediction from all models, calibrated; fitted per class, without the fold that it is scored on."""

    stage: ClassVar[str] = "blend"
    files: ClassVar[tuple[str, ...]] = ("blend.json",)
    scores_in_sample: ClassVar[bool] = True

    inputs: tuple[str, ...] | Literal["all"] = "all"
    method: Literal["auto", "logits", "probabilities", "ranks", "greedy", "weights"] = Field(
        default="auto",
        description="a mean of logits, of probabilities or of ranks; greedy: Caruana's forward selection; weights:"
        " non-negative weights of the logits; auto: of these in this order, a later one where it is surely better on"
        " folds that it did not see",
    )
    metric: Annotated[str, Field(pattern=r"^(log_loss|f\d+(\.\d+)?)$"), AfterValidator(_beta_counts)] = Field(
        default="log_loss", description="what weights are tuned for and methods are chosen by: log_loss, f1, f2, ..."
    )
    calibration: Literal["auto", "none", "temperature", "platt", "beta", "isotonic"] = Field(
        default="auto", description="auto: the simplest that no other surely beats, by log loss on folds it did not see"
    )
    trials: PositiveInt = Field(default=100, description="Optuna trials per class; for weights tuned for an F-beta")
    seed: int = 7

    def input_models(self, recipe: Any) -> tuple[str, ...]:
        return tuple(name for name in recipe.models if name != "blend") if self.inputs == "all" else self.inputs


def meant(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""

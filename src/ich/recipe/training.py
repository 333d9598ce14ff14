"""Settings that networks share: loss, augmentation, optimization and early stopping."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _is_not_huge(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise ValueError("must be an integer of at most 18 digits")
        return value


Epochs = Annotated[PositiveInt, Field(description="passes over the training rows")]
BatchSize = Annotated[PositiveInt, Field(description="slices, or series for sequence and end_to_end, per batch")]
LearningRate = Annotated[PositiveFloat, Field(description="peak learning rate")]
Seed = Annotated[int, Field(description="seed of all random numbers")]
Seeds = Annotated[PositiveInt, Field(description="number of trainings with different seeds, whose logits are averaged")]
Metric = Annotated[
    Literal["f1", "f2", "auc", "log_loss"],
    BeforeValidator(lambda name: name.lower() if isinstance(name, str) else name),
]


class Loss(Strict):
    """Training loss of a network: the mean over slices and classes."""

    name: Literal["bce", "focal", "asymmetric"] = Field(default="bce", description="formula of the loss")
    weight: Literal["none", "pos_weight", "balanced", "competition"] = Field(
        default="none",
        description="pos_weight: weight of positives is negatives/positives of the training rows; balanced: weight of"
        " each label is n / (2 n_label), as in scikit-learn; competition: class weights of the competition's log loss",
    )
    max_pos_weight: PositiveFloat = Field(default=20, description="pos_weight: upper limit of the weight")
    gamma: NonNegativeFloat = Field(default=2.0, description="focal: focusing parameter")
    gamma_pos: NonNegativeFloat = Field(default=0.0, description="asymmetric: focusing of positives")
    gamma_neg: NonNegativeFloat = Field(default=2.0, description="asymmetric: focusing of negatives")
    clip: float = Field(default=0.05, ge=0, lt=1, description="asymmetric: probability shift of negatives")

    @field_validator("gamma", "gamma_pos", "gamma_neg")
    @classmethod
    def _has_bounded_gradient(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError(f"must be 0 or at least 1, not {value:g}: in between, the gradient is not bounded")
        return value


class Augment(Strict):
    """Random augmentation of training images, determined by (seed, epoch, image id)."""

    crop: float = Field(default=0.0, ge=0, le=1, description="minimum area fraction of a random crop; 0: off")
    flip: float = Field(default=0.5, ge=0, le=1, description="probability of a horizontal flip")
    vertical_flip: float = Field(default=0.0, ge=0, le=1, description="probability of a vertical flip")
    transpose: float = Field(default=0.0, ge=0, le=1, description="probability of swapping rows and columns")
    shift: float = Field(default=0.06, ge=0, le=0.5, description="maximum shift, fraction of the image size")
    scale: float = Field(default=0.1, ge=0, lt=1, description="maximum change of scale, fraction")
    rotate: float = Field(default=15.0, ge=0, le=180, description="maximum rotation, degrees")
    optical: float = Field(default=0.0, ge=0, le=1, description="maximum optical distortion")
    grid: float = Field(default=0.0, ge=0, le=1, description="maximum grid distortion")
    brightness: float = Field(default=0.1, ge=0, le=1, description="maximum change, fraction of the grey scale")
    contrast: float = Field(default=0.1, ge=0, le=1, description="maximum change, fraction")
    jitter: float = Field(default=1.0, ge=0, le=1, description="probability of changing brightness and contrast")
    noise: float = Field(default=0.0, ge=0, le=1, description="maximum standard deviation, fraction of the grey scale")
    dropout: float = Field(default=0.0, ge=0, le=1, description="probability of erasing one to four rectangles")


class Training(Strict):
    """Optimization of a network: AdamW (Adam if weight_decay is 0) or SGD, linear warm-up, then a schedule."""

    epochs: Epochs
    batch_size: BatchSize
    accumulate: PositiveInt = Field(default=1, description="batches per optimizer step; saves memory")
    learning_rate: LearningRate
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="torch.optim.AdamW or SGD")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="sgd: momentum")
    nesterov: bool = Field(default=True, description="sgd: Nesterov momentum")
    weight_decay: NonNegativeFloat = Field(default=0.01, description="adamw: decoupled weight decay; sgd: L2 penalty")
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1, description="fraction of the steps used for warm-up")
    schedule: Literal["cosine", "constant"] = Field(default="cosine", description="learning rate after the warm-up")
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1, description="final learning rate of the cosine, as a fraction")
    decay_epochs: PositiveInt | None = Field(default=None, description="use steps, this many epochs apart, instead")
    decay_rate: float = Field(default=0.1, gt=0, le=1, description="factor of each step")
    ema_decay: float | None = Field(default=None, gt=0, lt=1, description="decay of the moving average of weights")
    max_grad_norm: PositiveFloat | None = Field(default=1.0, description="gradient clipping; null: off")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 if the device supports it, else fp16 on a GPU and fp32 on a CPU"
    )
    seed: Seed = 7

    @model_validator(mode="after")
    def _optimizer_fits(self) -> "Training":
        if self.optimizer == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("nesterov: requires momentum above 0; use nesterov: false")
        if self.schedule == "constant" and self.decay_epochs is not None:
            raise ValueError("decay_epochs: steps replace schedule: constant; use one of them")
        return self


class EarlyStopping(Strict):
    """Keep the best epoch. With split: fold the score of the fold is optimistic, which its record warns of."""

    metric: Metric = Field(default="log_loss", description="f1 and f2: macro mean at the best threshold of each class")
    patience: PositiveInt | None = Field(default=None, description="epochs without improvement; null: run all epochs")
    split: Literal["inner", "fold"] = Field(
        default="inner", description="inner: held-out training patients; fold: the validation fold"
    )
    share: float = Field(default=0.1, gt=0, lt=1, description="inner: fraction of training patients held out")

"""A timm backbone as a slice classifier: the one module that knows timm."""

import difflib
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ich.networks.classifier import Classifier


def _declare_torchvision_operators() -> None:
    """Let timm import torchvision where its compiled part does not fit torch.

    timm needs torchvision's Python side only. PyPI has no torchvision for the CPU build of torch, and the
    CUDA one stops at the import, when it describes two compiled operators that it could not load.
    Declaring the two, which nothing here calls, lets the import go on.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )


_declare_torchvision_operators()
import timm  # noqa: E402


@dataclass(frozen=True)
class CnnSpec:
    """All that is needed to build a network again, apart from its weights."""

    backbone: str
    """A name that timm knows: `timm.list_models()`."""
    in_channels: int
    classes: int
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the backbone, such as channels or growth_rate; lists count as tuples."""
    dropout: float = 0.0
    """Probability of dropping an element of the embedding before the last layer."""
    pretrained: bool = False
    """Start from timm's weights, downloaded once to the Hugging Face cache."""
    weights: str | None = None
    """Start from this file (safetensors, in timm's layout) instead, for machines without internet."""


class Cnn(nn.Module):
    """uint8 images to logits; scaling to the backbone's mean and standard deviation happens inside.

    Random numbers for the first weights come from torch's global generator: seed it before.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, spec: CnnSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = _backbone(spec)
        self.embedding_size = int(self.backbone.head_hidden_size)
        self.dropout = nn.Dropout(spec.dropout)
        self.classifier = Classifier(self.embedding_size, spec.classes)
        mean, std = (_per_channel(self.backbone.pretrained_cfg[key], spec.in_channels) for key in ("mean", "std"))
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)
        self._reaching_beyond: dict[int, bool] = {}  # by the side of an image
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [B, classes] of uint8 [B, C, S, S]."""
        return self.embed(images)[1]

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, embedding_size] and logits float32 [B, classes] of uint8 [B, C, S, S]."""
        with self._precise(images):
            embeddings = self._embeddings(images)
        # in full precision: half a byte of mantissa would tie predictions that differ
        with torch.autocast(images.device.type, enabled=False):
            return embeddings, self.classifier(self.dropout(embeddings.float()))

    def _embeddings(self, images: Tensor) -> Tensor:
        pixels = torch.addcmul(self.shift, images.float(), self.scale)
        return self.backbone.forward_head(self.backbone.forward_features(pixels), pre_logits=True)

    def _precise(self, images: Tensor) -> AbstractContextManager[Any]:
        """Full precision on a CPU for images so small that a kernel reaches beyond the whole map that it looks at.

        There oneDNN 3.12 (of torch 2.13) leaves parts of the weights' bfloat16 gradient as memory happened to be.
        """
        if images.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return nullcontext()
        size = images.shape[-1]
        if size not in self._reaching_beyond:
            self._reaching_beyond[size] = self._reaches_beyond(size)
        return torch.autocast("cpu", enabled=False) if self._reaching_beyond[size] else nullcontext()

    def _reaches_beyond(self, size: int) -> bool:
        """Whether a convolution pads maps of an image of `size` pixels by their own side or more."""
        found: list[bool] = []

        def look(layer: Any, inputs: tuple[Tensor, ...]) -> None:
            sides = layer.kernel_size if isinstance(layer.padding, str) else [2 * side for side in layer.padding]
            found.append(max(sides) >= 2 * min(inputs[0].shape[-2:]))  # "same" pads by half a kernel

        hooks = [layer.register_forward_pre_hook(look) for layer in self.modules() if isinstance(layer, nn.Conv2d)]
        modes = [(module, module.training) for module in self.backbone.modules()]
        try:
            with torch.inference_mode(), torch.autocast("cpu", enabled=False):
                self.backbone.eval()
                self._embeddings(torch.zeros(1, self.spec.in_channels, size, size))
        finally:
            for hook in hooks:
                hook.remove()
            for module, training in modes:
                module.training = training
        return any(found)

    def output_bias(self, prevalence: np.ndarray) -> None:
        """Start from the classes' frequencies [classes]."""
        self.classifier.output_bias(prevalence)

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Take the backbone from the state_dict of another Cnn, or of a network that holds one as `cnn`.

        Raises ValueError if that backbone or its number of input channels is another.
        """
        named = {name.removeprefix("cnn."): value for name, value in state.items()}
        found = {name.removeprefix("backbone."): value for name, value in named.items() if name.startswith("backbone.")}
        there, here = (
            {name: tuple(value.shape) for name, value in x.items()} for x in (found, self.backbone.state_dict())
        )
        if there != here:
            name = next(name for name in [*here, *there] if there.get(name) != here.get(name))
            shapes = [f"of shape {side[name]}" if name in side else "absent" for side in (there, here)]
            raise ValueError(
                f"these weights are not of a {self.spec.backbone} with {self.spec.in_channels} input channels and"
                f" {self.spec.kwargs or 'no kwargs'}: {name} is {shapes[0]} there and {shapes[1]} here"
            )
        self.backbone.load_state_dict(found)

    def feature_layer(self, size: int, smallest: int = 6) -> nn.Module | None:
        """The deepest layer whose map of an image of `size` pixels a side has `smallest` cells a side, else the first.

        For Grad-CAM: deeper layers know more of the class, and maps of a few cells say little of the place. None
        where that layer's output is no map [B, channels, rows, columns], as in most transformers.
        """
        layers = self.backbone.feature_info
        fine = [layer for layer in layers if size >= smallest * layer["reduction"]]
        chosen = (fine or layers[:1])[-1]
        layer = self.backbone.get_submodule(chosen["module"])
        shape = self._shape_of(layer, size)
        return layer if len(shape) == 4 and shape[1] == chosen["num_chs"] and shape[2] == shape[3] else None

    @torch.inference_mode()
    def _shape_of(self, layer: nn.Module, size: int) -> tuple[int, ...]:
        """The shape of what the layer makes of one image."""
        shapes: list[tuple[int, ...]] = []
        hook = layer.register_forward_hook(lambda _layer, _inputs, output: shapes.append(tuple(output.shape)))
        before = self.training
        try:
            self.eval()(torch.zeros(1, self.spec.in_channels, size, size, device=self.classifier.bias.device))
        finally:
            hook.remove()
            self.train(before)
        return shapes[0]


def _backbone(spec: CnnSpec) -> Any:
    if spec.backbone.partition(".")[0] not in timm.list_models():
        close = difflib.get_close_matches(spec.backbone, timm.list_models(), n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() has the names"
        raise ValueError(f"timm {timm.__version__} knows no backbone {spec.backbone!r}; {hint}")
    overlay = None
    if spec.weights is not None:
        if not Path(spec.weights).is_file():
            raise ValueError(f"no weights at {spec.weights} for backbone {spec.backbone}")
        if Path(spec.weights).suffix != ".safetensors":
            raise ValueError(f"{spec.weights}: weights are read from .safetensors files alone, for others may run code")
        overlay = {"file": spec.weights}
    try:
        network = timm.create_model(
            spec.backbone,
            pretrained=spec.pretrained or overlay is not None,
            pretrained_cfg_overlay=overlay,
            num_classes=0,
            in_chans=spec.in_channels,
            **_tuples(spec.kwargs),
        )
    except TypeError as error:
        raise ValueError(f"backbone {spec.backbone} does not take {spec.kwargs}: {error}") from error
    except (SafetensorError, OSError, RuntimeError) as error:  # no connection, or weights of something else
        raise ValueError(
            f"the weights of {spec.backbone} cannot be had: {' '.join(str(error).split())[:200]}"
        ) from error
    return _without_fully_connected(network)


def _without_fully_connected(network: Any) -> Any:
    """Remove VGG's layers of 4096 units: the embedding is its 512 map means (docs/background/seeds.md, SDL + LRNN)."""
    if isinstance(network, timm.models.VGG):
        network.pre_logits = nn.Identity()
        network.head_hidden_size = network.num_features
    return network


def _tuples(value: Any) -> Any:
    """Lists, which YAML knows, as tuples, which timm wants; at any depth."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    """A statistic of three colours as [1, channels, 1, 1]; grey or many channels get its mean."""
    fitted = values if len(values) == channels else [float(np.mean(values))] * channels
    return torch.tensor(fitted).view(1, channels, 1, 1)

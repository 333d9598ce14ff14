"""A timm backbone as a slice classifier. The only module that imports timm."""

import difflib
import inspect
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, is_dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ich.networks.layers import Classifier, SavedClasses, copy_state


def _declare_torchvision_operators() -> None:
    """Let timm import torchvision where its compiled part does not fit torch.

    timm needs only the Python part of torchvision. PyPI has no torchvision for the CPU build of torch, and the CUDA one
    fails to import because it describes two compiled operators that it could not load. Both are declared here; nothing
    calls them.
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
from timm.models import build_model_with_cfg  # noqa: E402


@dataclass(frozen=True)
class CnnSpec:
    """Everything needed to rebuild a Cnn, except its weights."""

    backbone: str  # a name of `timm.list_models()`, or of `timm.list_models(include_tags=True)`
    in_channels: int
    classes: int
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Architecture arguments of the backbone, such as channels or growth_rate; lists are passed as tuples."""
    dropout: float = 0.0  # dropout probability of the embedding before the output layer
    pretrained: bool = False  # start from timm's weights, downloaded once to the Hugging Face cache, as .safetensors
    weights: str | None = None
    """Start from this file instead, for machines without internet: .safetensors in timm's layout, or .pth."""


class Cnn(nn.Module):
    """Logits of uint8 images; they are scaled to the mean and standard deviation of the backbone inside.

    The initial weights come from torch's global random generator.
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
        self._oversized_kernels: dict[int, bool] = {}  # by image size
        self.frozen = False
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def freeze(self) -> None:
        """Keep the backbone as it is from now on, also its batch norm statistics."""
        self.frozen = True
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [B, c] of uint8 [B, C, S, S]."""
        return self.embed(images)[1]

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, embedding_size] and logits float32 [B, c] of uint8 [B, C, S, S]."""
        with self._precision(images):
            embeddings = self._embeddings(images)
        # full precision: bfloat16 logits would tie different predictions
        with torch.autocast(images.device.type, enabled=False):
            return embeddings, self.classifier(self.dropout(embeddings.float()))

    def _embeddings(self, images: Tensor) -> Tensor:
        pixels = torch.addcmul(self.shift, images.float(), self.scale)
        return self.backbone.forward_head(self.backbone.forward_features(pixels), pre_logits=True)

    def _precision(self, images: Tensor) -> AbstractContextManager[Any]:
        """Full precision on a CPU for images so small that a kernel is larger than a whole feature map and its padding.

        oneDNN 3.12 (of torch 2.13) then leaves parts of the bfloat16 gradient of its weights uninitialized.
        """
        if images.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return nullcontext()
        size = images.shape[-1]
        if size not in self._oversized_kernels:
            layers = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d)]
            self._oversized_kernels[size] = any(
                # "same" pads by half a kernel
                max(layer.kernel_size if isinstance(layer.padding, str) else [2 * side for side in layer.padding])
                >= 2 * min(before[-2:])
                for layer, before, _ in self._shapes(layers, size)
            )
        return torch.autocast("cpu", enabled=False) if self._oversized_kernels[size] else nullcontext()

    def feature_layer(self, size: int, smallest: int = 6) -> nn.Module | None:
        """The deepest layer for Grad-CAM with a feature map of at least `smallest` cells per side, else the first.

        size: pixels per side of the image. Deeper layers are more specific to the class, but maps of a few cells hardly
        localize. None if the output is not [B, channels, rows, columns], as in most transformers.
        """
        layers = self.backbone.feature_info
        fine = [layer for layer in layers if size >= smallest * layer["reduction"]]
        chosen = (fine or layers[:1])[-1]
        layer = self.backbone.get_submodule(chosen["module"])
        shape = self._shapes([layer], size)[0][2]
        return layer if len(shape) == 4 and shape[1] == chosen["num_chs"] and shape[2] == shape[3] else None

    @torch.inference_mode()
    def _shapes(self, layers: Iterable[nn.Module], size: int) -> list[tuple[Any, torch.Size, torch.Size]]:
        """Each layer with the shapes of its input and output for one image of `size` pixels per side."""
        found: list[tuple[Any, torch.Size, torch.Size]] = []

        def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found.append((layer, inputs[0].shape, output.shape))

        hooks = [layer.register_forward_hook(record) for layer in layers]
        training = self.backbone.training
        image = torch.zeros(1, self.spec.in_channels, size, size, device=self.scale.device)
        try:
            self.backbone.eval()
            with torch.autocast(image.device.type, enabled=False):
                self._embeddings(image)
        finally:
            for hook in hooks:
                hook.remove()
            self.backbone.train(training)
        return found

    def start_from(self, state: Mapping[str, Tensor], classes: SavedClasses | None = None) -> None:
        """Load the state_dict of a Cnn, or the backbone alone from a network that has a Cnn as `cnn`, such as SimClr.

        classes, errors: see `copy_state`.
        """
        prefix = "cnn.backbone."
        inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        copy_state(self.backbone if inside else self, inside or state, classes)


def lr_scales(network: nn.Module, head_lr: float, layer_decay: float) -> dict[str, float]:
    """Factors of the learning rate by parameter name, of a network with a Cnn in it.

    head_lr outside the backbone; inside, layer_decay to the power of the number of layers above (BEiT, Bao et al.,
    arXiv:2106.08254), as in timm.optim, which is slow to import.
    """
    if head_lr == layer_decay == 1:
        return {}
    (backbone,) = (module.backbone for module in network.modules() if isinstance(module, Cnn))
    layers: Any = timm.models.group_parameters(backbone, backbone.group_matcher(), reverse=True)
    top = max(layers.values())
    inside = {id(value): layer_decay ** (top - layers[name]) for name, value in backbone.named_parameters()}
    return {name: inside.get(id(value), head_lr) for name, value in network.named_parameters()}


def sized(backbone: str, kwargs: dict[str, Any], size: int) -> dict[str, Any]:
    """Add img_size to the arguments of a backbone for images of one size, such as ViT or Swin."""
    try:
        config = timm.get_pretrained_cfg(backbone)
    except RuntimeError:  # an unknown tag, which `Cnn` refuses
        return kwargs
    return {"img_size": size, **kwargs} if config is not None and config.fixed_input_size else kwargs


def try_network(spec: CnnSpec, size: int) -> int:
    """Build a Cnn, embed one image of `size` pixels per side and return the size of the embedding.

    This needs neither time nor memory on torch's meta device, which has shapes only. Backbones that compute with values
    there, and initial weights, need a CPU. Raises ValueError if it cannot be built or cannot read such images.
    """
    if not spec.pretrained and spec.weights is None:
        with suppress(Exception), torch.device("meta"):
            return _embedded(Cnn(spec), size)
    return _embedded(Cnn(spec), size)


@torch.inference_mode()
def _embedded(network: Cnn, size: int) -> int:
    spec = network.spec
    try:
        shape = network.eval()._embeddings(torch.zeros(1, spec.in_channels, size, size)).shape
    except Exception as error:  # timm asserts, and torch raises RuntimeError
        what = f"{spec.backbone} with {spec.kwargs or 'no kwargs'}"
        raise ValueError(f"{what} cannot read images of {size} x {size} pixels: {_brief(error)}") from error
    if shape != (1, network.embedding_size):
        raise ValueError(f"{spec.backbone} has embeddings {list(shape)} instead of [1, {network.embedding_size}]")
    return network.embedding_size


def _architecture_arguments(backbone: str) -> set[str]:
    """Names of the arguments that shape a backbone: those of the networks, blocks and settings in its module of timm.

    Other arguments could load pickles or store a download in any folder.
    """
    module = sys.modules[timm.model_entrypoint(backbone.partition(".")[0]).__module__]
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type)]
    kinds = [kind for kind in kinds if issubclass(kind, nn.Module) or is_dataclass(kind)]
    own = {name for kind in kinds for name in inspect.signature(kind).parameters}
    loading = {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters}
    return (own | {"bn_eps", "bn_momentum"}) - loading - {"num_classes", "in_chans", "device", "dtype"}


def _backbone(spec: CnnSpec) -> Any:
    known = {*timm.list_models(), *timm.list_models(include_tags=True)}
    if spec.backbone not in known:
        close = difflib.get_close_matches(spec.backbone, known, n=5)
        hint = f"Did you mean {', '.join(close)}?" if close else "List its backbones with timm.list_models()"
        raise ValueError(f"timm {timm.__version__} has no backbone {spec.backbone!r}. {hint}")
    arguments = _architecture_arguments(spec.backbone)
    for name in spec.kwargs:
        if name not in arguments:
            close = difflib.get_close_matches(name, arguments, n=1)
            hint = f"Did you mean {close[0]}?" if close else "Only arguments of its architecture are allowed"
            raise ValueError(f"backbone {spec.backbone} does not take kwargs.{name}. {hint}")
    # of timm's weights, other files than this one are pickles
    overlay: dict[str, Any] = {"hf_hub_filename": "model.safetensors", "url": None}
    if spec.weights is not None:
        if not Path(spec.weights).is_file():
            raise ValueError(f"no weights at {spec.weights} for backbone {spec.backbone}")
        if Path(spec.weights).suffix not in (".safetensors", ".pth"):
            raise ValueError(f"{spec.weights}: convert the weights to .safetensors; other formats may run code")
        overlay = {"file": spec.weights}
    try:
        if spec.weights is not None and Path(spec.weights).suffix == ".pth":
            overlay = {"state_dict": _in_timm_names(spec)}
        network = timm.create_model(
            spec.backbone,
            pretrained=spec.pretrained or spec.weights is not None,
            pretrained_cfg_overlay=overlay,
            num_classes=0,
            in_chans=spec.in_channels,
            **_tuples(spec.kwargs),
        )
    except TypeError as error:
        raise ValueError(f"backbone {spec.backbone} does not take {spec.kwargs}: {error}") from error
    except Exception as error:  # values are free, and the errors of timm and its downloads have no common base
        why = _brief(error)
        if spec.weights is not None:
            raise ValueError(f"cannot load the weights {spec.weights} into {spec.backbone}: {why}") from error
        if spec.pretrained:
            advice = "Without internet, use weights: FILE.safetensors, or pretrained: false"
            raise ValueError(f"cannot get the pretrained weights of {spec.backbone}: {why}. {advice}") from error
        raise ValueError(f"cannot build backbone {spec.backbone} with {spec.kwargs or 'no kwargs'}: {why}") from error
    if isinstance(network, timm.models.VGG):
        # without its layers of 4096 units, the embedding is the mean of 512 maps (docs/background/seeds.md, SDL + LRNN)
        network.pre_logits = nn.Identity()
        network.head_hidden_size = network.num_features
    return network


def _in_timm_names(spec: CnnSpec) -> dict[str, Tensor]:
    """The tensors of a .pth file whose network has timm's parameters in the same order, under other names.

    Raises ValueError if their number, shapes, or last parts of the names differ. Only tensors are unpickled.
    """
    saved = torch.load(str(spec.weights), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        expected = timm.create_model(spec.backbone, **_tuples(spec.kwargs)).state_dict()
    nothing = ("nothing", torch.empty(0))
    for (name, value), (own, like) in zip_longest(saved.items(), expected.items(), fillvalue=nothing):
        if value.shape != like.shape or name.split(".")[-1] != own.split(".")[-1]:
            raise ValueError(f"its {name} {list(value.shape)} is {own} {list(like.shape)} in the backbone")
    return dict(zip(expected, saved.values(), strict=True))


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _tuples(value: Any) -> Any:
    """Lists, which come from YAML, as the tuples that timm requires; at any depth."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    """A statistic of three colours as [1, channels, 1, 1]; other numbers of channels get its mean."""
    fitted = values if len(values) == channels else [float(np.mean(values))] * channels
    return torch.tensor(fitted).view(1, channels, 1, 1)

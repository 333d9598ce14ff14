"""Backbones of a recipe: architecture arguments and names of timm's registry only; weights as safetensors."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file

from ich.errors import UserError
from ich.models.network import new_backbone
from ich.networks.cnn import Cnn, CnnSpec
from ich.recipe import Cnn as Settings
from ich.training.run import Run

SHAPE = {"channels": (4, 8, 8, 8), "stem_width": 4}


def refused(match: str, **spec: Any) -> None:
    """Building the network fails with one line that names the model."""
    data: Any = SimpleNamespace(settings=Settings(backbone="resnet10t"), model="resnet", start=None)
    with pytest.raises(UserError, match=rf"^cnn\.resnet: .*{match}") as error:
        new_backbone(CnnSpec(**{"backbone": "resnet10t", "in_channels": 3, "classes": 2, **spec}), data, Run("resnet"))
    assert "\n" not in str(error.value)


LOADING = ["pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn"]
LOADING += ["pretrained_model_args", "checkpoint_path", "cache_dir", "num_classes", "in_chans", "features_only"]
LOADING += ["out_indices", "feature_cfg", "model_cfg", "kwargs_filter", "kwargs", "scriptable", "exportable"]
LOADING += ["no_jit", "pruned", "device", "dtype", "variant", "model_name"]


@pytest.mark.parametrize("name", LOADING)
def test_only_architecture_arguments_reach_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("timm was called"))
    refused(rf"does not take kwargs\.{name}\b", kwargs={**SHAPE, name: "x"})
    assert not list(tmp_path.iterdir())


NAMES = ["hf-hub:timm/resnet18.a1_in1k", "hf_hub:timm/resnet18", "HF-HUB:timm/resnet18", "local-dir:/tmp"]
NAMES += ["timm/resnet18", "resnet18.hf-hub:x/y", "resnet18.x/../y", "resnet18/", "resnet18\n", "resnet18.a1_in1k\n"]


@pytest.mark.parametrize("backbone", [*NAMES, "", "."])
@pytest.mark.parametrize("pretrained", [True, False])
def test_backbones_are_names_of_the_registry(monkeypatch: pytest.MonkeyPatch, backbone: str, pretrained: bool):
    for name in ("hf_hub_download", "load_state_dict", "get_dir"):
        monkeypatch.setattr(f"timm.models._hub.{name}", lambda *_, **__: pytest.fail("something was loaded"))
    refused("", backbone=backbone, pretrained=pretrained)


def test_weights_are_downloaded_as_safetensors_to_the_default_cache(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[Any, ...]] = []

    def missing(repo_id: str, filename: str, **more: Any) -> None:
        asked.append((repo_id, filename, more["cache_dir"]))
        raise EntryNotFoundError(f"no {filename}")

    def other(*_: Any, **__: Any) -> None:
        pytest.fail("weights are loaded from elsewhere")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", missing)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", other)
    monkeypatch.setattr("torch.load", other)
    with torch.device("meta"):
        refused("weights of resnet18", backbone="resnet18", pretrained=True)
        assert asked == [("timm/resnet18.a1_in1k", "model.safetensors", None)]
        refused("weights of gcvit_xxtiny", backbone="gcvit_xxtiny", pretrained=True)  # timm has only a .pth at a URL
    assert len(asked) == 1


def test_downloaded_safetensors_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = CnnSpec("resnet10t", in_channels=3, classes=2, kwargs=SHAPE)
    known = {name: value.contiguous() for name, value in Cnn(spec).backbone.state_dict().items()}
    save_file(known, tmp_path / "model.safetensors")
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *_, **__: str(tmp_path / "model.safetensors"))
    found = Cnn(replace(spec, pretrained=True)).backbone.state_dict()
    assert all(torch.equal(known[name], value) for name, value in found.items())

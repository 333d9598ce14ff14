from pathlib import Path

import pytest

from ich.errors import UserError
from ich.pipeline.plan import Plan
from ich.recipe import Cnn, load
from ich.stages.networks import cnn_spec, network_of

ROOT = Path(__file__).parents[2]
SMALL = {"channels": [8, 8, 8, 8], "stem_width": 4}


def test_a_network_is_trained_in_the_way_of_its_settings():
    for checkpointing in (False, True):
        settings = Cnn(backbone="resnet10t", kwargs=SMALL, checkpointing=checkpointing)
        network = network_of("cnn.resnet", cnn_spec(settings, 3, 6), 0, settings=settings)
        assert network.backbone.grad_checkpointing is checkpointing
        assert not network.compiled


def test_a_backbone_that_cannot_be_trained_in_the_way_asked_for_is_told_in_one_line():
    settings = Cnn(backbone="legacy_seresnet18", checkpointing=True)
    with pytest.raises(UserError, match=r"^cnn.resnet: .* legacy_seresnet18 anew; leave checkpointing out, .*$"):
        network_of("cnn.resnet", cnn_spec(settings, 3, 6), 0, settings=settings)


def test_what_changes_no_result_makes_no_fold_stale():
    def settings(*overrides: str) -> dict:
        return dict(Plan(load(ROOT / "tests" / "tiny.yaml", list(overrides)), ROOT).fold("resnet", 0).settings)

    assert settings() == settings("cnn.resnet.checkpointing=true") == settings("cnn.resnet.workers=2")
    assert settings() != settings("cnn.resnet.compile=true")

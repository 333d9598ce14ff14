"""What `ich blend` says of a fold, on members whose logits are made up."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ich.recipe import Blend
from ich.stages.blend import _fitted


def fitted(folds: int, members: int = 2):
    """The blend by greedy selection of a class of which half the rows are positive, and one of which none is."""
    random, n = np.random.default_rng(0), 300
    labels = np.stack([random.integers(0, 2, n), np.zeros(n)], axis=1)
    logits = [labels + random.normal(size=labels.shape) for _ in range(members)]
    table = pd.DataFrame({"fold": np.arange(n) % folds, "patient_id": np.arange(n) // 3})
    slices = SimpleNamespace(table=table, labels=labels, classes=["any", "epidural"])
    plan = SimpleNamespace(recipe=SimpleNamespace(blend=Blend(method="greedy", calibration="none")))
    return _fitted(plan, slices, 0, np.flatnonzero(table["fold"] != 0), logits)[0]


@pytest.mark.parametrize(("folds", "plain"), [(2, ["any", "epidural"]), (3, ["epidural"])])
def test_a_class_that_cannot_have_the_method_of_the_recipe_is_named(folds, plain, capsys):
    found = fitted(folds)
    assert [name for name in found if found[name]["combination"]["method"] == "logits"] == plain
    assert f"warning: blend fold 0, {', '.join(plain)}: greedy wants two other folds" in capsys.readouterr().out


def test_of_one_member_there_is_nothing_to_warn_of(capsys):
    fitted(3, members=1)
    assert capsys.readouterr().out == ""

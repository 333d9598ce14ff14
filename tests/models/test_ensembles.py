"""smooth, stack and blend on synthetic predictions."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ich.ensemble.smoothing import choose_widths, smooth_each
from ich.models.blend import Blend, FittedBlend
from ich.models.slices import Predictions, Slices
from ich.models.smooth import Smooth
from ich.models.stack import FittedStack, Stack
from ich.recipe import Blend as BlendSettings
from ich.recipe import Smooth as SmoothSettings
from ich.recipe import Stack as StackSettings
from ich.training.run import Run

CLASSES = ["epidural", "any"]
RUN = Run("model fold 0")


@dataclass
class Data:
    """Stands for FoldData: 60 series of 5 slices, two slices of which have no position, and two inputs."""

    folds: int = 3
    names: tuple[str, ...] = ("one", "two")
    model: str = "model"
    fold: int = 0
    rows: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng, n = np.random.default_rng(0), 300
        series = np.arange(n) // 5
        position = np.where(series // 2 == 1, np.nan, 4.0 * (np.arange(n) % 5))
        table = {"series": series, "index": np.arange(n) % 5, "n_slices": 5, "position": position}
        self.frame = pd.DataFrame(table).assign(patient_id=series // 2, image_id=np.arange(n).astype(str))
        self.y = np.stack([np.zeros(n), rng.integers(0, 2, n)], axis=1)  # no slice has the first class
        self.predicted = {name: Predictions(self.y + rng.normal(size=self.y.shape)) for name in self.names}
        fold_of = (series // 2 % self.folds).astype(float)
        self.table = SimpleNamespace(classes=CLASSES, class_weights=[1, 2], fold_of=fold_of, table=self.frame)
        self.rows = {"train": np.flatnonzero(fold_of), "valid": np.flatnonzero(fold_of == 0)}

    @property
    def input_names(self) -> tuple[str, ...]:
        return self.names

    def slices(self, split: str) -> Slices:
        return Slices(self.frame, self.rows[split], CLASSES)

    def labels(self, split: str) -> np.ndarray:
        return self.y[self.rows[split]]

    def inputs(self, split: str) -> dict[str, Predictions]:
        return {name: Predictions(found.logits[self.rows[split]]) for name, found in self.predicted.items()}


def test_smooth_is_the_smoothed_mean_with_widths_from_the_training_rows():
    data, widths = Data(), (0, 5, 10)
    fitted = Smooth(SmoothSettings(widths=widths)).fit(data, RUN)
    mean, position, chosen = {}, {}, {}
    for split in ("train", "valid"):
        frame = data.slices(split).frame
        mean[split] = np.mean([found.logits.astype(float) for found in data.inputs(split).values()], axis=0)
        position[split] = frame["position"].fillna(5.0 * frame["index"]).to_numpy()
        chosen[split] = frame["series"].to_numpy()
    best = choose_widths(mean["train"], data.labels("train"), chosen["train"], position["train"], widths)
    assert fitted.notes["widths"] == dict(zip(CLASSES, best, strict=True))
    expected = smooth_each(mean["valid"], chosen["valid"], position["valid"], best)
    found = fitted.predict(data.slices("valid"), data.inputs("valid")).logits
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_stack_spaces_slices_without_a_position_evenly_and_keeps_the_order_of_its_inputs():
    data = Data()
    fitted = Stack(StackSettings(neighbours=1, num_iterations=3, min_data_in_leaf=5)).fit(data, RUN)
    x, names, base = fitted.features(data.slices("train"), data.inputs("train"))
    assert fitted.notes["features"] == names
    assert np.isfinite(x[:, names.index("relative_position")]).all()
    placeless = data.slices("train").frame["position"].isna().to_numpy()
    gaps = x[placeless, names.index("gap_next")]
    assert np.nanmax(gaps) == np.nanmin(gaps) == 5.0
    backwards = dict(reversed(data.inputs("train").items()))
    np.testing.assert_array_equal(fitted.features(data.slices("train"), backwards)[0], x)
    np.testing.assert_allclose(base, np.mean([found.logits for found in backwards.values()], axis=0), atol=1e-6)


def test_a_stack_of_several_seeds_is_the_mean_of_them(tmp_path):
    data, settings = Data(), {"neighbours": 1, "num_iterations": 3, "min_data_in_leaf": 5}
    slices, inputs = data.slices("valid"), data.inputs("valid")
    one, three = (Stack(StackSettings(**settings, seeds=n)).fit(data, RUN) for n in (1, 3))
    assert three.save(tmp_path) == ["stack.json", *(f"model{k}_{name}.txt" for k in ("", 1, 2) for name in CLASSES)]
    assert {file: three.boosters[file] for file in one.boosters} == one.boosters
    texts = [[three.boosters[f"model{k}_{name}.txt"] for name in CLASSES] for k in ("", 1, 2)]
    assert len({two for _, two in texts}) == 3, "the seeds differ"
    alone = [replace(one, boosters=dict(zip(one.boosters, each, strict=True))) for each in texts]
    expected = np.mean([each.predict(slices, inputs).logits for each in alone], axis=0)
    found = FittedStack.load(tmp_path).predict(slices, inputs).logits
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("folds", "plain"), [(2, ["epidural", "any"]), (3, ["epidural"])])
def test_a_class_that_cannot_use_the_method_is_named_in_a_warning(folds, plain, capsys):
    fitted = Blend(BlendSettings(method="greedy", calibration="none")).fit(Data(folds), RUN)
    methods = {name: each["combination"]["method"] for name, each in fitted.spec["classes"].items()}
    assert [name for name in CLASSES if methods[name] == "logits"] == plain
    assert f"warning: model fold 0, {', '.join(plain)}: greedy needs two other folds" in capsys.readouterr().out
    Blend(BlendSettings(method="greedy", calibration="none")).fit(Data(names=("one",)), RUN)
    assert capsys.readouterr().out == "", "no warning for a single input"


def test_blend_predicts_from_its_file_and_any_is_never_below_a_subtype():
    combination = {"method": "weights", "weights": [0.25, 0.75]}
    one = {"combination": combination, "calibration": {"method": "temperature", "temperature": 2.0}}
    fitted = FittedBlend(
        {"inputs": ["one", "two"], "class_weights": [1, 1], "classes": dict.fromkeys(CLASSES, one)}, "blend"
    )
    slices = Slices(pd.DataFrame({"image_id": ["a", "b"]}), np.arange(2), CLASSES)
    first, second = np.array([[4.0, 0.0], [0.0, 8.0]]), np.array([[8.0, 0.0], [0.0, 0.0]])
    found = fitted.predict(slices, {"two": Predictions(second), "one": Predictions(first)}).logits
    assert found[1].tolist() == [0.0, 1.0]  # (8 x 0.25) / 2
    assert found[0, 1] >= found[0, 0], "any"

"""`ich ablate`: one run per variant and seed through the usual stages, and one table of their scores."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd
import pytest

from conftest import PARTS, copied
from ich.errors import UserError
from ich.stages import ablate

FEWER = ["cnn.resnet.epochs=1", "blend.calibration=none", "folds.n=2", "thresholds.trials=1"]
RUNS = ["parts_random_s1", "parts_random_s2", "parts_s1", "parts_s2"]


def run(root: Path) -> str:
    """Run `ich ablate`; return its output."""
    with redirect_stdout(io.StringIO()) as printed:
        ablate.run(root / PARTS, FEWER, root)
    return printed.getvalue()


@pytest.fixture(scope="module")
def ablated(trained, tmp_path_factory) -> tuple[Path, str]:
    root = copied(trained, tmp_path_factory.mktemp("ablated"))
    return root, run(root)


def test_the_table_has_the_scores_of_one_run_per_variant_and_seed(ablated):
    root, said = ablated
    assert sorted(path.name for path in (root / "oof").glob("parts_*")) == RUNS
    rows = pd.read_csv(root / "submissions/parts/ablation.csv")
    assert len(rows) == 3 * 2 * 2
    for row in rows.itertuples():
        model, variant = {"one": ("resnet", ""), "two": ("resnext", ""), "one, random": ("resnet", "random_")}[
            row.system
        ]
        scores = pd.read_csv(root / f"submissions/parts_{variant}s{row.seed}/scores.csv").set_index(["model", "rows"])
        assert row.f2 == scores.loc[(model, row.rows), "f2"]
        assert {"blend", model} <= set(scores.index.get_level_values("model")) <= {"blend", "resnet", "resnext"}
    text = (root / "submissions/parts/ablation.md").read_text()
    assert text in said
    one = rows[(rows["system"] == "one") & (rows["rows"] == "oof")]
    mean = one["f2_fold_mean"].mean()
    assert f"| one | 0.7000 | {mean:.4f} ± " in text
    assert "| two over one | +0.0500 | " in text
    assert "| one, random over one | - | " in text
    assert f"| one | {one['auc_fold_mean'].mean():.4f} ± " in text.partition("## macro AUC")[2]


def test_seeds_change_folds_and_networks(ablated):
    root, _ = ablated
    folds = {run: (root / f"folds/{run}.csv").read_text() for run in RUNS}
    assert len(set(folds.values())) == 4
    weights = [(root / f"oof/{run}/resnet/fold0/model.safetensors").read_bytes() for run in RUNS]
    assert len(set(weights)) == 4
    settings = json.loads((root / "oof/parts_s2/resnext/fold0/run.json").read_text())["settings"]
    assert settings["seed"] == 2


def test_a_variant_without_the_model_of_a_system_is_an_error(trained):
    changes = ["ablation.systems.joint={model: joint, variant: random}", "ablation.variants.random=[end_to_end=null]"]
    with pytest.raises(UserError, match=r"systems\.joint: variant 'random' removes the model 'joint'") as error:
        ablate.runs(trained / PARTS, changes, trained)
    assert "\n" not in str(error.value)

"""`ich export`, exported bundles and their Python API."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load, save
from scipy.special import expit, logit

import ich
from conftest import CLASSES, plan_of, score_scans
from ich.ensemble.calibration import fit
from ich.ensemble.hierarchy import project_any
from ich.errors import UserError
from ich.models.bundle import SPEC, SUMS, read, sums_text
from ich.models.ensemble import Ensemble
from ich.models.slices import Slices
from ich.pipeline import chunks
from ich.stages import export, predict
from ich.store.hashes import sha256_bytes

TEST = "input/tiny/stage_2_test"
PROBABILITIES = [f"prob_{name}" for name in CLASSES]
TABLES = ("", ".series", ".studies", ".files")


@pytest.fixture(scope="module")
def bundle(trained, tmp_path_factory) -> Path:
    """The exported ensemble of the workspace `trained`."""
    folder = tmp_path_factory.mktemp("export") / "bundle"
    export.run(plan_of(trained), folder)
    return folder


@pytest.fixture
def copied(bundle, tmp_path) -> Path:
    return shutil.copytree(bundle, tmp_path / "bundle")


def texts(folder: Path) -> list[str]:
    return [(folder / f"out{part}.csv").read_text() for part in TABLES]


def signed(folder: Path, **changes: object) -> Path:
    """The bundle with another content of bundle.json, whose hash is right."""
    spec = json.loads((folder / SPEC).read_text()) | changes
    (folder / SPEC).write_text(json.dumps(spec))
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != SUMS]
    (folder / SUMS).write_text(sums_text({name: sha256_bytes((folder / name).read_bytes()) for name in names}))
    return folder


def unlisted(folder: Path) -> None:
    """Remove the files of one fold from SHA256SUMS."""
    lines = [line for line in (folder / SUMS).read_text().splitlines()[:-1] if "resnet/fold0/" not in line]
    (folder / SUMS).write_text(sums_text({name: sha256 for sha256, name in (line.split("  ") for line in lines)}))


def test_a_bundle_predicts_as_its_workspace_to_the_last_digit(trained, bundle, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    score_scans(plan_of(trained), trained / TEST, tmp_path / "a/out.csv")
    moved = shutil.copytree(bundle, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)  # which is no workspace
    predict.run(read(moved), trained / TEST, tmp_path / "b/out.csv")
    assert texts(tmp_path / "a") == texts(tmp_path / "b")
    score_scans(plan_of(trained), trained / TEST, tmp_path / "a/out.csv", fold=1)
    predict.run(read(moved).only(1), trained / TEST, tmp_path / "b/out.csv")
    assert texts(tmp_path / "a") == texts(tmp_path / "b")
    loaded = ich.load_bundle(moved)
    assert loaded.classes == tuple(CLASSES)
    for level, part in (("slice", ""), ("series", ".series"), ("study", ".studies")):
        table = loaded.predict(trained / TEST, level=level, fold=1)
        assert table.to_csv(index=False) == (tmp_path / f"a/out{part}.csv").read_text()
    assert table.attrs == {"quarantined": [], "folds": [1]}


def test_a_bundle_has_only_what_predicting_needs(bundle):
    names = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    folds = {name for name in names if "/" in name}
    assert names - folds == {"LICENSE", "README.md", SPEC, SUMS}
    assert {Path(name).suffix for name in folds} == {".json", ".safetensors", ".txt"}
    assert not {Path(name).name for name in folds} & {"run.json", "studies.json"}
    assert "MIT License" in (bundle / "LICENSE").read_text()
    assert "# Model card: parts\n" in (bundle / "README.md").read_text()


def test_study_probabilities_are_the_calibrated_maximum_over_slices(trained, bundle):
    plan = plan_of(trained)
    oof = pd.read_parquet(plan.workspace.model("blend") / "oof.parquet")
    slices = pd.read_parquet(plan.prepared.folder / "slices.parquet").set_index("image_id").loc[oof["image_id"]]
    table = ich.load_bundle(bundle).predict(trained / TEST, level="study").set_index("study_id")
    expected = []
    for name in CLASSES:
        largest = oof[f"logit_{name}"].groupby(slices["study_id"].to_numpy()).max()
        known = slices.groupby("study_id")[name].max()[largest.index]
        expected.append(fit("platt", largest, known).apply(logit(table[f"prob_{name}"])))
    expected = expit(project_any(np.column_stack(expected), CLASSES, [1, 1, 1, 1, 1, 2]))
    np.testing.assert_allclose(table[[f"study_prob_{name}" for name in CLASSES]], expected, rtol=1e-5)


def test_some_folds_and_half_precision(trained, tmp_path, capsys):
    plan = plan_of(trained)
    export.run(plan, tmp_path / "half", folds=[0, 2], half=True)
    found = read(tmp_path / "half")
    assert found.spec.folds == (0, 2)
    assert {Path(name).parts[1] for name in found.files} == {"fold0", "fold2"}
    half, full = ((root / "resnet/fold0/model.safetensors").stat().st_size for root in (found.root, plan.workspace.oof))
    assert half < 0.7 * full

    def logits(folder: Path, fold: int | None = None) -> np.ndarray:
        return logit(ich.load_bundle(folder).predict(trained / TEST, fold=fold)[PROBABILITIES].to_numpy())

    folds = [logits(found.root, k) for k in (0, 2)]
    np.testing.assert_allclose(logits(found.root), np.mean(folds, axis=0), atol=1e-4)
    export.run(plan, tmp_path / "in full", folds=[0])
    assert f"ich predict --bundle '{tmp_path / 'in full'}' PATH" in capsys.readouterr().out
    assert 0 < np.abs(logits(tmp_path / "in full") - folds[0]).max() < 0.05


def test_a_flipped_bit_and_a_cut_file_are_refused(copied):
    rng, files = random.Random(0), [path for path in copied.rglob("*") if path.is_file()]
    for number in range(200):
        path = rng.choice(files)
        content = bytearray(path.read_bytes())
        place = rng.randrange(len(content))
        changed = content[:place] if number % 2 else content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)])
        changed += b"" if number % 2 else content[place + 1 :]
        path.write_bytes(changed)
        with pytest.raises(UserError) as error:
            read(copied)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        path.write_bytes(content)
    read(copied)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: signed(folder, format=2), "format 2, but this version of ich reads format 1. Update ich"),
        (lambda folder: signed(folder, colour="red"), "colour: Extra inputs are not permitted"),
        (lambda folder: signed(folder, name="../evil"), "name: String should match pattern"),
        (lambda folder: signed(folder, models={"a": {"stage": "evil"}}), "unknown kind of model. Choose from"),
        (lambda folder: signed(folder, models={"a": {"stage": "blend"}}), "blend must be the last model"),
        (lambda folder: signed(folder, class_weights=[1]), "one weight per class"),
        (lambda folder: (folder / "resnet/fold0/model.json").unlink(), "model.json is missing. Copy the bundle again"),
        (lambda folder: signed(folder, folds=[0, 7]), "fold7 is missing. Copy the bundle again"),
        (unlisted, f"resnet/fold0/model.json is not in {SUMS}. Remove it, or copy"),
        (lambda folder: (folder / SUMS).unlink(), f"{SUMS} is missing"),
        (lambda folder: (folder / SUMS).write_text(sums_text({"../a": "0"})), "a name leads out of the bundle"),
        (lambda folder: shutil.rmtree(folder), "no such folder. Give the folder that `ich export` wrote"),
    ],
)
def test_a_bundle_that_cannot_be_used_is_refused_with_the_reason(copied, damage: Callable[[Path], object], says):
    damage(copied)
    with pytest.raises(UserError) as error:
        ich.load_bundle(copied)
    assert says in str(error.value)


def test_predictions_that_are_not_finite_are_refused(copied, trained):
    path = copied / "resnet/fold0/model.safetensors"
    weights = load(path.read_bytes())
    path.write_bytes(save({**weights, "classifier.bias": np.full_like(weights["classifier.bias"], np.nan)}))
    with pytest.raises(UserError, match="resnet fold 0: the logits of"):
        ich.load_bundle(signed(copied)).predict(trained / TEST, fold=0)


def test_weights_that_float16_cannot_hold_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(save({"bias": np.array([1, 70_000], np.float32)}))
    with pytest.raises(UserError, match=r"a: bias has values that float16 cannot hold\. Export it without --half"):
        export._halved(tmp_path / "a")


def test_a_bundle_cannot_load_initial_weights(copied, trained):
    for path in copied.glob("resnet/*/model.json"):
        spec = json.loads(path.read_text())
        spec["network"] |= {"pretrained": True, "weights": "/nowhere.pth"}
        path.write_text(json.dumps(spec))
    assert len(ich.load_bundle(signed(copied)).predict(trained / TEST, fold=0))


def test_as_many_folds_as_the_time_allows_are_used(trained, bundle, monkeypatch, capsys, tmp_path):
    now, slices = [0.0], len(ich.load_bundle(bundle).predict(trained / TEST, fold=0))
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(predict, "time", clock)
    monkeypatch.setattr(chunks, "time", clock)
    monkeypatch.setattr("ich.pipeline.chunks.CHUNK", 1)  # each study is a chunk
    whole = Ensemble.predict

    def slowly(self: Ensemble, slices: Slices, on_done: Callable) -> Iterator:
        """Take a second per slice and fold."""
        for each in whole(self, slices, on_done):
            now[0] += len(slices)
            yield each

    monkeypatch.setattr(Ensemble, "predict", slowly)
    for seconds, expected in ((slices * 10, [0, 1, 2]), (slices * 2.5, [0, 1]), (1, [0])):
        table = ich.load_bundle(bundle).predict(trained / TEST, time_limit=seconds)
        assert table.attrs["folds"] == expected
    predict.run(read(bundle), trained / TEST, tmp_path / "out.csv", time_limit=1)
    assert "warning: the time limit allowed the models of folds 0 of 0, 1, 2" in capsys.readouterr().out


def test_an_existing_folder_is_kept(trained, bundle):
    with pytest.raises(UserError, match=r"exists\. Remove it, or give another folder"):
        export.run(plan_of(trained), bundle)
    with pytest.raises(UserError, match="--fold 7: no such fold"):
        export.run(plan_of(trained), bundle.with_name("new"), folds=[7])
    assert not bundle.with_name("new").exists()

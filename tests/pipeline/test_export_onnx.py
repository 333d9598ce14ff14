"""`ich export --onnx`, and predictions from such a bundle without torch."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

import ich
from conftest import CLASSES, plan_of
from ich.errors import UserError
from ich.models import to_onnx
from ich.models.base import ONNX
from ich.models.bundle import SUMS, sums_text
from ich.models.registry import NETWORKS, import_onnx
from ich.stages import export
from ich.store.hashes import sha256_file

TEST = "input/tiny/stage_2_test"
PROBABILITIES = [f"prob_{name}" for name in CLASSES]
PREDICT = """
import sys
from ich import load_bundle
load_bundle(sys.argv[1], runtime="onnx").predict(sys.argv[2]).to_csv(sys.argv[3], index=False)
print([name for name in ("torch", "timm", "onnx", "onnxruntime", "lightgbm") if name in sys.modules])
"""


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> tuple[Path, list[str]]:
    """The first fold of the workspace `trained` with its networks as ONNX, and those that int8 would be used for."""
    folder, changed = tmp_path_factory.mktemp("export") / "bundle", list[str]()

    def to_int8(network, slices, path):
        assert network.path == path
        assert len(slices)
        changed.append(path.parts[-3])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "to_int8", to_int8)
        export.run(plan_of(trained), folder, folds=[0], onnx=True, int8=True)
    return folder, changed


@pytest.fixture
def bundle(exported) -> Path:
    return exported[0]


def test_onnx_predicts_the_same_without_torch(bundle, trained, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    words = [sys.executable, "-c", PREDICT, str(bundle), str(trained / TEST), str(out)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['onnxruntime', 'lightgbm']"
    loaded = ich.load_bundle(bundle)
    networks = {name for name, one in loaded.bundle.spec.models.items() if one.stage in NETWORKS}
    assert networks == {"resnet", "resnext", "small", "joint", "bigru", "lr", "inside"}
    assert {path.parts[-3] for path in bundle.rglob(ONNX)} == networks
    assert not any(str(trained.parent).encode() in path.read_bytes() for path in bundle.rglob(ONNX))
    monkeypatch.setattr("ich.training.device.resolve", lambda *_: "fp32")
    expected, found = loaded.predict(trained / TEST), pd.read_csv(out)
    np.testing.assert_allclose(logit(found[PROBABILITIES]), logit(expected[PROBABILITIES]), atol=1e-3)


def test_int8_is_for_networks_that_read_images(exported):
    assert exported[1] == ["resnet", "resnext", "small", "joint"]


def test_what_is_missing_is_named(bundle, tmp_path, monkeypatch):
    plain = shutil.copytree(bundle, tmp_path / "plain", ignore=shutil.ignore_patterns(ONNX, SUMS))
    names = [path.relative_to(plain).as_posix() for path in plain.rglob("*") if path.is_file()]
    (plain / SUMS).write_text(sums_text({name: sha256_file(plain / name) for name in names}))
    with pytest.raises(UserError, match=r"plain has no networks as ONNX\. Export it again with --onnx$"):
        ich.load_bundle(plain, runtime="onnx")
    with pytest.raises(UserError, match=r"^--runtime tf: unknown runtime\. Choose from torch, onnx$"):
        ich.load_bundle(bundle, runtime="tf")
    for library, needs in (("onnxruntime", ["onnx", "to_onnx"]), ("onnx", ["to_onnx"])):
        with monkeypatch.context() as patch:
            for module in ("ich.models.onnx", "ich.models.to_onnx", "ich.networks.onnx"):
                patch.delitem(sys.modules, module, raising=False)
            patch.setitem(sys.modules, library, None)
            for module in needs:
                with pytest.raises(UserError, match=rf"^ONNX requires {library}\. .* pip install 'ich\[export\]'$"):
                    import_onnx(module)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("export", "-o", "new", "--int8"), "--int8 needs --onnx"),
        (("predict", TEST, "-o", "out.csv", "--runtime", "onnx"), "--runtime needs --bundle DIR"),
    ],
)
def test_options_that_need_another(clone, words, says):
    assert says in clone.ich(*words, code=2)

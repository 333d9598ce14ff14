"""`ich export`: write the trained ensemble as one folder that predicts anywhere."""

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import distribution
from itertools import product
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from ich.console import progress, say
from ich.errors import UserError
from ich.models.base import ONNX
from ich.models.bundle import SPEC, SUMS, Bundle, sums_text
from ich.models.data import FoldData
from ich.models.registry import NETWORKS, import_onnx, onnx_class
from ich.pipeline.state import Plan
from ich.pipeline.tasks import WEIGHTS
from ich.pipeline.trained import of_workspace
from ich.stages import kaggle as for_kaggle
from ich.stages.card import model_card
from ich.store.atomic import atomic_folder, write_json, write_text
from ich.store.hashes import sha256_file

CHECKED = 64  # slices on which ONNX Runtime is compared with torch
CALIBRATED = 128  # training slices for int8


def run(
    plan: Plan,
    out: Path,
    *,
    folds: Sequence[int] | None = None,
    half: bool = False,
    onnx: bool = False,
    int8: bool = False,
    kaggle: bool = False,
) -> None:
    """Write the bundle of a recipe to the folder `out`, which must not exist.

    folds: those to include; all without. half: weights of networks as float16, half the size. onnx: networks also as
    ONNX. int8: those that read images in int8. kaggle: write it to out/bundle, next to a notebook for Kaggle.
    """
    if out.exists():
        raise UserError(f"{out} exists. Remove it, or give another folder")
    if onnx:
        import_onnx("to_onnx")
    bundle = of_workspace(plan, folds)
    with atomic_folder(out) as folder:
        if kaggle:
            for_kaggle.write(plan, bundle.spec, folder)
        names = _write(plan, bundle, folder / "bundle" if kaggle else folder, half=half, onnx=onnx, int8=int8)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    numbers = ", ".join(map(str, bundle.spec.folds))
    say(f"export: wrote {out}: folds {numbers}, {len(names) + 1} files, {size / 1e6:.1f} MB")
    if kaggle:
        say("Upload it as docs/how-to/kaggle.md says")
    else:
        say(f"Score scans: ich predict --bundle {shlex.quote(str(out))} PATH -o out.csv")


def _write(plan: Plan, bundle: Bundle, folder: Path, *, half: bool, onnx: bool, int8: bool) -> list[str]:
    """Write a bundle; return the names of its files, without the last one, SHA256SUMS."""
    with progress("export", len(bundle.files), "files") as advance:
        for name in bundle.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if half and name.endswith(WEIGHTS):
                (folder / name).write_bytes(_halved(bundle.root / name))
            else:
                shutil.copyfile(bundle.root / name, folder / name)
            advance(1)
    if onnx:
        _add_onnx(plan, replace(bundle, root=folder), int8=int8)
    write_json(folder / SPEC, bundle.spec.model_dump(mode="json"))
    write_text(folder / "README.md", model_card(plan, bundle.spec.folds, half=half))
    write_text(folder / "LICENSE", distribution("ich").read_text("licenses/LICENSE") or "MIT\n")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_text(folder / SUMS, sums_text({name: sha256_file(folder / name) for name in names}))
    return names


def _add_onnx(plan: Plan, bundle: Bundle, *, int8: bool) -> None:
    """Write the networks of a bundle as ONNX, and compare them with torch on slices of their folds."""
    to_onnx, largest = import_onnx("to_onnx"), 0.0
    models = {name: one.stage for name, one in bundle.spec.models.items() if one.stage in NETWORKS}
    with progress("export: ONNX", len(models) * len(bundle.spec.folds), "networks") as advance:
        for name, k in product(models, bundle.spec.folds):
            data = FoldData.read(plan.recipe, plan.workspace, plan.prepared.folder, name, k)
            few = {
                "valid": data.slices("valid").some_series(CHECKED),
                "train": data.slices("train").some_series(CALIBRATED),
            }
            data, kind, folder = replace(data, rows=few), onnx_class(models[name]), bundle.root / name / f"fold{k}"
            difference = to_onnx.write(bundle.fitted(name, k), kind, folder, data.slices("valid"), data.inputs("valid"))
            largest = max(largest, difference)
            if int8 and plan.settings_of(name).reads_images:
                to_onnx.to_int8(kind.load(folder), data.slices("train"), folder / ONNX)
            advance(1)
    say(f"export: logits by ONNX Runtime and by torch differ by at most {largest:.1e} in full precision")


def _halved(path: Path) -> bytes:
    """The content of a file of weights with float16 instead of float32. `FittedNetwork.load` reads both."""
    tensors = load(path.read_bytes())
    for name, value in tensors.items():
        if value.dtype == np.float32:
            if not (np.abs(value) <= np.finfo(np.float16).max).all():
                raise UserError(f"{path}: {name} has values that float16 cannot hold. Export it without --half")
            tensors[name] = value.astype(np.float16)
    return save(tensors)

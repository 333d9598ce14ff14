"""A trained ensemble with all that predicting needs, in a folder that bundle.json and SHA256SUMS describe.

`<model>/fold<k>/` holds what `Fitted.save` wrote, as in oof/<recipe>. So the ensemble of a workspace is a bundle too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from ich.ensemble.calibration import Calibrator
from ich.errors import UserError
from ich.inputs import regular
from ich.models.base import ONNX, Fitted
from ich.models.registry import KINDS, RUNTIMES, import_onnx, load
from ich.recipe.training import Strict
from ich.recipe.types import NAME, Image
from ich.store.hashes import digest, sha256_bytes, sha256_file

FORMAT = 1
SPEC, SUMS = "bundle.json", "SHA256SUMS"
LARGEST = 1 << 24  # bytes of each of both
Name = Annotated[str, Field(pattern=NAME)]


class BundledModel(Strict):
    stage: str
    inputs: tuple[str, ...] = ()  # the models whose predictions it reads; they come before it
    workers: int | Literal["auto"] = 0  # loader processes for images

    @field_validator("stage")
    @classmethod
    def _is_a_kind(cls, stage: str) -> str:
        if stage not in KINDS:
            raise ValueError(f"unknown kind of model. Choose from {', '.join(KINDS)}")
        return stage


class Spec(Strict):
    """Content of bundle.json."""

    format: Literal[1] = FORMAT
    name: Name  # of the recipe
    version: str  # of the package ich that wrote it
    classes: tuple[str, ...] = Field(min_length=1)
    class_weights: tuple[float, ...]
    values: Literal["hu", "grey"]
    image: Image
    threads: int = Field(ge=1)  # CPU threads. Another number may change the last digits of predictions.
    folds: tuple[int, ...] = Field(min_length=1)
    models: dict[Name, BundledModel]  # the blend is last
    competition: str = ""  # its format, for submissions
    thresholds: dict[str, Any] | None = None  # content of thresholds.json
    studies: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    """Calibrators of study logits, by model and class."""


@dataclass(frozen=True)
class Bundle:
    """A trained ensemble. Can be pickled; models are read by `fitted`."""

    root: Path
    spec: Spec
    files: Mapping[str, str]  # SHA-256 of each file of a fold, by its path in `root`
    runtime: str = "torch"  # runs its networks

    @property
    def identity(self) -> str:
        """Hash of all that its predictions depend on."""
        return digest([self.runtime, self.spec.model_dump(mode="json"), dict(self.files)])

    def fitted(self, model: str, fold: int) -> Fitted:
        """Load a fitted fold. Raises UserError if a file is malformed."""
        stage, folder = self.spec.models[model].stage, self.root / model / f"fold{fold}"
        return load(stage, folder, f"{model} fold {fold}", self.runtime)

    def calibrators(self, model: str) -> dict[str, Calibrator]:
        """Calibrators of the study logits of a model, by class; empty without attention pooling."""
        return {name: Calibrator.from_dict(value) for name, value in self.spec.studies.get(model, {}).items()}

    def only(self, fold: int) -> "Bundle":
        """Return the models of one fold. Their study logits are not calibrated: that needs all folds."""
        if fold not in self.spec.folds:
            raise UserError(f"--fold {fold}: no such fold. Choose from {', '.join(map(str, self.spec.folds))}")
        return replace(self, spec=self.spec.model_copy(update={"folds": (fold,), "studies": {}}))


def read(folder: Path, runtime: str = "torch") -> Bundle:
    """Read an exported bundle and check all its files. Raises UserError if it is damaged or of a later format.

    runtime: runs the networks, one of RUNTIMES. "onnx" needs networks that were exported as ONNX.
    """
    if runtime not in RUNTIMES:
        raise UserError(f"--runtime {runtime}: unknown runtime. Choose from {', '.join(RUNTIMES)}")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Give the folder that `ich export` wrote")
    hashes = _sums(folder)
    for name, sha256 in hashes.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing. Copy the bundle again")
        if sha256_file(path) != sha256:
            raise UserError(f"{path} is damaged: its SHA-256 differs from {SUMS}. Copy the bundle again")
    if SPEC not in hashes:
        raise UserError(f"{folder / SUMS} does not list {SPEC}. Copy the bundle again")
    if runtime == "onnx":
        import_onnx("onnx")
        if not any(name.endswith(f"/{ONNX}") for name in hashes):
            raise UserError(f"{folder} has no networks as ONNX. Export it again with --onnx")
    spec = _spec(folder / SPEC)
    for model, fold in product(spec.models, spec.folds):
        part = folder / model / f"fold{fold}"
        inside = [path.relative_to(folder).as_posix() for path in sorted(part.glob("[!.]*"))]
        if not inside:
            raise UserError(f"{part} is missing. Copy the bundle again")
        if unlisted := [name for name in inside if name not in hashes]:
            raise UserError(f"{folder / unlisted[0]} is not in {SUMS}. Remove it, or copy the bundle again")
    files = {name: sha256 for name, sha256 in hashes.items() if "/" in name}
    return Bundle(folder.absolute(), spec, files, runtime)


def sums_text(hashes: Mapping[str, str]) -> str:
    """Return the content of SHA256SUMS, as `sha256sum` writes it; the last line is the hash of the others.

    `sha256sum --check` ignores the last line, which is a comment.
    """
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(hashes.items()))
    return f"{lines}# {sha256_bytes(lines.encode())}\n"


def _sums(folder: Path) -> dict[str, str]:
    path = folder / SUMS
    text = _text(path)
    try:
        hashes = {name: sha256 for sha256, name in (line.split("  ", 1) for line in text.splitlines()[:-1])}
    except ValueError:
        hashes = {}
    if not hashes or sums_text(hashes) != text:
        raise UserError(f"{path} is damaged. Copy the bundle again")
    for name in hashes:
        if name.startswith("/") or ".." in name.split("/") or "\\" in name:
            raise UserError(f"{path}: a name leads out of the bundle. It was not written by `ich export`")
    return hashes


def _spec(path: Path) -> Spec:
    try:
        content = json.loads(_text(path))
        if isinstance(content, dict) and isinstance(number := content.get("format"), int) and number > FORMAT:
            raise UserError(f"{path}: format {number}, but this version of ich reads format {FORMAT}. Update ich")
        spec = Spec.model_validate(content)
    except (ValidationError, ValueError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        where = ".".join(map(str, first["loc"])) if first else "invalid JSON"
        raise UserError(f"{path}: {where}: {first['msg'] if first else error}. Export the bundle again") from None
    names = list(spec.models)
    for number, (name, model) in enumerate(spec.models.items()):
        if unknown := set(model.inputs) - set(names[:number]):
            raise UserError(
                f"{path}: models.{name}.inputs: {min(unknown)} must come before it. Export the bundle again"
            )
    if not names or names[-1] != "blend":
        raise UserError(f"{path}: blend must be the last model. Export the bundle again")
    if len(spec.class_weights) != len(spec.classes):
        raise UserError(f"{path}: class_weights must have one weight per class. Export the bundle again")
    return spec


def _text(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", opener=regular(LARGEST)) as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{path} is missing. Give the folder that `ich export` wrote") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}). Copy the bundle again") from None

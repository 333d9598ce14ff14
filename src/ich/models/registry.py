"""Kinds of models: the only mapping from recipe sections to classes. Each is imported on first use."""

from importlib import import_module
from pathlib import Path
from typing import Any

from ich.errors import UserError, parsing
from ich.models.base import Fitted, Model
from ich.recipe import Model as Settings

KINDS = {
    "pretrain": ("ich.models.pretrain", "SimClr", "FittedSimClr"),
    "cnn": ("ich.models.cnn", "Cnn", "FittedCnn"),
    "end_to_end": ("ich.models.end_to_end", "EndToEnd", "FittedEndToEnd"),
    "sequence": ("ich.models.sequence", "Sequence", "FittedSequence"),
    "external": ("ich.models.external", "External", "FittedExternal"),
    "smooth": ("ich.models.smooth", "Smooth", "FittedSmooth"),
    "stack": ("ich.models.stack", "Stack", "FittedStack"),
    "blend": ("ich.models.blend", "Blend", "FittedBlend"),
}
NETWORKS = {"cnn": "OnnxCnn", "end_to_end": "OnnxEndToEnd", "sequence": "OnnxSequence"}  # of ich.models.onnx
RUNTIMES = ("torch", "onnx")


def build(settings: Settings) -> Model:
    """The unfitted model of these settings."""
    return _class(settings.stage, 1)(settings)


def load(stage: str, folder: Path, name: str, runtime: str = "torch") -> Fitted:
    """The fitted model that a fold of a stage saved. Raises UserError if its files are malformed.

    runtime: runs networks, one of RUNTIMES.
    """
    kind = onnx_class(stage) if runtime == "onnx" and stage in NETWORKS else _class(stage, 2)
    with parsing(folder / kind.FILE):
        fitted = kind.load(folder)
    fitted.name = name
    return fitted


def onnx_class(stage: str) -> Any:
    """The class that predicts from model.onnx."""
    return getattr(import_onnx("onnx"), NETWORKS[stage])


def import_onnx(module: str) -> Any:
    """Import a module of ich.models that needs the extra `export`. Raises UserError if it is not installed."""
    try:
        return import_module(f"ich.models.{module}")
    except ModuleNotFoundError as error:
        raise UserError(f"ONNX requires {error.name}. Install it: pip install 'ich[export]'") from None


def _class(stage: str, which: int) -> Any:
    return getattr(import_module(KINDS[stage][0]), KINDS[stage][which])

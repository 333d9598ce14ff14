"""Write the network of a fitted fold as model.onnx, and compare its predictions with those of torch."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from ich.errors import UserError
from ich.models.base import ONNX
from ich.models.network import FittedNetwork
from ich.models.onnx import OnnxImageNetwork, OnnxNetwork
from ich.models.slices import Predictions, Slices
from ich.networks.onnx import export

TOLERANCE = 1e-4  # of logits


def write(
    fitted: FittedNetwork, kind: type[OnnxNetwork], folder: Path, slices: Slices, inputs: Mapping[str, Predictions]
) -> float:
    """Write model.onnx next to the other files of a fitted fold; return the largest difference of logits.

    kind: predicts from the file. Raises UserError if the network cannot be written, or if the logits of `slices` by
    ONNX Runtime and by torch, both in full precision, differ by more than TOLERANCE.
    """
    size = 0 if slices.images is None else slices.images.shape[-1]
    try:
        export(fitted.network, example(fitted.spec, size), folder / ONNX)
    except ValueError as error:
        raise UserError(f"{fitted.name}: the network cannot be written as ONNX ({error}). Omit --onnx") from error
    exact = replace(fitted, spec={**fitted.spec, "precision": "fp32"})
    with torch.backends.cudnn.flags(enabled=False):  # it rounds to TF32
        expected = exact.predict(slices, inputs)
    predictions = kind(fitted.spec, fitted.name, path=folder / ONNX).predict(slices, inputs)
    pairs = [(expected.logits, predictions.logits)]
    if expected.studies is not None and predictions.studies is not None:
        pairs.append((expected.studies.to_numpy(), predictions.studies.to_numpy()))
    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    if not difference <= TOLERANCE:
        why = f"its logits by ONNX Runtime and by torch differ by {difference:.2g}, more than {TOLERANCE}"
        raise UserError(f"{fitted.name}: {why}. Omit --onnx")
    return difference


def example(spec: Mapping[str, Any], size: int) -> dict[str, Tensor]:
    """Inputs of the network of a spec, by name: two series of three and two slices, with images of `size` pixels."""
    series = {"geometry": torch.zeros(2, 3, 2), "lengths": torch.tensor([3, 2])}
    if "network" in spec:
        images = torch.zeros(5, spec["network"]["in_channels"], size, size, dtype=torch.uint8)
        return {"images": images, **(series if "head" in spec else {})}
    head = spec["head"]
    return {"features": torch.zeros(2, 3, head["features"]), "base": torch.zeros(2, 3, head["classes"]), **series}


class _Recorded(CalibrationDataReader):
    """The inputs of a network while it predicts slices."""

    def __init__(self, network: OnnxImageNetwork, slices: Slices) -> None:
        batches, run = list[dict[str, NDArray[Any]]](), network.run

        def record(**inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
            names = [one.name for one in network.session.get_inputs()]
            batches.append({name: np.ascontiguousarray(inputs[name]) for name in names})
            return run(**inputs)

        network.run = record
        network.predict(slices, {})
        self.rest = iter(batches)

    def get_next(self) -> Any:
        return next(self.rest, None)


def to_int8(network: OnnxImageNetwork, slices: Slices, path: Path) -> None:
    """Write a network in int8 by static quantisation; the ranges of its activations are those on `slices`."""
    batches = _Recorded(network, slices)
    logging.disable(logging.WARNING)  # about layers that stay in full precision
    try:
        with TemporaryDirectory(prefix="ich-int8-") as folder:
            prepared = Path(folder, ONNX)
            quant_pre_process(network.path, prepared)
            quantize_static(
                prepared,
                path,
                batches,
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
    finally:
        logging.disable(logging.NOTSET)

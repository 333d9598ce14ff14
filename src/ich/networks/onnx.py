"""Networks as ONNX files.

They are written by torch's TorchScript exporter. The newer one, which starts from `torch.export`, refuses the packed
sequences of recurrent heads (torch 2.13).
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from ich.networks.cnn import Cnn
from ich.networks.cnn_lstm import EndToEnd

OPSET = 18
SLICES = {0: "slices"}
PADDED = {0: "series", 1: "longest"}
AXES = {"images": SLICES, "lengths": {0: "series"}}  # dimensions that vary; those of all other inputs are PADDED


def export(network: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    """Write a network in full precision. Raises ValueError if ONNX cannot express it.

    inputs: an example of each argument of its forward pass, by name; a file has the same inputs with any number of
    slices and series. The output is logits, of a Cnn embeddings and logits.
    """
    axes, outputs = {name: AXES.get(name, PADDED) for name in inputs}, {"logits": PADDED}
    if isinstance(network, Cnn):
        network, outputs = _Embed(network), {"embeddings": SLICES, "logits": SLICES}
    elif isinstance(network, EndToEnd):  # one chunk: their number would be that of the example
        network = EndToEnd(network.cnn, network.head, chunk=len(inputs["images"]))
    options: dict[str, Any] = {"input_names": [*axes], "output_names": [*outputs], "dynamic_axes": axes | outputs}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter is deprecated, and warns of each branch
            network = network.cpu().eval()
            torch.onnx.export(network, (*inputs.values(),), path, dynamo=False, opset_version=OPSET, **options)
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:  # those of torch, timm and the operators have no common base
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error


class _Embed(nn.Module):
    """A Cnn with both of its outputs."""

    def __init__(self, cnn: Cnn) -> None:
        super().__init__()
        self.cnn = cnn

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.cnn.embed(images)

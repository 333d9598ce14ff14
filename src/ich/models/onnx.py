"""Fitted networks that ONNX Runtime runs from model.onnx, without torch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import pairwise
from operator import add
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ich.console import progress
from ich.data.windowing import Windowing, neighbour_rows, render_rows
from ich.errors import parsing
from ich.models.base import ONNX, Fitted
from ich.models.slices import Predictions, Slices, geometry, series_predictions


@dataclass
class OnnxNetwork(Fitted):
    """A network in full precision on the CPU. Its spec is that of the torch network."""

    FILE: ClassVar[str] = "model.json"

    path: Path = field(default_factory=Path)
    threads: int = 1

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(cls.read_spec(folder), path=folder / ONNX)

    @contextmanager
    def using(self, threads: int) -> Iterator[None]:
        self.threads = threads
        yield

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.use_deterministic_compute = True
        with parsing(self.path, "export the bundle again"):
            return onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])

    def run(self, **inputs: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Return the outputs of the network. Inputs that it does not read are not in its file."""
        names = [one.name for one in self.session.get_inputs()]
        outputs: Any = self.session.run(None, {name: inputs[name] for name in names})
        return outputs


@dataclass
class OnnxImageNetwork(OnnxNetwork):
    def outputs(self, slices: Slices, parts: Sequence[NDArray[np.int64]]) -> Iterator[list[NDArray[np.float32]]]:
        """Yield the outputs for each part of the slices; means over the views of `tta`."""
        windows, table = Windowing.from_dict(self.spec["view"]), slices.table
        needed = np.arange(len(table))[:, None]
        if windows.kind == "neighbours":
            needed = neighbour_rows(table["series"].to_numpy(), table["index"].to_numpy())
        places = geometry(table)
        with progress(f"{self.name}: predicting", len(slices), inner=True) as advance:
            for part in parts:
                rows = slices.rows[part]
                images = render_rows(slices.images, needed[rows], windows).transpose(0, 3, 1, 2)
                series = {"geometry": places[rows][None], "lengths": np.array([len(rows)])}
                several = [self.run(images=view, **series) for view in views(images, **self.spec["tta"])]
                yield [reduce(add, values) / len(values) for values in zip(*several, strict=True)]
                advance(len(part))


@dataclass
class OnnxCnn(OnnxImageNetwork):
    def predict(self, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        size = 2 * self.spec["batch_size"]
        parts = np.split(np.arange(len(slices)), range(size, len(slices), size))
        embeddings, logits = map(np.concatenate, zip(*self.outputs(slices, parts), strict=True))
        return Predictions(logits, embeddings.astype(np.float16))


@dataclass
class OnnxEndToEnd(OnnxImageNetwork):
    """One series at a time, which needs no padding."""

    def predict(self, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        parts = [np.arange(*ends) for ends in pairwise(slices.offsets)]
        return Predictions(np.concatenate([logits[0] for (logits,) in self.outputs(slices, parts)]))


@dataclass
class OnnxSequence(OnnxNetwork):
    """One series at a time, which needs no padding."""

    def predict(self, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        base = np.mean(self.input_logits(inputs), axis=0).astype(np.float32)
        features = [inputs[name].embeddings for name in self.spec["inputs"]]
        places, reverse = geometry(slices.frame), self.spec["tta"].get("reverse")

        def outputs(rows: NDArray[np.int64], places: NDArray[np.float32]) -> NDArray[np.float32]:
            of_slices = np.concatenate([one[rows] for one in features if one is not None], axis=1, dtype=np.float32)
            series = {"base": base[rows][None], "geometry": places[None], "lengths": np.array([len(rows)])}
            return self.run(features=of_slices[None], **series)[0][0]

        found: list[NDArray[np.floating]] = []
        with progress(f"{self.name}: predicting", len(slices), inner=True) as advance:
            for ends in pairwise(slices.offsets):
                rows = np.arange(*ends)
                logits = outputs(rows, places[rows])
                if reverse:
                    logits = (logits + outputs(rows[::-1], reversed_geometry(places[rows]))[::-1]) / 2
                found.append(logits)
                advance(len(rows))
        return series_predictions(slices, np.concatenate(found), pooled=bool(self.spec.get("studies")))


def views(images: NDArray[np.uint8], flip: bool = False, shift: float = 0.0) -> Iterator[NDArray[np.uint8]]:
    """Yield images [n, C, S, S] and their changed copies, as `ich.data.datasets.Views`."""
    size = images.shape[-1]
    step = round(shift * size)
    padded = np.pad(images, ((0, 0), (0, 0), (step, step), (step, step)))
    for down, right in ((0, 0), *([(0, step), (0, -step), (step, 0), (-step, 0)] if step else [])):
        moved = padded[..., step - down :, step - right :][..., :size, :size]
        yield moved
        if flip:
            yield moved[..., ::-1]


def reversed_geometry(places: NDArray[np.float32]) -> NDArray[np.float32]:
    """Geometry [T, 2] of a series in the opposite order; the gap to the next slice was stored with that slice."""
    gap, place = places[::-1].T
    return np.column_stack([np.append(gap[1:], np.float32(0)), -place])

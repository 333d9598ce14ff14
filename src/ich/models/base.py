"""The contract of all models: `Model.fit` gives a `Fitted`, which predicts slices and is saved in a folder.

The idea is scikit-learn's, with folds. Nothing here imports torch.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ich.errors import UserError
from ich.models.data import FoldData
from ich.models.slices import Predictions, Shape, Slices
from ich.store.atomic import write_json
from ich.training.run import Run

ONNX = "model.onnx"  # file of a network for ONNX Runtime


@dataclass
class Fitted(ABC):
    """One fitted fold, independent of the recipe and of the paths of the workspace."""

    FILE: ClassVar[str]  # JSON file of `spec`
    KEYS: ClassVar[frozenset[str]] = frozenset()  # required keys of `spec`

    spec: dict[str, Any]  # JSON values from which `load` rebuilds the model, together with its other files
    name: str = ""  # for messages, such as "resnet fold 0"
    notes: dict[str, Any] = field(default_factory=dict)  # further entries of the run record

    @abstractmethod
    def predict(self, slices: Slices, inputs: Mapping[str, Predictions]) -> Predictions:
        """Predict slices from their images, or from the predictions of the input models for the same rows."""

    @contextmanager
    def using(self, threads: int) -> Iterator[None]:
        """Predict inside with this number of CPU threads, if the kind uses several; then free the GPU."""
        yield

    def save(self, folder: Path) -> list[str]:
        """Write the files that `load` reads; return their names."""
        write_json(folder / self.FILE, self.spec)
        return [self.FILE]

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(cls.read_spec(folder))

    @classmethod
    def read_spec(cls, folder: Path) -> dict[str, Any]:
        """The saved `spec`. Raises an error that `parsing` reports if it is malformed."""
        spec = json.loads((folder / cls.FILE).read_text(encoding="utf-8"))
        if not isinstance(spec, dict) or not spec.keys() >= cls.KEYS:
            raise ValueError(f"an object with the keys {', '.join(sorted(cls.KEYS))} is required")
        return spec

    def input_logits(self, inputs: Mapping[str, Predictions]) -> list[NDArray[np.float64]]:
        """Logits [n, c] of the inputs, in the order in which the model was fitted on them."""
        missing = [name for name in self.spec["inputs"] if name not in inputs]
        if missing:
            raise UserError(f"{self.name}: predictions of {', '.join(missing)} are missing")
        return [inputs[name].logits.astype(np.float64) for name in self.spec["inputs"]]


class Model(ABC):
    """A model before it is fitted, built from its section of the recipe."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def fit(self, data: FoldData, run: Run) -> Fitted:
        """Fit the training rows of a fold. A network resumes from the checkpoint of the run."""

    def try_network(self, shape: Shape, inputs: Mapping[str, int]) -> int:
        """Build the network once, without data, and return the size of its embeddings; 0 if it has none.

        inputs: the sizes of the embeddings of its inputs. Raises ValueError if the network cannot be trained.
        """
        return 0

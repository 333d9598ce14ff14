"""State of a training and its checkpoint file. Loading a file never runs code from it."""

import io
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from ich.errors import UserError
from ich.store.records import read_hashed, write_hashed


@dataclass
class TrainingState:
    """Everything that changes while training; a checkpoint also holds the random state."""

    network: nn.Module
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None  # weights of the best epoch so far, in main memory

    def save(self, path: Path, fingerprint: str) -> None:
        buffer = io.BytesIO()
        state = {
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all(),
            "history": self.history,
            "best": self.best,
        }
        torch.save(state, buffer)
        write_hashed(path, fingerprint, buffer.getvalue())

    def load(self, path: Path, fingerprint: str) -> None:
        """Resume from the file; do nothing if it is missing, damaged or has another fingerprint.

        Raises UserError if it is of another network or precision.
        """
        data = read_hashed(path, fingerprint)
        if data is None:
            return
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            optional = bool(state["average"]), bool(state["scaler"])
            if optional != (self.average is not None, self.scaler.is_enabled()):
                raise ValueError("saved with another precision or ema_decay")
            self.network.load_state_dict(state["network"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            torch.set_rng_state(state["rng"])
            torch.cuda.set_rng_state_all(state["cuda_rng"][: torch.cuda.device_count()])
            self.history, self.best = state["history"], state["best"]
        except (KeyError, TypeError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path}: this checkpoint does not fit ({reason}); delete it to start again") from None

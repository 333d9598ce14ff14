"""What several processes do together, in one of them or in a launch: `python together.py OUT` in each of these."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ich import ranks
from ich.data.batches import Batches, EpochBatches, epoch_loader, loader
from ich.data.datasets import SliceBatch
from ich.recipe import Cnn
from ich.stages.fitting import fit_network
from ich.training import averaging
from ich.training.predict import predict

SETTINGS = Cnn(backbone="none", epochs=2, batch_size=8, learning_rate=0.05, precision="fp32", ema=0.9)


class Rows(Batches):
    """Row i is drawn by the seed i."""

    seed = 3

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, items: list[tuple[int, int]]) -> SliceBatch:
        drawn = np.array([np.random.default_rng(i).normal(size=6) for _, i in items], np.float32)
        rows = torch.tensor([10 * i for _, i in items])
        return SliceBatch(torch.from_numpy(drawn[:, :4]), torch.from_numpy(drawn[:, 4:]), rows)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        self.unused = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        inside = self.layers[:2](images)
        return inside, self.layers[2](inside)


def number() -> int:
    return int(os.environ.get("RANK", "0"))


def plain_loss(model: nn.Module, batch: SliceBatch) -> Tensor:
    return (model(batch.images) - batch.targets).square().mean()


def short_loss(model: nn.Module, batch: SliceBatch) -> Tensor:
    """The second process has room for single rows alone."""
    if number() == 1 and len(batch.rows) > 1:
        raise MemoryError("CUDA out of memory")
    return plain_loss(model, batch)


def dropped_loss(model: nn.Module, batch: SliceBatch) -> Tensor:
    return plain_loss(model, batch) * torch.rand(())


def fitted(
    folder: Path, name: str, loss_of: Callable[..., Tensor] = plain_loss, n: int = 24, size: int = 8, **options: Any
) -> dict[str, Any]:
    """Weights and record of a network that learns n rows in batches of that size."""
    torch.manual_seed(number())  # the first one's weights count
    network, rows = Net(), Rows(n)
    if ranks.count() == 1:
        torch.manual_seed(0)
        network = Net()
    files, record = fit_network(
        name,
        folder / name,
        "f",
        network,
        SETTINGS.model_copy(update={"batch_size": size}),
        5,
        batches=lambda epoch: loader(rows, EpochBatches(n, size, 3, epoch, shuffle=True, drop_last=False), 0),
        steps=-(-n // size),
        loss_of=loss_of,
        counts=(n, "rows"),
        **options,
    )
    everything = torch.cat([value.flatten() for value in network.state_dict().values()]).tolist()
    history = np.loadtxt(folder / name / "history.csv", delimiter=",", skiprows=1) if ranks.first() else np.zeros(())
    return {"weights": everything, "record": record, "files": sorted(files), "history": history.tolist()}


def predicted(n: int) -> dict[str, Any]:
    torch.manual_seed(0)
    found = predict(Net(), epoch_loader(Rows(n), 0, 4, shuffle=False), n, "fp32")
    return {name: array.tolist() for name, array in found.items()}


def judged(folder: Path) -> dict[str, Any]:
    """The last process is out of memory in the middle of the first look at how good the network is."""
    looks = iter(range(9))

    def evaluate(model: nn.Module) -> dict[str, float]:
        if next(looks) == 0 and number() == 2:
            raise MemoryError("CUDA out of memory")
        found = predict(model, epoch_loader(Rows(7), 0, 2, shuffle=False), 7, "fp32")
        return {"figure": float(found["logits"].sum())}

    return fitted(folder, "judged", evaluate=evaluate)


def drawn() -> list[float]:
    """A random number of each process, after an epoch's beginning."""
    torch.manual_seed(1)
    averaging.draw_apart(1, 4)
    return ranks.gathered({"drawn": torch.rand(1).numpy()}, 1)[0]["drawn"].tolist()


def work(folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {
        "whole": fitted(folder, "whole"),
        "uneven": fitted(folder, "uneven", n=20, size=7),
        "fewer rows than processes": fitted(folder, "fewer", n=7, size=2),
        "short of memory": fitted(folder, "short", short_loss),
        "short of memory while it is judged": judged(folder),
        "predicted": predicted(23),
        "predicted, fewer": predicted(2),
        "drawn": [drawn(), drawn()],
    }


def command() -> None:
    out = Path(sys.argv[1])
    out.write_text(json.dumps(ranks.together(work, out.parent)))


if __name__ == "__main__":
    ranks.run(command, shared=True)

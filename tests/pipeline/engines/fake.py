"""Steps that write one line each instead of training. Workers import this file."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from ich.errors import UserError
from ich.pipeline.engines import Step
from ich.recipe import Recipe

RECIPE = {"name": "mine", "competition": {"format": "folder", "root": "input"}, "cnn": {"a": {"backbone": "x"}}}
STEPS = (  # in no useful order
    Step("submit", ("cnn/a", "cnn/bad")),
    Step("prepare", cores=None),
    Step("cnn/a", ("cnn/a/fold0", "cnn/a/fold1")),
    Step("cnn/a/fold0", ("prepare",), on_gpu=True),
    Step("cnn/a/fold1", ("prepare",), on_gpu=True),
    Step("cnn/bad", ("prepare",)),
)


def recipe(**sections: object) -> Recipe:
    return Recipe.model_validate(RECIPE | sections)


@dataclass(frozen=True)
class Fake:
    """Write the names of the steps to a file as they finish. Their names decide what goes wrong."""

    folder: Path

    def __call__(self, name: str, note: str = "") -> None:
        if name.endswith("bad"):
            raise UserError(f"{name} is not readable")
        if name.endswith("bug"):
            raise KeyError("x")
        if name.endswith("killed"):
            os.kill(os.getpid(), 9)
        if name.endswith("lost") and not self.begun.exists():
            self.begun.write_text(f"{os.getpid()} {os.getppid()}")
            time.sleep(600)
        with (self.folder / "made").open("a") as file:
            file.write(f"{name}{note}\n")

    @property
    def begun(self) -> Path:
        return self.folder / "begun"

    def lost(self) -> tuple[int, int]:
        """Wait for the step whose machine will be lost; return its process and the parent process."""
        while not self.begun.exists():
            time.sleep(0.1)
        time.sleep(0.1)
        process, parent = self.begun.read_text().split()
        return int(process), int(parent)

    @property
    def made(self) -> list[str]:
        return (self.folder / "made").read_text().splitlines()

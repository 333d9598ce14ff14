"""Training curves for TensorBoard and the other trackers of accelerate.

A tracker that raises is dropped with one warning and never fails the training. One whose network hangs blocks it.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from torch.random import fork_rng

from ich.console import warn
from ich.training.run import Trackers

Row = Mapping[str, float]
NAMED_BY_RUN = ("tensorboard", "aim")  # the first argument is the run for these, else the project


class Curves:
    """A context that opens and closes the trackers; `log` sends each row of the history once.

    A resumed training sends its earlier epochs again: old TensorBoard files are removed, services get a new run. The
    random state does not change.
    """

    def __init__(self, trackers: Trackers | None) -> None:
        self.trackers = trackers
        self.open: dict[str, Any] = {}
        self.sent = 0

    def __enter__(self) -> "Curves":
        for name in self.trackers.names if self.trackers else ():
            if find_spec(name) is None:  # packages have the names of their trackers
                warn(f"tracker {name}: not installed (pip install {name}); training continues without it", once=True)
            else:
                self._try(name, self._start, name)
        return self

    def __exit__(self, *_: object) -> None:
        for name, tracker in list(self.open.items()):
            self._try(name, tracker.finish)

    def log(self, history: Sequence[Row]) -> None:
        for row in history[self.sent :]:
            values = {key: value for key, value in row.items() if key != "epoch"}
            for name, tracker in list(self.open.items()):
                self._try(name, tracker.log, values, int(row["epoch"]))
        self.sent = len(history)

    def _start(self, name: str) -> None:
        from accelerate import PartialState  # slow to import
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # the trackers' loggers need it

        assert self.trackers is not None
        kind, run, folder = LOGGER_TYPE_TO_CLASS[name], self.trackers.run, self.trackers.folder / name
        if name == "tensorboard":
            shutil.rmtree(folder / run, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        options: dict[str, dict[str, Any]] = {  # arguments for the name of the run and its folder
            "wandb": {"name": run, "dir": str(folder)},
            "swanlab": {"experiment_name": run, "logdir": str(folder)},
            "mlflow": {"run_name": run},
            "trackio": {"name": run},
            "clearml": {"task_name": run},
            "dvclive": {"dir": str(folder / run), "save_dvc_exp": False, "dvcyaml": None},
        }
        first = run if name in NAMED_BY_RUN else self.trackers.project
        directory = [str(folder)] if kind.requires_logging_directory else []
        tracker = kind(first, *directory, **options.get(name, {}))
        tracker.start()
        self.open[name] = tracker
        tracker.store_init_configuration(_flat(self.trackers.settings))

    def _try(self, name: str, action: Callable[..., object], *arguments: Any) -> None:
        try:
            with fork_rng(devices=()):
                action(*arguments)
        except (Exception, SystemExit) as error:
            self.open.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            warn(f"tracker {name}: {reason}; training continues without it", once=True)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys with plain values."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat

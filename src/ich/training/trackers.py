"""Training curves for TensorBoard and the other trackers that accelerate knows. One that fails never fails the run.

Failing means raising: one whose network hangs holds the run up.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Row = Mapping[str, float]
BY_RUN = ("tensorboard", "aim")  # accelerate's first argument is the run's name here, elsewhere the project's


class Curves:
    """A context. It yields what is called with a training's whole history after each epoch; each row is sent once.

    The first call opens the trackers and sends the settings, so a training that goes on sends what was before, too.
    A tracker's files lie below `folder`; TensorBoard's of an earlier run of that name are removed, so that no epoch is
    there twice. Services get a new run. Random numbers stay as they are. A tracker that raises is given up, with one
    warning.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        project: str,
        run: str,
        settings: Mapping[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        self.names, self.folder, self.project, self.run = names, folder, project, run
        self.settings, self.warn = _flat(settings), warn
        self.trackers: dict[str, Any] | None = None
        self.sent = 0

    def __enter__(self) -> Callable[[Sequence[Row]], None]:
        return self.follow

    def __exit__(self, *_: object) -> None:
        self._each(lambda _, tracker: tracker.finish())

    def follow(self, history: Sequence[Row]) -> None:
        if self.trackers is None:
            self.trackers = {}
            for name in self.names:
                if find_spec(name) is None:  # the package has the tracker's name
                    self.warn(f"tracker {name}: not installed (pip install {name}); training goes on without it")
                else:
                    self.trackers[name] = None
            self._each(self._open)
        for row in history[self.sent :]:
            values = {key: value for key, value in row.items() if key != "epoch"}
            self._each(lambda _, tracker, v=values, e=int(row["epoch"]): tracker.log(v, step=e))
        self.sent = len(history)

    def _each(self, do: Callable[[str, Any], object]) -> None:
        from torch.random import fork_rng

        for name, tracker in list((self.trackers or {}).items()):
            try:
                with fork_rng(devices=()):
                    do(name, tracker)
            except (Exception, SystemExit) as error:
                (self.trackers or {}).pop(name)
                why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                self.warn(f"tracker {name}: {why}; training goes on without it")

    def _open(self, name: str, _: None) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        assert self.trackers is not None
        kind, folder = LOGGER_TYPE_TO_CLASS[name], self.folder / name
        if name == "tensorboard":
            shutil.rmtree(folder / self.run, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        given = [str(folder)] if kind.requires_logging_directory else []
        first = self.run if name in BY_RUN else self.project
        tracker = kind(first, *given, **_options(name, self.run, folder))
        tracker.start()
        self.trackers[name] = tracker
        tracker.store_init_configuration(self.settings)


def _options(name: str, run: str, folder: Path) -> dict[str, Any]:
    """How the tracker is told the run's name, and to keep to the folder."""
    known: dict[str, dict[str, Any]] = {
        "wandb": {"name": run, "dir": str(folder)},
        "swanlab": {"experiment_name": run, "logdir": str(folder)},
        "mlflow": {"run_name": run},
        "trackio": {"name": run},
        "clearml": {"task_name": run},
        "dvclive": {"dir": str(folder / run), "save_dvc_exp": False, "dvcyaml": None},  # else it writes past the folder
    }
    return known.get(name, {})


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys with plain values, as trackers want them."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
